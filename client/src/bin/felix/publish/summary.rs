//! **What**: how a run of `felix pub` ended: the counts, the one line for people, the object for scripts, the exit code.
//!
//! **Invariants**: every record taken is counted once: published, refused, expired or unknown.
//!
//! **Never**: an unknown outcome counted as refused or as published.
//!
//! **See**: `../publish.rs`.

use crate::cli::Globals;
use crate::failure::{Exit, Failure, exit_of};
use crate::output::{Out, say};
use crate::units::show_latency;
use felix_client::protocol::names::StreamName;
use felix_client::{FlushError, FlushReport, PublishError, SendError};
use serde::Serialize;
use std::time::Duration;

/// Why reading ended.
#[derive(Debug)]
pub enum Ending {
    /// No more lines.
    InputEnded,
    /// The input cannot be read.
    Input(std::io::Error),
    /// A signal.
    Interrupted,
    /// A bad line and `--on-bad stop`.
    BadLine,
    /// The client takes no more records.
    Send(SendError),
    /// Records were refused, expired, or have an unknown outcome; the report says which.
    Refused,
    /// No word about records before the deadline.
    Flush(FlushError),
}

/// Counts of a run.
#[derive(Debug, Default)]
pub struct Summary {
    /// Records given to the client.
    pub taken: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Lines that made no record.
    pub bad_lines: u64,
    published: u64,
    refused: u64,
    expired: u64,
    unknown: u64,
    first_error: Option<PublishError>,
}

#[derive(Serialize)]
struct Shown<'a> {
    stream: &'a str,
    records: u64,
    refused: u64,
    expired: u64,
    unknown: u64,
    bad_lines: u64,
    bytes: u64,
    seconds: f64,
}

fn show_elapsed(elapsed: Duration) -> String {
    match elapsed {
        short if short < Duration::from_millis(100) => show_latency(short),
        long => format!("{:.1} s", long.as_secs_f64()),
    }
}

impl Summary {
    /// Adds what a flush told.
    pub fn add(&mut self, report: FlushReport) {
        self.published += report.acked + report.sent;
        self.refused += report.refused;
        self.expired += report.expired;
        self.unknown += report.unknown;
        if self.first_error.is_none() {
            self.first_error = report.first_error;
        }
    }

    /// Nobody will tell about the rest any more.
    pub fn give_up(&mut self, _why: &FlushError) {
        let known = self.published + self.refused + self.expired + self.unknown;
        self.unknown += self.taken.saturating_sub(known);
    }

    fn line(&self, stream: &str, elapsed: Duration) -> String {
        let mut line = format!(
            "published {} records to {stream} in {}, {} refused",
            self.published,
            show_elapsed(elapsed),
            self.refused
        );
        for (count, what) in
            [(self.expired, "not sent in time"), (self.unknown, "with unknown outcome"), (self.bad_lines, "bad lines")]
        {
            if count > 0 {
                line += &format!(", {count} {what}");
            }
        }
        line
    }

    fn exit(&self, ending: &Ending) -> Exit {
        match ending {
            Ending::Interrupted => Exit::Interrupted,
            Ending::Flush(FlushError::Closed) | Ending::Send(SendError::Closed) => Exit::NoConnection,
            _ if self.unknown + self.expired > 0 => Exit::Unknown,
            Ending::Send(SendError::TimedOut) | Ending::Flush(_) => Exit::Unknown,
            _ if self.refused > 0 => match &self.first_error {
                Some(PublishError::Rejected { code, .. }) => exit_of(*code),
                _ => Exit::Failed,
            },
            Ending::InputEnded if self.bad_lines == 0 => Exit::Success,
            _ => Exit::Failed,
        }
    }

    /// Tells how it ended.
    pub fn end(
        mut self,
        globals: &Globals,
        name: &StreamName,
        elapsed: Duration,
        ending: &Ending,
        out: &mut Out,
    ) -> Result<Exit, Failure> {
        if let Ending::Flush(error) = ending {
            self.give_up(error);
            say(format_args!("error: {error}"));
        }
        if let Some(error) = &self.first_error {
            say(format_args!("error: {error}"));
        }
        match ending {
            Ending::Input(error) => {
                say(format_args!("error: the input cannot be read: {error}; check it and go on from there"))
            }
            Ending::Send(error) => say(format_args!("error: {error}")),
            _ => {}
        }
        let stream = name.to_string();
        globals.say(format_args!("{}", self.line(&stream, elapsed)));
        if out.json() {
            out.value(&Shown {
                stream: &stream,
                records: self.published,
                refused: self.refused,
                expired: self.expired,
                unknown: self.unknown,
                bad_lines: self.bad_lines,
                bytes: self.bytes,
                seconds: (elapsed.as_secs_f64() * 1e6).round() / 1e6,
            })?;
        }
        Ok(self.exit(ending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use felix_client::ErrorCode;

    fn rejected(code: ErrorCode) -> Option<PublishError> {
        Some(PublishError::Rejected { code, detail: "no".into() })
    }

    #[test]
    fn the_line_for_people() {
        let mut summary = Summary { taken: 100_000, ..Summary::default() };
        summary.add(FlushReport { acked: 100_000, ..FlushReport::default() });
        let line = summary.line("acme/md/quotes", Duration::from_millis(812));
        assert_eq!(line, "published 100000 records to acme/md/quotes in 0.8 s, 0 refused");
        summary.add(FlushReport { refused: 2, expired: 3, unknown: 4, ..FlushReport::default() });
        summary.bad_lines = 1;
        assert_eq!(
            summary.line("a/b/c", Duration::from_micros(1_500)),
            "published 100000 records to a/b/c in 1.50 ms, 2 refused, 3 not sent in time, 4 with unknown outcome, 1 bad lines"
        );
    }

    #[test]
    fn exit_codes() {
        let clean = Summary::default();
        assert_eq!(clean.exit(&Ending::InputEnded), Exit::Success);
        assert_eq!(clean.exit(&Ending::Interrupted), Exit::Interrupted);
        assert_eq!(clean.exit(&Ending::BadLine), Exit::Failed);
        assert_eq!(clean.exit(&Ending::Input(std::io::ErrorKind::Other.into())), Exit::Failed);
        assert_eq!(clean.exit(&Ending::Flush(FlushError::TimedOut { records: 1 })), Exit::Unknown);
        assert_eq!(clean.exit(&Ending::Send(SendError::TimedOut)), Exit::Unknown);
        assert_eq!(clean.exit(&Ending::Send(SendError::Closed)), Exit::NoConnection);
        let skipped = Summary { bad_lines: 1, ..Summary::default() };
        assert_eq!(skipped.exit(&Ending::InputEnded), Exit::Failed, "a bad line is never a success");
        let refused = |code| Summary { refused: 1, first_error: rejected(code), ..Summary::default() };
        assert_eq!(refused(ErrorCode::InvalidBatch).exit(&Ending::Refused), Exit::Failed);
        assert_eq!(refused(ErrorCode::StreamGone).exit(&Ending::Refused), Exit::NotFound);
        let unknown = Summary { unknown: 1, refused: 1, ..Summary::default() };
        assert_eq!(unknown.exit(&Ending::Refused), Exit::Unknown);
    }

    #[test]
    fn what_nobody_tells_about_is_unknown() {
        let mut summary = Summary { taken: 10, ..Summary::default() };
        summary.add(FlushReport { acked: 6, refused: 1, ..FlushReport::default() });
        summary.give_up(&FlushError::TimedOut { records: 3 });
        assert_eq!(summary.unknown, 3);
    }
}
