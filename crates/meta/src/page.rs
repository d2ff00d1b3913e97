//! A bitmap page in bytes: sectors that each check themselves.
//!
//! A page is written in place, so a crash may leave any of its sectors old or new; both are right.
//! A sector that fails its check is rotten, never written, or belongs to someone else: all its
//! blocks count as dirty. The check covers whose bitmap it is, so a slot given to another peer, or a
//! region left from an earlier replica, reads as all dirty by itself.

use crate::layout::SECTOR_BYTES;
use holdfast_types::{Incarnation, NodeId};

/// Words of 64 bits in a sector; its last 8 bytes are a mark and the checksum.
pub(crate) const SECTOR_WORDS: usize = 63;
/// Bits in a sector.
pub(crate) const SECTOR_BITS: u64 = SECTOR_WORDS as u64 * 64;
const MARK: [u8; 4] = *b"HFBM";
const SECTOR: usize = SECTOR_BYTES as usize;

/// Whose bitmap a page belongs to: bits on the disk `incarnation` about what `node` lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The disk the bits are on.
    pub incarnation: Incarnation,
    /// The peer the bits are about.
    pub node: NodeId,
}

/// What loading a page or a bitmap found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Sectors whose check failed; all their blocks were set.
    pub damaged_sectors: u32,
}

/// Bits in a page.
pub(crate) const fn page_bits(page_bytes: u32) -> u64 {
    (page_bytes / SECTOR_BYTES) as u64 * SECTOR_BITS
}

/// Appends a sector. `words` are at most [`SECTOR_WORDS`]; missing ones are zero.
pub(crate) fn put_sector(out: &mut Vec<u8>, owner: Owner, sector: u64, words: &[u64]) {
    let start = out.len();
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.resize(start + SECTOR_WORDS * 8, 0);
    out.extend_from_slice(&MARK);
    let crc = sector_crc(owner, sector, &out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// The words of a sector, or `None` if its check fails.
pub(crate) fn get_sector(bytes: &[u8], owner: Owner, sector: u64) -> Option<[u64; SECTOR_WORDS]> {
    let (body, crc) = bytes.get(..SECTOR)?.split_at(SECTOR - 4);
    if body[SECTOR - 8..] != MARK || crc != sector_crc(owner, sector, body).to_le_bytes() {
        return None;
    }
    let mut words = [0; SECTOR_WORDS];
    for (word, chunk) in words.iter_mut().zip(body.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    Some(words)
}

fn sector_crc(owner: Owner, sector: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&owner.incarnation.0.to_le_bytes());
    hasher.update(&[owner.node.0]);
    hasher.update(&sector.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}
