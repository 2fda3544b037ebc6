//! TLS contexts from PEM in memory.
//!
//! **What.** Server and client identities and trust, turned into BoringSSL contexts.
//!
//! **Invariants.** TLS 1.3 only and ALPN `felix/1` only (quiche sets the versions, BoringSSL refuses
//! QUIC without a common ALPN). BoringSSL itself prefers AES-128-GCM where the CPU has AES
//! instructions and ChaCha20-Poly1305 where not. A client always verifies its server.
//!
//! **Never.** Session tickets or a session cache: each would hold memory per connection, and a
//! resumed session would outlive a revoked certificate.
//!
//! **See** `settings.rs`, which puts the transport around it.

use std::fmt;
use std::net::IpAddr;

use boring::pkey::{PKey, Private};
use boring::ssl::{SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode, SslVerifyMode};
use boring::x509::X509;

use crate::error::ConfigError;

/// The only application protocol spoken here.
pub const ALPN: &[u8] = b"felix/1";

/// Key agreements offered and taken. Without the post-quantum hybrid a ClientHello fits one packet.
const GROUPS: &str = "X25519:P-256:P-384";

/// Whether a server asks its clients for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// It does not ask.
    None,
    /// It asks, and checks what it gets.
    Optional,
    /// A client without a good certificate fails the handshake.
    Required,
}

/// Identity and trust of a server.
#[derive(Clone)]
pub struct ServerTls {
    /// Leaf first, then intermediates.
    pub cert_chain_pem: Vec<u8>,
    /// Private key of the leaf.
    pub key_pem: Vec<u8>,
    /// Roots that client certificates must lead to.
    pub client_ca_pem: Option<Vec<u8>>,
    /// Whether clients must show one.
    pub client_auth: ClientAuth,
}

/// Identity and trust of a client.
#[derive(Clone)]
pub struct ClientTls {
    /// Roots that the server certificate must lead to. System roots are not used.
    pub ca_pem: Vec<u8>,
    /// Our certificate chain, if the server asks for one.
    pub cert_chain_pem: Option<Vec<u8>>,
    /// Its private key.
    pub key_pem: Option<Vec<u8>>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("client_auth", &self.client_auth).finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    pub(crate) fn to_boring(&self) -> Result<SslContextBuilder, ConfigError> {
        let mut context = new_context()?;
        set_identity(&mut context, &self.cert_chain_pem, &self.key_pem)?;
        if let Some(ca) = &self.client_ca_pem {
            for root in parse_roots(ca)? {
                context.add_client_ca(&root).map_err(|_| ConfigError::CaBundle)?;
                context.cert_store_mut().add_cert(root).map_err(|_| ConfigError::CaBundle)?;
            }
        } else if self.client_auth != ClientAuth::None {
            return Err(ConfigError::ClientAuthWithoutCa);
        }
        context.set_verify(match self.client_auth {
            ClientAuth::None => SslVerifyMode::NONE,
            ClientAuth::Optional => SslVerifyMode::PEER,
            ClientAuth::Required => SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
        });
        Ok(context)
    }
}

impl ClientTls {
    /// A context for servers named by host name (`None`: quiche sets the name per connection) or by
    /// one address, which has to be part of the context because quiche only knows host names.
    pub(crate) fn to_boring(&self, address: Option<IpAddr>) -> Result<SslContextBuilder, ConfigError> {
        let mut context = new_context()?;
        match (&self.cert_chain_pem, &self.key_pem) {
            (Some(chain), Some(key)) => set_identity(&mut context, chain, key)?,
            (None, None) => {}
            _ => return Err(ConfigError::HalfIdentity),
        }
        let store = context.cert_store_mut();
        for root in parse_roots(&self.ca_pem)? {
            store.add_cert(root).map_err(|_| ConfigError::CaBundle)?;
        }
        if let Some(address) = address {
            store.verify_param_mut().set_ip(address).map_err(|_| ConfigError::Tls)?;
        }
        context.set_verify(SslVerifyMode::PEER);
        Ok(context)
    }
}

fn new_context() -> Result<SslContextBuilder, ConfigError> {
    let mut context = SslContextBuilder::new(SslMethod::tls()).map_err(|_| ConfigError::Tls)?;
    context.set_options(SslOptions::NO_TICKET);
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_curves_list(GROUPS).map_err(|_| ConfigError::Tls)?;
    Ok(context)
}

fn set_identity(context: &mut SslContextBuilder, chain: &[u8], key: &[u8]) -> Result<(), ConfigError> {
    let mut certificates = X509::stack_from_pem(chain).map_err(|_| ConfigError::CertificateChain)?.into_iter();
    let leaf = certificates.next().ok_or(ConfigError::CertificateChain)?;
    let key: PKey<Private> = PKey::private_key_from_pem(key).map_err(|_| ConfigError::PrivateKey)?;
    let matches = leaf.public_key().map_err(|_| ConfigError::CertificateChain)?.public_eq(&key);
    if !matches {
        return Err(ConfigError::KeyMismatch);
    }
    context.set_certificate(&leaf).map_err(|_| ConfigError::CertificateChain)?;
    for intermediate in certificates {
        context.add_extra_chain_cert(intermediate).map_err(|_| ConfigError::CertificateChain)?;
    }
    context.set_private_key(&key).map_err(|_| ConfigError::PrivateKey)
}

fn parse_roots(pem: &[u8]) -> Result<Vec<X509>, ConfigError> {
    let roots = X509::stack_from_pem(pem).map_err(|_| ConfigError::CaBundle)?;
    if roots.is_empty() { Err(ConfigError::CaBundle) } else { Ok(roots) }
}
