//! **What**: the mesh: bounded messages between the cores of one broker, and between them and the control thread.
//!
//! One ring (crossbeam `ArrayQueue`) per ordered pair of members, made on first use, so that 64 cores cost memory only
//! for pairs that talk. A doorbell per member says who left mail; a wake-up happens only when the receiver sleeps.
//!
//! **Invariants**:
//! - messages of one sender to one receiver arrive in the order sent, each exactly once;
//! - `try_send` leaves `reserved` slots of a ring free, so `send_reserved` finds room as long as its caller keeps at
//!   most `reserved` such messages unanswered per receiver (credits and control replies: each answers a message that
//!   was taken out, so the number is bounded by what the other side may have in flight);
//! - nothing is dropped: a full ring gives the message back.
//!
//! **Never**: blocking; a lock; a message in two rings; a port used by two threads (`&mut self` throughout).
//!
//! **See**: `doorbell.rs` for the argument that no wake-up is lost, `wait.rs` for who sleeps.

use super::doorbell::Doorbell;
use atomic_waker::AtomicWaker;
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

/// Words of the dirty mask: 128 senders, room for 64 cores and the control thread.
const WORDS: usize = 2;

/// Most members a mesh can have.
pub const MEMBERS_MAX: usize = WORDS * 64;

/// Messages taken from one sender before the next sender has its turn.
const BURST: usize = 32;

/// How many messages a ring holds.
#[derive(Clone, Copy, Debug)]
pub struct MeshLimits {
    /// Slots that `try_send` may fill.
    pub capacity: usize,
    /// Further slots that only `send_reserved` may fill.
    pub reserved: usize,
}

/// The ring was full. The message is inside: keep it, and take back pressure to its source.
pub struct Full<T>(pub T);

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full")
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the mesh ring to this member is full")
    }
}

/// What a port did since it was made. Plain numbers: the owner copies them into its metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeshCounters {
    /// Messages sent.
    pub sent: u64,
    /// Messages received.
    pub received: u64,
    /// Sends refused because the ring was full.
    pub full: u64,
    /// Wake-ups given to sleeping members.
    pub wakes: u64,
}

struct Member {
    bell: CachePadded<Doorbell<std::sync::atomic::AtomicU64, WORDS>>,
    waker: AtomicWaker,
}

/// The shared part: all rings and doorbells. Made by [`Mesh::ports`], reached only through ports.
pub struct Mesh<T> {
    limits: MeshLimits,
    members: Box<[Member]>,
    rings: Box<[OnceLock<Box<ArrayQueue<T>>>]>,
}

impl<T: Send> Mesh<T> {
    /// Makes a mesh and returns one port per member, in order. By convention cores are `0..n` and control is `n`.
    ///
    /// # Panics
    /// If `members` is zero or above [`MEMBERS_MAX`], or `capacity` is zero: the caller checked its configuration.
    pub fn ports(members: usize, limits: MeshLimits) -> Vec<MeshPort<T>> {
        assert!((1..=MEMBERS_MAX).contains(&members), "a mesh has 1 to {MEMBERS_MAX} members, not {members}");
        assert!(limits.capacity > 0, "a mesh ring needs a capacity");
        let mesh = Arc::new(Mesh {
            limits,
            members: (0..members)
                .map(|_| Member { bell: CachePadded::new(Doorbell::new()), waker: AtomicWaker::new() })
                .collect(),
            rings: (0..members * members).map(|_| OnceLock::new()).collect(),
        });
        (0..members)
            .map(|me| MeshPort {
                mesh: mesh.clone(),
                me,
                pending: [0; WORDS],
                next: 0,
                counters: MeshCounters::default(),
            })
            .collect()
    }

    fn ring(&self, from: usize, to: usize) -> &ArrayQueue<T> {
        self.rings[from * self.members.len() + to]
            .get_or_init(|| Box::new(ArrayQueue::new(self.limits.capacity + self.limits.reserved)))
    }
}

/// One member's end of the mesh: it sends as itself and receives what is sent to it. Not `Clone`.
pub struct MeshPort<T> {
    mesh: Arc<Mesh<T>>,
    me: usize,
    /// Senders whose bit was taken from the doorbell and whose ring is not yet seen empty.
    pending: [u64; WORDS],
    /// The sender that is served first at the next drain.
    next: usize,
    counters: MeshCounters,
}

impl<T: Send> MeshPort<T> {
    /// This member's index.
    pub fn index(&self) -> usize {
        self.me
    }

    /// Number of members, this one included.
    pub fn members(&self) -> usize {
        self.mesh.members.len()
    }

    /// Counters since the port was made.
    pub fn counters(&self) -> MeshCounters {
        self.counters
    }

    /// Sends to member `to`. Gives the message back when only reserved slots are left.
    pub fn try_send(&mut self, to: usize, message: T) -> Result<(), Full<T>> {
        // Only this port adds to the ring, so the length cannot grow between the check and the push.
        if self.mesh.ring(self.me, to).len() >= self.mesh.limits.capacity {
            self.counters.full += 1;
            return Err(Full(message));
        }
        self.send_reserved(to, message)
    }

    /// Sends to member `to`, also into the reserved slots. For control replies and credits. It cannot fail while the
    /// caller keeps at most `MeshLimits::reserved` of these unread per receiver.
    pub fn send_reserved(&mut self, to: usize, message: T) -> Result<(), Full<T>> {
        if let Err(message) = self.mesh.ring(self.me, to).push(message) {
            self.counters.full += 1;
            return Err(Full(message));
        }
        self.counters.sent += 1;
        let member = &self.mesh.members[to];
        if member.bell.ring(self.me) {
            self.counters.wakes += 1;
            member.waker.wake();
        }
        Ok(())
    }

    /// Slots that `try_send` to member `to` can still fill now. It only grows until this port sends.
    pub fn room(&self, to: usize) -> usize {
        self.mesh.limits.capacity.saturating_sub(self.mesh.ring(self.me, to).len())
    }

    /// Takes at most `budget` messages, fairly among senders, in order per sender. Returns how many. When it returns
    /// `budget`, more may wait; the next call goes on with the next sender.
    pub fn drain(&mut self, budget: usize, mut on_message: impl FnMut(usize, T)) -> usize {
        let mesh = &*self.mesh;
        for (word, pending) in self.pending.iter_mut().enumerate() {
            *pending |= mesh.members[self.me].bell.take(word);
        }
        let mut taken = 0;
        while taken < budget {
            let Some(from) = next_set(&self.pending, self.next) else { break };
            self.next = from + 1;
            let ring = mesh.ring(from, self.me);
            let burst = BURST.min(budget - taken);
            let mut got = 0;
            while got < burst {
                match ring.pop() {
                    Some(message) => {
                        on_message(from, message);
                        got += 1;
                    }
                    None => {
                        // Seen empty after its bit was taken: a later push rings again.
                        self.pending[from / 64] &= !(1 << (from % 64));
                        break;
                    }
                }
            }
            taken += got;
        }
        self.counters.received += taken as u64;
        taken
    }

    /// Whether mail waits. Cheap enough to ask in every turn.
    pub fn has_mail(&self) -> bool {
        self.pending != [0; WORDS] || self.mesh.members[self.me].bell.is_dirty()
    }

    /// Announces sleep. False: mail waits, do not sleep. True: the next sender wakes the waker given to
    /// [`register`](Self::register), which must be in place before this call.
    pub fn prepare_sleep(&mut self) -> bool {
        self.pending == [0; WORDS] && self.mesh.members[self.me].bell.prepare_sleep()
    }

    /// Ends sleep, for whatever reason it ended. Until then each sender would try to wake this member.
    pub fn awake(&mut self) {
        self.mesh.members[self.me].bell.awake();
    }

    /// Sets whom a sender wakes.
    pub fn register(&self, waker: &std::task::Waker) {
        self.mesh.members[self.me].waker.register(waker);
    }

    /// Ready when mail waits; otherwise sleeps on the mesh. For members that wait for nothing else, such as the control
    /// thread: `poll_fn(|cx| port.poll_mail(cx)).await`. A thread without an executor gives a waker that unparks it.
    pub fn poll_mail(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.register(cx.waker());
        if self.prepare_sleep() {
            return Poll::Pending;
        }
        self.awake();
        Poll::Ready(())
    }
}

impl<T> Drop for MeshPort<T> {
    fn drop(&mut self) {
        // A waker belongs to the executor of this thread: leave none behind for another thread to drop.
        let member = &self.mesh.members[self.me];
        member.bell.awake();
        member.waker.take();
    }
}

/// The first set bit at or after `start`, going round.
fn next_set(words: &[u64; WORDS], start: usize) -> Option<usize> {
    let start = start % MEMBERS_MAX;
    let (first, shift) = (start / 64, start % 64);
    for step in 0..=WORDS {
        let word = (first + step) % WORDS;
        let mask = match step {
            0 => u64::MAX << shift,
            WORDS => !(u64::MAX << shift),
            _ => u64::MAX,
        };
        let bits = words[word] & mask;
        if bits != 0 {
            return Some(word * 64 + bits.trailing_zeros() as usize);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Wake, Waker};
    use std::time::Duration;

    const LIMITS: MeshLimits = MeshLimits { capacity: 4, reserved: 2 };

    fn drain<T: Send>(port: &mut MeshPort<T>, budget: usize) -> Vec<(usize, T)> {
        let mut got = Vec::new();
        port.drain(budget, |from, message| got.push((from, message)));
        got
    }

    #[test]
    fn finds_the_next_sender_going_round() {
        let cases: [([u64; 2], usize, Option<usize>); 7] = [
            ([0, 0], 5, None),
            ([1, 0], 0, Some(0)),
            ([1, 0], 1, Some(0)),
            ([1 << 63, 1], 63, Some(63)),
            ([1 << 63, 1], 64, Some(64)),
            ([1 << 63, 1], 65, Some(63)),
            ([0b1010, 0], 2, Some(3)),
        ];
        for (words, start, expected) in cases {
            assert_eq!(next_set(&words, start), expected, "{words:?} from {start}");
        }
    }

    #[test]
    fn keeps_order_and_names_the_sender() {
        let mut ports = Mesh::<u32>::ports(3, LIMITS);
        ports[0].try_send(2, 1).unwrap();
        ports[1].try_send(2, 10).unwrap();
        ports[0].try_send(2, 2).unwrap();
        ports[2].try_send(2, 99).unwrap();
        assert!(ports[2].has_mail());
        assert_eq!(drain(&mut ports[2], 100), [(0, 1), (0, 2), (1, 10), (2, 99)]);
        assert!(!ports[2].has_mail());
        assert_eq!(drain(&mut ports[2], 100), []);
    }

    #[test]
    fn full_gives_the_message_back_and_reserved_slots_stay_free() {
        let mut ports = Mesh::<u32>::ports(2, LIMITS);
        for n in 0..4 {
            assert_eq!(ports[0].room(1), 4 - n as usize);
            ports[0].try_send(1, n).unwrap();
        }
        assert_eq!(ports[0].try_send(1, 77).unwrap_err().0, 77);
        ports[0].send_reserved(1, 100).unwrap();
        ports[0].send_reserved(1, 101).unwrap();
        assert_eq!(ports[0].send_reserved(1, 102).unwrap_err().0, 102);
        assert_eq!(ports[0].counters().full, 2);
        assert_eq!(drain(&mut ports[1], 100).len(), 6);
        ports[0].try_send(1, 5).unwrap();
        assert_eq!(drain(&mut ports[1], 100), [(0, 5)]);
    }

    #[test]
    fn a_budget_keeps_what_is_left_and_is_fair() {
        let mut ports = Mesh::<u32>::ports(3, MeshLimits { capacity: 100, reserved: 0 });
        for n in 0..100 {
            ports[0].try_send(2, n).unwrap();
        }
        ports[1].try_send(2, 1000).unwrap();
        let first = drain(&mut ports[2], BURST + 1);
        assert_eq!(first.len(), BURST + 1);
        assert_eq!(first[BURST], (1, 1000), "the quiet sender is not starved by the loud one");
        assert!(ports[2].has_mail());
        assert!(!ports[2].prepare_sleep(), "a member with mail left must not sleep");
        let rest: Vec<u32> = drain(&mut ports[2], 1000).into_iter().map(|(_, n)| n).collect();
        assert_eq!(rest, (BURST as u32..100).collect::<Vec<_>>());
    }

    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    #[test]
    fn wakes_a_sleeping_member_once() {
        struct Count(std::sync::atomic::AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let count = Arc::new(Count(Default::default()));
        let waker = Waker::from(count.clone());
        let mut ports = Mesh::<u32>::ports(2, LIMITS);
        let mut cx = Context::from_waker(&waker);
        assert!(ports[1].poll_mail(&mut cx).is_pending());
        ports[0].try_send(1, 1).unwrap();
        ports[0].try_send(1, 2).unwrap();
        assert_eq!(count.0.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert!(ports[1].poll_mail(&mut cx).is_ready());
    }

    /// Two threads that park whenever there is no mail pass a token to and fro: a lost wake-up hangs (and fails on time).
    #[test]
    fn two_sleepers_never_miss_each_other() {
        const ROUNDS: u32 = 20_000;
        let mut ports = Mesh::<u32>::ports(2, LIMITS);
        let second = ports.pop().unwrap();
        let first = ports.pop().unwrap();
        let play = |mut port: MeshPort<u32>, to: usize, start: bool| {
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            let mut cx = Context::from_waker(&waker);
            let mut seen = 0;
            if start {
                port.try_send(to, 0).unwrap();
            }
            while seen < ROUNDS {
                while port.poll_mail(&mut cx).is_pending() {
                    let slept = std::time::Instant::now();
                    std::thread::park_timeout(Duration::from_secs(20));
                    assert!(slept.elapsed() < Duration::from_secs(20), "the wake-up was lost");
                }
                let mut got = None;
                port.drain(8, |_, token| got = Some(token));
                if let Some(token) = got {
                    seen += 1;
                    port.try_send(to, token + 1).unwrap();
                }
            }
            seen
        };
        let other = std::thread::spawn(move || play(second, 0, false));
        assert_eq!(play(first, 1, true), ROUNDS);
        assert_eq!(other.join().unwrap(), ROUNDS);
    }
}
