//! **What**: the disk of one core: takes requests of `felix_wal::disk`, gives completions.
//!
//! ```text
//!            +- Write, Sync -> lane.rs -> blocking.rs (a thread for commits, one for write-behind)
//!            +- Read, by class ---------> ring.rs (io_uring of this core's own)
//!   submit --+
//!            +- all others --------> commit first -------------------------> helper.rs (one thread per broker)
//!   poll  <--- completions of all;      a parked core is woken by the bell, which all ring
//! ```
//!
//! **Invariants**:
//! - one completion per request; a class never has more under way than `Class` says, so that write-behind and history
//!   leave the device to commits;
//! - a completion is there for `poll` as soon as the kernel has written it: the loop reads memory, and needs no executor,
//!   no preemption and no system call for it;
//! - no wake-up is missed: the kernel posts a completion and then rings; a thread sends an answer and rings if
//!   `prepare_sleep` came before (doorbell.rs). A parked core has a read of the bell in the kernel *before* it looks a
//!   last time (`prepare_sleep`): what came before that look is seen by it, and what comes later rings, which ends the
//!   read. A read that ended for something already polled costs one turn.
//!
//! **Never**: a blocking call on the core's thread, but for the drop of a port with requests under way; a retry of a
//! failed write or sync; a wrong request taken (a position off the block, a file that is not open: asserted, they are ours).
//!
//! **See**: `wait.rs` for how a loop waits on this; broker/DESIGN.md for what was measured.

mod bell;
mod blocking;
mod folder;
mod helper;
mod lane;
mod open;
mod places;
mod probe;
mod ring;
mod staging;

pub(super) use bell::ring_fd;
pub use probe::{FolderProblem, FolderStep, is_in_memory, try_folder};

use super::wait::WaitMode;
use bell::Bell;
use blocking::{Blocking, Job};
use felix_wal::disk::{
    BLOCK_BYTES, Disk, DiskDone, DiskOk, DiskOp, DiskRequest, FileKey, Priority, REPLACE_BYTES_MAX, Ticket,
};
use helper::{Answer, HelperMessage, JOBS_UNDER_WAY, Line};
use lane::Lane;
use open::OpenFile;
pub use places::Places;
use ring::{RING_ENTRIES, Ring, Transfer};
use staging::STAGING_BYTES_MAX;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::task::Waker;
use std::thread::JoinHandle;

/// Requests that a port takes before completions were polled. The planners of a core bound what they have under way far
/// below: a few per shard that works, and the intake of the core looks at [`DiskPort::room`].
pub const REQUESTS_MAX: usize = 16_384;

/// Largest write or read.
pub const TRANSFER_BYTES_MAX: usize = 64 << 20;

/// Piece of write-behind: a commit finds at most so much before it at the device.
const BEHIND_PIECE_BYTES: usize = 128 << 10;

/// How many reads of a class may be under way in the ring.
struct Class {
    requests: usize,
    piece_bytes: usize,
}

/// Reads that somebody waits for: as many as come, in large pieces.
const COMMIT: Class = Class { requests: 32, piece_bytes: STAGING_BYTES_MAX };
/// Reads of compaction and retention.
const BACKGROUND: Class = Class { requests: 4, piece_bytes: 128 << 10 };
/// History: read-ahead of readers that are behind.
const HISTORY: Class = Class { requests: 2, piece_bytes: 128 << 10 };

const CLASSES: [Class; 3] = [COMMIT, BACKGROUND, HISTORY];

const _: () = assert!(COMMIT.requests + BACKGROUND.requests + HISTORY.requests <= RING_ENTRIES);

fn class_of(priority: Priority) -> usize {
    match priority {
        Priority::Commit => 0,
        Priority::Background => 1,
        Priority::History => 2,
    }
}

/// What a port did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Requests taken.
    pub submitted: u64,
    /// Completions given.
    pub completed: u64,
    /// Completions that were errors.
    pub failed: u64,
    /// Operations of transfers: writes, syncs, and reads by the piece.
    pub operations: u64,
    /// Bytes of writes that succeeded.
    pub written_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Data syncs that succeeded.
    pub syncs: u64,
}

/// The helper thread of a broker.
pub struct DiskHelper(JoinHandle<()>);

impl DiskHelper {
    /// Waits for its end, which comes when all seats and ports are dropped. True: it ended as it should.
    pub fn join(self) -> bool {
        self.0.join().is_ok()
    }
}

/// A place for one core's port; sent to the core's thread and opened there.
pub struct DiskSeat {
    line: Line,
}

/// Starts the helper thread for the data folder `root`, which exists, and makes a seat for each core.
pub fn start(root: &Path, cores: usize) -> io::Result<(DiskHelper, Vec<DiskSeat>)> {
    let (lines, thread) = helper::start(root, cores)?;
    Ok((DiskHelper(thread), lines.into_iter().map(|line| DiskSeat { line }).collect()))
}

impl DiskSeat {
    /// Opens the port, on the thread that will use it. `places`: where its threads run, from [`thread_places`]; the default
    /// if the core is not pinned.
    pub fn open(self, places: Places) -> io::Result<DiskPort> {
        let bell = Arc::new(Bell::new()?);
        Ok(DiskPort {
            ring: Ring::new(&bell)?,
            commits: Lane::new(Blocking::start("disk-commit", STAGING_BYTES_MAX, places.clone())?),
            behind: Lane::new(Blocking::start("disk-behind", BEHIND_PIECE_BYTES, places)?),
            waker: Waker::from(bell.clone()),
            bell,
            line: self.line,
            files: HashMap::new(),
            transfers: Default::default(),
            transfers_under_way: [0; 3],
            jobs: Default::default(),
            jobs_under_way: 0,
            in_flight: 0,
            counters: DiskCounters::default(),
            stays_on_its_thread: PhantomData,
        })
    }
}

/// Where the disk threads of the core on CPU `own` begin. A core that polls shares its CPU with nobody: they get the CPUs
/// without a core if there are any, else all but the core's. A core that parks has an idle CPU to offer: they may run on all.
/// Where those are crowded, a core that gives way now and then is the better neighbour; one in `busy` never does.
pub fn thread_places(wait: WaitMode, own: usize, cores: &[usize], allowed: &[usize]) -> Places {
    let without = |taken: &[usize]| allowed.iter().copied().filter(|cpu| !taken.contains(cpu)).collect::<Vec<_>>();
    let choices = match wait {
        WaitMode::Park => Vec::new(),
        WaitMode::Busy | WaitMode::Hybrid => vec![without(cores), without(&[own])],
    };
    let first = choices.into_iter().find(|cpus| !cpus.is_empty()).unwrap_or_else(|| allowed.to_vec());
    Places { first, own: (wait != WaitMode::Busy).then_some(own) }
}

struct Entry {
    file: Arc<OpenFile>,
    /// Requests on it that have not completed.
    busy: usize,
}

/// The disk of one core.
///
/// ```text
/// loop {
///     while let Some(done) = disk.poll() { handle(done) }
///     ... disk.submit(request) ...
///     disk.flush();
///     if worked { waiter.worked().await } else { waiter.wait_with_disk(&mut port, &mut disk, until).await }
/// }
/// ```
pub struct DiskPort {
    bell: Arc<Bell>,
    /// Rings the bell: for the helper.
    waker: Waker,
    ring: Ring,
    commits: Lane,
    behind: Lane,
    line: Line,
    files: HashMap<FileKey, Entry>,
    transfers: [VecDeque<Transfer>; 3],
    transfers_under_way: [usize; 3],
    /// For the helper: urgent, and all others in order.
    jobs: [VecDeque<(DiskRequest, Option<Arc<OpenFile>>)>; 2],
    jobs_under_way: usize,
    in_flight: usize,
    counters: DiskCounters,
    stays_on_its_thread: PhantomData<*const ()>,
}

impl DiskPort {
    /// Takes a request. It starts with the next [`flush`](Self::flush) or [`poll`](Self::poll).
    ///
    /// # Panics
    /// If the request is wrong (see the header), or more than [`REQUESTS_MAX`] are under way.
    pub fn submit(&mut self, request: DiskRequest) {
        assert!(self.in_flight < REQUESTS_MAX, "more than {REQUESTS_MAX} disk requests are under way");
        self.in_flight += 1;
        self.counters.submitted += 1;
        let DiskRequest { ticket, priority, op } = request;
        let (key, at, wanted) = match op {
            DiskOp::Write { file, at, bytes } => {
                check_extent(at, bytes.len());
                assert!(!bytes.is_empty(), "a write of nothing at {at}");
                return self.queue_transfer(priority, file, Some((ticket, at, bytes)), None);
            }
            DiskOp::Read { file, at, bytes } => {
                check_extent(at, bytes);
                assert!(bytes > 0, "a read of nothing at {at}");
                (file, at, bytes)
            }
            DiskOp::Sync { file } => return self.queue_transfer(priority, file, None, Some(ticket)),
            DiskOp::SyncAfter { file, write } => {
                return self.commits.push_sync_after(file, write, ticket);
            }
            op => return self.queue_job(DiskRequest { ticket, priority, op }),
        };
        let file = self.use_file(key);
        let class = class_of(priority);
        let piece_bytes = CLASSES[class].piece_bytes;
        let buffer = Vec::with_capacity(wanted);
        self.transfers[class].push_back(Transfer { ticket, priority, key, file, at, buffer, wanted, piece_bytes });
    }

    fn queue_transfer(
        &mut self,
        priority: Priority,
        key: FileKey,
        write: Option<(Ticket, u64, Vec<u8>)>,
        sync: Option<Ticket>,
    ) {
        let job = Job { key, file: self.use_file(key), write, sync };
        match priority {
            Priority::Commit => self.commits.push(job),
            Priority::Background | Priority::History => self.behind.push(job),
        }
    }

    /// Starts what may start. Once per turn, after all its requests: one system call for all reads, and one to wake a
    /// thread that sleeps.
    pub fn flush(&mut self) {
        self.commits.flush();
        self.behind.flush();
        for (class, limits) in CLASSES.iter().enumerate() {
            while self.transfers_under_way[class] < limits.requests
                && let Some(transfer) = self.transfers[class].pop_front()
            {
                self.transfers_under_way[class] += 1;
                self.ring.start(transfer);
            }
        }
        self.ring.enter();
        while self.jobs_under_way < JOBS_UNDER_WAY
            && let Some((request, file)) = self.jobs.iter_mut().find_map(VecDeque::pop_front)
        {
            self.jobs_under_way += 1;
            self.line.send(request, file);
        }
    }

    /// The next completion, if there is one. Never blocks. Starts what can start now.
    pub fn poll(&mut self) -> Option<DiskDone> {
        if self.in_flight == 0 {
            return None;
        }
        let done = self.next_done();
        if done.is_none() {
            self.flush();
        }
        done
    }

    fn next_done(&mut self) -> Option<DiskDone> {
        let lane = self.commits.poll().or_else(|| self.behind.poll());
        let transferred = lane.map(|(done, file)| {
            if let Some(file) = file {
                self.release(file);
            }
            done
        });
        let transferred = transferred.or_else(|| {
            let ended = self.ring.reap()?;
            self.transfers_under_way[class_of(ended.priority)] -= 1;
            self.release(ended.key);
            Some(ended.done)
        });
        let done = match transferred {
            Some(done) => {
                match &done.result {
                    Ok(DiskOk::Written(bytes)) => self.counters.written_bytes += bytes.len() as u64,
                    Ok(DiskOk::Bytes(bytes)) => self.counters.read_bytes += bytes.len() as u64,
                    Ok(_) => self.counters.syncs += 1,
                    Err(_) => {}
                }
                done
            }
            None => self.next_answer()?,
        };
        self.in_flight -= 1;
        self.counters.completed += 1;
        self.counters.failed += u64::from(done.result.is_err());
        Some(done)
    }

    fn next_answer(&mut self) -> Option<DiskDone> {
        let mut answer = None;
        self.line.port().drain(1, |_, message| match message {
            HelperMessage::Answer(it) => answer = Some(it),
            HelperMessage::Job(_) | HelperMessage::Bye => unreachable!("the helper only answers"),
        });
        let Answer { done, opened, used } = *answer?;
        self.jobs_under_way -= 1;
        if let Some(key) = used {
            self.release(key);
        }
        if let Some((key, file)) = opened {
            let before = self.files.insert(key, Entry { file, busy: 0 });
            assert!(before.is_none(), "{key:?} is open twice");
        }
        Some(done)
    }

    /// Requests that have not completed.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether a write, read or sync that somebody waits for has not completed.
    pub fn has_commits(&self) -> bool {
        self.commits.is_busy() || self.transfers_under_way[0] > 0 || !self.transfers[0].is_empty()
    }

    /// Requests that `submit` still takes.
    pub fn room(&self) -> usize {
        REQUESTS_MAX - self.in_flight
    }

    /// Counters since the port was made.
    pub fn counters(&self) -> DiskCounters {
        let operations = self.commits.operations() + self.behind.operations() + self.ring.operations();
        DiskCounters { operations, ..self.counters }
    }

    /// Another descriptor of the bell, for the read of a parked core.
    pub(super) fn bell_fd(&self) -> io::Result<OwnedFd> {
        self.bell.try_clone_fd()
    }

    /// The last look before the core parks. False: there is something to poll, do not park. The read of the bell must be
    /// under way before this call.
    pub(super) fn prepare_sleep(&mut self) -> bool {
        self.flush();
        if self.ring.has_something() {
            return false;
        }
        if !self.commits.prepare_sleep(&self.waker) || !self.behind.prepare_sleep(&self.waker) {
            return false;
        }
        if self.jobs_under_way == 0 {
            return true;
        }
        self.line.port().register(&self.waker);
        self.line.port().prepare_sleep()
    }

    /// Ends sleep, however it ended.
    pub(super) fn awake(&mut self) {
        self.commits.awake();
        self.behind.awake();
        self.line.port().awake();
    }

    fn queue_job(&mut self, request: DiskRequest) {
        check_paths(&request.op);
        let file = match &request.op {
            DiskOp::Create { bytes, .. } => {
                check_extent(*bytes, 0);
                None
            }
            DiskOp::Extend { file, bytes } => {
                check_extent(*bytes, 0);
                Some(self.use_file(*file))
            }
            DiskOp::Close { file } => {
                let entry = self.files.remove(file).unwrap_or_else(|| panic!("{file:?} is not open"));
                assert_eq!(entry.busy, 0, "{file:?} is closed with requests under way");
                Some(entry.file)
            }
            DiskOp::Replace { path, bytes } => {
                assert!(bytes.len() <= REPLACE_BYTES_MAX, "{path} is replaced by {} bytes", bytes.len());
                None
            }
            _ => None,
        };
        let urgent = request.priority == Priority::Commit;
        self.jobs[usize::from(!urgent)].push_back((request, file));
    }

    fn use_file(&mut self, key: FileKey) -> Arc<OpenFile> {
        let entry = self.files.get_mut(&key).unwrap_or_else(|| panic!("{key:?} is not open"));
        entry.busy += 1;
        entry.file.clone()
    }

    fn release(&mut self, key: FileKey) {
        self.files.get_mut(&key).expect("a file with requests under way is open").busy -= 1;
    }
}

/// Blocks the thread: for start-up, offline tools and tests.
impl Disk for DiskPort {
    fn submit(&mut self, request: DiskRequest) {
        DiskPort::submit(self, request);
    }

    fn wait(&mut self) -> Option<DiskDone> {
        while self.in_flight > 0 {
            if let Some(done) = self.poll() {
                return Some(done);
            }
            if self.prepare_sleep() {
                self.bell.wait();
            }
            self.awake();
        }
        None
    }
}

/// Here and not in the helper: the mistake is found where it was made.
fn check_paths(op: &DiskOp) {
    match op {
        DiskOp::Create { path, .. }
        | DiskOp::Open { path, .. }
        | DiskOp::Replace { path, .. }
        | DiskOp::Load { path, .. }
        | DiskOp::Remove { path } => folder::check_path(path),
        DiskOp::Rename { from, to } => [from, to].into_iter().for_each(folder::check_path),
        // The data folder itself can be listed.
        DiskOp::List { path } if !path.0.is_empty() => folder::check_path(path),
        _ => {}
    }
}

fn check_extent(at: u64, bytes: usize) {
    assert!(at.is_multiple_of(BLOCK_BYTES as u64), "position {at} is no multiple of {BLOCK_BYTES}");
    assert!(bytes.is_multiple_of(BLOCK_BYTES), "{bytes} bytes are no multiple of {BLOCK_BYTES}");
    assert!(bytes <= TRANSFER_BYTES_MAX, "{bytes} bytes in one transfer, at most {TRANSFER_BYTES_MAX}");
    assert!(at <= i64::MAX as u64 - TRANSFER_BYTES_MAX as u64, "position {at} is beyond any file");
}

#[cfg(test)]
mod tests;
