//! How frames look in bytes.
//!
//! A connection starts with one [`Preamble`] and one [`Proof`] each way, then frames follow. A frame is
//! a header of [`HEADER_BYTES`] and a payload: the blocks of a write, or a list. All numbers are little-endian.
//!
//! | at | bytes | field |
//! |---:|---:|---|
//! | 0 | 4 | magic `HFDF` |
//! | 4 | 1 | protocol version |
//! | 5 | 1 | kind |
//! | 6 | 1 | flags: 1 FUA, 2 member, 4 data follows, 8 payload checksum absent |
//! | 7 | 1 | set of nodes, or a node |
//! | 8 | 4 | number of the frame on its connection, from 0 |
//! | 12 | 4 | volume, its two halves folded (the whole id is in the preamble and in Hello) |
//! | 16 | 8 | epoch |
//! | 24 | 8 | session |
//! | 32 | 8 | sequence, token, generation, or the line of history that is kept |
//! | 40 | 8 | first block; in an answer the activity log's number; or a line of history |
//! | 48 | 4 | blocks of the range, or entries of the list, or the reason of a refusal, or the level |
//! | 52 | 4 | payload bytes |
//! | 56 | 4 | CRC-32 of the payload |
//! | 60 | 4 | CRC-32 of the header before it |
//!
//! Invariants
//! - a frame has exactly one encoding: fields a kind does not use are zero, and others are refused;
//! - nothing is allocated for a payload before its header was checked, and never more than
//!   [`DATA_BYTES_MAX`] or [`LIST_BYTES_MAX`];
//! - frames of a connection are numbered, and a gap is refused: nothing is ever silently missing.

mod decode;
mod encode;
mod error;
mod header;
mod list;
mod preamble;
#[cfg(test)]
mod tests;

pub use decode::{Decoder, Pending};
pub use encode::{Encoded, Encoder};
pub use error::WireError;
pub use list::coarsen;
pub use preamble::{PREAMBLE_BYTES, PROOF_BYTES, Preamble, Proof};

use holdfast_types::{BLOCK_BYTES, NODES_MAX, REQUEST_BYTES_MAX};

/// Version of the protocol. Both ends must speak the same.
pub const PROTOCOL_VERSION: u8 = 1;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of blocks in one frame at the most: the largest request, grown to whole blocks at both ends.
pub const DATA_BYTES_MAX: u32 = REQUEST_BYTES_MAX + 2 * BLOCK_BYTES;
/// Ranges in one list at the most. Reports and bitmaps that have more are coarsened.
pub const LIST_RANGES_MAX: usize = 4 << 20;
/// Hashes in one frame at the most: those of the largest range of blocks.
pub const HASHES_MAX: usize = 1 << 20;
/// Bytes of a text for people at the most.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Bytes of a list at the most: one range is 16 bytes, and each bitmap of a cut has a small head.
pub const LIST_BYTES_MAX: u32 = LIST_RANGES_MAX as u32 * 16 + NODES_MAX as u32 * 8;
