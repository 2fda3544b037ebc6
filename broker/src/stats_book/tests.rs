use super::*;
use felix_control::authorise::Principal;
use felix_control::member::{Member, MemberSettings};
use felix_protocol::metadata::{Command, ShardStatus, StreamSpec};
use felix_protocol::position::Offset;
use felix_protocol::time::Timestamp;

fn name() -> StreamName {
    StreamName::parse("t/n/s").unwrap()
}

fn propose(member: &mut Member, book: &mut StatsBook, command: Command) -> Vec<Change> {
    let done = member.propose(Timestamp(1), &Principal::admin(), 0, command);
    done.outcome.unwrap();
    done.changes.iter().for_each(|change| book.on_change(change));
    done.changes
}

fn create(member: &mut Member, book: &mut StatsBook) -> PlacedStream {
    let command = Command::CreateStream { name: name(), spec: StreamSpec::default(), create_parents: true };
    match propose(member, book, command).remove(0) {
        Change::StreamPut { stream, .. } => stream,
        other => panic!("{other:?}"),
    }
}

/// What a core says of each shard: this many records came and went.
fn report(stream: &PlacedStream, records: u64) -> CoreReport {
    let shards = stream.shards.iter().map(|place| CoreShardReport {
        status: ShardStatus {
            index: place.index,
            shard: place.shard,
            core: place.core,
            lineage: place.lineage,
            epoch: place.epoch,
            log_start: Offset(0),
            high_watermark: Offset(records),
            retained_bytes: 0,
        },
        records_in: records,
        bytes_in: records * 100,
    });
    let tails = stream.shards.iter().map(|place| TailReport {
        shard: place.shard,
        core: place.core,
        subscriptions: 1,
        records_out: records,
        bytes_out: records * 100,
        gap_records: 0,
        slowest: Some(Offset(0)),
    });
    CoreReport { shards: shards.collect(), tails: tails.collect(), ..CoreReport::default() }
}

fn rows(book: &StatsBook) -> usize {
    book.positions.len() + book.shards.len() + book.tails.len() + book.streams.len() + book.known.len()
}

#[test]
fn a_report_that_comes_after_the_end_of_its_stream_leaves_nothing() {
    let (mut member, mut book) = (Member::new(MemberSettings::default()), StatsBook::default());
    for _ in 0..100 {
        let stream = create(&mut member, &mut book);
        book.take(&report(&stream, 5));
        assert_eq!(book.page(member.state(), None, 1, 1).streams[0].records_in, 5);
        propose(&mut member, &mut book, Command::DeleteStream { name: name() });
        book.take(&report(&stream, 7));
        assert_eq!(rows(&book), 0);
    }
}

#[test]
fn a_table_takes_the_place_of_what_was_known() {
    let (mut member, mut book) = (Member::new(MemberSettings::default()), StatsBook::default());
    let old = create(&mut member, &mut book);
    book.take(&report(&old, 5));
    let mut unheard = StatsBook::default();
    propose(&mut member, &mut unheard, Command::DeleteStream { name: name() });
    let new = create(&mut member, &mut unheard);
    book.on_table(std::slice::from_ref(&new));
    book.take(&report(&old, 9));
    book.take(&report(&new, 3));
    let page = book.page(member.state(), None, 1, 1);
    assert_eq!((page.streams.len(), page.streams[0].records_in, page.streams[0].records_out), (1, 3, 3));
    book.on_table(&[]);
    assert_eq!(rows(&book), 0);
}
