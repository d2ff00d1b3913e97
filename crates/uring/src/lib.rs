//! One thread, one ring: a thin, safe layer over io_uring.
//!
//! What it is for: the loops that do a volume's I/O submit [`Op`]s with a token and pop
//! [`Completion`]s. It knows nothing of volumes, peers or clients.
//!
//! Invariants:
//! - The ring owns every buffer, address and iovec of an operation from [`Ring::submit`] until the
//!   kernel's last completion for it, also after a cancel, also when the ring is dropped. That is
//!   what makes submitting safe.
//! - An operation answers exactly once (multishot ones: until [`Completion::more`] is false).
//! - Everything that can grow has a named limit.
//!
//! File descriptors are plain numbers here: the kernel takes its own reference when the operation
//! is handed to it, at the latest in the next [`Ring::wait`]. Do not close a descriptor between
//! [`Ring::submit`] and the next [`Ring::wait`], or the operation may meet another file.
//! Sockets must be in blocking mode: for a non-blocking one the kernel answers `EAGAIN` at once
//! where it otherwise would wait.
//!
//! This is the only place, beside drivers of frontends, where unsafe code is allowed.

mod buf;
mod entry;
mod error;
mod op;
mod ring;
mod slab;

#[cfg(test)]
mod tests;

pub use buf::{
    AlignedBuf, BUF_ALIGN, BUF_BYTES_MAX, BufError, BufPool, CLASS_BYTES_MAX,
    RETAINED_BYTES_DEFAULT,
};
pub use error::{RingError, SubmitError};
pub use op::{Addr, Completion, Done, FallocateMode, Op, Timer};
pub use ring::{IN_FLIGHT_MAX, OpId, Ring, RingConfig, SQ_ENTRIES};

/// Bits of a token below its tag.
pub const TOKEN_LOW_BITS: u32 = 56;

/// Builds a token from a tag (who on this ring it belongs to) and a number of the owner's choice,
/// of which the low [`TOKEN_LOW_BITS`] bits are kept. Tokens mean nothing to the ring; this is the
/// convention by which several users share one.
#[must_use]
pub const fn token(tag: u8, low: u64) -> u64 {
    ((tag as u64) << TOKEN_LOW_BITS) | (low & ((1 << TOKEN_LOW_BITS) - 1))
}

/// The tag of a token made by [`token`].
#[must_use]
pub const fn token_tag(token: u64) -> u8 {
    (token >> TOKEN_LOW_BITS) as u8
}

/// The number in a token made by [`token`].
#[must_use]
pub const fn token_low(token: u64) -> u64 {
    token & ((1 << TOKEN_LOW_BITS) - 1)
}
