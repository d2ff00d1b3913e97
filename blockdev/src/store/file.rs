//! The store on a file or block device, through the volume's ring.
//!
//! Each operation is one or several ring operations in a row (the rest of a short one, another way
//! of zeroing, the flush behind a durable zero); its slot in `pending` says which is on its way.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use holdfast_uring::{
    AlignedBuf, BUF_ALIGN, BufPool, CLASS_BYTES_MAX, Completion, Done, FallocateMode, Op, Ring,
    SubmitError, token, token_low,
};
use tracing::{error, warn};

use super::slots::Slots;
use super::{
    BLOCK_BYTES, Ended, OpenError, OpenOptions, Store, StoreError, StoreOp, StoreResult, claim,
    extent, in_range, outside,
};

/// How often an operation interrupted by the kernel is tried again before it counts as failed.
const RETRIES_MAX: u32 = 64;
/// Bytes per write where zeroes must be written, and per step of a blocking read or write.
const STEP_BYTES: usize = CLASS_BYTES_MAX;

/// How to make a range read as zero, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZeroWay {
    Punch,
    ZeroRange,
    Write,
}

/// The ring operation that is on its way for an operation.
#[derive(Debug)]
enum Stage {
    /// So many bytes of the range are read.
    Read { offset: u64, done: usize },
    /// `rest` is what is not written yet.
    Write {
        offset: u64,
        rest: Bytes,
        durable: bool,
        synced: bool,
    },
    /// Zeroing by the filesystem or device.
    Zero {
        offset: u64,
        len: u64,
        durable: bool,
        way: ZeroWay,
    },
    /// Zeroing by writing: what is left.
    ZeroWrite {
        offset: u64,
        len: u64,
        durable: bool,
    },
    /// The flush asked for, or the one behind something durable.
    Sync,
}

#[derive(Debug)]
struct Pending {
    token: u64,
    stage: Stage,
    retries: u32,
}

/// What follows a completion.
enum Next {
    Submit(Op, Stage),
    End(StoreResult),
}

/// A store on a file or block device.
#[derive(Debug)]
pub struct FileStore {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    direct: bool,
    note: Option<String>,
    tag: u8,
    pool: BufPool,
    pending: Slots<Pending>,
    /// Operations the full ring did not take, in order.
    parked: VecDeque<(usize, Op)>,
    ready: VecDeque<Ended>,
    zero_way: ZeroWay,
    /// Writes can be durable by themselves (RWF_DSYNC).
    dsync: bool,
    /// For written zeroes; made when first needed.
    zeroes: Bytes,
    /// A flush or durable write has failed: what is on the disk nobody knows.
    dead: bool,
}

impl FileStore {
    /// Opens and claims a file or block device.
    ///
    /// # Errors
    /// It is not there, in use by another process until the deadline, too small, or of another kind.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, OpenError> {
        let claimed = claim::claim(path, options.claim_wait, &options.pool)?;
        Ok(Self {
            file: Arc::new(claimed.file),
            path: path.to_path_buf(),
            size: claimed.size,
            direct: claimed.direct,
            note: claimed.note,
            tag: options.tag,
            pool: options.pool.clone(),
            pending: Slots::default(),
            parked: VecDeque::new(),
            ready: VecDeque::new(),
            zero_way: ZeroWay::Punch,
            dsync: true,
            zeroes: Bytes::new(),
            dead: false,
        })
    }

    /// The page cache is left out.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// As on a filesystem that has neither fallocate nor durable writes.
    #[cfg(test)]
    pub(super) fn without_extras(&mut self) {
        self.zero_way = ZeroWay::Write;
        self.dsync = false;
    }

    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The first ring operation of an operation.
    fn first(&mut self, op: StoreOp) -> Result<(Op, Stage), StoreError> {
        let (offset, len) = extent(&op);
        if self.dead {
            return Err(StoreError::Io);
        }
        if !in_range(offset, len, self.size) {
            return Err(StoreError::Range);
        }
        match op {
            StoreOp::Read { offset, len } => {
                let buf = self.pool.get(len as usize).map_err(|_| StoreError::Range)?;
                Ok((
                    Op::read(self.fd(), offset, buf),
                    Stage::Read { offset, done: 0 },
                ))
            }
            StoreOp::Write {
                offset,
                data,
                durable,
            } => {
                let data = self.aligned(data)?;
                Ok(self.write(offset, data, durable))
            }
            StoreOp::Zero {
                offset,
                len,
                durable,
            } => self.zero(offset, len, durable),
            StoreOp::Flush => Ok(self.sync()),
        }
    }

    /// The bytes at an address O_DIRECT takes.
    fn aligned(&self, data: Bytes) -> Result<Bytes, StoreError> {
        if !self.direct || (data.as_ptr() as usize).is_multiple_of(BUF_ALIGN) {
            return Ok(data);
        }
        self.pool
            .copy_from(&data)
            .map(AlignedBuf::freeze)
            .map_err(|_| StoreError::Range)
    }

    fn write(&self, offset: u64, data: Bytes, durable: bool) -> (Op, Stage) {
        let synced = durable && self.dsync;
        let op = Op::Write {
            fd: self.fd(),
            offset,
            data: data.clone(),
            dsync: synced,
        };
        (
            op,
            Stage::Write {
                offset,
                rest: data,
                durable,
                synced,
            },
        )
    }

    fn zero(&mut self, offset: u64, len: u64, durable: bool) -> Result<(Op, Stage), StoreError> {
        let way = self.zero_way;
        let mode = match way {
            ZeroWay::Punch => FallocateMode::PunchHole,
            ZeroWay::ZeroRange => FallocateMode::ZeroRange,
            ZeroWay::Write => return self.zero_write(offset, len, durable),
        };
        Ok((
            Op::Fallocate {
                fd: self.fd(),
                mode,
                offset,
                len,
            },
            Stage::Zero {
                offset,
                len,
                durable,
                way,
            },
        ))
    }

    fn zero_write(
        &mut self,
        offset: u64,
        len: u64,
        durable: bool,
    ) -> Result<(Op, Stage), StoreError> {
        if self.zeroes.is_empty() {
            self.zeroes = self
                .pool
                .get_zeroed(STEP_BYTES)
                .map_err(|_| StoreError::Range)?
                .freeze();
        }
        let step = len.min(STEP_BYTES as u64) as usize;
        let op = Op::Write {
            fd: self.fd(),
            offset,
            data: self.zeroes.slice(..step),
            dsync: false,
        };
        Ok((
            op,
            Stage::ZeroWrite {
                offset,
                len,
                durable,
            },
        ))
    }

    fn sync(&self) -> (Op, Stage) {
        (
            Op::Fsync {
                fd: self.fd(),
                datasync: true,
            },
            Stage::Sync,
        )
    }

    /// Hands a ring operation over, or parks it until the ring has room.
    fn hand(&mut self, ring: &mut Ring, slot: usize, op: Op) {
        if !self.parked.is_empty() {
            self.parked.push_back((slot, op));
            return;
        }
        if let Err(SubmitError::Full { op, .. }) = ring.submit(op, token(self.tag, slot as u64)) {
            self.parked.push_back((slot, *op));
        }
    }

    fn unpark(&mut self, ring: &mut Ring) {
        while let Some((slot, op)) = self.parked.pop_front() {
            if let Err(SubmitError::Full { op, .. }) = ring.submit(op, token(self.tag, slot as u64))
            {
                self.parked.push_front((slot, *op));
                return;
            }
        }
    }

    /// What follows from an answer of the ring. `retry`: the kernel was interrupted.
    fn next(&mut self, stage: Stage, result: io::Result<u32>, done: Done, retry: bool) -> Next {
        let moved = match result {
            Ok(moved) => moved as usize,
            Err(_) if retry => 0,
            Err(failure) => return self.failed(stage, &failure),
        };
        match stage {
            Stage::Read {
                offset,
                done: before,
            } => {
                let Done::Buf(buf) = done else {
                    return Next::End(Err(StoreError::Io));
                };
                let now = before + moved;
                if now >= buf.len() {
                    return Next::End(Ok(buf.freeze()));
                }
                if moved == 0 && !retry {
                    error!(path = %self.path.display(), offset, "the file has become shorter");
                    return Next::End(Err(StoreError::Io));
                }
                // O_DIRECT goes on only at a block.
                let from = now - now % BLOCK_BYTES as usize;
                let range = from..buf.len();
                Next::Submit(
                    Op::Read {
                        fd: self.fd(),
                        offset: offset + from as u64,
                        buf,
                        range,
                    },
                    Stage::Read { offset, done: from },
                )
            }
            Stage::Write {
                offset,
                rest,
                durable,
                synced,
            } => {
                if moved >= rest.len() {
                    return if durable && !synced {
                        self.then(self.sync())
                    } else {
                        Next::End(Ok(Bytes::new()))
                    };
                }
                let from = moved - moved % BLOCK_BYTES as usize;
                self.then(self.write(offset + from as u64, rest.slice(from..), durable))
            }
            Stage::Zero {
                offset,
                len,
                durable,
                ..
            } => {
                if retry {
                    return self.or_end(|store| store.zero(offset, len, durable));
                }
                self.zeroed(durable)
            }
            Stage::ZeroWrite {
                offset,
                len,
                durable,
            } => {
                let moved = moved as u64 - moved as u64 % BLOCK_BYTES;
                if moved >= len {
                    return self.zeroed(durable);
                }
                self.or_end(|store| store.zero_write(offset + moved, len - moved, durable))
            }
            Stage::Sync => Next::End(Ok(Bytes::new())),
        }
    }

    fn zeroed(&self, durable: bool) -> Next {
        if durable {
            self.then(self.sync())
        } else {
            Next::End(Ok(Bytes::new()))
        }
    }

    fn then(&self, (op, stage): (Op, Stage)) -> Next {
        Next::Submit(op, stage)
    }

    fn or_end(&mut self, first: impl FnOnce(&mut Self) -> Result<(Op, Stage), StoreError>) -> Next {
        match first(self) {
            Ok((op, stage)) => Next::Submit(op, stage),
            Err(failure) => Next::End(Err(failure)),
        }
    }

    fn failed(&mut self, stage: Stage, failure: &io::Error) -> Next {
        let errno = failure.raw_os_error().unwrap_or(0);
        let unsupported = matches!(
            errno,
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL
        );
        match &stage {
            Stage::Zero {
                offset,
                len,
                durable,
                way,
            } if unsupported => {
                let (offset, len, durable) = (*offset, *len, *durable);
                // Others on their way may have found out already.
                if self.zero_way == *way {
                    self.zero_way = if *way == ZeroWay::Punch {
                        ZeroWay::ZeroRange
                    } else {
                        ZeroWay::Write
                    };
                }
                return self.or_end(|store| store.zero(offset, len, durable));
            }
            Stage::Write {
                offset,
                rest,
                durable,
                synced: true,
            } if errno == libc::EOPNOTSUPP => {
                self.dsync = false;
                let (offset, rest, durable) = (*offset, rest.clone(), *durable);
                return self.then(self.write(offset, rest, durable));
            }
            _ => {}
        }
        error!(path = %self.path.display(), operation = ?kind(&stage), %failure, "the store failed");
        let no_space = matches!(errno, libc::ENOSPC | libc::EDQUOT);
        // A flush that failed has lost what it should have saved, whatever the reason; a durable
        // write that found no space has written nothing.
        let lost = match &stage {
            Stage::Sync => true,
            Stage::Write { synced, .. } => *synced && !no_space,
            Stage::Read { .. } | Stage::Zero { .. } | Stage::ZeroWrite { .. } => false,
        };
        if lost {
            error!(path = %self.path.display(), "a flush failed: the store takes nothing any more");
            self.dead = true;
        }
        Next::End(Err(if no_space && !lost {
            StoreError::NoSpace
        } else {
            StoreError::Io
        }))
    }

    /// Reads or writes step by step, waiting for the device.
    fn blocking(
        &self,
        offset: u64,
        len: usize,
        mut step: impl FnMut(&mut AlignedBuf, u64, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > self.size)
        {
            return Err(outside(offset, len, self.size));
        }
        let end = offset + len as u64;
        let mut at = offset - offset % BLOCK_BYTES;
        while at < end {
            let part = (end.next_multiple_of(BLOCK_BYTES) - at).min(STEP_BYTES as u64) as usize;
            let mut buf = self.pool.get(part).map_err(io::Error::other)?;
            step(&mut buf, at, part)?;
            at += part as u64;
        }
        Ok(())
    }
}

const fn kind(stage: &Stage) -> &'static str {
    match stage {
        Stage::Read { .. } => "read",
        Stage::Write { .. } => "write",
        Stage::Zero { .. } | Stage::ZeroWrite { .. } => "zero",
        Stage::Sync => "flush",
    }
}

/// The part of a caller's range `offset..offset + len` inside the step at `at`, as ranges of the
/// step and of the caller's bytes.
fn overlap(
    offset: u64,
    len: usize,
    at: u64,
    part: usize,
) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let start = offset.max(at);
    let end = (offset + len as u64).min(at + part as u64);
    let step = (start - at) as usize..(end - at) as usize;
    (step, (start - offset) as usize..(end - offset) as usize)
}

impl Store for FileStore {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn grow(&mut self, bytes: u64) -> io::Result<u64> {
        use std::io::Seek as _;
        let wanted = bytes.next_multiple_of(BLOCK_BYTES);
        if self.file.metadata()?.is_file() && self.size < wanted {
            self.file.set_len(wanted)?;
            self.file.sync_all()?;
        }
        // The end of a block device is where seeking to it leads; nothing here uses the position.
        let end = (&*self.file).seek(io::SeekFrom::End(0))?;
        self.size = self.size.max(end - end % BLOCK_BYTES);
        if self.size < wanted {
            return Err(super::too_small(self.size, wanted));
        }
        Ok(self.size)
    }

    fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    fn tag(&self) -> Option<u8> {
        Some(self.tag)
    }

    fn submit(&mut self, ring: &mut Ring, op: StoreOp, token: u64) {
        if !matches!(op, StoreOp::Flush) && extent(&op).1 == 0 {
            let result = if self.dead {
                Err(StoreError::Io)
            } else {
                Ok(Bytes::new())
            };
            self.ready.push_back((token, result));
            return;
        }
        match self.first(op) {
            Ok((op, stage)) => {
                let slot = self.pending.insert(Pending {
                    token,
                    stage,
                    retries: 0,
                });
                self.hand(ring, slot, op);
                self.unpark(ring);
            }
            Err(failure) => self.ready.push_back((token, Err(failure))),
        }
    }

    fn on_completion(&mut self, ring: &mut Ring, completion: Completion) -> Option<Ended> {
        let slot = token_low(completion.token) as usize;
        let Pending {
            token,
            stage,
            retries,
        } = self.pending.remove(slot)?;
        let interrupted = completion.result.as_ref().is_err_and(|failure| {
            matches!(failure.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
        });
        // A flush is never tried again.
        let retry = interrupted && retries < RETRIES_MAX && !matches!(stage, Stage::Sync);
        let little = completion
            .result
            .as_ref()
            .is_ok_and(|moved| u64::from(*moved) < BLOCK_BYTES);
        let retries = if retry || little { retries + 1 } else { 0 };
        let next = if retries > RETRIES_MAX {
            self.failed(stage, &io::ErrorKind::TimedOut.into())
        } else {
            self.next(stage, completion.result, completion.done, retry)
        };
        let ended = match next {
            Next::Submit(op, stage) => {
                let slot = self.pending.insert(Pending {
                    token,
                    stage,
                    retries,
                });
                self.hand(ring, slot, op);
                None
            }
            // Whatever ends after the failure of a flush may be part of what was lost.
            Next::End(Ok(_)) if self.dead => Some((token, Err(StoreError::Io))),
            Next::End(result) => Some((token, result)),
        };
        self.unpark(ring);
        ended
    }

    fn take_ready(&mut self) -> Option<Ended> {
        self.ready.pop_front()
    }

    fn read_region(&mut self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut out = vec![
            0;
            if offset.saturating_add(len as u64) <= self.size {
                len
            } else {
                0
            }
        ];
        self.blocking(offset, len, |buf, at, part| {
            self.file.read_exact_at(buf, at)?;
            let (step, ours) = overlap(offset, len, at, part);
            out[ours].copy_from_slice(&buf[step]);
            Ok(())
        })?;
        Ok(out.into())
    }

    fn write_region(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.blocking(offset, data.len(), |buf, at, part| {
            let (step, ours) = overlap(offset, data.len(), at, part);
            if step != (0..part) {
                self.file.read_exact_at(buf, at)?;
            }
            buf[step].copy_from_slice(&data[ours]);
            self.file.write_all_at(buf, at)
        })?;
        self.file.sync_data()
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            // The ring may not have shown all of them to the kernel: with the descriptor closed,
            // they would meet whatever file gets its number.
            warn!(path = %self.path.display(), "dropped with operations on their way: the file stays open and claimed");
            mem::forget(Arc::clone(&self.file));
        }
    }
}
