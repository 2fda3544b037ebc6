//! **What**: the manifest of a backup, and the order of batches in it: what `felix backup` writes and `felix-broker restore`
//! reads.
//!
//! ```text
//! DIR/manifest                    written last: a folder without it is no backup
//! DIR/shards/<shard>.batches      batches as they were delivered, one behind the other, nothing between; shard in 16 hex
//!
//! felix-backup 1
//! made 1764125000000000000        ns since 1970
//! client felix 0.1.0
//! cluster 00000000000000000000000000000001
//! node ...                        who was asked, and its start
//! region local
//! tenant 0100..  acme             a Reply::Tenants with one tenant, hex; the name is for people
//! namespace acme/md
//! stream 0300..  acme/md/quotes   a Reply::Stream, hex: settings, shards, lineages, positions of that moment
//! shard 1 3 0 4200 17 81920 <sha-256>     of the stream above: id, lineage, log start, end, batches, bytes of its file
//! end <sha-256>                   of everything before this line
//! ```
//!
//! **Invariants**: text that `parse` takes is what `encode` writes for the same value, byte for byte. Names of files come
//! from numbers, so a manifest leads to no file outside its folder.
//!
//! **Never**: a manifest half read: an unknown line is refused.
//!
//! **See**: `client/src/bin/felix/backup.rs`, `broker/src/tools/restore.rs`.

use crate::batch::StampedHeader;
use crate::batch_view::{BatchError, BatchView};
use crate::codec::{DecodeError, Reader};
use crate::ids::{ClusterId, NodeId, NodeSession, ShardId};
use crate::limits::{BATCH_BODY_BYTES_MAX, STAMPED_HEADER_BYTES, STAMPED_TLV_CRC_BYTES, TLV_BYTES_MAX};
use crate::metadata::{Durability, Reply, ShardStatus, StreamInfo, TenantInfo};
use crate::names::NamespaceName;
use crate::position::{Lineage, Offset, OffsetRange};
use crate::time::Timestamp;
use std::fmt::{self, Write};
use std::str::FromStr;

/// Name of the manifest in the folder of a backup.
pub const MANIFEST: &str = "manifest";
/// Largest manifest that is read: some million shards.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 30;
/// Bytes of the largest batch.
pub const BATCH_BYTES_MAX: usize = STAMPED_HEADER_BYTES + BATCH_BODY_BYTES_MAX + STAMPED_TLV_CRC_BYTES + TLV_BYTES_MAX;
const FIRST_LINE: &str = "felix-backup 1";

/// SHA-256 of something.
pub type Digest = [u8; 32];

/// What is saved of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardFile {
    /// Its log.
    pub shard: ShardId,
    /// Incarnation of the data.
    pub lineage: Lineage,
    /// First offset that is saved.
    pub log_start: Offset,
    /// One past the last.
    pub end: Offset,
    /// Batches in the file.
    pub batches: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: Digest,
}

impl ShardFile {
    /// Path of its file below the folder of the backup.
    pub fn path(shard: ShardId) -> String {
        format!("shards/{:016x}.batches", shard.0)
    }
}

/// A stream in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamBackup {
    /// Id, name and settings.
    pub info: StreamInfo,
    /// Its shards when the backup began.
    pub shards: Vec<ShardStatus>,
    /// One per shard, in order; none for an ephemeral stream, whose records end with its broker anyway.
    pub files: Vec<ShardFile>,
}

/// All of a backup but the batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// When it was begun, clock of the client.
    pub made: Timestamp,
    /// Program and version that made it.
    pub client: String,
    /// Cluster.
    pub cluster: ClusterId,
    /// Node that was asked.
    pub node: NodeId,
    /// Start of that node.
    pub session: NodeSession,
    /// Region of the cluster.
    pub region: String,
    /// Tenants with their limits.
    pub tenants: Vec<TenantInfo>,
    /// Namespaces.
    pub namespaces: Vec<NamespaceName>,
    /// Streams.
    pub streams: Vec<StreamBackup>,
}

/// Why a manifest is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// Not UTF-8, or too large.
    NotText,
    /// The first line is another: no backup, or of a newer version.
    FirstLine(String),
    /// The last line is missing: the file was cut.
    NoEnd,
    /// The digest at the end is another than that of the text.
    Digest,
    /// A line is not what it should be; counted from 1.
    Line {
        /// Which.
        line: usize,
        /// What was expected there.
        expected: &'static str,
    },
    /// The document of a line cannot be read.
    Document {
        /// Which line.
        line: usize,
        /// Why.
        error: DecodeError,
    },
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ManifestError::NotText => f.write_str("the manifest is no text"),
            ManifestError::FirstLine(found) => {
                write!(
                    f,
                    "the manifest begins with {found:?}, expected {FIRST_LINE:?}: no backup, or of a newer version"
                )
            }
            ManifestError::NoEnd => f.write_str("the manifest has no end: it was cut"),
            ManifestError::Digest => f.write_str("the manifest was changed or damaged: its digest is another"),
            ManifestError::Line { line, expected } => write!(f, "line {line} of the manifest: expected {expected}"),
            ManifestError::Document { line, error } => write!(f, "line {line} of the manifest: {error}"),
        }
    }
}

impl std::error::Error for ManifestError {}

fn hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |it: u8| match it {
        b'0'..=b'9' => Some(it - b'0'),
        b'a'..=b'f' => Some(it - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

fn document(reply: &Reply) -> String {
    let (mut bytes, mut out) = (Vec::new(), String::new());
    reply.encode(&mut bytes);
    hex(&mut out, &bytes);
    out
}

impl Manifest {
    /// The text. `sha256` computes the digest of its own lines.
    pub fn encode(&self, sha256: impl Fn(&[u8]) -> Digest) -> String {
        let mut out = String::new();
        let Manifest { made, client, cluster, node, session, region, tenants, namespaces, streams } = self;
        let _ = writeln!(out, "{FIRST_LINE}\nmade {}\nclient {client}\ncluster {:032x}", made.0, cluster.0);
        let _ = writeln!(out, "node {:032x} {}\nregion {region}", node.0, session.0);
        for tenant in tenants {
            let reply = Reply::Tenants { tenants: vec![tenant.clone()], more: false };
            let _ = writeln!(out, "tenant {} {}", document(&reply), tenant.name);
        }
        for name in namespaces {
            let _ = writeln!(out, "namespace {name}");
        }
        for StreamBackup { info, shards, files } in streams {
            let reply = Reply::Stream { stream: info.clone(), shards: shards.clone() };
            let _ = writeln!(out, "stream {} {}", document(&reply), info.name);
            for file in files {
                let ShardFile { shard, lineage, log_start, end, batches, bytes, sha256 } = file;
                let (shard, lineage, start, end) = (shard.0, lineage.0, log_start.0, end.0);
                let _ = write!(out, "shard {shard} {lineage} {start} {end} {batches} {bytes} ");
                hex(&mut out, sha256);
                out.push('\n');
            }
        }
        let digest = sha256(out.as_bytes());
        out.push_str("end ");
        hex(&mut out, &digest);
        out.push('\n');
        out
    }

    /// Reads the text; its digest is checked before anything else is believed.
    pub fn parse(bytes: &[u8], sha256: impl Fn(&[u8]) -> Digest) -> Result<Manifest, ManifestError> {
        let text = str::from_utf8(bytes).map_err(|_| ManifestError::NotText)?;
        let first = text.lines().next().unwrap_or_default();
        if first != FIRST_LINE {
            return Err(ManifestError::FirstLine(first.chars().take(80).collect()));
        }
        let at = text.rfind("\nend ").ok_or(ManifestError::NoEnd)? + 1;
        let (body, end) = text.split_at(at);
        let found = end.strip_prefix("end ").and_then(|it| it.strip_suffix('\n')).ok_or(ManifestError::NoEnd)?;
        if unhex(found).as_deref() != Some(sha256(body.as_bytes()).as_slice()) {
            return Err(ManifestError::Digest);
        }
        let manifest = Parser { lines: body.lines(), line: 0 }.manifest()?;
        // One text for one value: a line that says more than is understood does not come back.
        match manifest.encode(&sha256) == text {
            true => Ok(manifest),
            false => Err(ManifestError::Line { line: 1, expected: "lines as this version writes them" }),
        }
    }
}

struct Parser<'a> {
    lines: std::str::Lines<'a>,
    line: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let line = self.lines.next()?;
        self.line += 1;
        Some(line.split_once(' ').unwrap_or((line, "")))
    }

    fn bad<T>(&self, expected: &'static str) -> Result<T, ManifestError> {
        Err(ManifestError::Line { line: self.line, expected })
    }

    fn field(&mut self, name: &'static str) -> Result<&'a str, ManifestError> {
        match self.next() {
            Some((found, value)) if found == name => Ok(value),
            _ => self.bad(name),
        }
    }

    fn number<T: FromStr>(&self, text: Option<&str>, expected: &'static str) -> Result<T, ManifestError> {
        text.and_then(|text| text.parse().ok()).map_or_else(|| self.bad(expected), Ok)
    }

    fn id(&self, text: &str, expected: &'static str) -> Result<u128, ManifestError> {
        u128::from_str_radix(text, 16).or_else(|_| self.bad(expected))
    }

    fn reply(&self, text: &str) -> Result<Reply, ManifestError> {
        let text = text.split_once(' ').map_or(text, |(hex, _)| hex);
        let Some(bytes) = unhex(text) else { return self.bad("hex") };
        let mut reader = Reader::new(&bytes);
        let reply = Reply::decode(&mut reader).and_then(|reply| reader.finish().map(|()| reply));
        reply.map_err(|error| ManifestError::Document { line: self.line, error })
    }

    fn manifest(mut self) -> Result<Manifest, ManifestError> {
        self.next();
        let made = self.field("made")?;
        let made = Timestamp(self.number(Some(made), "a time")?);
        let client = self.field("client")?.to_string();
        let cluster = self.field("cluster")?;
        let cluster = ClusterId(self.id(cluster, "a cluster id")?);
        let node = self.field("node")?;
        let (node, session) = node.split_once(' ').unwrap_or((node, ""));
        let (node, session) =
            (NodeId(self.id(node, "a node id")?), NodeSession(self.number(Some(session), "a start")?));
        let region = self.field("region")?.to_string();
        let (tenants, namespaces, streams) = Default::default();
        let mut manifest = Manifest { made, client, cluster, node, session, region, tenants, namespaces, streams };
        while let Some((kind, value)) = self.next() {
            self.item(&mut manifest, kind, value)?;
        }
        for stream in &manifest.streams {
            let expected = match stream.info.spec.durability {
                Durability::Ephemeral => 0,
                _ => stream.shards.len(),
            };
            if stream.files.len() != expected || stream.shards.len() != stream.info.spec.shards as usize {
                return self.bad("a shard line per shard of each durable stream");
            }
        }
        Ok(manifest)
    }

    fn item(&self, manifest: &mut Manifest, kind: &str, value: &str) -> Result<(), ManifestError> {
        match kind {
            "tenant" => match self.reply(value)? {
                Reply::Tenants { mut tenants, .. } if tenants.len() == 1 => manifest.tenants.append(&mut tenants),
                _ => return self.bad("one tenant"),
            },
            "namespace" => match NamespaceName::parse(value) {
                Ok(name) => manifest.namespaces.push(name),
                Err(_) => return self.bad("a namespace"),
            },
            "stream" => match self.reply(value)? {
                Reply::Stream { stream, shards } => {
                    manifest.streams.push(StreamBackup { info: stream, shards, files: Vec::new() });
                }
                _ => return self.bad("a stream"),
            },
            "shard" => {
                let Some(stream) = manifest.streams.last_mut() else { return self.bad("a stream first") };
                let file = self.file(value)?;
                let status = stream.shards.get(stream.files.len());
                if !status.is_some_and(|it| it.shard == file.shard && it.lineage == file.lineage) {
                    return self.bad("the next shard of the stream above");
                }
                stream.files.push(file);
            }
            _ => return self.bad("tenant, namespace, stream or shard"),
        }
        Ok(())
    }

    fn file(&self, value: &str) -> Result<ShardFile, ManifestError> {
        let mut words = value.split(' ');
        let mut number = || self.number::<u64>(words.next(), "a number");
        let (shard, lineage) = (ShardId(number()?), number()?);
        let Ok(lineage) = u32::try_from(lineage).map(Lineage) else { return self.bad("a lineage") };
        let (log_start, end, batches, bytes) = (Offset(number()?), Offset(number()?), number()?, number()?);
        let digest = words.next().and_then(unhex).and_then(|it| Digest::try_from(it).ok());
        let (Some(sha256), true) = (digest, log_start <= end) else { return self.bad("a range and a digest") };
        Ok(ShardFile { shard, lineage, log_start, end, batches, bytes, sha256 })
    }
}

/// Why bytes are not the batches of a shard in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// A batch is damaged, or longer than a batch may be.
    Batch(BatchError),
    /// Of another shard or lineage.
    Elsewhere,
    /// It begins before the batch before it ended, or lies outside of what is saved.
    Order(OffsetRange),
}

impl fmt::Display for WalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalkError::Batch(error) => write!(f, "a batch is damaged: {error}"),
            WalkError::Elsewhere => f.write_str("a batch is of another shard or lineage"),
            WalkError::Order(range) => write!(f, "a batch of offsets {}..{} is out of order", range.from, range.to),
        }
    }
}

impl std::error::Error for WalkError {}

/// Walks over the batches of a shard, in pieces of any size.
#[derive(Debug)]
pub struct BatchWalk {
    shard: ShardId,
    lineage: Lineage,
    next: Offset,
    end: Offset,
    /// Batches seen.
    pub batches: u64,
}

impl BatchWalk {
    /// For what a manifest says of a shard.
    pub fn new(file: &ShardFile) -> BatchWalk {
        BatchWalk { shard: file.shard, lineage: file.lineage, next: Offset(0), end: file.end, batches: 0 }
    }

    /// The bytes of the first batch in `bytes`, checked. None: more are needed.
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, WalkError> {
        if bytes.len() < STAMPED_HEADER_BYTES {
            return Ok(None);
        }
        let header = StampedHeader::decode(bytes).map_err(WalkError::Batch)?;
        let size = header.batch_bytes as usize;
        if size > BATCH_BYTES_MAX {
            return Err(WalkError::Batch(BatchError::Truncated));
        }
        let Some(batch) = bytes.get(..size) else { return Ok(None) };
        BatchView::parse(batch).and_then(|view| view.check()).map_err(WalkError::Batch)?;
        if header.shard != self.shard || header.lineage != self.lineage {
            return Err(WalkError::Elsewhere);
        }
        let range = header.range();
        if range.from < self.next || range.to > self.end || range.from >= range.to {
            return Err(WalkError::Order(range));
        }
        self.next = range.to;
        self.batches += 1;
        Ok(Some(batch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CoreId, ShardIndex, StreamId};
    use crate::metadata::{StreamSpec, TenantLimits};
    use crate::names::StreamName;
    use crate::position::Epoch;

    /// Any function of all bytes will do here.
    fn sum(bytes: &[u8]) -> Digest {
        let mut digest = [0; 32];
        for (at, byte) in bytes.iter().enumerate() {
            digest[at % 32] = u8::rotate_left(digest[at % 32], 1) ^ byte;
        }
        digest
    }

    fn manifest() -> Manifest {
        let shards = (0..2).map(|index| ShardStatus {
            index: ShardIndex(index),
            shard: ShardId(7 + u64::from(index)),
            core: CoreId(1),
            lineage: Lineage(3),
            epoch: Epoch(2),
            log_start: Offset(5),
            high_watermark: Offset(90),
            retained_bytes: 1_000,
        });
        let shards: Vec<ShardStatus> = shards.collect();
        let file = |status: &ShardStatus| ShardFile {
            shard: status.shard,
            lineage: status.lineage,
            log_start: Offset(6),
            end: Offset(90),
            batches: 4,
            bytes: 800,
            sha256: [0xa5; 32],
        };
        let stream = |id: u64, durability| StreamInfo {
            id: StreamId(id),
            name: StreamName::parse(&format!("acme/md/s{id}")).unwrap(),
            spec: StreamSpec { shards: 2, durability, ..StreamSpec::default() },
            version: 9,
            created: Timestamp(10),
        };
        let durable = StreamBackup {
            info: stream(1, Durability::Group),
            files: shards.iter().map(file).collect(),
            shards: shards.clone(),
        };
        Manifest {
            made: Timestamp(1_764_125_000_000_000_000),
            client: "felix 0.1.0".to_string(),
            cluster: ClusterId(0xc0ffee),
            node: NodeId(0xabcd),
            session: NodeSession(4),
            region: "local".to_string(),
            tenants: vec![TenantInfo { name: "acme".to_string(), limits: TenantLimits::default(), streams: 2 }],
            namespaces: vec![NamespaceName::parse("acme/md").unwrap()],
            streams: vec![durable, StreamBackup { info: stream(2, Durability::Ephemeral), files: Vec::new(), shards }],
        }
    }

    /// The text of `manifest` with one part replaced, under a digest that fits.
    fn changed(from: &str, to: &str) -> Vec<u8> {
        let text = manifest().encode(sum);
        let body = &text[..text.rfind("end ").unwrap()];
        assert!(body.contains(from), "{from} is not in {body}");
        let mut text = body.replacen(from, to, 1);
        let digest = sum(text.as_bytes());
        text.push_str("end ");
        hex(&mut text, &digest);
        text.push('\n');
        text.into_bytes()
    }

    #[test]
    fn a_manifest_comes_back_and_any_changed_byte_is_refused() {
        let text = manifest().encode(sum);
        assert_eq!(Manifest::parse(text.as_bytes(), sum), Ok(manifest()));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(Manifest::parse(&bytes, sum).is_err(), "byte {at} of {text}");
            assert!(Manifest::parse(&text.as_bytes()[..at], sum).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_manifest_that_was_made_up_is_refused_with_the_line() {
        assert_eq!(Manifest::parse(&changed("region local", "region other"), sum).unwrap().region, "other");
        for (from, to, expected) in [
            ("felix-backup 1", "felix-backup 2", "the manifest begins with \"felix-backup 2\""),
            ("made 1", "made x1", "line 2 of the manifest: expected a time"),
            ("cluster 00", "cluster zz", "line 4 of the manifest: expected a cluster id"),
            ("namespace acme/md", "namespace acme", "line 8 of the manifest: expected a namespace"),
            ("namespace acme/md", "whatever acme/md", "expected tenant, namespace, stream or shard"),
            ("shard 7 ", "shard 9 ", "expected the next shard of the stream above"),
            ("shard 7 3 6 90", "shard 7 3 91 90", "expected a range and a digest"),
            ("shard 7 3 6", "shard 7 99999999999 6", "expected a lineage"),
            ("shard 8 3", "namespace a/b\nshard 8 3", "expected lines as this version writes them"),
            ("tenant 0", "tenant 0 0", "expected hex"),
            (" acme/md/s1", " acme/md/s9", "expected lines as this version writes them"),
        ] {
            let error = Manifest::parse(&changed(from, to), sum).unwrap_err().to_string();
            assert!(error.contains(expected), "{from} -> {to}: {error}");
        }
        let text = manifest().encode(sum);
        let last = text.lines().find(|line| line.starts_with("shard 8 ")).unwrap();
        let error = Manifest::parse(&changed(&format!("{last}\n"), ""), sum).unwrap_err().to_string();
        assert!(error.contains("a shard line per shard"), "{error}");
    }

    #[test]
    fn batches_are_walked_in_order_and_damage_is_named() {
        use crate::batch_builder::{BatchBuilder, ProducerStamp, RecordToPublish};
        let file = ShardFile { log_start: Offset(0), end: Offset(4), ..manifest().streams[0].files[0] };
        let batch = |base: u64, shard: u64| {
            let (mut builder, mut body) = (BatchBuilder::new(), Vec::new());
            for value in [b"one", b"two"] {
                builder.push(&RecordToPublish { value, ..Default::default() }).unwrap();
            }
            builder.finish(ProducerStamp::default(), &mut body);
            let header = StampedHeader {
                batch_bytes: (STAMPED_HEADER_BYTES + body.len()) as u32,
                kind: crate::batch::BatchKind::Data,
                flags: 0,
                offset_count: 2,
                stream: StreamId(1),
                shard: ShardId(shard),
                epoch: Epoch(1),
                lineage: Lineage(3),
                tlv_bytes: 0,
                base_offset: Offset(base),
                append_time: Timestamp(1),
                durable_end: Offset(0),
                chain: 0,
            };
            [header.encode().as_slice(), &body].concat()
        };
        let whole = [batch(0, 7), batch(2, 7)].concat();
        let mut walk = BatchWalk::new(&file);
        let first = walk.next(&whole).unwrap().unwrap().len();
        assert_eq!(walk.next(&whole[first..whole.len() - 1]), Ok(None), "it is not whole yet");
        assert_eq!(walk.next(&whole[first..]).unwrap().unwrap().len(), whole.len() - first);
        assert_eq!(walk.next(&[]), Ok(None));
        assert_eq!(walk.batches, 2);
        // Twice, behind the end, of another shard.
        let range = |from, to| OffsetRange { from: Offset(from), to: Offset(to) };
        assert_eq!(walk.next(&whole), Err(WalkError::Order(range(0, 2))));
        assert_eq!(walk.next(&batch(4, 7)), Err(WalkError::Order(range(4, 6))));
        assert_eq!(BatchWalk::new(&file).next(&batch(0, 8)), Err(WalkError::Elsewhere));
        for at in 0..first {
            let mut bytes = whole[..first].to_vec();
            bytes[at] ^= 0x10;
            assert!(matches!(BatchWalk::new(&file).next(&bytes), Err(WalkError::Batch(_))), "byte {at}");
        }
    }
}
