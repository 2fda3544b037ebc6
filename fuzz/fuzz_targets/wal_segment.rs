//! A segment file of any bytes behind a good header: `check`, `dump` and a reader end with a finding or with batches that
//! pass their checks, and never panic. With every second input checksums and places are made to fit.
#![no_main]

use felix_protocol::ids::{ClusterId, NodeId, NodeSession, ShardId, StreamId};
use felix_protocol::metadata::Durability;
use felix_protocol::position::{Lineage, Offset};
use felix_protocol::time::Timestamp;
use felix_wal::check::check;
use felix_wal::disk::{Disk, DiskOp};
use felix_wal::dump::{Values, dump};
use felix_wal::format::header::{FileHeader, Identity, Owner, Region};
use felix_wal::format::meta::{OpenSegment, ShardMeta};
use felix_wal::format::names::{Name, SegmentId};
use felix_wal::format::segment::{CHUNK_HEADER_BYTES, ChunkHeader, file_tag};
use felix_wal::log::Maker;
use felix_wal::log_open::Opening;
use felix_wal::mem_disk::MemDisk;
use felix_wal::queue::{DiskQueue, Slot};
use felix_wal::read::{ReadFrom, ReadSettings, ReadState, Reader};
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 4_096;

/// Makes a block a chunk of this place with good checksums; what the bytes say about offsets and batches stays.
fn fit(block: &mut [u8], tag: u32, at: u64) {
    block[..4].copy_from_slice(b"FxCk");
    let payload = u32::from_le_bytes([block[8], block[9], 0, 0]) as usize % (BLOCK - CHUNK_HEADER_BYTES);
    block[8..12].copy_from_slice(&(payload as u32).to_le_bytes());
    block[16..18].copy_from_slice(&1u16.to_le_bytes());
    block[19] = 0;
    block[18] &= 3;
    block[24..28].copy_from_slice(&1u32.to_le_bytes());
    block[28..32].copy_from_slice(&tag.to_le_bytes());
    block[96..104].copy_from_slice(&9u64.to_le_bytes());
    block[104..112].copy_from_slice(&at.to_le_bytes());
    block[112..128].fill(0);
    block[CHUNK_HEADER_BYTES + payload..].fill(0);
    let crc = crc32c::crc32c(&block[CHUNK_HEADER_BYTES..CHUNK_HEADER_BYTES + payload]);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&block[..4]), &block[8..CHUNK_HEADER_BYTES]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn replace(disk: &mut MemDisk, name: &Name, bytes: Vec<u8>) {
    disk.call(DiskOp::Replace { path: name.path(), bytes }).expect("there is room");
}

fuzz_target!(|input: &[u8]| {
    let Some((&mode, rest)) = input.split_first() else { return };
    let identity = Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").expect("a label") };
    let maker = Maker { identity, session: NodeSession(3) };
    let (stream, shard) = (StreamId(7), ShardId(9));
    let segment = SegmentId { lineage: Lineage(1), base_offset: Offset(0) };
    let header = |owner| {
        let mut bytes = Vec::new();
        FileHeader { identity, session: maker.session, salt: 0, owner }.encode(&mut bytes);
        bytes
    };
    let mut content = header(Owner::Segment { stream, shard, segment });
    let tag = file_tag(&content);
    for piece in rest.chunks(900).take(16) {
        let mut block = piece.to_vec();
        block.resize(BLOCK, 0);
        if mode & 1 == 0 {
            fit(&mut block, tag, content.len() as u64);
        }
        content.extend_from_slice(&block);
    }
    if content.len() == BLOCK {
        return;
    }
    // A meta that believes in the first chunk, or in any end.
    let mut meta = ShardMeta::new(stream, shard, Lineage(1), Durability::Group);
    let first = ChunkHeader::decode(&content[BLOCK..]).ok();
    meta.flushed_to = first.map_or(Offset(u64::from(mode) + 1), |chunk| chunk.range.to);
    meta.chain = first.map_or(0, |chunk| chunk.chain_out);
    if mode & 2 == 0 {
        meta.open = Some(OpenSegment { base: Offset(0), used_bytes: (BLOCK + BLOCK * (1 + usize::from(mode >> 4))) as u64 });
    }
    let mut disk = MemDisk::new(1);
    let mut bytes = header(Owner::Meta { stream, shard });
    meta.encode(&mut bytes);
    replace(&mut disk, &Name::ShardMeta(shard), bytes);
    replace(&mut disk, &Name::Segment(shard, segment), content);
    check(&mut disk, &identity);
    let _ = dump(&mut disk, &Name::Segment(shard, segment).path(), Values::Text, &mut String::new());
    let mut queue = DiskQueue::new();
    let mut opening = Opening::open(Slot(1), maker, shard, Timestamp(1), Offset(0), &mut queue);
    let log = loop {
        queue.drain().for_each(|request| disk.submit(request));
        let done = disk.wait().expect("something is under way");
        match opening.handle(done, &mut queue) {
            None => {}
            Some(Ok((log, _))) => break log,
            Some(Err(_)) => return,
        }
    };
    let settings = ReadSettings { window_bytes: BLOCK, windows_max: 2 };
    let mut reader = Reader::new(Slot(2), ReadFrom::Offset(Offset(0)), settings);
    let mut next = Offset(0);
    loop {
        match reader.poll(&log, &mut queue) {
            ReadState::Ready => {
                let range = reader.next_batch().expect("it is ready").header.range();
                assert!(range.from >= next && range.to > range.from);
                next = range.to;
            }
            ReadState::Waiting => {
                queue.drain().for_each(|request| disk.submit(request));
                let done = disk.wait().expect("something is under way");
                reader.handle(done, &log, &mut queue);
            }
            ReadState::AtEnd | ReadState::Failed(_) => break,
        }
    }
});
