//! **What**: one pinned glommio executor per core, and the one future that runs on it.
//!
//! **Invariants**: a core's future starts, runs and is dropped on its own thread; `spawn_core` returns once it runs or
//! could not be started; nothing of the executor is in the kernel's hands any more when its memory is freed.
//!
//! **Never**: a glommio type in a public signature; work on an executor other than the core's future and what parks it.
//!
//! **See**: `wait.rs` for how the future waits, `core_loop.rs` for what it does.

use super::sys::ask_for_short_slices;
use super::udp::UdpSocket;
use super::wait::{Parking, WaitMode, Waiter};
use glommio::{ExecutorJoinHandle, GlommioError, LocalExecutorBuilder, Placement};
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

/// The preempt timer: never. If it fires before the executor has run the first task of a round, the executor takes itself
/// for idle and sleeps with runnable tasks (see `wait.rs`). On a crowded CPU a busy core stalled for good within a second
/// with 50 us, within seconds with 1 ms (`a_core_on_a_crowded_cpu_never_stalls`). The loop yields by itself.
const PREEMPT: Duration = Duration::from_secs(365 * 86_400);

/// Bytes of glommio's own I/O buffers per executor, pinned three times (once per ring): its minimum, since sockets do not
/// use them.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// How one core is run.
#[derive(Clone, Copy, Debug)]
pub struct CoreSpec {
    /// The core's number, 0 to n - 1.
    pub index: usize,
    /// The CPU to pin its thread to; `None`: the kernel moves it about.
    pub cpu: Option<usize>,
    /// How the loop waits.
    pub wait: WaitMode,
    /// In hybrid: how long after the last work the loop polls before it parks.
    pub spin: Duration,
}

/// Why a core did not start, or how it ended.
#[derive(Debug)]
pub enum CoreError {
    /// The executor could not be made: no io_uring, memlock too low, CPU not allowed. `self_check` says more.
    Executor {
        /// The core.
        index: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The core's future panicked.
    Panicked {
        /// The core.
        index: usize,
    },
}

impl std::fmt::Display for CoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CoreError::Executor { index, source } => write!(f, "core {index} cannot start: {source}"),
            CoreError::Panicked { index } => write!(f, "core {index} panicked"),
        }
    }
}

impl std::error::Error for CoreError {}

type Parkings = Vec<Rc<RefCell<Parking>>>;

/// What a core's future gets: the way to make its waiter. Stays on the core's thread.
pub struct CoreHandle {
    spec: CoreSpec,
    parkings: Rc<RefCell<Parkings>>,
}

impl CoreHandle {
    /// The specification this core was spawned with.
    pub fn spec(&self) -> CoreSpec {
        self.spec
    }

    /// Makes the waiter of this core for its socket. One per socket.
    pub fn waiter(&self, socket: &UdpSocket) -> io::Result<Waiter> {
        let parking = Rc::new(RefCell::new(Parking::new(socket)?));
        self.parkings.borrow_mut().push(parking.clone());
        Ok(Waiter::new(parking, self.spec.wait, self.spec.spin))
    }
}

/// A running core.
pub struct CoreJoin<R: Send + 'static> {
    index: usize,
    handle: ExecutorJoinHandle<R>,
}

impl<R: Send + 'static> CoreJoin<R> {
    /// Waits for the core's future to end and returns its value.
    pub fn join(self) -> Result<R, CoreError> {
        let index = self.index;
        self.handle.join().map_err(|error| failed(index, error))
    }
}

/// Starts a core: a thread named `core-<index>`, pinned, that runs the future which `start` makes on it.
pub fn spawn_core<S, F, R>(spec: CoreSpec, start: S) -> Result<CoreJoin<R>, CoreError>
where
    S: FnOnce(CoreHandle) -> F + Send + 'static,
    F: Future<Output = R> + 'static,
    R: Send + 'static,
{
    let index = spec.index;
    let placement = spec.cpu.map_or(Placement::Unbound, Placement::Fixed);
    let (started, starting) = mpsc::sync_channel::<()>(1);
    let handle = LocalExecutorBuilder::new(placement)
        .name(&format!("core-{index}"))
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT)
        .spawn(move || async move {
            // A core that parks, and the disk threads that it starts, wake beside whoever polls on their CPU.
            ask_for_short_slices();
            let _ = started.send(());
            let parkings = Rc::new(RefCell::new(Parkings::new()));
            let result = start(CoreHandle { spec, parkings: parkings.clone() }).await;
            // A pending operation writes into executor memory: end it before the executor ends.
            for parking in parkings.take() {
                Parking::close(parking).await;
            }
            result
        })
        .map_err(|error| failed(index, error))?;
    match starting.recv() {
        Ok(()) => Ok(CoreJoin { index, handle }),
        // The thread ended before the future began: its result says why.
        Err(_) => match handle.join() {
            Err(error) => Err(failed(index, error)),
            Ok(_) => Err(CoreError::Panicked { index }),
        },
    }
}

fn failed(index: usize, error: GlommioError<()>) -> CoreError {
    match error {
        GlommioError::BuilderError(glommio::BuilderErrorKind::ThreadPanic(_)) => CoreError::Panicked { index },
        error => CoreError::Executor { index, source: error.into() },
    }
}
