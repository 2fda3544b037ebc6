//! **What**: applies a key filter, or the expiry of records, to a shared batch.
//!
//! **Invariants**: a batch of which all records stay is passed on as it is, without a copy. Records without a key
//! match no filter.
//!
//! **Never**: once per subscriber for a filter: `tail.rs` keeps the outcome for all subscribers that share it.
//!
//! **See**: `felix_protocol::derive`, which makes the bytes.

use crate::batch_pool::SharedBatch;
use felix_protocol::batch_view::{BODY_FLAG_TTL, BatchView, Entry};
use felix_protocol::derive::{DeriveScratch, Derived, derive};
use felix_protocol::limits::STAMPED_HEADER_BYTES;
use felix_protocol::pattern::Pattern;
use felix_protocol::time::Timestamp;

/// What is left of a batch.
#[derive(Clone, Debug)]
pub enum Kept {
    /// All of it.
    Whole,
    /// Nothing.
    Nothing,
    /// Some records, in a batch of their own.
    Part(SharedBatch),
}

/// The records of a batch whose keys match.
pub fn by_pattern(batch: &SharedBatch, pattern: &Pattern, scratch: &mut DeriveScratch) -> Kept {
    keep(batch, scratch, |entry| entry.key.is_some_and(|key| pattern.matches(key)))
}

/// The records of a batch that have not expired at `now` (append time + TTL).
pub fn unexpired(batch: &SharedBatch, now: Timestamp, scratch: &mut DeriveScratch) -> Kept {
    if !batch.has_ttl() {
        return Kept::Whole;
    }
    let appended = batch.header().append_time;
    keep(batch, scratch, |entry| match entry.ttl_ms {
        Some(ttl) => appended.saturating_add_ns(ttl.saturating_mul(1_000_000)) > now,
        None => true,
    })
}

fn keep(batch: &SharedBatch, scratch: &mut DeriveScratch, mut stays: impl FnMut(&Entry<'_>) -> bool) -> Kept {
    let view = BatchView::parse(batch.bytes()).expect("a batch in memory was checked before its stamp");
    let mut bytes = Vec::new();
    let mut kept = 0;
    let derived = derive(
        &view,
        |entry| {
            let it = stays(entry);
            kept += u32::from(it);
            it
        },
        scratch,
        &mut bytes,
    )
    .expect("a batch in memory was checked before its stamp");
    match derived {
        Derived::All => Kept::Whole,
        Derived::Nothing => Kept::Nothing,
        Derived::Some => {
            let view = BatchView::parse(&bytes).expect("we just made it");
            let (header, has_ttl) = (view.header, view.body.flags & BODY_FLAG_TTL != 0);
            debug_assert!(bytes.len() > STAMPED_HEADER_BYTES);
            Kept::Part(SharedBatch::from_derived(bytes, header, kept, has_ttl))
        }
    }
}
