//! **What**: who is asking, and what they may do: principals, verbs, roles.
//!
//! ```text
//! role = principal, verbs, pattern        pattern = tenant/namespace/stream, each part a name or '*'
//! target: cluster  needs */*/*    tenant t  needs t/*/*    namespace t/n  needs t/n/*    stream  needs a match
//! ```
//!
//! **Invariants**: what no role grants is denied; the administrator is a principal that no name can spell, so a
//! token whose subject is "admin" is nobody special.
//!
//! **Never**: an open mode; a decision by metadata state (a role may name what does not exist yet).
//!
//! **See**: `command.rs`, which keeps the principal in the log.

use crate::limits::PRINCIPAL_BYTES_MAX;
use felix_protocol::metadata::Command;
use felix_protocol::names::{NameError, StreamName, check_label, check_stream_part};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal(Who);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Who {
    Admin,
    System,
    Named(Box<str>),
}

const ADMIN: &str = "admin";
const SYSTEM: &str = "system";

/// Why a text is no name of a principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrincipalError {
    /// Nothing there.
    Empty,
    /// Longer than `PRINCIPAL_BYTES_MAX`.
    TooLong {
        /// Bytes found.
        bytes: usize,
    },
    /// A control character, which could forge a line of the audit log.
    ControlCharacter {
        /// Index of its first byte.
        at: usize,
    },
    /// A name that stands for a principal that is not named: "admin" or "system".
    Reserved,
}

impl std::fmt::Display for PrincipalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PrincipalError::Empty => f.write_str("a principal needs a name"),
            PrincipalError::TooLong { bytes } => {
                write!(f, "the principal has {bytes} bytes, at most {PRINCIPAL_BYTES_MAX} are allowed")
            }
            PrincipalError::ControlCharacter { at } => write!(f, "control character at byte {at} of the principal"),
            PrincipalError::Reserved => f.write_str("the names admin and system are reserved"),
        }
    }
}

impl std::error::Error for PrincipalError {}

impl Principal {
    /// The holder of the admin client certificate. The caller has checked that certificate.
    pub fn admin() -> Principal {
        Principal(Who::Admin)
    }

    /// The broker itself, for commands that no client asked for. It is granted nothing as a client.
    pub fn system() -> Principal {
        Principal(Who::System)
    }

    /// Someone named by a certificate or token.
    pub fn named(name: &str) -> Result<Principal, PrincipalError> {
        if name.is_empty() {
            return Err(PrincipalError::Empty);
        }
        if name.len() > PRINCIPAL_BYTES_MAX {
            return Err(PrincipalError::TooLong { bytes: name.len() });
        }
        if let Some((at, _)) = name.char_indices().find(|(_, character)| character.is_control()) {
            return Err(PrincipalError::ControlCharacter { at });
        }
        match name {
            ADMIN | SYSTEM => Err(PrincipalError::Reserved),
            _ => Ok(Principal(Who::Named(name.into()))),
        }
    }

    /// The principal of a text that [`Principal::as_str`] gave: of a log entry or snapshot, never of a peer.
    pub(crate) fn from_log(text: &str) -> Result<Principal, PrincipalError> {
        match text {
            ADMIN => Ok(Principal::admin()),
            SYSTEM => Ok(Principal::system()),
            name => Principal::named(name),
        }
    }

    /// For the log, and for people.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Who::Admin => ADMIN,
            Who::System => SYSTEM,
            Who::Named(name) => name,
        }
    }
}

/// What someone wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Verb {
    /// Append records.
    Publish = 0,
    /// Read records as they come.
    Subscribe = 1,
    /// Take records from a queue.
    Consume = 2,
    /// Read cache values.
    CacheRead = 3,
    /// Write cache values.
    CacheWrite = 4,
    /// Change or list metadata.
    Admin = 5,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Verb; 6] =
        [Verb::Publish, Verb::Subscribe, Verb::Consume, Verb::CacheRead, Verb::CacheWrite, Verb::Admin];

    /// As written in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Publish => "publish",
            Verb::Subscribe => "subscribe",
            Verb::Consume => "consume",
            Verb::CacheRead => "cache.read",
            Verb::CacheWrite => "cache.write",
            Verb::Admin => "admin",
        }
    }

    /// The verb of a name.
    pub fn from_name(name: &str) -> Option<Verb> {
        Verb::ALL.into_iter().find(|verb| verb.name() == name)
    }
}

/// A set of verbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verbs(u8);

impl Verbs {
    /// The set of these.
    pub fn of(verbs: &[Verb]) -> Verbs {
        Verbs(verbs.iter().fold(0, |bits, verb| bits | 1 << *verb as u8))
    }

    /// Whether it holds a verb.
    pub fn holds(self, verb: Verb) -> bool {
        self.0 & 1 << verb as u8 != 0
    }
}

/// What someone wants to do it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// Everything.
    Cluster,
    /// A tenant and all in it.
    Tenant(&'a str),
    /// A namespace and all in it.
    Namespace {
        /// Its tenant.
        tenant: &'a str,
        /// Its own part.
        namespace: &'a str,
    },
    /// One stream.
    Stream(&'a StreamName),
}

impl<'a> Target<'a> {
    /// What a metadata command is about; it needs [`Verb::Admin`] there. A command that may make or delete a tenant is
    /// about the cluster: who rules one tenant does not thereby make others.
    pub fn of_command(command: &'a Command) -> Target<'a> {
        match command {
            Command::CreateTenant { .. }
            | Command::DeleteTenant { .. }
            | Command::ListTenants { .. }
            | Command::CreateStream { create_parents: true, .. }
            | Command::ListStreams { tenant: None, .. } => Target::Cluster,
            Command::CreateNamespace { name } | Command::DeleteNamespace { name } => Target::Tenant(name.tenant()),
            Command::ListNamespaces { tenant, .. }
            | Command::ListStreams { tenant: Some(tenant), namespace: None, .. } => Target::Tenant(tenant),
            Command::ListStreams { tenant: Some(tenant), namespace: Some(namespace), .. } => {
                Target::Namespace { tenant, namespace }
            }
            Command::CreateStream { name, .. } | Command::DeleteStream { name } => {
                Target::Namespace { tenant: name.tenant(), namespace: name.namespace().namespace() }
            }
            Command::AlterStream { name, .. } | Command::DescribeStream { name } => Target::Stream(name),
        }
    }

    fn parts(self) -> [Option<&'a str>; 3] {
        match self {
            Target::Cluster => [None, None, None],
            Target::Tenant(tenant) => [Some(tenant), None, None],
            Target::Namespace { tenant, namespace } => [Some(tenant), Some(namespace), None],
            Target::Stream(name) => [Some(name.tenant()), Some(name.namespace().namespace()), Some(name.stream())],
        }
    }
}

/// Why a text is no stream pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamPatternError {
    /// Not three parts.
    WrongParts {
        /// Parts found.
        found: usize,
    },
    /// A part that is neither `*` nor a name.
    BadPart {
        /// Which, from 0.
        index: usize,
        /// Why.
        error: NameError,
    },
}

impl std::fmt::Display for StreamPatternError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StreamPatternError::WrongParts { found } => {
                write!(f, "expected tenant/namespace/stream, each a name or '*'; found {found} part(s)")
            }
            StreamPatternError::BadPart { index, error } => write!(f, "part {}: {error}", index + 1),
        }
    }
}

impl std::error::Error for StreamPatternError {}

/// `tenant/namespace/stream`, each part a name or `*` for any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPattern([Option<Box<str>>; 3]);

impl StreamPattern {
    /// Checks a pattern.
    pub fn parse(text: &str) -> Result<StreamPattern, StreamPatternError> {
        let found = text.split('/').count();
        if found != 3 {
            return Err(StreamPatternError::WrongParts { found });
        }
        let mut parts = [None, None, None];
        for (index, part) in text.split('/').enumerate() {
            if part == "*" {
                continue;
            }
            let checked = if index == 2 { check_stream_part(part) } else { check_label(part) };
            checked.map_err(|error| StreamPatternError::BadPart { index, error })?;
            parts[index] = Some(part.into());
        }
        Ok(StreamPattern(parts))
    }

    /// Whether all of the target is covered.
    pub fn covers(&self, target: Target<'_>) -> bool {
        self.0.iter().zip(target.parts()).all(|(pattern, part)| match (pattern, part) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wanted), Some(part)) => **wanted == *part,
        })
    }
}

/// One grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// To whom.
    pub principal: Principal,
    /// To do what.
    pub verbs: Verbs,
    /// To what.
    pub pattern: StreamPattern,
}

/// Every grant, fixed at start. Empty: only the administrator may do anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles(Vec<Role>);

impl Roles {
    /// The grants given.
    pub fn new(roles: Vec<Role>) -> Roles {
        Roles(roles)
    }

    /// Whether a principal may do this. Linear in the number of grants: asked when a channel opens, never per record.
    pub fn allowed(&self, principal: &Principal, verb: Verb, target: Target<'_>) -> bool {
        match principal.0 {
            Who::Admin => true,
            Who::System => false,
            Who::Named(_) => self
                .0
                .iter()
                .any(|role| role.principal == *principal && role.verbs.holds(verb) && role.pattern.covers(target)),
        }
    }
}

#[cfg(test)]
mod tests;
