//! **What**: the certificate files of the broker: read, checked, and read again when they change.
//!
//! **Invariants**: new files are taken only if an endpoint can be made of them; half-written ones are tried again later.
//!
//! **Never**: a restart for a renewed certificate.
//!
//! **See**: `control_thread.rs` (who asks), `felix_quic::ServerTls`.

use felix_quic::{ClientAuth, ConfigError, CoreSlot, Endpoint, EndpointConfig, EndpointSecrets, ServerTls};
use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

/// Where the files are, and what was last read.
pub struct TlsFiles {
    cert: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    last: Option<[Vec<u8>; 3]>,
}

/// Why certificates cannot be used.
#[derive(Debug)]
pub enum TlsFilesError {
    /// A file cannot be read.
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The files do not make a server identity.
    Unusable(ConfigError),
}

impl fmt::Display for TlsFilesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsFilesError::Read { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            TlsFilesError::Unusable(error) => write!(f, "the certificate files are not usable: {error}"),
        }
    }
}

impl std::error::Error for TlsFilesError {}

impl TlsFiles {
    /// Files that are not read yet. Clients must show a certificate of `client_ca`.
    pub fn new(cert: PathBuf, key: PathBuf, client_ca: PathBuf) -> TlsFiles {
        TlsFiles { cert, key, client_ca, last: None }
    }

    /// Reads the files; None if they are as they were.
    pub fn reload(&mut self) -> Result<Option<ServerTls>, TlsFilesError> {
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|source| TlsFilesError::Read { path: path.clone(), source });
        let files = [read(&self.cert)?, read(&self.key)?, read(&self.client_ca)?];
        if self.last.as_ref() == Some(&files) {
            return Ok(None);
        }
        let [cert, key, client_ca] = files.clone();
        let tls = ServerTls {
            cert_chain_pem: cert,
            key_pem: key,
            client_ca_pem: Some(client_ca),
            // Optional at TLS: a client without one gets a typed refusal at Hello instead of a bare alert.
            client_auth: ClientAuth::Optional,
        };
        let slot = CoreSlot { index: 0, count: 1 };
        Endpoint::new(EndpointConfig::default(), &tls, slot, EndpointSecrets::from_seed(&[0; 32]), Instant::now())
            .map_err(TlsFilesError::Unusable)?;
        self.last = Some(files);
        Ok(Some(tls))
    }
}
