//! **What**: certificates for development: an authority, a server certificate for this machine, a client certificate of the
//! admin, and the context file that lets a client find them.
//!
//! ```text
//!   DATA/dev-pki/{ca,server,admin}.crt    PEM
//!   DATA/dev-pki/{ca,server,admin}.key    PEM, owner only
//!   DATA/dev-pki/made.toml                until when, for which names; written last
//! ```
//!
//! **Invariants**: without `made.toml` nothing here counts (a crash in the middle leaves no half set); leaf certificates are
//! used until a week before they end and only for the names they were made for; the authority outlives them, so that a
//! client that trusts it needs no new context when the listen address changes.
//!
//! **Never**: use outside development: the authority's key lies beside what it signs.
//!
//! **See**: `data_folder.rs` for the folder.

use crate::data_folder::files::{FileError, Mode, at, make_dir, read, write};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use time::{Duration, OffsetDateTime};

/// The name of the admin in the client certificate.
pub const PRINCIPAL_URI: &str = "felix://local/principal/admin";

/// Version of `made.toml`; a change makes new certificates.
const FORMAT: u32 = 1;

/// Lives of the certificates.
const CA_DAYS: i64 = 5 * 365;
const LEAF_DAYS: i64 = 90;

/// Leaf certificates that end sooner are made anew.
const LEFT_DAYS_MIN: i64 = 7;

/// Clocks that lag behind ours by less accept a new certificate.
const BACKDATE: Duration = Duration::hours(1);

/// Where the development certificates are. All paths are absolute if the folder's was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevPki {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The server's certificate.
    pub server_cert: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// The admin's certificate.
    pub admin_cert: PathBuf,
    /// The admin's key.
    pub admin_key: PathBuf,
}

/// Why there are no development certificates.
#[derive(Debug)]
pub enum PkiError {
    /// A file could not be read or written.
    File(FileError),
    /// A key or certificate could not be made or read.
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl std::fmt::Display for PkiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PkiError::File(error) => error.fmt(f),
            PkiError::Certificate { path, reason } => write!(
                f,
                "cannot make {}: {reason}; remove the folder to begin anew (clients then need the new ca.crt)",
                path.display()
            ),
        }
    }
}

impl std::error::Error for PkiError {}

impl From<FileError> for PkiError {
    fn from(error: FileError) -> Self {
        PkiError::File(error)
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    format: u32,
    /// Unix seconds at which the leaf certificates end.
    leaf_ends: i64,
    /// Unix seconds at which the authority ends.
    ca_ends: i64,
    /// Names and addresses of the server certificate.
    names: BTreeSet<String>,
}

impl DevPki {
    /// Returns the certificates in `data/dev-pki`, making what is missing, about to end, or made for other names.
    pub fn ensure(data: &Path, listen: SocketAddr, now: SystemTime) -> Result<DevPki, PkiError> {
        let now = OffsetDateTime::from(now);
        let folder = data.join("dev-pki");
        let file = |name: &str| folder.join(name);
        let pki = DevPki {
            ca: file("ca.crt"),
            server_cert: file("server.crt"),
            server_key: file("server.key"),
            admin_cert: file("admin.crt"),
            admin_key: file("admin.key"),
        };
        make_dir(&folder)?;
        let made_path = file("made.toml");
        let ca_key_path = file("ca.key");
        let names = names(listen);
        let made = read_made(&made_path)?;
        let left = |ends: i64| ends - now.unix_timestamp() >= LEFT_DAYS_MIN * 86_400;
        let leaves = [&pki.ca, &pki.server_cert, &pki.server_key, &pki.admin_cert, &pki.admin_key];
        if let Some(made) = &made
            && left(made.leaf_ends)
            && made.names == names
            && leaves.iter().all(|path| path.is_file())
        {
            return Ok(pki);
        }

        // From here until it is written again, a crash makes the next start begin anew.
        if made_path.exists() {
            fs::remove_file(&made_path).map_err(at("remove", &made_path))?;
        }
        let leaf_ends = now + Duration::days(LEAF_DAYS);
        let old_ca = made.filter(|made| pki.ca.is_file() && made.ca_ends >= leaf_ends.unix_timestamp());
        let (ca_key, ca_ends) = match (old_ca, read(&ca_key_path)?) {
            (Some(made), Some(pem)) => {
                let bad = |reason: String| PkiError::Certificate { path: ca_key_path.clone(), reason };
                let pem = String::from_utf8(pem).map_err(|error| bad(error.to_string()))?;
                (KeyPair::from_pem(&pem).map_err(|error| bad(error.to_string()))?, made.ca_ends)
            }
            _ => {
                let ends = now + Duration::days(CA_DAYS);
                let key = KeyPair::generate().map_err(wrong(&ca_key_path))?;
                let mut params = ca_params();
                (params.not_before, params.not_after) = (now - BACKDATE, ends);
                let cert = params.self_signed(&key).map_err(wrong(&pki.ca))?;
                write(&ca_key_path, key.serialize_pem().as_bytes(), Mode::Secret)?;
                write(&pki.ca, cert.pem().as_bytes(), Mode::Public)?;
                (key, ends.unix_timestamp())
            }
        };
        // Only name and key of the authority go into what it signs.
        let issuer = Issuer::new(ca_params(), ca_key);

        let mut server =
            CertificateParams::new(names.iter().cloned().collect::<Vec<_>>()).map_err(wrong(&pki.server_cert))?;
        server.distinguished_name = name("felix development server");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        issue(server, now, leaf_ends, &issuer, &pki.server_cert, &pki.server_key)?;

        let mut admin = CertificateParams::default();
        admin.distinguished_name = name("admin");
        admin.subject_alt_names = vec![SanType::URI(PRINCIPAL_URI.try_into().map_err(wrong(&pki.admin_cert))?)];
        admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        issue(admin, now, leaf_ends, &issuer, &pki.admin_cert, &pki.admin_key)?;

        let made = Made { format: FORMAT, leaf_ends: leaf_ends.unix_timestamp(), ca_ends, names };
        let text = toml::to_string(&made)
            .map_err(|error| PkiError::Certificate { path: made_path.clone(), reason: error.to_string() })?;
        write(&made_path, text.as_bytes(), Mode::Public)?;
        Ok(pki)
    }
}

/// Writes the file that tells a client on this machine where the server is and which certificates to use.
pub fn write_context(path: &Path, server: SocketAddr, pki: &DevPki) -> Result<(), FileError> {
    #[derive(Serialize)]
    struct Context<'a> {
        server: String,
        ca: &'a Path,
        cert: &'a Path,
        key: &'a Path,
    }
    let context =
        Context { server: reachable(server).to_string(), ca: &pki.ca, cert: &pki.admin_cert, key: &pki.admin_key };
    let text = toml::to_string(&context)
        .map_err(|error| at("write", path)(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
    // It names a key file and holds none.
    write(path, text.as_bytes(), Mode::Public)
}

/// The address a client on this machine uses for a listen address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(addr) if addr.ip().is_unspecified() => ([127, 0, 0, 1], addr.port()).into(),
        SocketAddr::V6(addr) if addr.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, addr.port()).into(),
        addr => addr,
    }
}

fn names(listen: SocketAddr) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
    if !listen.ip().is_unspecified() {
        names.insert(listen.ip().to_string());
    }
    names
}

/// What `made.toml` says; `None` if it is missing or says nothing we understand (then all is made anew).
fn read_made(path: &Path) -> Result<Option<Made>, FileError> {
    let made = read(path)?.and_then(|content| toml::from_str::<Made>(str::from_utf8(&content).ok()?).ok());
    Ok(made.filter(|made| made.format == FORMAT))
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("felix development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn issue(
    mut params: CertificateParams,
    now: OffsetDateTime,
    ends: OffsetDateTime,
    issuer: &Issuer<'_, KeyPair>,
    cert_path: &Path,
    key_path: &Path,
) -> Result<(), PkiError> {
    (params.not_before, params.not_after) = (now - BACKDATE, ends);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(wrong(key_path))?;
    let cert = params.signed_by(&key, issuer).map_err(wrong(cert_path))?;
    write(key_path, key.serialize_pem().as_bytes(), Mode::Secret)?;
    write(cert_path, cert.pem().as_bytes(), Mode::Public)?;
    Ok(())
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn wrong(path: &Path) -> impl Fn(rcgen::Error) -> PkiError + '_ {
    move |error| PkiError::Certificate { path: path.to_path_buf(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_folder::files::tests::folder;
    use std::os::unix::fs::PermissionsExt;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::seconds(1_800_000_000)
    }

    fn listen() -> SocketAddr {
        "127.0.0.1:4433".parse().unwrap()
    }

    fn contents(pki: &DevPki) -> [String; 5] {
        [&pki.ca, &pki.server_cert, &pki.server_key, &pki.admin_cert, &pki.admin_key]
            .map(|path| fs::read_to_string(path).unwrap())
    }

    #[test]
    fn certificates_are_reused_until_a_week_before_they_end() {
        let data = folder("pki");
        let pki = DevPki::ensure(&data, listen(), now()).unwrap();
        let first = contents(&pki);
        for path in [&pki.server_key, &pki.admin_key, &data.join("dev-pki/ca.key")] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
        }
        let late = now() + Duration::days(LEAF_DAYS - LEFT_DAYS_MIN);
        assert_eq!(DevPki::ensure(&data, listen(), late).unwrap(), pki);
        assert_eq!(contents(&pki), first, "still good");
        DevPki::ensure(&data, listen(), late + Duration::seconds(1)).unwrap();
        let second = contents(&pki);
        assert_eq!(second[0], first[0], "the authority stays");
        assert!(second[1..].iter().zip(&first[1..]).all(|(new, old)| new != old), "the leaves are new");
        DevPki::ensure(&data, listen(), now() + Duration::days(CA_DAYS)).unwrap();
        assert_ne!(contents(&pki)[0], first[0], "an authority that would end before its leaves is replaced");
    }

    #[test]
    fn other_names_and_missing_files_make_new_leaves() {
        let data = folder("pki-names");
        let pki = DevPki::ensure(&data, listen(), now()).unwrap();
        let first = contents(&pki);
        DevPki::ensure(&data, "127.0.0.1:9999".parse().unwrap(), now()).unwrap();
        DevPki::ensure(&data, "0.0.0.0:9999".parse().unwrap(), now()).unwrap();
        assert_eq!(contents(&pki), first, "the port is not part of a certificate");
        DevPki::ensure(&data, "192.0.2.7:4433".parse().unwrap(), now()).unwrap();
        let second = contents(&pki);
        assert_eq!(second[0], first[0]);
        assert_ne!(second[1], first[1]);
        fs::remove_file(&pki.admin_key).unwrap();
        DevPki::ensure(&data, "192.0.2.7:4433".parse().unwrap(), now()).unwrap();
        assert_ne!(contents(&pki)[3], second[3]);
    }

    #[test]
    fn a_crash_in_the_middle_leaves_no_half_set() {
        let data = folder("pki-crash");
        let pki = DevPki::ensure(&data, listen(), now()).unwrap();
        let first = contents(&pki);
        // The state while new files are being written.
        fs::remove_file(data.join("dev-pki/made.toml")).unwrap();
        DevPki::ensure(&data, listen(), now()).unwrap();
        assert!(contents(&pki).iter().zip(&first).all(|(new, old)| new != old), "all made anew");
    }

    #[test]
    fn the_context_names_a_reachable_server_and_the_admin() {
        let data = folder("pki-context");
        let pki = DevPki::ensure(&data, listen(), now()).unwrap();
        let path = data.join("context.toml");
        let cases = [
            ("127.0.0.1:4433", "127.0.0.1:4433"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:2", "[::1]:2"),
            ("10.0.0.1:3", "10.0.0.1:3"),
        ];
        for (listen, server) in cases {
            write_context(&path, listen.parse().unwrap(), &pki).unwrap();
            let context: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
            assert_eq!(context["server"].as_str(), Some(server));
            assert_eq!(context["ca"].as_str(), pki.ca.to_str());
            assert_eq!(context["cert"].as_str(), pki.admin_cert.to_str());
            assert_eq!(context["key"].as_str(), pki.admin_key.to_str());
        }
    }
}
