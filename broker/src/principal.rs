//! **What**: who a client certificate names.
//!
//! ```text
//! felix://REGION/principal/NAME   a URI among the subject alternative names; the first of this form counts
//! CN=NAME                         of the subject, if there is no such URI
//! ```
//!
//! **Invariants**: the certificate was checked against the client CA by TLS before; this only reads a name. Only the
//! URI of `felix://local/principal/admin` names the administrator: a common name never does.
//!
//! **Never**: a name that is reserved, too long or holds control characters: such a certificate names nobody.
//!
//! **See**: `felix_control::authorise`.

use felix_control::authorise::Principal;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The principal of a DER certificate, if it names one.
pub fn principal_of(der: &[u8]) -> Option<Principal> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        for name in &names.value.general_names {
            let GeneralName::URI(uri) = name else { continue };
            let Some((region, name)) = uri.strip_prefix("felix://").and_then(|rest| rest.split_once("/principal/"))
            else {
                continue;
            };
            if name == "admin" && region == "local" {
                return Some(Principal::admin());
            }
            return Principal::named(name).ok();
        }
    }
    let common_name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Principal::named(common_name).ok()
}
