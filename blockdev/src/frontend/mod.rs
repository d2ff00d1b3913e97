//! Where an application's I/O enters: NBD connections, a FUSE file under a loop device, and the
//! in-process port. Every frontend turns what it hears into [`Op`]s and waits for the answers;
//! none of them decides anything about data.
//!
//! Invariants
//! - an [`Op`] handed on lies inside the volume and is at most [`REQUEST_BYTES_MAX`] bytes of payload;
//! - every `Op` is answered exactly once or its connection ends;
//! - what an outsider sends can only end his own connection.

use bytes::Bytes;

pub mod fuse;
pub mod loopdev;
pub mod nbd;
pub mod port;

/// Largest payload of one request in bytes (32 MiB, the most NBD clients send).
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Block size recommended to clients, in bytes: requests of whole blocks need no read-modify-write.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// One request of an application, in bytes; any offset and length inside the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read `len` bytes; the answer carries exactly as many.
    Read {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write `data`.
    Write {
        /// Byte offset.
        offset: u64,
        /// The bytes.
        data: Bytes,
        /// Stable on every member before it is answered.
        fua: bool,
    },
    /// Make the bytes read as zero. Trims mean this too, so that replicas stay identical.
    Zero {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Stable on every member before it is answered.
        fua: bool,
        /// The space may be given back to the store.
        may_punch: bool,
    },
    /// Everything answered before this came is stable when it is answered.
    Flush,
}
