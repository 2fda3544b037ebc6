//! **What**: the data folder: its lock, who this node is, and the secrets that must survive a restart.
//!
//! The node's identity is on the volume, not in the name of a pod. The reset key lets a restarted node tell old
//! connections so in one round trip; the retry key keeps address tokens valid across a restart.
//!
//! **Invariants**: at most one process has the folder open; ids are made once, at random, and never again.
//!
//! **Never**: new ids or secrets in the place of unreadable ones.
//!
//! **See**: `files.rs`.

use super::files::{FileError, Mode, at, make_dir, read, write};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Version of `node.toml`.
const FORMAT: u32 = 1;

/// The region of a node that was not told another.
const REGION: &str = "local";

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, 128 random bits.
    pub cluster_id: u128,
    /// The node, 128 random bits.
    pub node_id: u128,
    /// The region.
    pub region: String,
}

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
pub enum DataDirError {
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

impl std::fmt::Display for DataDirError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DataDirError::InUse { path, holder } => write!(
                f,
                "the data folder {} is in use by another broker (process {holder}); stop it or choose another --data",
                path.display()
            ),
            DataDirError::File(error) => error.fmt(f),
            DataDirError::BadNode { path, reason } => write!(
                f,
                "{} does not say who this node is: {reason}; restore it from a backup; a new one would make this \
                 node a stranger to its own data",
                path.display()
            ),
            DataDirError::BadKey { path, found } => write!(
                f,
                "{} has {found} bytes, not 32; restore it, or remove it to make a new key (open connections are lost)",
                path.display()
            ),
            DataDirError::NoRandom => write!(f, "the system gives no random bytes"),
        }
    }
}

impl std::error::Error for DataDirError {}

impl From<FileError> for DataDirError {
    fn from(error: FileError) -> Self {
        DataDirError::File(error)
    }
}

/// An open data folder. Its lock lasts as long as this value.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    secrets: Secrets,
    _lock: File,
}

impl DataDir {
    /// Opens the folder: makes it if missing, locks it, and reads or makes identity and secrets.
    pub fn open(path: &Path) -> Result<DataDir, DataDirError> {
        make_dir(path)?;
        let path = path.canonicalize().map_err(at("find", path))?;
        let lock = lock(&path)?;
        let identity = identity(&path.join("node.toml"))?;
        let folder = path.join("secrets");
        make_dir(&folder)?;
        let secrets =
            Secrets { reset_key: key(&folder.join("reset.key"))?, retry_key: key(&folder.join("retry.key"))? };
        Ok(DataDir { path, identity, secrets, _lock: lock })
    }

    /// The folder, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who this node is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The keys.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }
}

fn lock(folder: &Path) -> Result<File, DataDirError> {
    let path = folder.join("lock");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(at("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim().to_string();
            return Err(DataDirError::InUse { path: folder.to_path_buf(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(at("lock", &path)(source).into()),
    }
    // The process id is for the reader of an error message; the lock is what counts.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    format: u32,
    cluster_id: String,
    node_id: String,
    region: String,
}

fn identity(path: &Path) -> Result<Identity, DataDirError> {
    let bad = |reason: String| DataDirError::BadNode { path: path.to_path_buf(), reason };
    let Some(content) = read(path)? else {
        let identity = Identity {
            cluster_id: u128::from_be_bytes(random()?),
            node_id: u128::from_be_bytes(random()?),
            region: REGION.to_string(),
        };
        let file = NodeFile {
            format: FORMAT,
            cluster_id: format!("{:032x}", identity.cluster_id),
            node_id: format!("{:032x}", identity.node_id),
            region: identity.region.clone(),
        };
        let text = toml::to_string(&file).map_err(|error| bad(error.to_string()))?;
        write(path, text.as_bytes(), Mode::Public)?;
        return Ok(identity);
    };
    let text = str::from_utf8(&content).map_err(|error| bad(error.to_string()))?;
    let file: NodeFile = toml::from_str(text).map_err(|error| bad(error.message().to_string()))?;
    if file.format != FORMAT {
        return Err(bad(format!("format {} found, {FORMAT} is known", file.format)));
    }
    let id = |name: &str, text: &str| {
        let id = (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok()).flatten();
        id.ok_or_else(|| bad(format!("{name} is not 32 hexadecimal digits")))
    };
    if file.region.is_empty() {
        return Err(bad("region is empty".into()));
    }
    Ok(Identity {
        cluster_id: id("cluster_id", &file.cluster_id)?,
        node_id: id("node_id", &file.node_id)?,
        region: file.region,
    })
}

fn key(path: &Path) -> Result<[u8; 32], DataDirError> {
    match read(path)? {
        Some(content) => <[u8; 32]>::try_from(content.as_slice())
            .map_err(|_| DataDirError::BadKey { path: path.to_path_buf(), found: content.len() }),
        None => {
            let key = random()?;
            write(path, &key, Mode::Secret)?;
            Ok(key)
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], DataDirError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| DataDirError::NoRandom)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::folder;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn survives_a_restart() {
        let path = folder("restart").join("data");
        let first = DataDir::open(&path).unwrap();
        let (identity, secrets) = (first.identity().clone(), first.secrets().clone());
        assert_eq!(identity.region, "local");
        assert_ne!(identity.cluster_id, identity.node_id);
        assert_ne!(secrets.reset_key, secrets.retry_key);
        assert_eq!(format!("{secrets:?}"), "Secrets");
        for key in ["reset.key", "retry.key"] {
            let mode = fs::metadata(path.join("secrets").join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        drop(first);
        let second = DataDir::open(&path).unwrap();
        assert_eq!((second.identity(), second.secrets()), (&identity, &secrets));
        assert!(second.path().is_absolute());
    }

    #[test]
    fn two_brokers_cannot_share_a_folder() {
        let path = folder("share");
        let first = DataDir::open(&path).unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert!(matches!(error, DataDirError::InUse { .. }));
        let text = error.to_string();
        assert!(text.contains(&std::process::id().to_string()) && text.contains("--data"), "{text}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn what_is_damaged_is_named_and_kept() {
        let path = folder("damaged");
        drop(DataDir::open(&path).unwrap());
        let node = path.join("node.toml");
        let good = fs::read_to_string(&node).unwrap();
        let cases = [
            ("", "missing field"),
            ("\u{0}", "node.toml"),
            (&good.replace("format = 1", "format = 9"), "format 9 found"),
            (&good.replace("node_id = \"", "node_id = \"x"), "node_id is not 32"),
            (&good.replace("local", ""), "region is empty"),
            (&format!("{good}more = 1\n"), "unknown field"),
        ];
        for (content, expected) in cases {
            fs::write(&node, content).unwrap();
            let error = DataDir::open(&path).unwrap_err();
            assert!(matches!(error, DataDirError::BadNode { .. }), "{error:?}");
            assert!(error.to_string().contains(expected), "{expected:?} is not in: {error}");
            assert_eq!(fs::read_to_string(&node).unwrap(), content, "kept as it was");
        }
        fs::write(&node, good).unwrap();
        fs::write(path.join("secrets/reset.key"), b"short").unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert!(matches!(error, DataDirError::BadKey { found: 5, .. }));
        assert!(error.to_string().contains("reset.key"), "{error}");
    }
}
