//! **What**: one sealed batch on its way: a whole Publish frame, who waits for it, and what is known of it.
//!
//! **Invariants**: `frame` is what was sent, byte for byte, until `stamp` gives it another sequence. Every batch tells
//! its outcome once.
//!
//! **Never**: a second encoding of the records: another sequence changes 20 bytes and the checksum.
//!
//! **See**: `felix_protocol::batch` for the layout of a body.

use crate::ack::{AckCell, Acked};
use crate::compress;
use crate::error::PublishError;
use crate::intake::{Outcome, Tally};
use felix_protocol::batch::Compression;
use felix_protocol::batch_builder::{BatchBuilder, ProducerStamp};
use felix_protocol::envelope::{FrameType, write_frame};
use felix_protocol::error_code::ErrorCode;
use felix_protocol::ids::{ProducerEpoch, ProducerId, Sequence};
use felix_protocol::limits::{BODY_HEADER_BYTES, ENVELOPE_BYTES};
use felix_protocol::time::Time;
use std::sync::Arc;

/// One sealed batch.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Sequence of its first record.
    pub base: u64,
    pub count: u32,
    pub frame: Arc<Vec<u8>>,
    pub deadline: Time,
    pub charge: usize,
    pub generation: u64,
    pub tickets: Vec<(u32, Arc<AckCell>)>,
    /// Sent on the current stream and not answered there.
    pub sent: bool,
    /// It may be in the log.
    pub maybe: bool,
    /// Its outcome was told; it only holds its place.
    pub abandoned: bool,
    /// The last refusal, if it is to be tried again.
    pub refusal: Option<(ErrorCode, String)>,
}

impl Batch {
    /// Sequence after its last record.
    pub(crate) fn end(&self) -> u64 {
        self.base + u64::from(self.count)
    }

    pub(crate) fn succeed(self, tally: &mut Tally, acked: impl Fn(u32) -> Acked) {
        if self.abandoned {
            return;
        }
        tally.settle(self.generation, u64::from(self.count), self.charge, Outcome::Acked);
        for (index, ticket) in self.tickets {
            ticket.complete(Ok(acked(index)));
        }
    }

    pub(crate) fn fail(mut self, tally: &mut Tally, error: &PublishError) {
        self.abandon(tally, error);
    }

    /// Tells the outcome and lets the bytes go; the place stays.
    pub(crate) fn abandon(&mut self, tally: &mut Tally, error: &PublishError) {
        if self.abandoned {
            return;
        }
        self.abandoned = true;
        tally.settle(self.generation, u64::from(self.count), self.charge, Outcome::Failed(error));
        for (_, ticket) in std::mem::take(&mut self.tickets) {
            ticket.complete(Err(error.clone()));
        }
        self.frame = Arc::default();
    }

    /// Gives the batch another sequence (and producer). Only for one that is certainly not in the log.
    pub(crate) fn stamp(&mut self, producer: Option<(ProducerId, ProducerEpoch)>, base: u64) {
        if self.abandoned {
            self.base = base;
            return;
        }
        let (id, epoch) = producer.unwrap_or_default();
        // The session of a lost connection may still hold the old bytes, so they are not changed under it.
        let mut stamped = [0u8; 20];
        stamped[0..4].copy_from_slice(&epoch.0.to_le_bytes());
        stamped[4..12].copy_from_slice(&id.0.to_le_bytes());
        stamped[12..20].copy_from_slice(&base.to_le_bytes());
        self.base = base;
        if self.frame.get(STAMP) == Some(&stamped[..]) {
            return;
        }
        let frame = Arc::make_mut(&mut self.frame);
        if frame.len() < BODY + BODY_HEADER_BYTES {
            return;
        }
        frame[STAMP].copy_from_slice(&stamped);
        let crc = crc32c::crc32c(&frame[BODY + 4..]);
        frame[BODY..BODY + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Start of the body in a Publish frame of ours: no route, no TLVs.
const BODY: usize = ENVELOPE_BYTES;
/// producer_epoch, producer_id and base_sequence lie side by side in a body header.
const STAMP: std::ops::Range<usize> = BODY + 28..BODY + 48;

/// Makes Publish frames, with buffers that are reused.
#[derive(Debug)]
pub(crate) struct Sealer {
    compression: Compression,
    compressed: Vec<u8>,
}

impl Sealer {
    pub(crate) fn new(compression: Compression) -> Sealer {
        Sealer { compression, compressed: Vec::new() }
    }

    /// A whole Publish frame of what was collected; the builder starts anew.
    pub(crate) fn seal(
        &mut self,
        builder: &mut BatchBuilder,
        producer: Option<(ProducerId, ProducerEpoch)>,
        base: u64,
    ) -> Arc<Vec<u8>> {
        let (producer, epoch) = producer.unwrap_or_default();
        let stamp = ProducerStamp { producer, epoch, base_sequence: Sequence(base) };
        let mut frame = Vec::with_capacity(ENVELOPE_BYTES + builder.body_bytes());
        let compressed = compress::compress(self.compression, builder.values(), &mut self.compressed);
        write_frame(&mut frame, FrameType::Publish, 0, 0, None, |out| {
            if compressed {
                builder.finish_with(stamp, self.compression, &self.compressed, out);
            } else {
                builder.finish(stamp, out);
            }
        });
        Arc::new(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use felix_protocol::batch_builder::RecordToPublish;
    use felix_protocol::batch_view::BodyView;

    #[test]
    fn another_stamp_is_a_valid_body_with_the_same_records() {
        let mut builder = BatchBuilder::new();
        builder.push(&RecordToPublish { key: Some(b"k"), value: b"v", ..Default::default() }).unwrap();
        let frame = Sealer::new(Compression::None).seal(&mut builder, Some((ProducerId(3), ProducerEpoch(1))), 10);
        let mut batch = Batch {
            base: 10,
            count: 1,
            frame: frame.clone(),
            deadline: Time(0),
            charge: 0,
            generation: 0,
            tickets: Vec::new(),
            sent: false,
            maybe: false,
            abandoned: false,
            refusal: None,
        };
        batch.stamp(Some((ProducerId(3), ProducerEpoch(1))), 10);
        assert!(Arc::ptr_eq(&frame, &batch.frame), "an equal stamp changes nothing");
        batch.stamp(Some((ProducerId(4), ProducerEpoch(2))), 77);
        let body = BodyView::parse(&batch.frame[ENVELOPE_BYTES..]).unwrap();
        body.check_publish().unwrap();
        assert_eq!(
            (body.producer, body.producer_epoch, body.base_sequence),
            (ProducerId(4), ProducerEpoch(2), Sequence(77))
        );
        let old = BodyView::parse(&frame[ENVELOPE_BYTES..]).unwrap();
        assert_eq!((old.base_sequence, old.index), (Sequence(10), body.index), "the bytes sent before did not change");
    }
}
