//! Recovery of a folder with a WAL file of any bytes: it ends, refuses or reports, and never panics. With every second input
//! checksums are made to fit, so that hostile sequences, statements and entries are reached.
#![no_main]

use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession};
use felix_wal::disk::{Disk, DiskOp, FileKey};
use felix_wal::format::group::GROUP_HEADER_BYTES;
use felix_wal::format::header::{FileHeader, Identity, Owner, Region};
use felix_wal::format::names::{Name, WalId};
use felix_wal::mem_disk::MemDisk;
use felix_wal::recover::Recovery;
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 4_096;

/// Makes a block a group of this place with good checksums; what the bytes say about sequences and entries stays.
fn fit(block: &mut [u8], number: u32, at: u32) {
    block[..8].copy_from_slice(&[b'F', b'L', b'X', b'G', 1, 0, 0, 0]);
    block[16..24].copy_from_slice(&3u64.to_le_bytes());
    block[24..28].copy_from_slice(&[1, 0, 0, 0]);
    block[28..32].copy_from_slice(&number.to_le_bytes());
    block[36..40].copy_from_slice(&at.to_le_bytes());
    let payload = u32::from_le_bytes([block[60], block[61], 0, 0]) % (BLOCK - GROUP_HEADER_BYTES) as u32;
    block[60..64].copy_from_slice(&payload.to_le_bytes());
    block[84..88].fill(0);
    let body = crc32c::crc32c(&block[GROUP_HEADER_BYTES..]);
    block[12..16].copy_from_slice(&body.to_le_bytes());
    let head = crc32c::crc32c_append(crc32c::crc32c(&block[..8]), &block[12..GROUP_HEADER_BYTES]);
    block[8..12].copy_from_slice(&head.to_le_bytes());
}

fuzz_target!(|input: &[u8]| {
    let Some((&mode, rest)) = input.split_first() else { return };
    let wal = WalId { session: NodeSession(3), core: CoreId(1) };
    let identity = Identity { cluster: ClusterId(1), node: NodeId(2), region: Region::new("eu").expect("a label") };
    let mut disk = MemDisk::new(1);
    // Up to two files; each block takes the next bytes of the input, the rest of it is zero.
    for (number, half) in [1u32, 2].into_iter().zip(rest.chunks(rest.len() / 2 + 1)) {
        let mut content = Vec::new();
        FileHeader { identity, session: NodeSession(3), salt: 0, owner: Owner::Wal { wal, number } }
            .encode(&mut content);
        for (at, piece) in half.chunks(160).enumerate().take(64) {
            let mut block = piece.to_vec();
            block.resize(BLOCK, 0);
            if mode & 1 == 0 {
                fit(&mut block, number, at as u32 + 1);
            }
            content.extend_from_slice(&block);
        }
        let path = Name::WalFile(wal, number).path();
        let bytes = content.len() as u64;
        let file = FileKey(u64::from(number));
        disk.call(DiskOp::Create { path: path.clone(), file, bytes, zeroed: true }).expect("a new file");
        disk.overwrite(&path, 0, &content);
    }
    let mut last = None;
    let result = Recovery::new(identity, 9, 2 * BLOCK).run(&mut disk, |position, _| {
        assert!(last < Some(position), "entries rise");
        last = Some(position);
    });
    if let Ok(report) = result {
        assert_eq!(report.wals.len(), if rest.is_empty() { 0 } else { 1 });
    }
});
