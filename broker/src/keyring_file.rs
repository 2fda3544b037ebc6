//! **What**: the keyring of a node as files: read, changed by one at a time, and a record of which keys sealed data here.
//!
//! ```text
//!   DATA/secrets/keyring      text of felix_wal::keyring, mode 0600; `--keyring FILE` puts it elsewhere
//!   DATA/secrets/keyring.lock who changes the keyring holds it: a broker, or `felix-broker keyring`
//!   DATA/keys-used            "tenant number fingerprint" of every data key that this node's cores were ever given
//! ```
//!
//! A keyring that is not the one the data were sealed with opens nothing of them, and every record would read as a gap. The
//! fingerprints tell it before anything is served: a keyring from an old backup, of another node, or an empty one.
//!
//! **Invariants**: a changed keyring is on disk before the change is used; a key is in `keys-used` before a core has it. A
//! keyring is only ever replaced by one that holds all it held.
//!
//! **Never**: key bytes in an error, a log line or a debug print. A new keyring where sealed data may exist.
//!
//! **See**: `control_thread.rs` and `tools/keyring.rs`, which change it; `felix_wal::keyring` for the text.

use crate::data_folder::files::{self, FileError, Mode};
use felix_wal::format::header::Region;
use felix_wal::keyring::{KEYRING_BYTES_MAX, KeyError, Keyring, KeyringError};
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the lock of the keyring is waited for; its holders write one file.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);
const USED_FIRST_LINE: &str = "felix-keys-used 1";

/// Why a keyring could not be used or changed.
#[derive(Debug)]
pub enum KeyringFileError {
    /// There is none.
    Missing(PathBuf),
    /// A file could not be read or written.
    File(FileError),
    /// It is not a keyring.
    Bad(PathBuf, KeyringError),
    /// It is not text.
    NotText(PathBuf),
    /// It is of another region: its and ours.
    OtherRegion(PathBuf, String, String),
    /// A data key does not open: the file was put together from two.
    Key(PathBuf, String, u32, KeyError),
    /// A key that data here are sealed with is not in it, or is another.
    Lacks {
        /// The keyring.
        path: PathBuf,
        /// Whose key.
        tenant: String,
        /// Its number.
        id: u32,
        /// It holds another key of this number.
        other: bool,
    },
    /// The record of used keys is damaged, or missing though there are streams that are sealed.
    BadUsed(PathBuf, String),
    /// Somebody else changes it.
    Busy(PathBuf),
    /// What was asked of it cannot be.
    Refused(KeyError),
    /// The system gives no random bytes.
    NoRandom,
}

impl fmt::Display for KeyringFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyringFileError::Missing(path) => write!(
                f,
                "the keyring {} is missing, and data of this node are sealed with keys of it: restore it from a backup, \
                 or say with --keyring where it is; without it they cannot be read, and nothing was changed",
                path.display()
            ),
            KeyringFileError::File(error) => error.fmt(f),
            KeyringFileError::Bad(path, error) => write!(
                f,
                "{} is no whole keyring: {error}; restore it from a backup, never edit it by hand",
                path.display()
            ),
            KeyringFileError::NotText(path) => {
                write!(f, "{} is no keyring: it is not text; restore it from a backup", path.display())
            }
            KeyringFileError::OtherRegion(path, found, ours) => write!(
                f,
                "the keyring {} is of region {found}, this node is in {ours}; give the keyring of this region",
                path.display()
            ),
            KeyringFileError::Key(path, tenant, id, error) => write!(
                f,
                "data key {id} of {tenant} in {} cannot be used: {error}; restore the file from a backup",
                path.display()
            ),
            KeyringFileError::Lacks { path, tenant, id, other } => {
                let what = if *other { "another" } else { "no" };
                write!(
                    f,
                    "the keyring {} is not the one of this node's data: it has {what} data key {id} of tenant {tenant}, \
                     which sealed records here; restore the newest backup of the keyring, or say with --keyring where it \
                     is; with this one those records could not be read",
                    path.display()
                )
            }
            KeyringFileError::BadUsed(path, why) => write!(
                f,
                "{} does not say which keys sealed the data of this node: {why}; restore it from a backup of the data \
                 folder",
                path.display()
            ),
            KeyringFileError::Busy(path) => {
                write!(f, "the keyring {} is being changed by somebody else; try again", path.display())
            }
            KeyringFileError::Refused(error) => error.fmt(f),
            KeyringFileError::NoRandom => f.write_str("the system gives no random bytes"),
        }
    }
}

impl std::error::Error for KeyringFileError {}

impl From<FileError> for KeyringFileError {
    fn from(error: FileError) -> KeyringFileError {
        KeyringFileError::File(error)
    }
}

impl From<KeyError> for KeyringFileError {
    fn from(error: KeyError) -> KeyringFileError {
        KeyringFileError::Refused(error)
    }
}

/// Random bytes for a key or a nonce.
pub fn random<const N: usize>() -> Result<[u8; N], KeyringFileError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyringFileError::NoRandom)?;
    Ok(bytes)
}

/// Where a node's keyring is.
#[derive(Clone, Debug)]
pub struct KeyringFile {
    path: PathBuf,
    region: Region,
}

impl KeyringFile {
    /// The keyring of the data folder, or the one at `elsewhere`.
    pub fn new(data: &Path, elsewhere: Option<&Path>, region: Region) -> KeyringFile {
        let path = elsewhere.map_or_else(|| data.join("secrets").join("keyring"), Path::to_path_buf);
        KeyringFile { path, region }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it whole and tries every key. None: there is no file.
    pub fn read(&self) -> Result<Option<Keyring>, KeyringFileError> {
        let Some(content) = files::read(&self.path)? else { return Ok(None) };
        if content.len() > KEYRING_BYTES_MAX {
            return Err(KeyringFileError::Bad(self.path.clone(), KeyringError::TooLarge(content.len())));
        }
        let text = String::from_utf8(content).map_err(|_| KeyringFileError::NotText(self.path.clone()))?;
        let ring = Keyring::parse(&text).map_err(|error| KeyringFileError::Bad(self.path.clone(), error))?;
        if ring.region() != self.region {
            let (found, ours) = (ring.region().to_string(), self.region.to_string());
            return Err(KeyringFileError::OtherRegion(self.path.clone(), found, ours));
        }
        for entry in ring.entries().filter(|it| it.region_key.is_some()) {
            ring.data_key(entry.tenant, entry.id)
                .map_err(|error| KeyringFileError::Key(self.path.clone(), entry.tenant.to_string(), entry.id, error))?;
        }
        Ok(Some(ring))
    }

    /// Makes the first one, with a random region key. One that came meanwhile stays and is read.
    pub fn make(&self) -> Result<Keyring, KeyringFileError> {
        let _lock = self.lock()?;
        if let Some(ring) = self.read()? {
            return Ok(ring);
        }
        let ring = Keyring::new(self.region, random()?);
        self.write(&ring)?;
        Ok(ring)
    }

    /// Reads it, changes it, and writes it if `change` succeeds. Durable when this returns.
    pub fn change<T>(
        &self,
        change: impl FnOnce(&mut Keyring) -> Result<T, KeyringFileError>,
    ) -> Result<(Keyring, T), KeyringFileError> {
        let _lock = self.lock()?;
        let mut ring = self.read()?.ok_or_else(|| KeyringFileError::Missing(self.path.clone()))?;
        let before = ring.print();
        let value = change(&mut ring)?;
        if ring.print() != before {
            self.write(&ring)?;
        }
        Ok((ring, value))
    }

    /// Others than its owner may read it: a sentence for the log.
    pub fn is_open_to_others(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|it| it.permissions().mode() & 0o077 != 0)
    }

    fn write(&self, ring: &Keyring) -> Result<(), KeyringFileError> {
        // A link (a mounted secret) stays one: what it points to is replaced.
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let text = ring.print();
        if text.len() > KEYRING_BYTES_MAX {
            return Err(KeyringFileError::Bad(path, KeyringError::TooLarge(text.len())));
        }
        Ok(files::write(&path, text.as_bytes(), Mode::Secret)?)
    }

    fn lock(&self) -> Result<File, KeyringFileError> {
        let path = self.path.with_extension("lock");
        let opened = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(files::at("open the lock", &path))?;
        let give_up = Instant::now() + LOCK_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < give_up => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => return Err(KeyringFileError::Busy(self.path.clone())),
                Err(TryLockError::Error(error)) => return Err(files::at("lock", &path)(error).into()),
            }
        }
    }
}

/// Which keys sealed data of this node.
#[derive(Debug)]
pub struct KeysUsed {
    path: PathBuf,
    keys: BTreeMap<(String, u32), [u8; 8]>,
}

impl KeysUsed {
    /// Reads it. `must_exist`: there are streams that are sealed, so it was written once.
    pub fn read(data: &Path, must_exist: bool) -> Result<KeysUsed, KeyringFileError> {
        let path = data.join("keys-used");
        let bad = |why: &str| KeyringFileError::BadUsed(path.clone(), why.to_string());
        let Some(content) = files::read(&path)? else {
            return match must_exist {
                true => Err(bad("it is missing, and there are streams that are sealed")),
                false => Ok(KeysUsed { path, keys: BTreeMap::new() }),
            };
        };
        let text = String::from_utf8(content).map_err(|_| bad("it is not text"))?;
        let (body, crc) = text.trim_end_matches('\n').rsplit_once("\ncrc ").ok_or_else(|| bad("it has no checksum"))?;
        if crc != checksum(body) {
            return Err(bad("its checksum does not fit"));
        }
        let mut lines = body.lines();
        if lines.next() != Some(USED_FIRST_LINE) {
            return Err(bad("it is of another version"));
        }
        let mut keys = BTreeMap::new();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let parsed = match words[..] {
                ["key", tenant, id, fingerprint] if fingerprint.len() == 16 => {
                    let number = u64::from_str_radix(fingerprint, 16).ok();
                    id.parse().ok().zip(number).map(|(id, it)| ((tenant.to_string(), id), it.to_be_bytes()))
                }
                _ => None,
            };
            let (key, fingerprint) = parsed.ok_or_else(|| bad("a line is not understood"))?;
            keys.insert(key, fingerprint);
        }
        Ok(KeysUsed { path, keys })
    }

    /// No key was used here yet.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks that a keyring holds every key that was used, or says that it was destroyed, and writes down those that
    /// will be used from now on.
    pub fn take(&mut self, file: &KeyringFile, ring: &Keyring) -> Result<(), KeyringFileError> {
        let mut known: BTreeMap<(String, u32), Option<[u8; 8]>> = BTreeMap::new();
        for entry in ring.entries() {
            let print = match entry.region_key {
                Some(_) => Some(ring.data_key(entry.tenant, entry.id)?.fingerprint(entry.tenant)),
                None => None,
            };
            known.insert((entry.tenant.to_string(), entry.id), print);
        }
        for (key, used) in &self.keys {
            let lacks =
                |other| KeyringFileError::Lacks { path: file.path.clone(), tenant: key.0.clone(), id: key.1, other };
            match known.get(key) {
                None => return Err(lacks(false)),
                Some(Some(found)) if found != used => return Err(lacks(true)),
                Some(_) => {}
            }
        }
        let new = known.into_iter().filter_map(|(key, print)| Some((key, print?)));
        let mut keys = self.keys.clone();
        keys.extend(new);
        if keys.len() != self.keys.len() {
            self.write(&keys)?;
            self.keys = keys;
        }
        Ok(())
    }

    fn write(&self, keys: &BTreeMap<(String, u32), [u8; 8]>) -> Result<(), KeyringFileError> {
        let mut body = USED_FIRST_LINE.to_string();
        for ((tenant, id), print) in keys {
            body.push_str(&format!("\nkey {tenant} {id} {:016x}", u64::from_be_bytes(*print)));
        }
        let text = format!("{body}\ncrc {}\n", checksum(&body));
        Ok(files::write(&self.path, text.as_bytes(), Mode::Public)?)
    }
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32c::crc32c(body.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_folder::files::tests::folder;
    use std::fs;

    fn region() -> Region {
        Region::new("local").unwrap()
    }

    fn made(name: &str) -> (PathBuf, KeyringFile) {
        let data = folder(name);
        fs::create_dir(data.join("secrets")).unwrap();
        let file = KeyringFile::new(&data, None, region());
        assert!(file.read().unwrap().is_none());
        file.make().unwrap();
        (data, file)
    }

    fn add(file: &KeyringFile, tenant: &str) -> Keyring {
        file.change(|ring| Ok(ring.add_data_key(tenant, random()?, random()?)?)).unwrap().0
    }

    #[test]
    fn a_keyring_is_secret_and_survives_changes() {
        let (data, file) = made("keyring-change");
        assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
        add(&file, "acme");
        let ring = add(&file, "acme");
        assert_eq!(ring.data_keys("acme").unwrap().len(), 2);
        assert_eq!(file.read().unwrap().unwrap().print(), ring.print());
        assert_eq!(file.make().unwrap().print(), ring.print(), "never made anew over another");
        // A change that fails leaves it as it is.
        assert!(file.change(|ring| Ok(ring.destroy("nobody", 1)?)).is_err());
        assert_eq!(file.read().unwrap().unwrap().print(), ring.print());
        // Who holds the lock is waited for, not passed.
        let held = file.lock().unwrap();
        assert!(matches!(file.change(|_| Ok(())), Err(KeyringFileError::Busy(_))));
        drop(held);
        assert!(file.change(|_| Ok(())).is_ok());
        fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn another_keyring_is_told_from_the_one_that_was_used() {
        let (data, file) = made("keyring-used");
        let empty = fs::read(file.path()).unwrap();
        let ring = add(&file, "acme");
        let mut used = KeysUsed::read(&data, false).unwrap();
        assert!(used.is_empty());
        used.take(&file, &ring).unwrap();
        let again = || KeysUsed::read(&data, true).unwrap();
        again().take(&file, &ring).unwrap();
        // An older backup.
        let old = Keyring::parse(std::str::from_utf8(&empty).unwrap()).unwrap();
        assert!(matches!(again().take(&file, &old), Err(KeyringFileError::Lacks { other: false, .. })));
        // Another node's, with a key of the same tenant and number.
        let mut other = Keyring::new(region(), [1; 32]);
        other.add_data_key("acme", [2; 32], [3; 12]).unwrap();
        let error = again().take(&file, &other).unwrap_err();
        assert!(matches!(error, KeyringFileError::Lacks { other: true, .. }), "{error}");
        // Rotation, another wrapping and a destroyed key are all in order.
        let (ring, ()) = file
            .change(|ring| {
                ring.rotate_region(random()?)?;
                ring.rewrap("acme", 1, random()?)?;
                Ok(())
            })
            .unwrap();
        again().take(&file, &ring).unwrap();
        let (ring, ()) = file.change(|ring| Ok(ring.destroy("acme", 1)?)).unwrap();
        again().take(&file, &ring).unwrap();
        // The record itself is not guessed at.
        let path = data.join("keys-used");
        let text = fs::read_to_string(&path).unwrap();
        for broken in ["", "felix-keys-used 1", &text[1..], &text.replace("acme", "bcme"), &text.replace("key ", "")] {
            fs::write(&path, broken).unwrap();
            assert!(matches!(KeysUsed::read(&data, false), Err(KeyringFileError::BadUsed(..))), "{broken}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(KeysUsed::read(&data, true), Err(KeyringFileError::BadUsed(..))));
        fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn a_record_of_used_keys_that_was_not_written_is_written_later() {
        let (data, file) = made("keyring-unwritten");
        let ring = add(&file, "acme");
        let mut used = KeysUsed::read(&data, false).unwrap();
        fs::create_dir(data.join("keys-used")).unwrap();
        assert!(used.take(&file, &ring).is_err());
        fs::remove_dir(data.join("keys-used")).unwrap();
        used.take(&file, &ring).unwrap();
        assert!(!KeysUsed::read(&data, true).unwrap().is_empty());
        fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn what_is_no_keyring_of_this_node_is_refused() {
        let (data, file) = made("keyring-bad");
        let good = fs::read_to_string(file.path()).unwrap();
        let elsewhere = KeyringFile::new(&data, Some(file.path()), Region::new("eu").unwrap());
        assert!(matches!(elsewhere.read(), Err(KeyringFileError::OtherRegion(..))));
        fs::write(file.path(), &good[..good.len() / 2]).unwrap();
        assert!(matches!(file.read(), Err(KeyringFileError::Bad(..))));
        fs::write(file.path(), [0xff, 0xfe]).unwrap();
        assert!(matches!(file.read(), Err(KeyringFileError::NotText(_))));
        assert!(matches!(file.change(|_| Ok(())), Err(KeyringFileError::NotText(_))), "it is not written over");
        // A data key that the region key does not open.
        let mut ring = Keyring::new(region(), [1; 32]);
        ring.add_data_key("acme", [2; 32], [3; 12]).unwrap();
        let text = ring.print();
        let (body, _) = text.rsplit_once("crc ").unwrap();
        let body = body.replace(&"01".repeat(32), &"02".repeat(32));
        fs::write(file.path(), format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()))).unwrap();
        let error = file.read().unwrap_err();
        assert!(matches!(error, KeyringFileError::Key(_, _, 1, KeyError::Refused)), "{error}");
        fs::remove_dir_all(data).unwrap();
    }
}
