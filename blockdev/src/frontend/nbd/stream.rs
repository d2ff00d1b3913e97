//! The receiving side's buffers: a stream buffer for headers and small payloads, and the buffers
//! of write payloads, which come from the loop's pool so that they can go to disk and peers as they are.
//!
//! Buffers are owned by whoever fills them: the session gives one away as a [`Target`] and gets it
//! back filled, so that a ring may keep it while the kernel writes into it.

use super::STREAM_BYTES;
use crate::frontend::REQUEST_BYTES_MAX;
use bytes::{Bytes, BytesMut};
use holdfast_uring::{AlignedBuf, BUF_BYTES_MAX, BufPool};
use std::ops::Range;

/// A buffer to receive into.
pub trait RecvBuf {
    /// Exactly as many bytes as were asked for.
    fn bytes(&self) -> &[u8];
    /// The same, to be filled.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Done receiving: the same bytes, shared and immutable.
    fn freeze(self) -> Bytes;
}

/// Where buffers come from: the loop's pool of aligned buffers.
pub trait RecvAlloc {
    /// Its buffers.
    type Buf: RecvBuf;
    /// A buffer of `len` bytes, at most [`REQUEST_BYTES_MAX`]; content irrelevant.
    fn alloc(&mut self, len: usize) -> Self::Buf;
}

/// A buffer to receive into, on its way to the socket and back.
#[derive(Debug)]
pub struct Target<B> {
    /// The buffer.
    pub buf: B,
    /// Which part of it is to be filled, from the front.
    pub range: Range<usize>,
    /// All of the range is expected: waiting until it is full saves wake-ups.
    pub whole: bool,
}

impl<B: RecvBuf> Target<B> {
    /// The part to be filled.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buf.bytes_mut()[self.range.clone()]
    }
}

/// Plain heap buffers, for tests and small servers without O_DIRECT.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapAlloc;

impl RecvBuf for BytesMut {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
    fn freeze(self) -> Bytes {
        Self::freeze(self)
    }
}

impl RecvAlloc for HeapAlloc {
    type Buf = BytesMut;
    fn alloc(&mut self, len: usize) -> BytesMut {
        debug_assert!(len <= REQUEST_BYTES_MAX as usize);
        BytesMut::zeroed(len)
    }
}

const _: () = assert!(REQUEST_BYTES_MAX as usize <= BUF_BYTES_MAX && STREAM_BYTES <= BUF_BYTES_MAX);

impl RecvBuf for AlignedBuf {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
    fn freeze(self) -> Bytes {
        Self::freeze(self)
    }
}

impl RecvAlloc for BufPool {
    type Buf = AlignedBuf;
    fn alloc(&mut self, len: usize) -> AlignedBuf {
        self.get(len)
            .expect("no request is larger than the pool's largest buffer, asserted above")
    }
}

/// Bytes received and not yet understood. Fixed size, never grows. While its buffer is away to be
/// filled, there is nothing in it to understand.
#[derive(Debug)]
pub(super) struct StreamBuf<B> {
    buf: Option<B>,
    start: usize,
    end: usize,
}

impl<B: RecvBuf> StreamBuf<B> {
    pub(super) fn new(buf: B) -> Self {
        Self {
            buf: Some(buf),
            start: 0,
            end: 0,
        }
    }

    /// What is there.
    pub(super) fn data(&self) -> &[u8] {
        self.buf
            .as_ref()
            .map_or(&[], |buf| &buf.bytes()[self.start..self.end])
    }

    /// Forget the first `n` bytes of what is there.
    pub(super) fn consume(&mut self, n: usize) {
        assert!(n <= self.end - self.start, "consumed more than received");
        self.start += n;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Give the buffer away for up to `window` more bytes, after moving what is there to the front.
    pub(super) fn take(&mut self, window: usize) -> Option<Target<B>> {
        let mut buf = self.buf.take()?;
        if self.start > 0 {
            buf.bytes_mut().copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let until = buf.bytes().len().min(self.end + window);
        if until == self.end {
            self.buf = Some(buf);
            return None;
        }
        Some(Target {
            buf,
            range: self.end..until,
            whole: false,
        })
    }

    /// The buffer is back with `n` more bytes.
    pub(super) fn put_back(&mut self, buf: B, n: usize) {
        assert!(
            n <= buf.bytes().len() - self.end,
            "received more than there was room for"
        );
        self.buf = Some(buf);
        self.end += n;
    }

    /// The first `N` bytes, if they are there.
    pub(super) fn peek<const N: usize>(&self) -> Option<&[u8; N]> {
        self.data().first_chunk::<N>()
    }
}

/// Reads big-endian numbers and slices off the front of option data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn u16(&mut self) -> Option<u16> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*head))
    }
    pub(super) fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*head))
    }
    pub(super) fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*head))
    }
    pub(super) fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }
    /// A string with its length before it.
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.slice(usize::try_from(len).ok()?)
    }
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
