//! **What**: a job of a shard's log as a list of disk operations, one after the other, with the point at which it counts.
//!
//! ```text
//! op, op, ... meta | commit | renames, removals
//!        a failure here      a failure here leaves files behind, which is reported
//!        changes nothing
//! ```
//!
//! **Invariants**: the state of a log changes at the commit and nowhere else. A full disk before the commit undoes the job:
//! the files it made are removed, it may be tried again. Any other failure before the commit poisons the log.
//!
//! **Never**: a step tried twice after it failed.
//!
//! **See**: `log.rs`, which owns one script at a time.

use crate::disk::{DiskDone, DiskError, DiskOk, DiskOp, FileKey, FilePath, Priority, Ticket};
use crate::format::meta::ShardMeta;
use crate::format::names::Name;
use crate::log::{OpenState, SegmentRef};
use crate::queue::{DiskQueue, Slot};
use felix_protocol::time::Timestamp;
use std::collections::VecDeque;

/// Which step failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepError {
    /// What was tried.
    pub step: StepKind,
    /// Where.
    pub path: FilePath,
    /// What the disk said.
    pub error: DiskError,
}

impl std::fmt::Display for StepError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.step.verb(), self.path, self.error)
    }
}

impl std::error::Error for StepError {}

/// Kinds of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StepKind {
    Create,
    Open,
    Extend,
    Write,
    Sync,
    Close,
    Replace,
    Rename,
    Remove,
    /// The file is shorter than the meta says.
    Size,
}

impl StepKind {
    fn verb(self) -> &'static str {
        match self {
            StepKind::Create => "creating",
            StepKind::Open => "opening",
            StepKind::Extend => "growing",
            StepKind::Write => "writing",
            StepKind::Sync => "syncing",
            StepKind::Close => "closing",
            StepKind::Replace => "replacing",
            StepKind::Rename => "renaming",
            StepKind::Remove => "removing",
            StepKind::Size => "checking the size of",
        }
    }
}

/// A step.
#[derive(Debug)]
pub(crate) enum Step {
    /// An operation on the file at a path.
    Op(FilePath, DiskOp),
    /// Moves a file to quarantine, if it is there.
    Quarantine(FilePath),
    /// The job counts from here on.
    Commit,
}

/// What a log is after a commit.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) meta: ShardMeta,
    pub(crate) segments: SegmentsChange,
    pub(crate) open: OpenChange,
}

/// What becomes of the list of segments.
#[derive(Debug)]
pub(crate) enum SegmentsChange {
    None,
    /// The open segment was sealed and stands at the end from now on.
    Push(SegmentRef),
    /// Those that begin at or after the end of the log are gone; the open one, if it stays, is sealed.
    Cut(Option<SegmentRef>),
    /// The first ones are gone.
    DropFront(usize),
    /// Those in the range of the first offset up to the second are one.
    Merge(SegmentRef, felix_protocol::position::Offset),
}

/// What becomes of the open segment.
#[derive(Debug)]
pub(crate) enum OpenChange {
    Same,
    /// Chunks were added.
    Grown {
        used_bytes: u64,
        size: u64,
        entries: Vec<crate::format::index::IndexEntry>,
    },
    To(Option<Box<OpenState>>),
}

/// What a step gave.
pub(crate) enum Progress {
    /// Wait on.
    Waiting,
    /// Apply this, then call `go_on`.
    Commit(Box<Next>),
    /// All done.
    Finished,
    /// Undone; may be tried again. The disk is full, or the system is short of something.
    Undone(StepError),
    /// It failed before the commit.
    Poisoned(StepError),
}

/// A step that was submitted.
#[derive(Debug)]
struct UnderWay {
    ticket: Ticket,
    kind: StepKind,
    path: FilePath,
    /// A handle that it opens (true) or closes.
    handle: Option<(FileKey, bool)>,
    /// A size that it gives a file.
    size: Option<u64>,
    /// A move to quarantine.
    quarantine: bool,
    /// A `Create`, to do again when what lay in its way is moved.
    create: Option<DiskOp>,
}

/// A job on its way.
#[derive(Debug)]
pub(crate) struct Script {
    steps: VecDeque<Step>,
    under_way: Option<UnderWay>,
    /// A file in the way of a new one was moved once; a second time is an error.
    made_way: bool,
    next: Option<Box<Next>>,
    /// What counts at a second commit, if all before it went well.
    pub(crate) then: Option<Box<Next>>,
    committed: bool,
    /// After the commit, a rename that fails or a meta in doubt poisons the log too: it needs a start to put it right.
    pub(crate) strict: bool,
    created: Vec<(FileKey, FilePath)>,
    undoing: Option<StepError>,
    priority: Priority,
    /// Quarantine time for renames; rises when a name is taken.
    pub(crate) quarantine_time: Timestamp,
    /// A file that must have at least so many bytes when it is opened.
    pub(crate) opened_bytes_min: u64,
    /// The buffer of a write.
    pub(crate) buffer: Option<Vec<u8>>,
    /// Files opened and closed, in order: what became of handles whatever becomes of the job.
    pub(crate) handles: Vec<(FileKey, bool)>,
    /// Size of the open segment's file, whatever becomes of the job.
    pub(crate) extended: Option<u64>,
    /// Files moved to quarantine.
    pub(crate) quarantined: Vec<FilePath>,
    /// Files that were to be moved and are not there.
    pub(crate) absent: Vec<FilePath>,
    /// What could not be cleaned up after the commit.
    pub(crate) leftovers: Vec<StepError>,
}

impl Script {
    pub(crate) fn new(steps: VecDeque<Step>, next: Option<Next>, priority: Priority, now: Timestamp) -> Script {
        Script {
            steps,
            under_way: None,
            made_way: false,
            committed: next.is_none(),
            next: next.map(Box::new),
            then: None,
            strict: false,
            created: Vec::new(),
            undoing: None,
            priority,
            quarantine_time: now,
            opened_bytes_min: 0,
            buffer: None,
            handles: Vec::new(),
            extended: None,
            quarantined: Vec::new(),
            absent: Vec::new(),
            leftovers: Vec::new(),
        }
    }

    /// Before the commit.
    pub(crate) fn is_uncommitted(&self) -> bool {
        !self.committed
    }

    pub(crate) fn is_waiting_for(&self, ticket: Ticket) -> bool {
        self.under_way.as_ref().is_some_and(|it| it.ticket == ticket)
    }

    /// Plans the next step.
    pub(crate) fn go_on(&mut self, slot: Slot, queue: &mut DiskQueue) -> Progress {
        let mut quarantine = false;
        let (path, op) = match self.steps.pop_front() {
            None => match self.undoing.take() {
                Some(error) => return Progress::Undone(error),
                None => return Progress::Finished,
            },
            Some(Step::Commit) => {
                self.created.clear();
                self.committed = true;
                return match self.next.take().or_else(|| self.then.take()) {
                    Some(next) => Progress::Commit(next),
                    None => self.go_on(slot, queue),
                };
            }
            Some(Step::Quarantine(path)) => {
                quarantine = true;
                let to = Name::quarantined(self.quarantine_time, &path).path();
                (path.clone(), DiskOp::Rename { from: path, to })
            }
            Some(Step::Op(path, op)) => (path, op),
        };
        let kind = match &op {
            DiskOp::Create { file, .. } => {
                self.created.push((*file, path.clone()));
                StepKind::Create
            }
            DiskOp::Open { .. } => StepKind::Open,
            DiskOp::Extend { .. } => StepKind::Extend,
            DiskOp::Write { .. } => StepKind::Write,
            DiskOp::Sync { .. } | DiskOp::SyncAfter { .. } => StepKind::Sync,
            DiskOp::Close { .. } => StepKind::Close,
            DiskOp::Replace { .. } => StepKind::Replace,
            DiskOp::Rename { .. } => StepKind::Rename,
            DiskOp::Remove { .. } => StepKind::Remove,
            DiskOp::Read { .. } | DiskOp::Load { .. } | DiskOp::List { .. } => {
                unreachable!("a script only changes things")
            }
        };
        let handle = match &op {
            DiskOp::Create { file, .. } | DiskOp::Open { file, .. } => Some((*file, true)),
            DiskOp::Close { file } => Some((*file, false)),
            _ => None,
        };
        let size = match &op {
            DiskOp::Extend { bytes, .. } => Some(*bytes),
            _ => None,
        };
        let create = matches!(op, DiskOp::Create { .. }).then(|| op.clone());
        let ticket = queue.push(slot, self.priority, op);
        self.under_way = Some(UnderWay { ticket, kind, path, handle, size, quarantine, create });
        Progress::Waiting
    }

    /// Takes the completion of the step under way.
    pub(crate) fn on_done(&mut self, slot: Slot, done: DiskDone, queue: &mut DiskQueue) -> Progress {
        let Some(UnderWay { kind: step, path, handle, size, quarantine, create, .. }) = self.under_way.take() else {
            return Progress::Waiting;
        };
        if done.result.is_ok() {
            self.handles.extend(handle);
            self.extended = size.or(self.extended);
        }
        match done.result {
            Ok(DiskOk::Opened { bytes }) if bytes < self.opened_bytes_min => {
                let error = DiskError::TooLarge { bytes };
                Progress::Poisoned(StepError { step: StepKind::Size, path, error })
            }
            Ok(ok) => {
                if let DiskOk::Written(buffer) = ok
                    && self.buffer.as_ref().is_none_or(|held| held.capacity() < buffer.capacity())
                {
                    self.buffer = Some(buffer);
                }
                if quarantine {
                    self.quarantined.push(path);
                }
                self.go_on(slot, queue)
            }
            Err(DiskError::Exists) if step == StepKind::Create && !self.made_way && self.undoing.is_none() => {
                // An earlier try that could not be undone. It is in no meta, so it is no part of the log.
                self.made_way = true;
                self.created.pop();
                if let Some(op) = create {
                    self.steps.push_front(Step::Op(path.clone(), op));
                }
                self.steps.push_front(Step::Quarantine(path));
                self.go_on(slot, queue)
            }
            // Nothing to move: a crash came after the rename.
            Err(DiskError::NotFound) if quarantine => {
                self.absent.push(path);
                self.go_on(slot, queue)
            }
            Err(DiskError::Exists) if quarantine => {
                self.quarantine_time = self.quarantine_time.saturating_add_ns(1);
                self.steps.push_front(Step::Quarantine(path));
                self.go_on(slot, queue)
            }
            Err(error) => self.on_error(slot, StepError { step, path, error }, queue),
        }
    }

    fn on_error(&mut self, slot: Slot, failed: StepError, queue: &mut DiskQueue) -> Progress {
        if self.undoing.is_some() || self.committed {
            let in_doubt = match failed.step {
                StepKind::Rename => true,
                StepKind::Replace => !failed.error.passes(),
                _ => false,
            };
            if self.strict && in_doubt && self.undoing.is_none() {
                return Progress::Poisoned(failed);
            }
            // A second commit needs what failed; the removal of a file that is not there does not.
            self.then = None;
            if failed.step != StepKind::Remove || failed.error != DiskError::NotFound {
                self.leftovers.push(failed);
            }
            return self.go_on(slot, queue);
        }
        if !failed.error.passes() || matches!(failed.step, StepKind::Sync | StepKind::Close) {
            return Progress::Poisoned(failed);
        }
        // Undo: the files that this job made are in no meta, and nobody else knows them.
        self.steps.clear();
        self.next = None;
        for (file, path) in std::mem::take(&mut self.created) {
            if self.handles.contains(&(file, true)) && !self.handles.contains(&(file, false)) {
                self.steps.push_back(Step::Op(path.clone(), DiskOp::Close { file }));
            }
            self.steps.push_back(Step::Op(path.clone(), DiskOp::Remove { path }));
        }
        self.undoing = Some(failed);
        self.go_on(slot, queue)
    }
}
