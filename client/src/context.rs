//! **What**: where a broker is and who we are: the file `context.toml`.
//!
//! ```text
//! server = "broker.example:7447"     host:port
//! ca = "ca.pem"                      relative paths are relative to this file
//! cert = "client.pem"                optional, with key
//! key = "client.key"
//! token = "..."                      optional
//! server_name = "broker.example"     optional: name in the certificate, if it is not the host of `server`
//! ```
//!
//! **Invariants**: an unknown key is refused, so that a typing error is not a silent default.
//!
//! **Never**: a token or a private key in `Debug` or in an error.
//!
//! **See**: `config.rs`, which turns it into a configuration.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a broker is and who we are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `host:port`.
    pub server: String,
    /// Certificate authority of the broker, PEM.
    pub ca: PathBuf,
    /// Our certificate chain, PEM; needs `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Our private key, PEM; needs `cert`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Name in the broker's certificate, if it is not the host of `server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("server", &self.server)
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

/// Why a context cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContextError {
    /// A file cannot be read.
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        kind: std::io::ErrorKind,
    },
    /// The file is not TOML or lacks a field.
    Malformed {
        /// Which.
        path: PathBuf,
        /// Line, from 1; 0 if not known.
        line: usize,
        /// What the parser said.
        detail: String,
    },
    /// Neither `FELIX_CONTEXT` nor `HOME` is set.
    NoHome,
    /// `server` is not `host:port`.
    Server {
        /// What was found.
        found: String,
    },
    /// A certificate without its key, or the other way round.
    HalfIdentity,
    /// A certificate, key or authority is not usable.
    Credentials {
        /// What the TLS side said.
        detail: &'static str,
    },
    /// A setting out of range.
    Setting {
        /// Which.
        name: &'static str,
    },
}

impl fmt::Display for ContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContextError::Unreadable { path, kind } => {
                write!(f, "{} cannot be read: {kind}; check the path or set FELIX_CONTEXT", path.display())
            }
            ContextError::Malformed { path, line, detail } => {
                write!(f, "{} line {line}: {detail}; fix the file", path.display())
            }
            ContextError::NoHome => f.write_str("no context: set FELIX_CONTEXT to the path of a context.toml"),
            ContextError::Server { found } => write!(f, "server {found:?} is not host:port; fix the context"),
            ContextError::HalfIdentity => f.write_str("cert and key belong together; set both or none"),
            ContextError::Credentials { detail } => write!(f, "{detail}; check ca, cert and key of the context"),
            ContextError::Setting { name } => write!(f, "setting {name} is out of range; see its documentation"),
        }
    }
}

impl std::error::Error for ContextError {}

impl Context {
    /// Reads a file. Relative paths in it are relative to its folder.
    pub fn load(path: impl AsRef<Path>) -> Result<Context, ContextError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ContextError::Unreadable { path: path.to_path_buf(), kind: error.kind() })?;
        let mut context: Context = toml::from_str(&text).map_err(|error| ContextError::Malformed {
            path: path.to_path_buf(),
            line: error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1),
            detail: error.message().to_string(),
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        context.ca = folder.join(&context.ca);
        context.cert = context.cert.map(|it| folder.join(it));
        context.key = context.key.map(|it| folder.join(it));
        Ok(context)
    }

    /// Reads the file named by `FELIX_CONTEXT`, else `~/.config/felix/context.toml`.
    pub fn from_env() -> Result<Context, ContextError> {
        Context::load(Context::path_from_env()?)
    }

    /// The file that [`Context::from_env`] reads.
    pub fn path_from_env() -> Result<PathBuf, ContextError> {
        if let Some(path) = std::env::var_os("FELIX_CONTEXT").filter(|it| !it.is_empty()) {
            return Ok(path.into());
        }
        let home = std::env::var_os("HOME").filter(|it| !it.is_empty()).ok_or(ContextError::NoHome)?;
        Ok(PathBuf::from(home).join(".config/felix/context.toml"))
    }

    /// Host part of `server`, without brackets.
    pub(crate) fn host(&self) -> Result<&str, ContextError> {
        let bad = || ContextError::Server { found: self.server.clone() };
        let (host, port) = self.server.rsplit_once(':').ok_or_else(bad)?;
        let host = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host);
        match port.parse::<u16>() {
            Ok(port) if port > 0 && !host.is_empty() => Ok(host),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_its_paths_are_its_own() {
        let folder = std::env::temp_dir().join(format!("felix-context-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("context.toml");
        std::fs::write(&path, "server = \"[::1]:7447\"\nca = \"ca.pem\"\ncert = \"/abs/c.pem\"\nkey = \"k.pem\"\n")
            .unwrap();
        let context = Context::load(&path).unwrap();
        assert_eq!(context.ca, folder.join("ca.pem"));
        assert_eq!(context.cert.as_deref(), Some(Path::new("/abs/c.pem")));
        assert_eq!(context.key, Some(folder.join("k.pem")));
        assert_eq!(context.host(), Ok("::1"));
        std::fs::write(&path, "server = \"a:1\"\nca = \"ca.pem\"\nservername = \"x\"\n").unwrap();
        assert!(matches!(Context::load(&path), Err(ContextError::Malformed { line: 3, .. })));
        assert!(matches!(Context::load(folder.join("none")), Err(ContextError::Unreadable { .. })));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn server_is_host_and_port() {
        let context = |server: &str| Context {
            server: server.into(),
            ca: "ca".into(),
            cert: None,
            key: None,
            token: Some("secret".into()),
            server_name: None,
        };
        assert_eq!(context("broker.example:7447").host(), Ok("broker.example"));
        for bad in ["broker", "broker:", ":7447", "broker:0", "broker:70000", "[]:1"] {
            assert!(matches!(context(bad).host(), Err(ContextError::Server { .. })), "{bad}");
        }
        assert!(!format!("{:?}", context("a:1")).contains("secret"));
    }
}
