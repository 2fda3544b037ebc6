//! **What**: files that appear whole or not at all.
//!
//! **Invariants**: the content is on disk before the name is; the name is on disk before `write` returns.
//!
//! **Never**: a key that others may read, not even for a moment.
//!
//! **See**: `data_folder.rs` and `dev/pki.rs`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everybody.
    Public,
    /// The owner.
    Secret,
}

/// A file or folder could not be read or written.
#[derive(Debug)]
pub struct FileError {
    /// What was being done.
    pub step: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot {} {}: {}", self.step, self.path.display(), self.source)
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Makes a closure that dresses an `io::Error`.
pub(crate) fn at<'a>(step: &'static str, path: &'a Path) -> impl Fn(io::Error) -> FileError + 'a {
    move |source| FileError { step, path: path.to_path_buf(), source }
}

/// Makes a folder that only its owner may enter, and those above it.
pub(crate) fn make_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at("make the folder", path))
}

/// Writes a file: into a neighbour, synced, renamed over `path`, folder synced.
pub(crate) fn write(path: &Path, content: &[u8], mode: Mode) -> Result<(), FileError> {
    let neighbour = path.with_extension(format!("tmp{}", std::process::id()));
    let mode = match mode {
        Mode::Public => 0o644,
        Mode::Secret => 0o600,
    };
    // A neighbour left by a crash may have another mode: begin anew.
    let _ = fs::remove_file(&neighbour);
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(&neighbour).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.map_err(at("write", &neighbour))?;
    fs::rename(&neighbour, path).map_err(at("put in place", path))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at("sync the folder", folder))
}

/// Reads a file; `None` if it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("read", path)(error)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// An empty folder of its own for a test.
    pub fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("felix-dev-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        make_dir(&path).unwrap();
        path
    }

    #[test]
    fn replaces_whole_files_and_leaves_no_neighbour() {
        let folder = folder("files");
        let path = folder.join("a.key");
        write(&path, b"one", Mode::Secret).unwrap();
        write(&path, b"two", Mode::Secret).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert!(read(&folder.join("none")).unwrap().is_none());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn errors_name_the_path() {
        let error = write(Path::new("/proc/nowhere/x"), b"", Mode::Public).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere/x"), "{error}");
    }
}
