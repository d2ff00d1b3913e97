//! The Network Block Device protocol: a server session without I/O, and a small blocking client.
//!
//! Served: fixed newstyle handshake with GO, INFO, LIST, ABORT, EXPORT_NAME, structured replies and
//! the `base:allocation` context; READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS, DISC.
//! Not served: TLS, extended headers (both answered ERR_UNSUP), oldstyle, resize.

#![forbid(unsafe_code)]

pub mod client;
mod commands;
mod export;
mod options;
pub mod proto;
mod session;
mod stream;
#[cfg(test)]
mod tests;

pub use export::{Export, ExportError, ExportTable};
pub use proto::NbdError;
pub use session::{Close, Cookie, Request, Session};
pub use stream::{HeapAlloc, RecvAlloc, RecvBuf, Target};

/// Requests of one connection that may wait for their answer; beyond that its socket is not read.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 256;
/// Payload bytes one connection may have under way (writes received, reads asked for, read replies
/// not yet taken) before its socket is not read: two of the largest requests.
pub const BYTES_PER_CONNECTION_MAX: u64 = 2 * super::REQUEST_BYTES_MAX as u64;
/// Bytes of replies without payload that may wait to be sent before the socket is not read.
pub const HEADS_BYTES_MAX: usize = 1 << 20;
/// Longest option data that is looked at, in bytes; it is never copied out of the stream buffer.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Longest option data that is skipped; a client announcing more is disconnected.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Options a client may send before it starts or goes.
pub const OPTIONS_PER_SESSION_MAX: u32 = 1024;
/// Bytes of the stream buffer of a connection.
pub const STREAM_BYTES: usize = 256 << 10;
/// Write payloads of at least so many bytes are received straight into their own buffer.
pub const DIRECT_BYTES_MIN: usize = 64 << 10;
