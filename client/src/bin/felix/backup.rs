//! **What**: `felix backup`: metadata and records of a running broker in a folder, and the check of such a folder.
//!
//! ```text
//! lists -> per stream: all shards are open, describe
//!       -> per shard: subscribe from earliest up to the high watermark of that moment -> shards/<shard>.batches
//!       -> everything synced -> manifest, under its name only when it is whole
//! ```
//!
//! **Invariants**: batches are written as they were delivered: offsets, lineage, epochs and compressed values untouched,
//! none twice. A folder without a manifest is no backup, so an interrupted one is never taken for a whole one.
//!
//! **Never**: a file of another run in the folder: it must be new or empty. A shard that did not open saved as empty.
//!
//! **See**: `felix_protocol::backup` for the format, `backup/verify.rs`; `felix-broker restore` for the way back.

mod verify;

use crate::cli::Globals;
use crate::failure::{Exit, Failure};
use crate::link::{ask, ask_all, connect};
use crate::output::Out;
use crate::signals::{LOOK_EVERY, Signals};
use crate::text::now;
use clap::{Args, Subcommand};
use felix_client::protocol::backup::{Digest, MANIFEST, Manifest, ShardFile, StreamBackup};
use felix_client::protocol::metadata::{Durability, ShardStatus, StreamInfo, TenantInfo};
use felix_client::protocol::names::{NamespaceName, StreamName};
use felix_client::protocol::position::Offset;
use felix_client::{Client, Command, Item, OnReset, Reply, Shards, Start, SubscribeOptions};
use indicatif::{ProgressBar, ProgressStyle};
use ring::digest::{Context, SHA256, digest};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest silence of a broker that has records to give.
const SILENCE: Duration = Duration::from_secs(60);

/// Options of `backup`.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
What is saved: tenants with their limits, namespaces, streams with all settings,
and the records of durable streams up to the moment at which the backup of each
stream begins. Publishers and subscribers go on meanwhile. Records of ephemeral
streams are not saved, only their settings.

The folder is readable for you alone, and its records are in clear, also those
of streams that the broker encrypts at rest: keep it where secrets are kept.

`felix-broker restore DIR --data NEW` makes a data folder of it, in which every
offset and every key is what it was.

Examples:
  felix backup /backups/2026-11-26
  felix backup /backups/orders --stream acme/shop/orders --stream acme/shop/returns
  felix backup verify /backups/2026-11-26"
)]
pub struct BackupArgs {
    /// What else to do with a backup.
    #[command(subcommand)]
    verb: Option<BackupVerb>,
    /// Folder to write: new, or empty
    #[arg(value_name = "DIR", required = true)]
    dir: Option<PathBuf>,
    /// Only this stream, with its tenant and namespace; may be given more than once
    #[arg(long, value_name = "NAME")]
    stream: Vec<StreamName>,
}

#[derive(Debug, Subcommand)]
enum BackupVerb {
    /// Read every byte of a backup and check it against its manifest; needs no broker
    #[command(
        after_help = "Examples:\n  felix backup verify /backups/2026-11-26\n  felix backup verify /backups/2026-11-26 --json"
    )]
    Verify {
        /// Folder of the backup
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// What a backup holds, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Summary {
    folder: String,
    tenants: usize,
    namespaces: usize,
    streams: usize,
    shards: usize,
    offsets: u64,
    batches: u64,
    bytes: u64,
}

impl Summary {
    fn of(folder: &Path, manifest: &Manifest) -> Summary {
        let files = || manifest.streams.iter().flat_map(|it| &it.files);
        Summary {
            folder: folder.display().to_string(),
            tenants: manifest.tenants.len(),
            namespaces: manifest.namespaces.len(),
            streams: manifest.streams.len(),
            shards: files().count(),
            offsets: files().map(|it| it.end.0 - it.log_start.0).sum(),
            batches: files().map(|it| it.batches).sum(),
            bytes: files().map(|it| it.bytes).sum(),
        }
    }

    fn show(&self, what: &str, out: &mut Out) -> Result<(), Failure> {
        if out.json() {
            return out.value(self);
        }
        let Summary { folder, streams, shards, offsets, bytes, .. } = self;
        out.line(format!("{what} {folder}: {streams} stream(s), {shards} shard(s), {offsets} offsets, {bytes} bytes"))
    }
}

/// Runs `backup`.
pub fn run(globals: &Globals, args: &BackupArgs, out: &mut Out) -> Result<Exit, Failure> {
    if let Some(BackupVerb::Verify { dir }) = &args.verb {
        let manifest = verify::verify(dir, &Bar::new(globals))?;
        Summary::of(dir, &manifest).show("whole:", out)?;
        return Ok(Exit::Success);
    }
    let Some(dir) = &args.dir else { return Err(Failure::usage("give the folder to write")) };
    let signals = Signals::install()?;
    let client = connect(globals)?;
    let folder = Folder::make(dir)?;
    let manifest = Backup { client: &client, signals: &signals, folder: &folder, bar: Bar::new(globals) }.make(args)?;
    folder.finish(&manifest.encode(sha256))?;
    for StreamBackup { info, .. } in &manifest.streams {
        if info.spec.durability == Durability::Ephemeral {
            globals.say(format_args!("{}: ephemeral, its records are not saved", info.name));
        }
        if info.spec.encrypt {
            globals.say(format_args!("{}: encrypted at rest by the broker, but in clear in this folder", info.name));
        }
    }
    Summary::of(dir, &manifest).show("saved to", out)?;
    Ok(Exit::Success)
}

fn sha256(bytes: &[u8]) -> Digest {
    finished(digest(&SHA256, bytes))
}

fn finished(digest: ring::digest::Digest) -> Digest {
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Progress in bytes or offsets on stderr: only for people.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(globals: &Globals) -> Bar {
        let wanted = !globals.quiet && !globals.json && std::io::stderr().is_terminal();
        Bar(wanted.then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {percent}% {msg} eta {eta}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        }))
    }

    fn expect(&self, more: u64) {
        if let Some(bar) = &self.0 {
            bar.inc_length(more);
        }
    }

    fn say(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(what.to_string());
        }
    }

    fn advance(&self, by: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(by);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The folder of a backup that is being made.
struct Folder {
    path: PathBuf,
}

fn failed(what: &str, path: &Path) -> impl Fn(io::Error) -> Failure {
    let what = format!("cannot {what} {}", path.display());
    move |error| {
        Failure::new(Exit::Failed, format!("{what}: {error}; free space or choose another folder, and begin anew"))
    }
}

impl Folder {
    fn make(path: &Path) -> Result<Folder, Failure> {
        let mut builder = DirBuilder::new();
        builder.mode(0o700).recursive(true);
        builder.create(path).map_err(failed("make the folder", path))?;
        if fs::read_dir(path).map_err(failed("read", path))?.next().is_some() {
            let what = if path.join(MANIFEST).exists() { "holds a backup already" } else { "is not empty" };
            return Err(Failure::new(Exit::Exists, format!("{} {what}; give a new folder", path.display())));
        }
        let shards = path.join("shards");
        builder.create(&shards).map_err(failed("make the folder", &shards))?;
        Ok(Folder { path: path.to_path_buf() })
    }

    fn create(path: &Path) -> Result<File, Failure> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed("make", path))
    }

    /// Everything is on disk before the manifest has its name.
    fn finish(&self, manifest: &str) -> Result<(), Failure> {
        let (path, whole) = (self.path.join("manifest.partial"), self.path.join(MANIFEST));
        let mut file = Folder::create(&path)?;
        let written = file.write_all(manifest.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(failed("write", &path))?;
        let sync = |path: &Path| File::open(path).and_then(|it| it.sync_all());
        let named = sync(&self.path.join("shards"))
            .and_then(|()| sync(&self.path))
            .and_then(|()| fs::rename(&path, &whole))
            .and_then(|()| sync(&self.path));
        named.map_err(failed("finish", &whole))
    }
}

struct Backup<'a> {
    client: &'a Client,
    signals: &'a Signals,
    folder: &'a Folder,
    bar: Bar,
}

impl Backup<'_> {
    fn make(&self, args: &BackupArgs) -> Result<Manifest, Failure> {
        let made = now();
        let welcome = self.client.welcome();
        let mut streams = self.streams()?;
        if !args.stream.is_empty() {
            let wanted: BTreeSet<&StreamName> = args.stream.iter().collect();
            if let Some(missing) = wanted.iter().find(|name| !streams.iter().any(|it| it.name == ***name)) {
                let text = format!("there is no stream {missing}; `felix stream list` shows what there is");
                return Err(Failure::new(Exit::NotFound, text));
            }
            streams.retain(|it| wanted.contains(&it.name));
        }
        let of_wanted = |tenant: &str| args.stream.is_empty() || args.stream.iter().any(|it| it.tenant() == tenant);
        let mut tenants = self.tenants()?;
        tenants.retain(|it| of_wanted(&it.name));
        let mut namespaces = Vec::new();
        for tenant in &tenants {
            namespaces.extend(self.namespaces(&tenant.name)?);
        }
        namespaces.retain(|name| args.stream.is_empty() || args.stream.iter().any(|it| it.namespace() == name));
        let mut manifest = Manifest {
            made,
            client: concat!("felix ", env!("CARGO_PKG_VERSION")).to_string(),
            cluster: welcome.cluster,
            node: welcome.node,
            session: welcome.session,
            region: welcome.region,
            tenants,
            namespaces,
            streams: Vec::new(),
        };
        for StreamInfo { name, .. } in streams {
            manifest.streams.push(self.stream(&name)?);
        }
        Ok(manifest)
    }

    fn tenants(&self) -> Result<Vec<TenantInfo>, Failure> {
        ask_all(
            self.client,
            |last: Option<&TenantInfo>| Command::ListTenants { after: last.map(|it| it.name.clone()) },
            |reply| match reply {
                Reply::Tenants { tenants, more } => Some((tenants, more)),
                _ => None,
            },
        )
    }

    fn namespaces(&self, tenant: &str) -> Result<Vec<NamespaceName>, Failure> {
        ask_all(
            self.client,
            |last: Option<&NamespaceName>| Command::ListNamespaces {
                tenant: tenant.to_string(),
                after: last.map(|name| name.namespace().to_string()),
            },
            |reply| match reply {
                Reply::Namespaces { names, more } => Some((names, more)),
                _ => None,
            },
        )
    }

    fn streams(&self) -> Result<Vec<StreamInfo>, Failure> {
        ask_all(
            self.client,
            |last: Option<&StreamInfo>| Command::ListStreams {
                tenant: None,
                namespace: None,
                after: last.map(|info| info.name.clone()),
            },
            |reply| match reply {
                Reply::Streams { streams, more } => Some((streams, more)),
                _ => None,
            },
        )
    }

    fn describe(&self, name: &StreamName) -> Result<(StreamInfo, Vec<ShardStatus>), Failure> {
        match ask(self.client, Command::DescribeStream { name: name.clone() })? {
            Reply::Stream { stream, shards } => Ok((stream, shards)),
            _ => Err(Failure::odd_reply("a description")),
        }
    }

    fn stream(&self, name: &StreamName) -> Result<StreamBackup, Failure> {
        let (mut info, mut shards) = self.describe(name)?;
        let mut files = Vec::new();
        if info.spec.durability != Durability::Ephemeral {
            // A shard that is not open, or will never be, is described as empty, and reports may be old: only whoever
            // subscribes hears of it and of its true end.
            let open = SubscribeOptions { start: Start::Latest, shards: Shards::All, ..Default::default() };
            let subscriber = self.client.subscribe(name, open).map_err(|error| {
                let failure = Failure::from(error);
                let why = failure.message().unwrap_or_default();
                Failure::new(failure.exit(), format!("{name} cannot be saved: {why}"))
            })?;
            (info, shards) = self.describe(name)?;
            for (status, committed) in shards.iter_mut().zip(subscriber.committed()) {
                if status.lineage != committed.lineage {
                    let why = format!("{name} was made anew while it was saved; begin again");
                    return Err(Failure::new(Exit::Failed, why));
                }
                status.high_watermark = status.high_watermark.max(committed.offset);
            }
            drop(subscriber);
            self.bar
                .expect(shards.iter().map(|it| it.high_watermark.0 - it.log_start.0.min(it.high_watermark.0)).sum());
            self.bar.say(&name.to_string());
            for status in &shards {
                files.push(self.shard(name, status)?);
            }
        }
        Ok(StreamBackup { info, shards, files })
    }

    fn shard(&self, name: &StreamName, status: &ShardStatus) -> Result<ShardFile, Failure> {
        let path = self.folder.path.join(ShardFile::path(status.shard));
        let mut file = BufWriter::with_capacity(1 << 20, Folder::create(&path)?);
        let mut hash = Context::new(&SHA256);
        let ShardStatus { shard, lineage, high_watermark: end, .. } = *status;
        let (mut batches, mut bytes) = (0, 0);
        let mut log_start = None;
        if status.log_start < end {
            let shards = Shards::One(status.index.0);
            let options =
                SubscribeOptions { shards, start: Start::Earliest, on_reset: OnReset::Stop, ..Default::default() };
            let mut subscriber = self.client.subscribe(name, options)?;
            let mut next = Offset(0);
            let mut heard = Instant::now();
            while next < end {
                if self.signals.raised() {
                    return Err(Failure::new(Exit::Interrupted, "interrupted: the folder holds no backup"));
                }
                let Some(item) = subscriber.next_item(Some(LOOK_EVERY))? else {
                    if heard.elapsed() > SILENCE {
                        let text =
                            format!("{name}: nothing came for {} s at offset {next}; try again", SILENCE.as_secs());
                        return Err(Failure::new(Exit::Unknown, text));
                    }
                    continue;
                };
                heard = Instant::now();
                let to = item.next_position();
                if to.lineage != lineage || matches!(item, Item::Reset { .. }) {
                    let text = format!("{name} was made anew during the backup; begin again");
                    return Err(Failure::new(Exit::Failed, text));
                }
                if let Item::Records(batch) = &item {
                    log_start.get_or_insert(batch.covered().from);
                    hash.update(batch.bytes());
                    file.write_all(batch.bytes()).map_err(failed("write", &path))?;
                    (batches, bytes) = (batches + 1, bytes + batch.bytes().len() as u64);
                }
                let from = next.max(status.log_start);
                self.bar.advance(to.offset.0.min(end.0).saturating_sub(from.0));
                next = to.offset;
            }
        }
        let file = file.into_inner().map_err(|error| failed("write", &path)(error.into_error()))?;
        file.sync_all().map_err(failed("sync", &path))?;
        let log_start = log_start.unwrap_or(end).min(end);
        Ok(ShardFile { shard, lineage, log_start, end, batches, bytes, sha256: finished(hash.finish()) })
    }
}
