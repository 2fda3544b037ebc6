//! Readers that rest, or whose disk is slow, while the log under them grows, is sealed, rolled and compacted.

mod kit;

use felix_protocol::position::Offset;
use felix_protocol::time::Timestamp;
use felix_wal::compact::{CompactSettings, CompactState, Compaction};
use felix_wal::disk::{Disk, DiskDone};
use felix_wal::log::{LogEvent, MetaChange, ShardLog};
use felix_wal::mem_disk::{Chance, MemDisk};
use felix_wal::queue::Slot;
use felix_wal::read::{ReadFrom, ReadState, Reader};
use kit::*;
use std::collections::{BTreeMap, VecDeque};

const PASS: Slot = Slot(3);
const SMALL: CompactSettings =
    CompactSettings { map_bytes_max: 1 << 20, tombstone_grace_ns: 1_000_000, group_bytes_max: 64 << 10 };

/// A log at work, and a reader whose completions lie until they are delivered.
struct Scene {
    world: World,
    log: ShardLog,
    stamper: Stamper,
    written: Vec<(u64, Rec)>,
    reader: Reader,
    late: VecDeque<DiskDone>,
    read: Vec<(u64, Rec)>,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let mut world = World::new(MemDisk::new(seed));
        let log = world.create().unwrap();
        let reader = Reader::new(READER, ReadFrom::Offset(Offset(0)), READ);
        let (stamper, late) = (Stamper::default(), VecDeque::new());
        Scene { world, log, stamper, written: Vec::new(), reader, late, read: Vec::new() }
    }

    /// The next completion that is not the reader's.
    fn next(&mut self) -> DiskDone {
        loop {
            let done = self.world.next().unwrap().expect("something is under way");
            match done.ticket.owner() == READER.0 {
                true => self.late.push_back(done),
                false => return done,
            }
        }
    }

    fn finish(&mut self) -> LogEvent {
        loop {
            let done = self.next();
            if let Some(event) = self.log.handle(done, &mut self.world.queue) {
                return event;
            }
        }
    }

    fn flush(&mut self, value_bytes: usize) {
        let number = self.written.len();
        self.stamper.time = Timestamp(1_000 + number as u64);
        let key = format!("key-{}", number % 7).into_bytes();
        let batch = self.stamper.batch(&[(Some(key), vec![number as u8; value_bytes], false)]);
        self.world.builder.begin(self.log.cursor());
        self.world.builder.push(&batch, false).unwrap();
        let World { builder, settings, queue, .. } = &mut self.world;
        self.log.flush(builder, &MetaChange::default(), settings, NOW, queue).unwrap();
        let buffer = self.finish().buffer.take();
        self.world.builder.reuse(buffer.expect("a flush gives its buffer back"));
        self.written.extend(records(&batch));
    }

    fn roll(&mut self) {
        if self.log.roll(&mut self.world.queue).unwrap() {
            self.finish();
        }
    }

    fn compact(&mut self) {
        let (now, limit) = (Timestamp(1_000 + self.written.len() as u64), self.log.flushed_to());
        let Some(mut pass) = Compaction::new(PASS, &self.log, limit, now, SMALL, READ) else { return };
        loop {
            match pass.poll(&self.log, &mut self.world.queue, None) {
                CompactState::Working => {
                    let done = self.next();
                    pass.handle(done, &self.log, &mut self.world.queue);
                }
                CompactState::Paused => pass.grant(10_000),
                CompactState::Switch(finished) => {
                    self.log.switch(&finished, now, &mut self.world.queue).unwrap();
                    self.finish();
                    pass.switched(Ok(()));
                }
                CompactState::Done(report) => {
                    if self.log.note_compacted(report.compacted_to, &mut self.world.queue).unwrap() {
                        self.finish();
                    }
                    return;
                }
                CompactState::Failed(error) => panic!("{error}"),
            }
        }
    }

    /// Takes at most so many batches that are there. True: it stands at the log's end.
    fn take(&mut self, batches: usize) -> bool {
        for _ in 0..batches {
            match self.reader.poll(&self.log, &mut self.world.queue) {
                ReadState::Ready => self.read.extend(records(self.reader.next_batch().expect("it is ready").bytes)),
                ReadState::Waiting => return false,
                ReadState::AtEnd => return true,
                ReadState::Failed(error) => panic!("nothing is wrong, yet: {error}"),
            }
        }
        false
    }

    fn deliver(&mut self) {
        for request in self.world.queue.drain() {
            self.world.disk.submit(request);
        }
        if self.late.is_empty()
            && let Some(done) = self.world.disk.wait()
        {
            self.late.push_back(done);
        }
        if let Some(done) = self.late.pop_front() {
            self.reader.handle(done, &self.log, &mut self.world.queue);
        }
    }

    fn read_to_the_end(&mut self) {
        while !self.take(8) {
            self.deliver();
        }
        assert_eq!(self.reader.position(), self.log.flushed_to());
    }
}

fn latest(records: &[(u64, Rec)]) -> BTreeMap<&[u8], u64> {
    records.iter().map(|(offset, (key, ..))| (key.as_deref().expect("all have one"), *offset)).collect()
}

#[test]
fn a_reader_that_rests_while_its_segment_grows_and_is_sealed_goes_on() {
    let mut scene = Scene::new(1);
    scene.flush(700);
    while scene.read.is_empty() {
        scene.take(1);
        scene.deliver();
    }
    // It grows, is sealed, and another begins; nobody asks the reader meanwhile.
    scene.flush(700);
    scene.roll();
    scene.flush(700);
    scene.read_to_the_end();
    assert!(scene.read == scene.written);
}

#[test]
fn readers_find_everything_whatever_happens_to_the_files() {
    let mut compacted = 0;
    for seed in 0..400 {
        let mut chance = Chance::new(seed);
        let mut scene = Scene::new(seed);
        let compacts = seed % 2 == 1;
        for _ in 0..120 {
            match chance.below(10) {
                0..4 => scene.flush(1 + chance.below(6_000) as usize),
                4 => scene.roll(),
                5 if compacts => scene.compact(),
                5..8 => scene.deliver(),
                _ => drop(scene.take(1 + chance.below(3) as usize)),
            }
        }
        scene.read_to_the_end();
        if compacts {
            // It may have read what compaction took out later.
            assert!(scene.read.is_sorted_by_key(|(offset, _)| *offset), "seed {seed}");
            assert!(scene.read.iter().all(|record| scene.written.contains(record)), "seed {seed}: a record changed");
            assert_eq!(latest(&scene.read), latest(&scene.written), "seed {seed}");
            compacted += usize::from(scene.read.len() < scene.written.len());
        } else {
            assert!(scene.read == scene.written, "seed {seed}");
        }
    }
    assert!(compacted > 50, "compaction hardly ever came before the reader: {compacted}");
}
