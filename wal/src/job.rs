//! **What**: the jobs of a shard's log as its owner sees them: what is asked, why it is refused, how it ended.
//!
//! **Invariants**: every job that was begun ends with one event.
//!
//! **Never**: text to match on.
//!
//! **See**: `log.rs` for the jobs, `script.rs` for how one runs.

use crate::disk::FilePath;
use crate::format::entry::WalPosition;
use crate::format::meta::{GAPS_MAX, ShardMeta};
use crate::format::segment::LogCursor;
use crate::script::StepError;
use felix_protocol::limits::SETTINGS_BYTES_MAX;
use felix_protocol::position::{Epoch, Offset, OffsetRange};
use std::fmt;

/// What a job makes durable in the meta beside its own work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaChange {
    /// The WAL entries of this shard up to here take effect with this job.
    pub included: Option<WalPosition>,
    /// Promise made meanwhile; an older one than is known changes nothing.
    pub promised: Option<Epoch>,
    /// New settings, at most `SETTINGS_BYTES_MAX`.
    pub settings: Option<Box<[u8]>>,
}

impl MetaChange {
    /// Only entries of the WAL.
    pub fn included(position: WalPosition) -> MetaChange {
        MetaChange { included: Some(position), ..Default::default() }
    }

    pub(crate) fn check(&self) -> Result<(), JobError> {
        match &self.settings {
            Some(settings) if settings.len() > SETTINGS_BYTES_MAX => Err(JobError::SettingsTooLong(settings.len())),
            _ => Ok(()),
        }
    }

    pub(crate) fn apply(&self, meta: &mut ShardMeta) {
        meta.included = self.included.unwrap_or(meta.included);
        meta.promised = self.promised.map_or(meta.promised, |epoch| epoch.max(meta.promised));
        if let Some(settings) = &self.settings {
            meta.settings = settings.clone();
        }
    }
}

/// Why a job was not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobError {
    /// Another job runs.
    Busy,
    /// See [`crate::log::Health`].
    Damaged(OffsetRange),
    /// See [`crate::log::Health`].
    Poisoned(StepError),
    /// The builder holds nothing.
    NothingToFlush,
    /// The builder did not begin at the end of this log.
    Elsewhere {
        /// Where the log ends.
        expected: LogCursor,
    },
    /// A position outside `log_start..=flushed_to`, or below what compaction has rewritten.
    OutOfRange {
        /// Asked for.
        offset: Offset,
        /// Allowed.
        range: OffsetRange,
    },
    /// Segments that were cut off could not be moved away yet; `clean` first.
    NotClean,
    /// The sources of a compaction have changed since it began.
    Outdated,
    /// Settings over `SETTINGS_BYTES_MAX`.
    SettingsTooLong(usize),
    /// More gaps than a meta holds; retention takes them with what is before them.
    TooManyGaps,
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobError::Busy => f.write_str("another job of this log runs"),
            JobError::Damaged(range) => write!(f, "offsets {}..{} are damaged", range.from, range.to),
            JobError::Poisoned(error) => write!(f, "an earlier failure: {error}"),
            JobError::NothingToFlush => f.write_str("there is nothing to flush"),
            JobError::Elsewhere { expected } => write!(f, "the log ends at {}, not where this begins", expected.next),
            JobError::OutOfRange { offset, range } => {
                write!(f, "offset {offset} is outside {}..={}", range.from, range.to)
            }
            JobError::NotClean => f.write_str("segments that were cut off are still in place"),
            JobError::Outdated => f.write_str("the segments have changed since"),
            JobError::TooManyGaps => write!(f, "more than {GAPS_MAX} gaps"),
            JobError::SettingsTooLong(bytes) => write!(f, "{bytes} bytes of settings are too many"),
        }
    }
}

impl std::error::Error for JobError {}

/// Kinds of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Batches became durable in segments.
    Flush,
    /// The open segment was sealed.
    Roll,
    /// The log was cut.
    Truncate,
    /// The log start moved.
    Retain,
    /// A compacted segment took the place of others.
    Switch,
    /// Files that belong to nothing went to quarantine.
    Clean,
    /// The meta was written.
    Save,
    /// Offsets were given up, so that the log goes on behind them.
    Skip,
    /// The open file was closed.
    CloseFile,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It counts.
    Done,
    /// The disk is full; nothing has changed, try again when there is room.
    Full(StepError),
    /// The log is poisoned from now on.
    Poisoned(StepError),
}

/// A job has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// Which.
    pub job: Job,
    /// How.
    pub ended: Ended,
    /// End of what is durable in segments.
    pub flushed_to: Offset,
    /// The buffer of the flush, for `ChunkBuilder::reuse`.
    pub buffer: Option<Vec<u8>>,
    /// Files moved to quarantine.
    pub quarantined: Vec<FilePath>,
    /// Files that could not be moved away; they do no harm, `clean` tries again.
    pub leftovers: Vec<StepError>,
}
