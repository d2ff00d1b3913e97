//! A store that misbehaves as a [`FaultPlan`] says: late, failing, hanging, or losing what was not
//! flushed.
//!
//! The lost cache is a real one: plain writes stay in this process's memory and reach the store
//! below only in a flush, or when they are durable themselves. So `kill -9` of the process loses
//! exactly the unflushed writes, as a power cut does, with nothing to prepare and nobody to trust.
//! (Beyond [`CACHE_BYTES_MAX`] the oldest are written back, as a disk's cache would.)
//!
//! What brings cached blocks to the store below is done one job after another: two writes of the
//! same block can then never change places on their way down.

use std::collections::VecDeque;
use std::io;
use std::mem;

use bytes::{Bytes, BytesMut};
use holdfast_uring::{Completion, Op, Ring, TOKEN_LOW_BITS, Timer, token, token_low};

use super::overlay::{Overlay, Patch, Written, patched};
use super::plan::Dice;
use super::slots::Slots;
use super::{
    BLOCK_BYTES, Ended, FaultPlan, Store, StoreError, StoreOp, StoreResult, extent, in_range,
    outside,
};

/// Memory of the lost cache, bytes.
pub const CACHE_BYTES_MAX: usize = 256 << 20;
/// Longer zeroes go past the cache, bytes.
const CACHED_ZERO_MAX: u64 = 64 << 20;
/// Unit in which a block can be torn, bytes: a disk's sector.
const SECTOR_BYTES: usize = 512;
/// All sectors of a block.
const WHOLE: u8 = u8::MAX;
/// In the low bits of a token: a timer of this wrapper, not of the store below.
const TIMER_BIT: u64 = 1 << (TOKEN_LOW_BITS - 1);

const _: () = assert!(BLOCK_BYTES as usize / SECTOR_BYTES == u8::BITS as usize);

/// A block of which only some sectors reach the disk.
#[derive(Debug)]
struct Fragment {
    block: u64,
    patch: Patch,
    sectors: u8,
}

/// What is done one after another.
#[derive(Debug)]
enum Job {
    /// Bring all writes up to this number to the disk and flush it.
    Flush { token: u64, upto: u64 },
    /// A durable operation, or one too large for the cache.
    Through { token: u64, op: StoreOp, seq: u64 },
    /// Let some blocks reach the disk in part; then, if it was a write that fails, fail it.
    Fragments {
        fragments: Vec<Fragment>,
        fails: Option<u64>,
    },
}

/// The job that is being done.
#[derive(Debug)]
struct Running {
    job: Job,
    /// Operations on their way to the store below.
    left: usize,
    failure: Option<StoreError>,
    /// Of a flush: what its writes contained.
    written: Written,
    /// Of a flush: the writes have ended and the flush is on its way.
    flushing: bool,
}

/// What an operation of the store below is for.
#[derive(Debug)]
enum Below {
    /// The caller's own.
    Pass { token: u64 },
    /// The caller's read, with what the cache had when it began.
    Read {
        token: u64,
        offset: u64,
        patches: Vec<(u64, Patch)>,
    },
    /// A part of the running job.
    Part,
    /// The old content of a block that is to be torn.
    Old(Fragment),
}

/// A store that misbehaves.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Box<dyn Store>,
    plan: FaultPlan,
    note: String,
    tag: u8,
    dice: Dice,
    /// Operations so far.
    count: u64,
    delayed: Slots<(StoreOp, u64)>,
    below: Slots<Below>,
    overlay: Overlay,
    jobs: VecDeque<Job>,
    running: Option<Running>,
    ready: VecDeque<Ended>,
    /// A flush has failed.
    dead: bool,
    /// Memory of the lost cache, bytes.
    cache_max: usize,
}

impl FaultyStore {
    /// Wraps a store, which must not be a [`FaultyStore`] itself. `tag` is that of the inner store,
    /// or any if it does not use the ring.
    #[must_use]
    pub fn new(inner: Box<dyn Store>, plan: FaultPlan, tag: u8) -> Self {
        let dice = Dice::new(plan.seed);
        let mut note = format!("faults are switched on: {plan}");
        if let Some(inner) = inner.note() {
            note = format!("{note}; {inner}");
        }
        Self {
            inner,
            plan,
            note,
            tag,
            dice,
            count: 0,
            delayed: Slots::default(),
            below: Slots::default(),
            overlay: Overlay::default(),
            jobs: VecDeque::new(),
            running: None,
            ready: VecDeque::new(),
            dead: false,
            cache_max: CACHE_BYTES_MAX,
        }
    }

    #[cfg(test)]
    pub(super) fn with_cache_of(mut self, bytes: usize) -> Self {
        self.cache_max = bytes;
        self
    }

    fn end(&mut self, token: u64, result: StoreResult) {
        let result = if self.dead {
            result.and(Err(StoreError::Io))
        } else {
            result
        };
        self.ready.push_back((token, result));
    }

    fn submit_below(&mut self, ring: &mut Ring, op: StoreOp, below: Below) {
        let slot = self.below.insert(below);
        self.inner.submit(ring, op, slot as u64);
    }

    /// Does an operation whose time has come.
    fn execute(&mut self, ring: &mut Ring, op: StoreOp, token: u64) {
        self.count += 1;
        if self.plan.hang_after.is_some_and(|n| self.count > n) {
            return;
        }
        let (offset, len) = extent(&op);
        if self.dead {
            return self.end(token, Err(StoreError::Io));
        }
        if !in_range(offset, len, self.inner.size_bytes()) {
            return self.end(token, Err(StoreError::Range));
        }
        if let Some(failure) = self.strikes(&op, offset, len) {
            return self.fail(op, token, failure);
        }
        match op {
            StoreOp::Read { offset, len } => {
                let patches = self.overlay.within(offset, len.into());
                self.submit_below(
                    ring,
                    op,
                    Below::Read {
                        token,
                        offset,
                        patches,
                    },
                );
            }
            _ if !self.plan.lost_cache => self.submit_below(ring, op, Below::Pass { token }),
            StoreOp::Flush => self.jobs.push_back(Job::Flush {
                token,
                upto: self.overlay.now(),
            }),
            StoreOp::Write {
                offset,
                ref data,
                durable: false,
            } => {
                self.overlay.write(offset, data);
                self.cached(token, offset, len);
            }
            StoreOp::Zero {
                offset,
                len,
                durable: false,
            } if len <= CACHED_ZERO_MAX => {
                self.overlay.zero(offset, len);
                self.cached(token, offset, len);
            }
            StoreOp::Write { .. } | StoreOp::Zero { .. } => {
                let seq = self.overlay.pass();
                self.jobs.push_back(Job::Through { token, op, seq });
            }
        }
    }

    /// A write is in the cache: it is done, unless the cache is full; chance may let it through.
    fn cached(&mut self, token: u64, offset: u64, len: u64) {
        let seq = self.overlay.now();
        let mut fragments = Vec::new();
        for (block, patch) in if self.plan.keep > 0 {
            self.overlay.within(offset, len)
        } else {
            Vec::new()
        } {
            if self.dice.hits(self.plan.keep) {
                let sectors = self.sectors();
                fragments.push(Fragment {
                    block,
                    patch,
                    sectors,
                });
            }
        }
        if !fragments.is_empty() {
            self.jobs.push_back(Job::Fragments {
                fragments,
                fails: None,
            });
        }
        if self.overlay.cost() > self.cache_max {
            self.jobs.push_back(Job::Flush { token, upto: seq });
        } else {
            self.end(token, Ok(Bytes::new()));
        }
    }

    /// Which sectors of a block reach the disk.
    fn sectors(&mut self) -> u8 {
        if self.dice.hits(self.plan.torn) {
            self.dice.next() as u8
        } else {
            WHOLE
        }
    }

    /// The failure the plan has for this operation, if it has one.
    fn strikes(&mut self, op: &StoreOp, offset: u64, len: u64) -> Option<StoreError> {
        if self.count <= self.plan.eio_after {
            return None;
        }
        let here = self
            .plan
            .eio_range
            .is_none_or(|(start, n)| offset < start + n && start < offset + len);
        let (eio, no_space) = match op {
            StoreOp::Read { .. } => (if here { self.plan.eio_read } else { 0 }, 0),
            StoreOp::Write { .. } | StoreOp::Zero { .. } if here => {
                (self.plan.eio_write, self.plan.nospace_write)
            }
            StoreOp::Write { .. } | StoreOp::Zero { .. } => (0, 0),
            StoreOp::Flush => (self.plan.eio_flush, 0),
        };
        if self.dice.hits(eio) {
            return Some(StoreError::Io);
        }
        self.dice.hits(no_space).then_some(StoreError::NoSpace)
    }

    fn fail(&mut self, op: StoreOp, token: u64, failure: StoreError) {
        let durable = matches!(
            op,
            StoreOp::Flush
                | StoreOp::Write { durable: true, .. }
                | StoreOp::Zero { durable: true, .. }
        );
        if durable && failure == StoreError::Io {
            // What the device had in its cache is lost with it.
            self.overlay.clear();
            self.dead = true;
        }
        if let StoreOp::Write { offset, data, .. } = &op
            && failure == StoreError::Io
            && !self.plan.lost_cache
            && self.plan.torn > 0
        {
            let first = offset / BLOCK_BYTES;
            let pieces = data.chunks(BLOCK_BYTES as usize).zip(first..);
            let mut fragments = Vec::new();
            for (piece, block) in pieces {
                let patch = Patch::Data(Bytes::copy_from_slice(piece));
                fragments.push(Fragment {
                    block,
                    patch,
                    sectors: self.sectors(),
                });
            }
            self.jobs.push_back(Job::Fragments {
                fragments,
                fails: Some(token),
            });
            return;
        }
        self.end(token, Err(failure));
    }

    /// Starts the next job if none is running.
    fn start(&mut self, ring: &mut Ring) {
        while self.running.is_none() {
            let Some(mut job) = self.jobs.pop_front() else {
                return;
            };
            let mut running = Running {
                left: 0,
                failure: None,
                written: Vec::new(),
                flushing: false,
                job: Job::Flush { token: 0, upto: 0 },
            };
            let mut parts: Vec<(StoreOp, Below)> = Vec::new();
            match &mut job {
                Job::Flush { upto, .. } => {
                    let (ops, written) = self.overlay.due(*upto);
                    running.written = written;
                    running.flushing = ops.is_empty();
                    parts.extend(ops.into_iter().map(|op| (op, Below::Part)));
                    if running.flushing {
                        parts.push((StoreOp::Flush, Below::Part));
                    }
                }
                Job::Through { op, .. } => parts.push((op.clone(), Below::Part)),
                Job::Fragments { fragments, .. } => {
                    for fragment in mem::take(fragments) {
                        if fragment.sectors != 0 {
                            let read = StoreOp::Read {
                                offset: fragment.block * BLOCK_BYTES,
                                len: BLOCK_BYTES as u32,
                            };
                            parts.push((read, Below::Old(fragment)));
                        }
                    }
                }
            }
            running.left = parts.len();
            running.job = job;
            self.running = Some(running);
            for (op, below) in parts {
                self.submit_below(ring, op, below);
            }
            self.step(ring);
        }
    }

    /// Goes on with the running job if nothing of it is on its way.
    fn step(&mut self, ring: &mut Ring) {
        let Some(running) = &mut self.running else {
            return;
        };
        if running.left > 0 {
            return;
        }
        if matches!(running.job, Job::Flush { .. })
            && !running.flushing
            && running.failure.is_none()
        {
            running.flushing = true;
            running.left = 1;
            return self.submit_below(ring, StoreOp::Flush, Below::Part);
        }
        let Some(running) = self.running.take() else {
            return;
        };
        let result = running.failure.map_or(Ok(Bytes::new()), Err);
        match running.job {
            Job::Flush { token, .. } => {
                if result.is_ok() {
                    self.overlay.settle(&running.written);
                } else {
                    self.dead = true;
                }
                self.end(token, result);
            }
            Job::Through { token, op, seq } => {
                let (offset, len) = extent(&op);
                if result.is_ok() {
                    self.overlay.forget(offset, len, seq);
                }
                self.end(token, result);
            }
            Job::Fragments {
                fails: Some(token), ..
            } => self.end(token, Err(StoreError::Io)),
            Job::Fragments { fails: None, .. } => {}
        }
    }

    /// An operation of the store below has ended.
    fn below_ended(&mut self, ring: &mut Ring, slot: u64, result: StoreResult) {
        match self.below.remove(slot as usize) {
            Some(Below::Pass { token }) => self.end(token, result),
            Some(Below::Read {
                token,
                offset,
                patches,
            }) => {
                self.end(token, result.map(|disk| patched(offset, disk, &patches)));
            }
            Some(Below::Part) => self.part_ended(ring, result.err()),
            Some(Below::Old(fragment)) => match result {
                Ok(old) => {
                    let mut block = BytesMut::from(&old[..]);
                    let mut new = BytesMut::zeroed(block.len());
                    fragment.patch.apply(&mut new);
                    for sector in (0..u8::BITS as usize)
                        .filter(|sector| fragment.sectors & (1 << sector) != 0)
                    {
                        let at = sector * SECTOR_BYTES;
                        block[at..at + SECTOR_BYTES].copy_from_slice(&new[at..at + SECTOR_BYTES]);
                    }
                    let op = StoreOp::Write {
                        offset: fragment.block * BLOCK_BYTES,
                        data: block.freeze(),
                        durable: false,
                    };
                    self.submit_below(ring, op, Below::Part);
                }
                Err(failure) => self.part_ended(ring, Some(failure)),
            },
            None => {}
        }
    }

    fn part_ended(&mut self, ring: &mut Ring, failure: Option<StoreError>) {
        if let Some(running) = &mut self.running {
            running.left -= 1;
            running.failure = running.failure.or(failure);
        }
        self.step(ring);
    }

    /// Goes on until nothing more can be done without the ring.
    fn pump(&mut self, ring: &mut Ring) {
        loop {
            self.start(ring);
            let Some((slot, result)) = self.inner.take_ready() else {
                return;
            };
            self.below_ended(ring, slot, result);
        }
    }
}

impl Store for FaultyStore {
    fn grow(&mut self, bytes: u64) -> io::Result<u64> {
        self.inner.grow(bytes)
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn note(&self) -> Option<&str> {
        Some(&self.note)
    }

    fn tag(&self) -> Option<u8> {
        Some(self.tag)
    }

    fn submit(&mut self, ring: &mut Ring, op: StoreOp, user: u64) {
        let delay_ms = u64::from(self.plan.delay_ms) + self.dice.up_to(self.plan.jitter_ms);
        if delay_ms == 0 {
            self.execute(ring, op, user);
        } else {
            let slot = self.delayed.insert((op, user));
            let timer = Op::Timeout(Timer::AfterNs(delay_ms * 1_000_000));
            if ring
                .submit(timer, token(self.tag, TIMER_BIT | slot as u64))
                .is_err()
                && let Some((op, user)) = self.delayed.remove(slot)
            {
                // No room for a timer: rather early than never.
                self.execute(ring, op, user);
            }
        }
        self.pump(ring);
    }

    fn on_completion(&mut self, ring: &mut Ring, completion: Completion) -> Option<Ended> {
        let low = token_low(completion.token);
        if low & TIMER_BIT != 0 {
            if let Some((op, user)) = self.delayed.remove((low & !TIMER_BIT) as usize) {
                self.execute(ring, op, user);
            }
        } else if let Some((slot, result)) = self.inner.on_completion(ring, completion) {
            self.below_ended(ring, slot, result);
        }
        self.pump(ring);
        self.ready.pop_front()
    }

    fn take_ready(&mut self) -> Option<Ended> {
        self.ready.pop_front()
    }

    fn read_region(&mut self, offset: u64, len: usize) -> io::Result<Bytes> {
        let first = offset - offset % BLOCK_BYTES;
        let end = offset
            .saturating_add(len as u64)
            .min(self.size_bytes())
            .next_multiple_of(BLOCK_BYTES);
        let disk = self.inner.read_region(offset, len)?;
        let patches = self.overlay.within(first, end.saturating_sub(first));
        if patches.is_empty() {
            return Ok(disk);
        }
        let wide = self.inner.read_region(first, (end - first) as usize)?;
        let start = (offset - first) as usize;
        Ok(patched(first, wide, &patches).slice(start..start + len))
    }

    fn write_region(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        if end > self.size_bytes() {
            return Err(outside(offset, data.len(), self.size_bytes()));
        }
        let first = offset - offset % BLOCK_BYTES;
        if !self
            .overlay
            .within(first, end.next_multiple_of(BLOCK_BYTES) - first)
            .is_empty()
        {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "unflushed writes in this region: flush first",
            ));
        }
        self.inner.write_region(offset, data)
    }
}
