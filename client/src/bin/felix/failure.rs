//! **What**: how a run of `felix` can end: exit codes, and one line about what was wrong and what to do.
//!
//! **Invariants**: the numbers are a contract with scripts and are listed in `felix --help`; 4 means that a change or
//! a record may or may not have happened, or that what was waited for did not come.
//!
//! **Never**: exit code 0 for a run that did not do what was asked.
//!
//! **See**: `felix_client`'s errors, whose texts end here.

use felix_client::{ConnectError, ContextError, ErrorCode, FlushError, RequestError, SubscribeError};
use std::process::ExitCode;

/// Exit codes, as `felix --help` shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    success
  1    refused by the broker, or failed
  2    wrong usage, unusable context, or not supported by this version
  3    cannot connect
  4    timed out; a change or record may or may not have happened
  5    no such tenant, namespace, stream or shard
  6    it exists already
  130  interrupted before the work was done";

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Refused or failed.
    Failed = 1,
    /// The command line or context cannot be used, or this version cannot do it.
    Usage = 2,
    /// No connection.
    NoConnection = 3,
    /// Timed out, or the outcome is not known.
    Unknown = 4,
    /// No such thing.
    NotFound = 5,
    /// It exists already.
    Exists = 6,
    /// SIGINT or SIGTERM before the work was done.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// A run that ends early.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    message: Option<String>,
}

impl Failure {
    /// Ends with a code and a text: what was wrong; what to do next.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: Some(message.into()) }
    }

    /// The command line cannot be used.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// An answer of another kind than the request asks for.
    pub fn odd_reply(what: &str) -> Failure {
        Failure::new(
            Exit::Failed,
            format!("the broker answered {what} with something else; report this with both versions"),
        )
    }

    /// Writing a result failed. A reader that went away has all it wants, so that ends quietly and well.
    pub fn output(error: std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure { exit: Exit::Success, message: None },
            _ => Failure::new(Exit::Failed, format!("stdout cannot be written: {error}; check where it leads")),
        }
    }

    /// The code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// What to tell, if anything.
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

/// The exit code for a code of the broker.
pub fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::NotFound | ErrorCode::StreamGone => Exit::NotFound,
        ErrorCode::AlreadyExists => Exit::Exists,
        ErrorCode::NotSupported => Exit::Usage,
        ErrorCode::Internal => Exit::Unknown,
        _ => Exit::Failed,
    }
}

/// What a user of the tool can do about a code, where we know better than "change the request".
fn hint(code: ErrorCode) -> Option<&'static str> {
    Some(match code {
        ErrorCode::NotFound | ErrorCode::StreamGone => "`felix stream list` shows what there is",
        ErrorCode::AlreadyExists => "choose another name, or use it as it is",
        ErrorCode::NotEmpty => "delete what is in it first",
        ErrorCode::VersionMismatch => "it was changed meanwhile: look at it again, then repeat with its version",
        ErrorCode::PermissionDenied => {
            "`felix context check` shows who you are; ask for the right, or use another token"
        }
        ErrorCode::NotSupported => "this version of the broker cannot do it",
        ErrorCode::QuotaExceeded => "delete something, or ask for a higher limit of the tenant",
        ErrorCode::OffsetTooOld => "retention took those records: begin with `--from earliest`",
        ErrorCode::OffsetInFuture => "the stream is not that long: begin with `--from latest`",
        ErrorCode::LineageReset => "the data was replaced: begin with `--from earliest`",
        ErrorCode::SlowConsumer => "read faster, or use `--policy drop-oldest` or `block`",
        ErrorCode::InvalidPattern => "see `felix sub --help` for filters",
        ErrorCode::WrongShard => "leave --shard out, or leave the keys out",
        ErrorCode::Overloaded | ErrorCode::TooMany | ErrorCode::Draining => "try again in a moment",
        _ => return None,
    })
}

/// A refusal in the tool's words; None if the library's own text is as good.
fn refusal(code: ErrorCode, detail: &str) -> Option<Failure> {
    let hint = hint(code)?;
    let message = match detail {
        "" => format!("{code}; {hint}"),
        // The broker says itself what to do.
        advice if advice.contains("; ") => format!("{advice} ({code})"),
        fact => format!("{fact} ({code}); {hint}"),
    };
    Some(Failure::new(exit_of(code), message))
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Failure {
        let exit = match &error {
            RequestError::Refused { code, detail, .. } => match refusal(*code, detail) {
                Some(failure) => return failure,
                None => exit_of(*code),
            },
            RequestError::TimedOut { .. } => Exit::Unknown,
            RequestError::Disconnected { outcome_unknown: true } => Exit::Unknown,
            RequestError::Disconnected { outcome_unknown: false } => Exit::NoConnection,
            _ => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        let exit = match &error {
            ConnectError::Config(_) => Exit::Usage,
            _ => Exit::NoConnection,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<ContextError> for Failure {
    fn from(error: ContextError) -> Failure {
        Failure::usage(error.to_string())
    }
}

impl From<FlushError> for Failure {
    fn from(error: FlushError) -> Failure {
        Failure::new(Exit::Unknown, error.to_string())
    }
}

impl From<SubscribeError> for Failure {
    fn from(error: SubscribeError) -> Failure {
        let exit = match &error {
            SubscribeError::Refused { code, detail, .. } => match refusal(*code, detail) {
                Some(failure) => return failure,
                None => exit_of(*code),
            },
            _ => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ErrorCode, detail: &str) -> Failure {
        RequestError::Refused { code, detail: detail.into(), retry_after_ms: 0 }.into()
    }

    #[test]
    fn codes_of_the_broker_become_exit_codes() {
        for (code, exit) in [
            (ErrorCode::NotFound, Exit::NotFound),
            (ErrorCode::AlreadyExists, Exit::Exists),
            (ErrorCode::NotSupported, Exit::Usage),
            (ErrorCode::PermissionDenied, Exit::Failed),
            (ErrorCode::InvalidArgument, Exit::Failed),
            (ErrorCode::Internal, Exit::Unknown),
            (ErrorCode::Unknown(999), Exit::Failed),
        ] {
            assert_eq!(refused(code, "x").exit(), exit, "{code}");
        }
    }

    #[test]
    fn a_refusal_says_what_and_what_to_do() {
        let failure = refused(ErrorCode::NotFound, "no stream acme/md/quotes");
        assert_eq!(
            failure.message(),
            Some("no stream acme/md/quotes (NotFound); `felix stream list` shows what there is")
        );
        assert_eq!(
            refused(ErrorCode::NotEmpty, "").message(),
            Some("NotEmpty; delete what is in it first"),
            "a broker that gives no detail"
        );
        assert_eq!(
            refused(ErrorCode::VersionMismatch, "it has version 2; describe it and try again").message(),
            Some("it has version 2; describe it and try again (VersionMismatch)"),
            "a broker that gives advice"
        );
        let plain = refused(ErrorCode::InvalidArgument, "shards must be 1 to 1024");
        assert!(plain.message().unwrap().contains("shards must be 1 to 1024"));
    }

    #[test]
    fn an_unknown_outcome_is_told_apart() {
        let after = std::time::Duration::from_secs(5);
        for outcome_unknown in [true, false] {
            let failure: Failure = RequestError::TimedOut { outcome_unknown, after }.into();
            assert_eq!(failure.exit(), Exit::Unknown);
        }
        let failure: Failure = RequestError::Disconnected { outcome_unknown: false }.into();
        assert_eq!(failure.exit(), Exit::NoConnection);
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let failure = Failure::output(std::io::ErrorKind::BrokenPipe.into());
        assert_eq!((failure.exit(), failure.message()), (Exit::Success, None));
        assert_eq!(Failure::output(std::io::ErrorKind::StorageFull.into()).exit(), Exit::Failed);
    }

    #[test]
    fn every_exit_code_is_in_the_help() {
        for exit in [
            Exit::Success,
            Exit::Failed,
            Exit::Usage,
            Exit::NoConnection,
            Exit::Unknown,
            Exit::NotFound,
            Exit::Exists,
            Exit::Interrupted,
        ] {
            let number = (exit as u8).to_string();
            assert!(EXIT_CODES.lines().any(|line| line.split_whitespace().next() == Some(&number)), "{exit:?}");
        }
    }
}
