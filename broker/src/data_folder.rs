//! **What**: the data folder: the one place that opens or makes it. Its lock, who this node is, which start this is, and
//! the secrets that must survive a restart.
//!
//! ```text
//!   DATA/lock                  held for the life of the process
//!   DATA/node.toml             who this node is, for people: cluster, node, region
//!   DATA/format                the same as a header block of `felix_wal`: version of the folder; written last, so that
//!                              its presence says that metadata were made here once
//!   DATA/session               number of the last start; on disk before anything is made from it
//!   DATA/secrets/reset.key     32 random bytes: stateless reset tokens
//!   DATA/secrets/retry.key     32 random bytes: address validation tokens
//!   DATA/control/              metadata (felix_control::node)
//!   DATA/wal, DATA/shards      records of durable streams
//! ```
//!
//! The node's identity is on the volume, not in the name of a pod. The reset key lets a restarted node tell old
//! connections so in one round trip; the retry key keeps address tokens valid across a restart.
//!
//! **Invariants**: at most one process has the folder open; ids are made once, at random, and never again; a session
//! number is given once; a start that is refused changed nothing.
//!
//! **Never**: new ids, secrets or metadata in the place of unreadable or missing ones.
//!
//! **See**: `boot.rs`, which opens it before anything else; `wal/DESIGN.md` for WAL and shards.

pub(crate) mod files;

pub use files::FileError;

use felix_protocol::ids::{ClusterId, NodeId, NodeSession};
use felix_wal::format::header::{FileHeader, Identity, Owner, Region};
use files::{Mode, at, make_dir, read, write};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Version of `node.toml`.
const FORMAT: u32 = 1;

/// The region of a node that was not told another.
const REGION: &str = "local";

/// Folders that hold records of durable streams.
const RECORDS: [&str; 2] = ["wal", "shards"];

/// Keys that must survive a restart. Not printable.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    /// Derives stateless reset tokens.
    pub reset_key: [u8; 32],
    /// Signs address validation tokens.
    pub retry_key: [u8; 32],
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

/// Why a data folder could not be opened.
#[derive(Debug)]
pub enum DataFolderError {
    /// Another process has it open.
    InUse {
        /// The folder.
        path: PathBuf,
        /// What the holder wrote into the lock file: its process id.
        holder: String,
    },
    /// A file could not be read or written.
    File(FileError),
    /// `node.toml` does not say who this node is.
    BadNode {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `format` is damaged, of another node or of a newer version.
    BadFormat {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `session` is not a number.
    BadSession {
        /// The file.
        path: PathBuf,
    },
    /// A part that was there once, as others tell, is missing.
    Missing {
        /// What is missing.
        path: PathBuf,
        /// What it holds, and how one knows that it was there.
        reason: String,
    },
    /// A key file does not have 32 bytes.
    BadKey {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: usize,
    },
    /// The system gives no random bytes.
    NoRandom,
}

impl std::fmt::Display for DataFolderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DataFolderError::InUse { path, holder } => write!(
                f,
                "the data folder {} is in use by another broker (process {holder}); stop it or choose another --data",
                path.display()
            ),
            DataFolderError::File(error) => error.fmt(f),
            DataFolderError::BadNode { path, reason } => write!(
                f,
                "{} does not say who this node is: {reason}; restore it from a backup; a new one would make this \
                 node a stranger to its own data",
                path.display()
            ),
            DataFolderError::BadFormat { path, reason } => write!(
                f,
                "{} is not the one of this node and build: {reason}; restore it from a backup, or run the build that \
                 wrote it",
                path.display()
            ),
            DataFolderError::BadSession { path } => write!(
                f,
                "{} does not hold a number; it counts the starts of this node, restore it from a backup",
                path.display()
            ),
            DataFolderError::Missing { path, reason } => write!(
                f,
                "{} is missing: {reason}; restore it from a backup made together with the rest of the folder, or give \
                 another --data to begin with nothing; nothing was changed",
                path.display()
            ),
            DataFolderError::BadKey { path, found } => write!(
                f,
                "{} has {found} bytes, not 32; restore it, or remove it to make a new key (open connections are lost)",
                path.display()
            ),
            DataFolderError::NoRandom => write!(f, "the system gives no random bytes"),
        }
    }
}

impl std::error::Error for DataFolderError {}

impl From<FileError> for DataFolderError {
    fn from(error: FileError) -> Self {
        DataFolderError::File(error)
    }
}

/// An open data folder. Its lock lasts as long as this value.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    identity: Identity,
    session: NodeSession,
    secrets: Secrets,
    finished: bool,
    _lock: File,
}

impl DataFolder {
    /// Opens the folder: makes it if missing, locks it, reads or makes identity and secrets, and takes the number of
    /// this start, which is on disk when this returns.
    pub fn open(path: &Path) -> Result<DataFolder, DataFolderError> {
        make_dir(path)?;
        let path = path.canonicalize().map_err(at("find", path))?;
        let lock = lock(&path)?;
        let has = |name: &str| path.join(name).exists();
        let identity = match read_identity(&path.join("node.toml"))? {
            Some(identity) => identity,
            None => {
                if let Some(other) = ["format", "control", "session", "wal", "shards"].into_iter().find(|it| has(it)) {
                    let reason = format!("it says who this node is, and the folder has {other}");
                    return Err(DataFolderError::Missing { path: path.join("node.toml"), reason });
                }
                make_identity(&path.join("node.toml"))?
            }
        };
        let finished = check_format(&path.join("format"), &identity)?;
        let last = read_session(&path.join("session"))?;
        check_parts(&path, finished, last)?;
        let folder = path.join("secrets");
        make_dir(&folder)?;
        let secrets =
            Secrets { reset_key: key(&folder.join("reset.key"))?, retry_key: key(&folder.join("retry.key"))? };
        let session = NodeSession(last.unwrap_or(0) + 1);
        write(&path.join("session"), format!("{session}\n").as_bytes(), Mode::Public)?;
        Ok(DataFolder { path, identity, session, secrets, finished, _lock: lock })
    }

    /// Makes the folder of a new node of a cluster that exists, and opens it. The folder is missing or empty.
    pub fn make(path: &Path, cluster: ClusterId, region: Region) -> Result<DataFolder, DataFolderError> {
        make_dir(path)?;
        let node = path.join("node.toml");
        write_identity(&node, cluster, region)?;
        DataFolder::open(path)
    }

    /// The folder, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who this node is, as it stands in the header of every file.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The number of this start: greater than that of every one before.
    pub fn session(&self) -> NodeSession {
        self.session
    }

    /// The keys.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Where the metadata are.
    pub fn control(&self) -> PathBuf {
        self.path.join("control")
    }

    /// Whether earlier starts may have given ids that the metadata here do not know: the version before kept them in
    /// memory, under ids made from the session. They must begin above those (`RaiseFloors`).
    pub fn had_metadata_in_memory(&self) -> bool {
        !self.finished && self.session.0 > 1
    }

    /// Says that the metadata are there: from now on a start without them is refused. Durable when it returns.
    pub fn finish(&mut self) -> Result<(), DataFolderError> {
        if !self.finished {
            let salt = u128::from_le_bytes(random()?);
            let header = FileHeader { identity: self.identity, session: self.session, salt, owner: Owner::Folder };
            let mut block = Vec::new();
            header.encode(&mut block);
            write(&self.path.join("format"), &block, Mode::Public)?;
            self.finished = true;
        }
        Ok(())
    }
}

/// Who the node of this folder is, as it stands there; None: nothing says so. For tools. Changes nothing.
pub fn identity(path: &Path) -> Result<Option<Identity>, DataFolderError> {
    read_identity(&path.join("node.toml"))
}

/// Why a broker would refuse to start on this folder, as far as the files here tell; for offline tools. Changes nothing.
pub fn inspect(path: &Path) -> Result<(), DataFolderError> {
    let node = path.join("node.toml");
    let Some(identity) = read_identity(&node)? else {
        let reason = "it says who this node is, and the folder has records or metadata".to_string();
        return Err(DataFolderError::Missing { path: node, reason });
    };
    let finished = check_format(&path.join("format"), &identity)?;
    check_parts(path, finished, read_session(&path.join("session"))?)
}

/// Takes the lock of a data folder; it lasts as long as the file is open.
pub fn lock(folder: &Path) -> Result<File, DataFolderError> {
    let path = folder.join("lock");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(at("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim().to_string();
            return Err(DataFolderError::InUse { path: folder.to_path_buf(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(at("lock", &path)(source).into()),
    }
    // The process id is for the reader of an error message; the lock is what counts.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// Whether the format file is there; an error if it is not ours.
fn check_format(path: &Path, identity: &Identity) -> Result<bool, DataFolderError> {
    let Some(block) = read(path)? else { return Ok(false) };
    match FileHeader::expect(&block, identity, &Owner::Folder) {
        Ok(_) => Ok(true),
        Err(error) => Err(DataFolderError::BadFormat { path: path.to_path_buf(), reason: error.to_string() }),
    }
}

fn read_session(path: &Path) -> Result<Option<u64>, DataFolderError> {
    let Some(content) = read(path)? else { return Ok(None) };
    let number = str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
    match number.filter(|last: &u64| *last < u64::MAX) {
        Some(last) => Ok(Some(last)),
        None => Err(DataFolderError::BadSession { path: path.to_path_buf() }),
    }
}

/// Refuses a folder of which a part is gone that was there once: opened as new, it would give ids and lineages for the
/// second time, and records that nobody knows any more would be taken for rubbish.
fn check_parts(path: &Path, finished: bool, last: Option<u64>) -> Result<(), DataFolderError> {
    let missing = |name: &str, reason: String| Err(DataFolderError::Missing { path: path.join(name), reason });
    let has = |name: &&str| path.join(name).exists();
    let records = RECORDS.iter().copied().find(has);
    let control = path.join("control").join("identity").exists();
    if !control && (finished || records.is_some()) {
        let starts = last.unwrap_or(0);
        let proof = records.map_or_else(|| "the file format".to_string(), |name| format!("the folder {name}"));
        return missing(
            "control",
            format!(
                "it holds the metadata (tenants, streams, ids), and {starts} earlier start(s) and {proof} tell of it"
            ),
        );
    }
    if last.is_none() && (finished || control) {
        return missing("session", "it counts the starts of this node, and there are metadata of earlier ones".into());
    }
    if !finished && let Some(name) = records {
        return missing("format", format!("it is older than any record, and the folder {name} is there"));
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    format: u32,
    cluster_id: String,
    node_id: String,
    region: String,
}

/// A new node, of a new cluster.
fn make_identity(path: &Path) -> Result<Identity, DataFolderError> {
    let region = Region::new(REGION).expect("it is a label");
    write_identity(path, ClusterId(u128::from_be_bytes(random()?)), region)
}

fn write_identity(path: &Path, cluster: ClusterId, region: Region) -> Result<Identity, DataFolderError> {
    let identity = Identity { cluster, node: NodeId(u128::from_be_bytes(random()?)), region };
    let file = NodeFile {
        format: FORMAT,
        cluster_id: format!("{:032x}", identity.cluster.0),
        node_id: format!("{:032x}", identity.node.0),
        region: identity.region.to_string(),
    };
    let bad = |reason: String| DataFolderError::BadNode { path: path.to_path_buf(), reason };
    let text = toml::to_string(&file).map_err(|error| bad(error.to_string()))?;
    write(path, text.as_bytes(), Mode::Public)?;
    Ok(identity)
}

fn read_identity(path: &Path) -> Result<Option<Identity>, DataFolderError> {
    let bad = |reason: String| DataFolderError::BadNode { path: path.to_path_buf(), reason };
    let Some(content) = read(path)? else { return Ok(None) };
    let text = str::from_utf8(&content).map_err(|error| bad(error.to_string()))?;
    let file: NodeFile = toml::from_str(text).map_err(|error| bad(error.message().to_string()))?;
    if file.format != FORMAT {
        return Err(bad(format!("format {} found, {FORMAT} is known", file.format)));
    }
    let id = |name: &str, text: &str| {
        let id = (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok()).flatten();
        id.ok_or_else(|| bad(format!("{name} is not 32 hexadecimal digits")))
    };
    let region = Region::new(&file.region).ok_or_else(|| {
        bad(format!("region {:?} is not 1 to 63 lower-case letters, digits and inner hyphens", file.region))
    })?;
    let (cluster, node) = (id("cluster_id", &file.cluster_id)?, id("node_id", &file.node_id)?);
    Ok(Some(Identity { cluster: ClusterId(cluster), node: NodeId(node), region }))
}

fn key(path: &Path) -> Result<[u8; 32], DataFolderError> {
    match read(path)? {
        Some(content) => <[u8; 32]>::try_from(content.as_slice())
            .map_err(|_| DataFolderError::BadKey { path: path.to_path_buf(), found: content.len() }),
        None => {
            let key = random()?;
            write(path, &key, Mode::Secret)?;
            Ok(key)
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], DataFolderError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| DataFolderError::NoRandom)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::files::tests::folder;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// What a start of the broker does to the folder.
    fn start(path: &Path) -> Result<DataFolder, DataFolderError> {
        let mut folder = DataFolder::open(path)?;
        make_dir(&folder.control()).unwrap();
        fs::write(folder.control().join("identity"), b"").unwrap();
        folder.finish()?;
        Ok(folder)
    }

    #[track_caller]
    fn missing(path: &Path, name: &str, expected: &[&str]) {
        let before = fs::read(path.join("session")).ok();
        let error = start(path).unwrap_err();
        let text = error.to_string();
        assert!(matches!(&error, DataFolderError::Missing { path, .. } if path.ends_with(name)), "{text}");
        assert!(expected.iter().all(|it| text.contains(it)), "{expected:?} in: {text}");
        assert_eq!(fs::read(path.join("session")).ok(), before, "a refused start is no start");
    }

    #[test]
    fn survives_a_restart() {
        let path = folder("restart").join("data");
        let first = start(&path).unwrap();
        let (identity, secrets) = (*first.identity(), first.secrets().clone());
        assert_eq!((identity.region.as_str(), first.session()), ("local", NodeSession(1)));
        assert_ne!(identity.cluster.0, identity.node.0);
        assert_ne!(secrets.reset_key, secrets.retry_key);
        assert_eq!(format!("{secrets:?}"), "Secrets");
        for key in ["reset.key", "retry.key"] {
            let mode = fs::metadata(path.join("secrets").join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let format = FileHeader::decode(&fs::read(path.join("format")).unwrap()).unwrap();
        assert_eq!((format.identity, format.owner), (identity, Owner::Folder));
        drop(first);
        let second = start(&path).unwrap();
        assert_eq!((second.identity(), second.secrets()), (&identity, &secrets));
        assert_eq!((second.session(), second.had_metadata_in_memory()), (NodeSession(2), false));
        assert!(second.path().is_absolute());
    }

    #[test]
    fn two_brokers_cannot_share_a_folder() {
        let path = folder("share");
        let first = DataFolder::open(&path).unwrap();
        let error = DataFolder::open(&path).unwrap_err();
        assert!(matches!(error, DataFolderError::InUse { .. }));
        let text = error.to_string();
        assert!(text.contains(&std::process::id().to_string()) && text.contains("--data"), "{text}");
        drop(first);
        DataFolder::open(&path).unwrap();
    }

    #[test]
    fn what_is_damaged_is_named_and_kept() {
        let path = folder("damaged");
        drop(start(&path).unwrap());
        let node = path.join("node.toml");
        let good = fs::read_to_string(&node).unwrap();
        let cases = [
            ("", "missing field"),
            ("\u{0}", "node.toml"),
            (&good.replace("format = 1", "format = 9"), "format 9 found"),
            (&good.replace("node_id = \"", "node_id = \"x"), "node_id is not 32"),
            (&good.replace("local", ""), "region \"\" is not"),
            (&good.replace("local", "Here"), "region \"Here\" is not"),
            (&format!("{good}more = 1\n"), "unknown field"),
        ];
        for (content, expected) in cases {
            fs::write(&node, content).unwrap();
            let error = DataFolder::open(&path).unwrap_err();
            assert!(matches!(error, DataFolderError::BadNode { .. }), "{error:?}");
            assert!(error.to_string().contains(expected), "{expected:?} is not in: {error}");
            assert_eq!(fs::read_to_string(&node).unwrap(), content, "kept as it was");
        }
        fs::write(&node, &good).unwrap();
        fs::write(path.join("secrets/reset.key"), b"short").unwrap();
        let error = DataFolder::open(&path).unwrap_err();
        assert!(matches!(error, DataFolderError::BadKey { found: 5, .. }));
        assert!(error.to_string().contains("reset.key"), "{error}");
        for content in [&b"many"[..], b"", b"18446744073709551615"] {
            fs::write(path.join("session"), content).unwrap();
            assert!(matches!(DataFolder::open(&path), Err(DataFolderError::BadSession { .. })));
        }
    }

    #[test]
    fn a_format_of_another_node_or_version_is_refused() {
        let path = folder("format");
        drop(start(&path).unwrap());
        let good = fs::read(path.join("format")).unwrap();
        let node = fs::read_to_string(path.join("node.toml")).unwrap();
        for (content, expected) in [(b"short".to_vec(), "shorter"), (vec![7; 4_096], "not a Felix file")] {
            fs::write(path.join("format"), content).unwrap();
            let error = DataFolder::open(&path).unwrap_err();
            assert!(matches!(error, DataFolderError::BadFormat { .. }), "{error:?}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        fs::write(path.join("format"), good).unwrap();
        fs::write(path.join("node.toml"), node.replace("local", "elsewhere")).unwrap();
        let error = DataFolder::open(&path).unwrap_err();
        assert!(error.to_string().contains("region local"), "{error}");
    }

    #[test]
    fn a_part_that_is_gone_is_told_and_never_made_anew() {
        let path = folder("gone");
        drop(start(&path).unwrap());
        drop(start(&path).unwrap());
        let aside = path.with_extension("aside");
        for (name, expected) in [
            ("control", &["2 earlier start(s)", "the file format", "restore it", "--data"][..]),
            ("session", &["counts the starts"]),
            ("node.toml", &["who this node is", "format"]),
        ] {
            fs::rename(path.join(name), &aside).unwrap();
            missing(&path, name, expected);
            fs::rename(&aside, path.join(name)).unwrap();
        }
        for records in RECORDS {
            make_dir(&path.join(records)).unwrap();
            fs::rename(path.join("format"), &aside).unwrap();
            missing(&path, "format", &[records]);
            fs::rename(path.join("control"), path.join("away")).unwrap();
            missing(&path, "control", &[records]);
            fs::rename(path.join("away"), path.join("control")).unwrap();
            fs::rename(&aside, path.join("format")).unwrap();
            fs::remove_dir(path.join(records)).unwrap();
        }
        assert_eq!(start(&path).unwrap().session(), NodeSession(3));
    }

    /// The version before wrote neither `format` nor `control`, and gave ids made from the session.
    #[test]
    fn a_folder_of_the_version_in_memory_goes_on_above_its_ids() {
        let path = folder("in-memory");
        drop(DataFolder::open(&path).unwrap());
        let mut folder = DataFolder::open(&path).unwrap();
        assert!(folder.had_metadata_in_memory());
        make_dir(&folder.control()).unwrap();
        fs::write(folder.control().join("identity"), b"").unwrap();
        drop(folder);
        // Died before the floors were raised for sure: once more.
        folder = DataFolder::open(&path).unwrap();
        assert!(folder.had_metadata_in_memory());
        folder.finish().unwrap();
        drop(folder);
        assert!(!DataFolder::open(&path).unwrap().had_metadata_in_memory());
    }
}
