//! A store in memory: for tests and for demonstrations that need no disk.
//!
//! Operations end at once, into the queue behind [`Store::take_ready`]; only what was written
//! takes memory.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use holdfast_uring::{Completion, Ring};

use super::{
    BLOCK_BYTES, Ended, Store, StoreError, StoreOp, StoreResult, extent, in_range, outside,
};

/// Bytes of memory that come and go together.
const CHUNK_BYTES: usize = 256 << 10;

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    size: u64,
    /// `None`: all zero.
    chunks: Vec<Option<Box<[u8]>>>,
    ready: VecDeque<Ended>,
}

impl MemoryStore {
    /// A store of `size` zero bytes, rounded down to whole blocks.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let size = size - size % BLOCK_BYTES;
        let chunks = (0..size.div_ceil(CHUNK_BYTES as u64))
            .map(|_| None)
            .collect();
        Self {
            size,
            chunks,
            ready: VecDeque::new(),
        }
    }

    /// Calls `each` with chunk, start in the chunk and length for the parts of a range.
    fn parts(offset: u64, len: usize, mut each: impl FnMut(usize, usize, usize, usize)) {
        let mut done = 0;
        while done < len {
            let at = offset as usize + done;
            let start = at % CHUNK_BYTES;
            let part = (CHUNK_BYTES - start).min(len - done);
            each(at / CHUNK_BYTES, start, part, done);
            done += part;
        }
    }

    fn read(&self, offset: u64, len: usize) -> Bytes {
        let mut out = vec![0; len];
        Self::parts(offset, len, |chunk, start, part, done| {
            if let Some(chunk) = &self.chunks[chunk] {
                out[done..done + part].copy_from_slice(&chunk[start..start + part]);
            }
        });
        out.into()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let chunks = &mut self.chunks;
        Self::parts(offset, data.len(), |chunk, start, part, done| {
            let chunk =
                chunks[chunk].get_or_insert_with(|| vec![0; CHUNK_BYTES].into_boxed_slice());
            chunk[start..start + part].copy_from_slice(&data[done..done + part]);
        });
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let chunks = &mut self.chunks;
        Self::parts(offset, len as usize, |chunk, start, part, _| {
            if part == CHUNK_BYTES {
                chunks[chunk] = None;
            } else if let Some(chunk) = &mut chunks[chunk] {
                chunk[start..start + part].fill(0);
            }
        });
    }

    fn perform(&mut self, op: StoreOp) -> StoreResult {
        let (offset, len) = extent(&op);
        if !in_range(offset, len, self.size) {
            return Err(StoreError::Range);
        }
        match op {
            StoreOp::Read { offset, len } => return Ok(self.read(offset, len as usize)),
            StoreOp::Write { offset, data, .. } => self.write(offset, &data),
            StoreOp::Zero { offset, len, .. } => self.zero(offset, len),
            StoreOp::Flush => {}
        }
        Ok(Bytes::new())
    }
}

impl Store for MemoryStore {
    fn grow(&mut self, bytes: u64) -> io::Result<u64> {
        let size = bytes.next_multiple_of(BLOCK_BYTES).max(self.size);
        self.size = size;
        self.chunks
            .resize_with(size.div_ceil(CHUNK_BYTES as u64) as usize, || None);
        Ok(size)
    }

    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn note(&self) -> Option<&str> {
        Some("in memory: nothing survives the end of this process")
    }

    fn tag(&self) -> Option<u8> {
        None
    }

    fn submit(&mut self, _ring: &mut Ring, op: StoreOp, token: u64) {
        let result = self.perform(op);
        self.ready.push_back((token, result));
    }

    fn on_completion(&mut self, _ring: &mut Ring, _completion: Completion) -> Option<Ended> {
        None
    }

    fn take_ready(&mut self) -> Option<Ended> {
        self.ready.pop_front()
    }

    fn read_region(&mut self, offset: u64, len: usize) -> io::Result<Bytes> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size => Ok(self.read(offset, len)),
            _ => Err(outside(offset, len, self.size)),
        }
    }

    fn write_region(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        match offset.checked_add(data.len() as u64) {
            Some(end) if end <= self.size => {
                self.write(offset, data);
                Ok(())
            }
            _ => Err(outside(offset, data.len(), self.size)),
        }
    }
}
