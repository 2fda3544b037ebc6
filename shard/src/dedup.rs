//! **What**: what a shard remembers of idempotent producers, so that a retry is appended once.
//!
//! ```text
//! base_sequence == next          new
//! base_sequence <  next          duplicate if the window holds it with equal bytes, else refused
//! base_sequence >  next          gap: refused, something before it was lost
//! epoch <  known                 fenced
//! epoch >  known                 a new incarnation: starts at 0
//! not known and sequence > 0     unknown producer: refused, never a silent accept
//! ```
//!
//! **Invariants**: a function of the appended batches only (producer id, epoch, sequence and append time are in them),
//! so that recovery and failover rebuild it: an append is what expires the silent producers before it. The window holds
//! as many batches as a channel may have in flight.
//!
//! **Never**: expiry by a clock: only append times count (DECISIONS 12).
//!
//! **See**: `append.rs`.

use crate::batch_pool::BodyFacts;
use crate::by_id::ById;
use crate::limits::{DEDUP_WINDOW, DEDUP_WINDOW_MIN, Limits};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{ProducerEpoch, ProducerId, Sequence};
use felix_protocol::position::{Lineage, Offset};
use felix_protocol::time::Timestamp;
use felix_wal::format::producers::{KnownProducer, Producers, SeenBatch};
use std::collections::{HashMap, VecDeque};

/// What a batch is to the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Append it.
    New,
    /// It is in the log already.
    Duplicate {
        /// Where its first record is.
        base_offset: Offset,
    },
    /// Refuse it.
    Refuse(ErrorCode),
}

#[derive(Debug)]
struct Producer {
    epoch: ProducerEpoch,
    next: Sequence,
    seen: VecDeque<SeenBatch>,
    last_append: Timestamp,
}

/// Producers of one shard.
#[derive(Debug, Default)]
pub struct Dedup {
    producers: HashMap<ProducerId, Producer, ById>,
    /// Producers by the append time they were last seen at, oldest first; entries may be outdated.
    by_age: VecDeque<(Timestamp, ProducerId)>,
    /// Batches in all windows, oldest first; entries may be outdated.
    remembered: VecDeque<(ProducerId, Offset)>,
}

impl Dedup {
    /// Judges a batch. Changes nothing, unless a new producer finds no room: then those that an append at this time
    /// would expire make room at once.
    pub fn judge(&mut self, facts: &BodyFacts, append_time: Timestamp, limits: &Limits) -> Verdict {
        if facts.producer.0 == 0 {
            return Verdict::New;
        }
        let Some(known) = self.producers.get(&facts.producer) else {
            if facts.base_sequence.0 != 0 {
                return Verdict::Refuse(ErrorCode::UnknownProducer);
            }
            if self.producers.len() >= limits.producers_max {
                self.expire(append_time, limits);
            }
            return match self.producers.len() < limits.producers_max {
                true => Verdict::New,
                false => Verdict::Refuse(ErrorCode::TooMany),
            };
        };
        if facts.producer_epoch < known.epoch {
            return Verdict::Refuse(ErrorCode::ProducerFenced);
        }
        if facts.producer_epoch > known.epoch {
            return match facts.base_sequence.0 {
                0 => Verdict::New,
                _ => Verdict::Refuse(ErrorCode::SequenceGap),
            };
        }
        if facts.base_sequence == known.next {
            return Verdict::New;
        }
        if facts.base_sequence > known.next {
            return Verdict::Refuse(ErrorCode::SequenceGap);
        }
        let found = known.seen.binary_search_by_key(&facts.base_sequence, |seen| seen.base_sequence);
        match found.ok().map(|at| known.seen[at]) {
            Some(seen) if seen.crc == facts.crc && seen.record_count == facts.record_count => {
                Verdict::Duplicate { base_offset: seen.base_offset }
            }
            _ => Verdict::Refuse(ErrorCode::DuplicateMismatch),
        }
    }

    /// Remembers a batch that was appended, and forgets producers that were silent too long before it.
    pub fn remember(&mut self, facts: &BodyFacts, base_offset: Offset, append_time: Timestamp, limits: &Limits) {
        self.note(facts, base_offset, append_time);
        self.bound(limits);
        self.expire(append_time, limits);
    }

    /// Forgets the oldest batches over the bound of all windows together. Two looks per append: one for the batch that
    /// came, one to catch up with entries whose batch was forgotten for another reason.
    fn bound(&mut self, limits: &Limits) {
        for _ in 0..2 {
            let Some(&(id, offset)) = self.remembered.front() else { return };
            let producer = self.producers.get_mut(&id);
            let holder = producer.filter(|it| it.seen.front().is_some_and(|oldest| oldest.base_offset <= offset));
            if let Some(holder) = holder {
                if self.remembered.len() <= limits.dedup_batches_max {
                    return;
                }
                if holder.seen.len() > DEDUP_WINDOW_MIN {
                    holder.seen.pop_front();
                    if holder.seen.len() * 4 < holder.seen.capacity() {
                        holder.seen.shrink_to(holder.seen.len() * 2);
                    }
                }
            }
            self.remembered.pop_front();
        }
    }

    fn note(&mut self, facts: &BodyFacts, base_offset: Offset, append_time: Timestamp) {
        if facts.producer.0 == 0 {
            return;
        }
        self.remembered.push_back((facts.producer, base_offset));
        let by_age = &mut self.by_age;
        let producer = self.producers.entry(facts.producer).or_insert_with(|| {
            by_age.push_back((append_time, facts.producer));
            Producer { epoch: facts.producer_epoch, next: Sequence(0), seen: VecDeque::new(), last_append: append_time }
        });
        if producer.epoch != facts.producer_epoch {
            producer.epoch = facts.producer_epoch;
            producer.seen.clear();
        }
        if producer.seen.len() == DEDUP_WINDOW {
            producer.seen.pop_front();
        }
        producer.seen.push_back(SeenBatch {
            base_sequence: facts.base_sequence,
            record_count: facts.record_count,
            crc: facts.crc,
            base_offset,
        });
        producer.next = Sequence(facts.base_sequence.0 + u64::from(facts.record_count));
        producer.last_append = append_time;
    }

    /// Next sequence expected of a producer; 0 if it is not known or comes with a newer epoch. None if it is fenced.
    pub fn next_sequence(&self, producer: ProducerId, epoch: ProducerEpoch) -> Option<Sequence> {
        match self.producers.get(&producer) {
            Some(known) if known.epoch > epoch => None,
            Some(known) if known.epoch == epoch => Some(known.next),
            _ => Some(Sequence(0)),
        }
    }

    /// What is remembered, for the producers file. `through`: the end of the log that it was made from.
    pub fn snapshot(&self, lineage: Lineage, through: Offset) -> Producers {
        let mut known: Vec<KnownProducer> = self
            .producers
            .iter()
            .map(|(id, it)| KnownProducer {
                id: *id,
                epoch: it.epoch,
                next: it.next,
                last_append: it.last_append,
                seen: it.seen.iter().copied().collect(),
            })
            .collect();
        // In order of their ids: the order of a hash map would not be the same in the next run.
        known.sort_unstable_by_key(|it| it.id);
        Producers { through, lineage, known }
    }

    /// What a producers file says of the batches below its `through`. Those behind it are in the log, if no crash took
    /// them, and are to be remembered from there.
    pub fn restore(producers: Producers) -> Dedup {
        let through = producers.through;
        let mut dedup = Dedup::default();
        for mut known in producers.known {
            let held = known.seen.len();
            known.seen.retain(|it| it.base_offset < through);
            let next = match known.seen.last() {
                Some(last) => Sequence(last.base_sequence.0 + u64::from(last.record_count)),
                // Nothing of it is left: it must begin anew, which is told, rather than be believed blindly.
                None if held > 0 => continue,
                None => known.next,
            };
            dedup.by_age.push_back((known.last_append, known.id));
            dedup.remembered.extend(known.seen.iter().map(|it| (known.id, it.base_offset)));
            let producer =
                Producer { epoch: known.epoch, next, seen: known.seen.into(), last_append: known.last_append };
            dedup.producers.insert(known.id, producer);
        }
        dedup.by_age.make_contiguous().sort_unstable();
        dedup.remembered.make_contiguous().sort_unstable_by_key(|(id, offset)| (*offset, *id));
        dedup
    }

    /// Producers remembered.
    pub fn producer_count(&self) -> usize {
        self.producers.len()
    }

    fn expire(&mut self, append_time: Timestamp, limits: &Limits) {
        let limit = append_time.saturating_sub_ns(limits.producer_expiry_ns);
        while let Some(&(seen_at, id)) = self.by_age.front() {
            if seen_at >= limit {
                break;
            }
            self.by_age.pop_front();
            match self.producers.get(&id) {
                Some(producer) if producer.last_append < limit => {
                    self.producers.remove(&id);
                }
                Some(producer) => self.by_age.push_back((producer.last_append, id)),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
