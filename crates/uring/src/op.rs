//! What can be asked of the ring and what it answers.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use bytes::Bytes;

use crate::AlignedBuf;

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addr {
    /// TCP.
    Inet(SocketAddr),
    /// A unix stream socket.
    Unix(PathBuf),
}

/// When a timer fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// At this many nanoseconds of CLOCK_BOOTTIME; at once if that is past.
    BoottimeNs(u64),
    /// After this many nanoseconds of CLOCK_BOOTTIME.
    AfterNs(u64),
}

/// What a [`Op::Fallocate`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallocateMode {
    /// Give the space back; the range reads as zero; the size stays.
    PunchHole,
    /// The range reads as zero and keeps its space; the size stays.
    ZeroRange,
    /// Reserve space, without a change of size.
    Allocate,
}

impl FallocateMode {
    pub(crate) const fn bits(self) -> i32 {
        match self {
            Self::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Self::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            Self::Allocate => libc::FALLOC_FL_KEEP_SIZE,
        }
    }
}

/// One operation. Everything it needs in memory moves in and comes back in its [`Completion`].
#[derive(Debug)]
pub enum Op {
    /// Read from a file at `offset` into `range` of `buf`. May be short.
    Read {
        /// The file.
        fd: RawFd,
        /// Byte offset in the file.
        offset: u64,
        /// Where to.
        buf: AlignedBuf,
        /// Which part of it.
        range: Range<usize>,
    },
    /// Write to a file at `offset`. May be short.
    Write {
        /// The file.
        fd: RawFd,
        /// Byte offset in the file.
        offset: u64,
        /// The bytes.
        data: Bytes,
        /// On stable storage before it answers (RWF_DSYNC).
        dsync: bool,
    },
    /// Bring what was written to stable storage.
    Fsync {
        /// The file.
        fd: RawFd,
        /// Leave out metadata that is not needed to read the data back.
        datasync: bool,
    },
    /// Change the space under a range.
    Fallocate {
        /// The file or block device.
        fd: RawFd,
        /// How.
        mode: FallocateMode,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Receive from a stream socket into `range` of `buf`. Zero bytes: the other side has ended.
    Recv {
        /// The socket.
        fd: RawFd,
        /// Where to.
        buf: AlignedBuf,
        /// Which part of it.
        range: Range<usize>,
        /// Answer only when the range is full, or the stream ends or fails.
        wait_all: bool,
    },
    /// Send all of the pieces, in order, on a stream socket; answers once, when all is handed to the
    /// kernel or the socket has failed. One send at a time per socket.
    Send {
        /// The socket.
        fd: RawFd,
        /// The pieces.
        data: Vec<Bytes>,
    },
    /// Accept connections (close-on-exec, blocking).
    Accept {
        /// The listening socket.
        fd: RawFd,
        /// Go on until it fails or is cancelled.
        multishot: bool,
    },
    /// Connect a stream socket.
    Connect {
        /// The socket.
        fd: RawFd,
        /// Where to.
        addr: Addr,
    },
    /// Wait until a descriptor is ready; the result is the ready events.
    Poll {
        /// The descriptor.
        fd: RawFd,
        /// POLLIN and so on.
        events: u32,
        /// Go on until it fails or is cancelled.
        multishot: bool,
    },
    /// Answer at a time (successfully: with result 0).
    Timeout(Timer),
    /// Close a descriptor.
    Close(OwnedFd),
}

impl Op {
    /// A read that fills `buf`.
    #[must_use]
    pub fn read(fd: RawFd, offset: u64, buf: AlignedBuf) -> Self {
        let range = 0..buf.len();
        Self::Read {
            fd,
            offset,
            buf,
            range,
        }
    }

    /// The descriptor it works on.
    #[must_use]
    pub fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Read { fd, .. }
            | Self::Write { fd, .. }
            | Self::Fsync { fd, .. }
            | Self::Fallocate { fd, .. }
            | Self::Recv { fd, .. }
            | Self::Send { fd, .. }
            | Self::Accept { fd, .. }
            | Self::Connect { fd, .. }
            | Self::Poll { fd, .. } => Some(*fd),
            Self::Close(fd) => Some(fd.as_raw_fd()),
            Self::Timeout(_) => None,
        }
    }
}

/// What comes back with an answer.
#[derive(Debug)]
pub enum Done {
    /// Of a read or a receive: its buffer.
    Buf(AlignedBuf),
    /// Of a write: its bytes.
    Data(Bytes),
    /// Of a send: its pieces.
    List(Vec<Bytes>),
    /// Of an accept that succeeded: the connection.
    Fd(OwnedFd),
    /// Nothing.
    None,
}

/// An answer.
#[derive(Debug)]
pub struct Completion {
    /// The token given with the operation.
    pub token: u64,
    /// Bytes moved, ready events, or 0; a cancelled operation answers `ECANCELED`.
    pub result: io::Result<u32>,
    /// What moved in with the operation.
    pub done: Done,
    /// More answers of this (multishot) operation follow.
    pub more: bool,
}
