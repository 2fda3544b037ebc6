//! **What**: `restore`: a data folder from a backup.
//!
//! ```text
//! manifest -> every file: SHA-256, batches in order -> DATA.restoring: identity, metadata, segments -> rename to DATA
//! ```
//!
//! **Invariants**: nothing is written before all of the backup was verified. Batches go into segments as they are: offsets,
//! epochs, lineages and keys are what they were. Ids that are given later are far above all that the backup knows, so that
//! no producer, stream or lineage of the old cluster is met again. The folder has its name only when it is whole on disk.
//!
//! **Never**: a data folder that has something in it.
//!
//! **See**: `felix_protocol::backup` for the format, `felix_control::command::RestoredStream`.

use super::args::RestoreArgs;
use super::{CLEAN, DAMAGE, now};
use crate::data_folder::DataFolder;
use crate::offline_disk::{Access, OfflineDisk};
use crate::tools::folder::ToolError;
use felix_control::authorise::Principal;
use felix_control::command::{Internal, RestoredStream};
use felix_control::node::{ControlNode, Identity, NodeSettings, ProposeError};
use felix_control::state::Applied;
use felix_protocol::backup::{
    BATCH_BYTES_MAX, BatchWalk, Digest, MANIFEST, MANIFEST_BYTES_MAX, Manifest, ShardFile, StreamBackup,
};
use felix_protocol::batch_view::BatchView;
use felix_protocol::ids::{ShardId, StreamId};
use felix_protocol::metadata::{Command, Durability};
use felix_protocol::position::{Epoch, Lineage};
use felix_wal::chunk_builder::{BuildError, ChunkBuilder};
use felix_wal::disk::Disk;
use felix_wal::format::header::Region;
use felix_wal::log::{Ended, LogSettings, Maker, MetaChange, ShardLog};
use felix_wal::log_open::{Opening, ShardSpec};
use felix_wal::queue::{DiskQueue, Slot};
use felix_wal::repair::LOST_OFFSETS;
use ring::digest::{Context, SHA256, digest};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const PIECE_BYTES: usize = 1 << 20;
/// Lineages that the old cluster may have given since the backup.
const LINEAGES_BEYOND: u32 = 1 << 16;
/// Ids begin two of these above the greatest that the backup knows: the old cluster gives no such number of them.
const IDS_SHIFT: u32 = 32;

/// Why nothing was restored.
enum Failure {
    /// The backup is not what its manifest says.
    Backup(String),
    /// Something cannot be read or written, or was refused.
    Tool(ToolError),
}

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Failure {
        Failure::Tool(error)
    }
}

fn refused(why: impl Display) -> Failure {
    Failure::Tool(ToolError::Refused(why.to_string()))
}

fn damaged<T>(path: &Path, why: impl Display) -> Result<T, Failure> {
    Err(Failure::Backup(format!("{}: {why}; nothing was restored", path.display())))
}

fn cannot(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| refused(format_args!("cannot {what} {}: {error}", path.display()))
}

/// Makes a data folder from a backup.
pub fn run(args: &RestoreArgs) -> Result<u8, ToolError> {
    match restore(args) {
        Ok(()) => Ok(CLEAN),
        Err(Failure::Tool(error)) => Err(error),
        Err(Failure::Backup(why)) => {
            eprintln!("felix-broker restore: {why}");
            Ok(DAMAGE)
        }
    }
}

fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let manifest = read_manifest(&args.backup)?;
    check_streams(&manifest, args)?;
    let mut greatest = 0;
    for (file, stream) in files(&manifest) {
        greatest = greatest.max(file.shard.0).max(stream.0);
        walk(&args.backup, file, stream, |batch| {
            // What was checked whole; the id is that of a producer, which must not be met again either.
            let producer = BatchView::parse(batch).map_or(0, |view| view.body.producer.0);
            greatest = greatest.max(producer);
            Ok(())
        })?;
    }
    let place = Place::make(&args.data)?;
    let region = Region::new(&manifest.region)
        .ok_or_else(|| refused(format_args!("region {:?} cannot be written into file headers", manifest.region)))?;
    let folder = |error| refused(format_args!("the data folder cannot be made: {error}"));
    let mut data = DataFolder::make(&place.temporary, manifest.cluster, region).map_err(folder)?;
    let maker = Maker { identity: *data.identity(), session: data.session() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| refused(format_args!("no runtime: {error}")))?;
    runtime.block_on(restore_metadata(&data, &manifest, greatest, args.in_clear))?;
    data.finish().map_err(folder)?;
    let mut segments = Segments::new(data.path(), maker);
    for stream in &manifest.streams {
        for file in &stream.files {
            let spec = ShardSpec {
                stream: stream.info.id,
                shard: file.shard,
                lineage: file.lineage,
                durability: stream.info.spec.durability,
            };
            segments.shard(&args.backup, file, spec)?;
        }
        println!("{}: {} shard(s)", stream.info.name, stream.shards.len());
    }
    drop(data);
    place.name()?;
    let offsets: u64 = files(&manifest).map(|(file, _)| file.end.0 - file.log_start.0).sum();
    println!("restored {} stream(s), {offsets} offsets to {}", manifest.streams.len(), args.data.display());
    Ok(())
}

fn files(manifest: &Manifest) -> impl Iterator<Item = (&ShardFile, StreamId)> {
    manifest.streams.iter().flat_map(|stream| stream.files.iter().map(|file| (file, stream.info.id)))
}

fn sha256(bytes: &[u8]) -> Digest {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn read_manifest(backup: &Path) -> Result<Manifest, Failure> {
    let path = backup.join(MANIFEST);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return damaged(backup, "it has no manifest: it is no backup, or one that was interrupted");
        }
        opened => opened.map_err(cannot("read", &path))?,
    };
    let mut text = Vec::new();
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut text).map_err(cannot("read", &path))?;
    Manifest::parse(&text, sha256).or_else(|error| damaged(&path, error))
}

/// What this build cannot restore as it was.
fn check_streams(manifest: &Manifest, args: &RestoreArgs) -> Result<(), Failure> {
    for StreamBackup { info, shards, .. } in &manifest.streams {
        if info.spec.encrypt && !args.in_clear {
            return Err(refused(format_args!(
                "stream {} was encrypted at rest, and a new data folder has no key for it; restore it with --in-clear, \
                 as a stream without encryption",
                info.name
            )));
        }
        let first = shards.first().map_or(ShardId(0), |it| it.shard);
        let lineage = shards.first().map_or(Lineage(0), |it| it.lineage);
        let in_order = (first.0..).zip(shards).all(|(id, it)| it.shard.0 == id && it.lineage == lineage);
        if !in_order {
            return Err(refused(format_args!(
                "stream {}: its shards are not in one row, or not of one lineage",
                info.name
            )));
        }
    }
    Ok(())
}

/// Reads the file of a shard, batch by batch, and checks it to the end. What `each` refuses ends it.
fn walk(
    backup: &Path,
    expected: &ShardFile,
    stream: StreamId,
    mut each: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let path = backup.join(ShardFile::path(expected.shard));
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return damaged(&path, "it is missing"),
        opened => opened.map_err(cannot("read", &path))?,
    };
    let mut hash = Context::new(&SHA256);
    let mut walk = BatchWalk::new(expected);
    let mut held = Vec::with_capacity(BATCH_BYTES_MAX + PIECE_BYTES);
    let mut bytes = 0;
    loop {
        let before = held.len();
        let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut held).map_err(cannot("read", &path))?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        hash.update(&held[before..]);
        let mut at = 0;
        while let Some(batch) = walk.next(&held[at..]).or_else(|error| damaged(&path, error))? {
            at += batch.len();
            if !BatchView::parse(batch).is_ok_and(|view| view.header.stream == stream) {
                return damaged(&path, "a batch is of another stream");
            }
            each(batch)?;
        }
        held.drain(..at);
    }
    if !held.is_empty() || bytes != expected.bytes || walk.batches != expected.batches {
        let (batches, all) = (walk.batches, expected.bytes);
        return damaged(
            &path,
            format_args!("{bytes} bytes with {batches} batches, expected {all} with {}", expected.batches),
        );
    }
    match hash.finish().as_ref() == expected.sha256 {
        true => Ok(()),
        false => damaged(&path, "its SHA-256 is another than the manifest says"),
    }
}

/// Where the data folder is made, and where it goes.
struct Place {
    temporary: PathBuf,
    data: PathBuf,
}

impl Place {
    fn make(data: &Path) -> Result<Place, Failure> {
        match fs::read_dir(data) {
            Ok(mut found) => {
                if found.next().is_some() {
                    return Err(refused(format_args!("{} is not empty; give a new data folder", data.display())));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(cannot("use", data)(error)),
        }
        let Some(name) = data.file_name() else {
            return Err(refused(format_args!("{} has no name; give a new data folder", data.display())));
        };
        let mut name = name.to_os_string();
        name.push(".restoring");
        let temporary = data.with_file_name(name);
        if temporary.exists() {
            let path = temporary.display();
            return Err(refused(format_args!(
                "{path} is left of a restore that was interrupted; remove it and try again"
            )));
        }
        Ok(Place { temporary, data: data.to_path_buf() })
    }

    /// All files were synced when they were written; now the name, which an empty folder may have.
    fn name(self) -> Result<(), Failure> {
        fs::rename(&self.temporary, &self.data).map_err(cannot("put in place", &self.data))?;
        let above = self.data.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(above).and_then(|it| it.sync_all()).map_err(cannot("sync", above))
    }
}

async fn restore_metadata(
    data: &DataFolder,
    manifest: &Manifest,
    greatest: u64,
    in_clear: bool,
) -> Result<(), Failure> {
    let failed = |error: &dyn Display| refused(format_args!("the metadata cannot be made: {error}"));
    let identity = Identity { cluster: data.identity().cluster, node: data.identity().node };
    let settings = NodeSettings { durable_streams: true, ..NodeSettings::default() };
    let node = ControlNode::open(&data.control(), identity, settings).await.map_err(|error| failed(&error))?;
    let done = |what: &dyn Display, result: Result<Applied, ProposeError>| match result.map(|it| it.outcome) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(refused)) => Err(failed(&format_args!("{what}: {}", refused.detail))),
        Err(error) => Err(failed(&format_args!("{what}: {error}"))),
    };
    let lineages = manifest.streams.iter().flat_map(|it| &it.shards).map(|it| it.lineage.0);
    let lineage = Lineage(lineages.max().unwrap_or(0).saturating_add(LINEAGES_BEYOND));
    let ids = ((greatest >> IDS_SHIFT) + 2).checked_shl(IDS_SHIFT).filter(|ids| *ids > greatest);
    let ids = ids.ok_or_else(|| refused("the backup has ids at the end of their range"))?;
    let admin = Principal::system();
    for tenant in &manifest.tenants {
        let command = Command::CreateTenant { tenant: tenant.name.clone(), limits: tenant.limits };
        done(&tenant.name, node.propose(now(), &admin, 0, command).await)?;
    }
    for name in &manifest.namespaces {
        let command = Command::CreateNamespace { name: name.clone() };
        done(name, node.propose(now(), &admin, 0, command).await)?;
    }
    for StreamBackup { info, shards, .. } in &manifest.streams {
        let mut info = info.clone();
        info.spec.encrypt &= !in_clear;
        let Some(first) = shards.first() else { continue };
        // A new generation: what is appended from here on is told from what the old cluster appends.
        let epoch = Epoch(shards.iter().map(|it| it.epoch.0).max().unwrap_or(0).saturating_add(1));
        let name = info.name.clone();
        let restored = RestoredStream { info, shard_first: first.shard, epoch, lineage: first.lineage };
        done(&name, node.propose_internal(now(), Internal::RestoreStream(Box::new(restored))).await)?;
    }
    // Last: the ids of the streams are below.
    done(&"floors", node.propose_internal(now(), Internal::RaiseFloors { ids, lineage }).await)?;
    node.shutdown().await;
    Ok(())
}

/// Writes the segments.
struct Segments {
    disk: OfflineDisk,
    queue: DiskQueue,
    maker: Maker,
    settings: LogSettings,
    builder: ChunkBuilder,
    slot: u32,
}

impl Segments {
    fn new(root: &Path, maker: Maker) -> Segments {
        Segments {
            disk: OfflineDisk::new(root, Access::ReadWrite),
            queue: DiskQueue::new(),
            maker,
            settings: LogSettings::default(),
            builder: ChunkBuilder::new(),
            slot: 0,
        }
    }

    fn next(&mut self) -> felix_wal::disk::DiskDone {
        self.queue.drain().for_each(|request| self.disk.submit(request));
        self.disk.wait().expect("a request is under way")
    }

    fn shard(&mut self, backup: &Path, file: &ShardFile, spec: ShardSpec) -> Result<(), Failure> {
        if spec.durability == Durability::Ephemeral {
            return Ok(());
        }
        self.slot += 1;
        let mut opening = Opening::create(Slot(self.slot), self.maker, spec, &mut self.queue);
        let mut log = loop {
            let done = self.next();
            match opening.handle(done, &mut self.queue) {
                None => {}
                Some(Ok((log, _))) => break log,
                Some(Err(error)) => return Err(refused(format_args!("shard {}: {error}", file.shard))),
            }
        };
        self.builder.begin_restored(log.cursor());
        // Offsets that retention took are left out in front of the first batch, whose chain nobody can check any more; the log
        // begins at 0 and is cut at its start.
        walk(backup, file, spec.stream, |batch| {
            match self.builder.push(batch, false) {
                Err(BuildError::Full) => {
                    self.flush(&mut log)?;
                    self.builder.push(batch, false)
                }
                result => result,
            }
            .or_else(|error| damaged(backup, format_args!("shard {}: {error}", file.shard)))
        })?;
        // What the old broker took after the backup had offsets too: they are not given to other records.
        let end = file.end.checked_add(LOST_OFFSETS);
        self.builder.skip(end.ok_or_else(|| refused(format_args!("shard {}: no offsets are left", file.shard)))?);
        self.flush(&mut log)?;
        if file.log_start > log.log_start() {
            let began = log.set_log_start(file.log_start, now(), &mut self.queue);
            let began = began.map_err(|error| refused(format_args!("shard {}: {error}", file.shard)))?;
            if began {
                self.finish(&mut log)?;
            }
        }
        if log.close_file(&mut self.queue).is_ok_and(|began| began) {
            self.finish(&mut log)?;
        }
        Ok(())
    }

    fn flush(&mut self, log: &mut ShardLog) -> Result<(), Failure> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let began = log.flush(&mut self.builder, &MetaChange::default(), &self.settings, now(), &mut self.queue);
        began.map_err(|error| refused(format_args!("shard {}: {error}", log.shard())))?;
        self.finish(log)?;
        self.builder.begin_restored(log.cursor());
        Ok(())
    }

    fn finish(&mut self, log: &mut ShardLog) -> Result<(), Failure> {
        loop {
            let done = self.next();
            let Some(event) = log.handle(done, &mut self.queue) else { continue };
            if let Some(buffer) = event.buffer {
                self.builder.reuse(buffer);
            }
            return match event.ended {
                Ended::Done => Ok(()),
                ended => Err(refused(format_args!("shard {}: {ended:?}", log.shard()))),
            };
        }
    }
}
