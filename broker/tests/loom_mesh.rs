//! **What**: the doorbell of the mesh under loom: every interleaving of senders and a receiver that goes to sleep.
//!
//! **Invariants**: with the re-check no message is ever left behind a sleeping receiver; without it loom finds the run in
//! which that happens (a checker counts only with a broken twin that it rejects).
//!
//! **See**: `broker/src/io/doorbell.rs`.

use felix_broker::io::doorbell::{Doorbell, Word};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::SeqCst};

struct LoomWord(AtomicU64);

impl Word for LoomWord {
    fn new(value: u64) -> Self {
        LoomWord(AtomicU64::new(value))
    }
    fn load(&self) -> u64 {
        self.0.load(SeqCst)
    }
    fn store(&self, value: u64) {
        self.0.store(value, SeqCst);
    }
    fn swap(&self, value: u64) -> u64 {
        self.0.swap(value, SeqCst)
    }
    fn fetch_or(&self, bits: u64) -> u64 {
        self.0.fetch_or(bits, SeqCst)
    }
}

struct Shared<const RECHECK: bool> {
    bell: Doorbell<LoomWord, 1, RECHECK>,
    /// Stands for the rings: messages of each sender.
    mail: [AtomicU64; 2],
}

/// `senders` threads send one message each; the receiver drains, and sleeps when there is nothing. Loom reports a
/// receiver that sleeps for ever as a deadlock.
///
/// At most three preemptions per run with two senders: enough for every order of two atomics each, seconds to run.
fn model<const RECHECK: bool>(senders: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = (senders > 1).then_some(3);
    builder.check(move || {
        let shared =
            Arc::new(Shared::<RECHECK> { bell: Doorbell::new(), mail: [AtomicU64::new(0), AtomicU64::new(0)] });
        let receiver = loom::thread::current();
        let threads: Vec<_> = (0..senders)
            .map(|me| {
                let (shared, receiver) = (shared.clone(), receiver.clone());
                loom::thread::spawn(move || {
                    shared.mail[me].fetch_add(1, SeqCst);
                    if shared.bell.ring(me) {
                        receiver.unpark();
                    }
                })
            })
            .collect();
        let mut received = 0;
        while received < senders as u64 {
            let bits = shared.bell.take(0);
            if bits == 0 {
                if shared.bell.prepare_sleep() {
                    loom::thread::park();
                    shared.bell.awake();
                }
                continue;
            }
            for (me, mail) in shared.mail.iter().enumerate() {
                if bits & (1 << me) != 0 {
                    received += mail.swap(0, SeqCst);
                }
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn no_wake_up_is_lost_with_one_sender() {
    model::<true>(1);
}

#[test]
fn no_wake_up_is_lost_with_two_senders() {
    model::<true>(2);
}

#[test]
fn without_the_re_check_a_wake_up_is_lost() {
    let found = std::panic::catch_unwind(|| model::<false>(1)).expect_err("loom must find the lost wake-up");
    let text = found
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| found.downcast_ref::<&str>().map(|text| text.to_string()))
        .unwrap_or_default();
    assert!(text.contains("deadlock"), "loom failed for another reason: {text}");
}
