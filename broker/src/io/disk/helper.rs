//! **What**: the one thread of a broker that runs file operations which block.
//!
//! ```text
//!   core 0..n  --Job (mesh ring, at most JOBS_UNDER_WAY each)-->  helper: urgent first, else in order  --> folder.rs
//!              <--Answer (mesh ring, never full), bell if asleep--
//! ```
//!
//! **Invariants**: an answer finds room, since a port has at most as many jobs under way as a mesh ring has slots; a job
//! that somebody waits for does not wait for a zero-fill: it runs between two of its steps. The thread ends when the last
//! seat is gone.
//!
//! **Never**: a write, read or sync of data; a lock; work for one port in the order of another.
//!
//! **See**: `mesh.rs` for the rings, `folder.rs` for the work.

use super::folder::{Folder, disk_error, reserve};
use super::open::OpenFile;
use crate::io::mesh::{Mesh, MeshLimits, MeshPort};
use felix_wal::disk::{DiskDone, DiskError, DiskOk, DiskOp, DiskRequest, FileKey, Priority};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};

/// Jobs that one port may have given away and not got back.
pub(super) const JOBS_UNDER_WAY: usize = 16;

const LIMITS: MeshLimits = MeshLimits { capacity: JOBS_UNDER_WAY, reserved: 1 };

/// Messages between ports and the helper.
pub(super) enum HelperMessage {
    /// A request, with the file it is on if that is open.
    Job(Box<(DiskRequest, Option<Arc<OpenFile>>)>),
    /// A completion, with the file it opened.
    Answer(Box<Answer>),
    /// A seat is gone. The one message that uses the reserved slot.
    Bye,
}

/// What became of a job.
pub(super) struct Answer {
    /// For the planner.
    pub done: DiskDone,
    /// The file that Create or Open opened.
    pub opened: Option<(FileKey, Arc<OpenFile>)>,
    /// The open file that Extend was on.
    pub used: Option<FileKey>,
}

/// A port's end of the mesh. Says goodbye when it is dropped.
pub(super) struct Line {
    port: MeshPort<HelperMessage>,
}

impl Line {
    /// The mesh port.
    pub fn port(&mut self) -> &mut MeshPort<HelperMessage> {
        &mut self.port
    }

    /// Sends a job. The caller keeps at most `JOBS_UNDER_WAY`.
    pub fn send(&mut self, request: DiskRequest, file: Option<Arc<OpenFile>>) {
        let helper = self.port.members() - 1;
        let sent = self.port.try_send(helper, HelperMessage::Job(Box::new((request, file))));
        sent.expect("no more jobs are under way than a ring has slots");
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let helper = self.port.members() - 1;
        // The reserved slot is for this.
        let _ = self.port.send_reserved(helper, HelperMessage::Bye);
    }
}

/// Starts the helper and returns a line for each of `cores`.
pub(super) fn start(root: &Path, cores: usize) -> io::Result<(Vec<Line>, JoinHandle<()>)> {
    let mut ports = Mesh::ports(cores + 1, LIMITS);
    let port = ports.pop().expect("one more than cores");
    let helper = Helper { port, jobs: VecDeque::new(), cores };
    let mut folder = Folder::new(root);
    let thread = thread::Builder::new().name("disk-helper".into()).spawn(move || helper.run(&mut folder))?;
    Ok((ports.into_iter().map(|port| Line { port }).collect(), thread))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

type Job = (usize, DiskRequest, Option<Arc<OpenFile>>);

struct Helper {
    port: MeshPort<HelperMessage>,
    jobs: VecDeque<Job>,
    /// Seats that are left.
    cores: usize,
}

impl Helper {
    fn run(mut self, folder: &mut Folder) {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            self.take_mail();
            let urgent = self.jobs.iter().position(|(_, request, _)| request.priority == Priority::Commit);
            // Without an urgent one, the oldest.
            if let Some(job) = self.jobs.remove(urgent.unwrap_or(0)) {
                self.work(job, folder);
            } else if self.cores == 0 {
                return;
            } else if self.port.poll_mail(&mut cx).is_pending() {
                // May return for no reason: the loop looks again.
                thread::park();
                self.port.awake();
            }
        }
    }

    fn take_mail(&mut self) {
        let Helper { port, jobs, cores, .. } = self;
        port.drain(usize::MAX, |from, message| match message {
            HelperMessage::Job(job) => jobs.push_back((from, job.0, job.1)),
            HelperMessage::Bye => *cores -= 1,
            HelperMessage::Answer(_) => unreachable!("ports send no answers"),
        });
    }

    fn work(&mut self, (from, request, file): Job, folder: &mut Folder) {
        let DiskRequest { ticket, op, .. } = request;
        let used = if let DiskOp::Extend { file, .. } = op { Some(file) } else { None };
        let mut opened = None;
        let result = self.execute(op, file, folder, &mut opened);
        let answer = Answer { done: DiskDone { ticket, result }, opened, used };
        // It finds room: a port has no more jobs under way than its ring has slots, also one that is gone.
        let _ = self.port.try_send(from, HelperMessage::Answer(Box::new(answer)));
    }

    fn execute(
        &mut self,
        op: DiskOp,
        file: Option<Arc<OpenFile>>,
        folder: &mut Folder,
        opened: &mut Option<(FileKey, Arc<OpenFile>)>,
    ) -> Result<DiskOk, DiskError> {
        match op {
            DiskOp::Create { path, file, bytes, zeroed } => {
                let created = folder.create(&path, bytes, zeroed, |folder| self.urgent(folder))?;
                *opened = Some((file, Arc::new(created)));
                Ok(DiskOk::Done)
            }
            DiskOp::Open { path, file } => {
                let open = folder.open(&path)?;
                let bytes = open.as_file().metadata().map_err(|error| disk_error(&error))?.len();
                *opened = Some((file, Arc::new(open)));
                Ok(DiskOk::Opened { bytes })
            }
            DiskOp::Extend { bytes, .. } => {
                let file = file.expect("an extend comes with its file");
                reserve(file.as_file(), bytes).map(|()| DiskOk::Done).map_err(|error| disk_error(&error))
            }
            // The last reference: closing may take long, and it fails for nobody (what had to be durable was synced).
            DiskOp::Close { .. } => {
                drop(file);
                Ok(DiskOk::Done)
            }
            DiskOp::Replace { path, bytes } => folder.replace(&path, &bytes).map(|()| DiskOk::Done),
            DiskOp::Load { path, bytes_max } => folder.load(&path, bytes_max).map(DiskOk::Bytes),
            DiskOp::Rename { from, to } => folder.rename(&from, &to).map(|()| DiskOk::Done),
            DiskOp::Remove { path } => folder.remove(&path).map(|()| DiskOk::Done),
            DiskOp::List { path } => folder.list(&path).map(DiskOk::Listed),
            DiskOp::Write { .. } | DiskOp::Sync { .. } | DiskOp::SyncAfter { .. } | DiskOp::Read { .. } => {
                unreachable!("the port gives transfers to its ring")
            }
        }
    }

    /// Between two steps of a zero-fill: what somebody waits for, unless it is a zero-fill itself.
    fn urgent(&mut self, folder: &mut Folder) {
        self.take_mail();
        let is_urgent = |(_, request, _): &Job| {
            request.priority == Priority::Commit && !matches!(request.op, DiskOp::Create { zeroed: true, .. })
        };
        while let Some(at) = self.jobs.iter().position(is_urgent) {
            let job = self.jobs.remove(at).expect("found a moment ago");
            self.work(job, folder);
        }
    }
}

#[cfg(test)]
mod tests;
