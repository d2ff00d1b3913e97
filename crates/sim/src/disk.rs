//! A disk with a volatile write cache.
//!
//! - `cached` is what a read returns; `stable` is what survives a power cut; `log` holds, in order of completion, the
//!   writes that are in the first and not yet in the second.
//! - A power cut keeps an arbitrary subset of the sectors of `log` and of what was in flight.
//! - A killed process leaves its operations in flight: each still lands at its time, whole or in part, or never.
//! - A flush makes stable what was done before the flush was submitted, and nothing else for sure.
//! - A failed flush loses its writes: they stay in the cache and are never written (as real kernels do).

use crate::rng::{Ratio, Rng};
use bytes::Bytes;
use holdfast_replicator::{DiskError, DiskOp, IoId};
use std::collections::BTreeMap;

/// Atomic unit of the data area in bytes: smaller than a block, so that blocks tear.
pub const DATA_SECTOR_BYTES: u64 = 32;
/// Atomic unit of the metadata region in bytes, as on real disks.
pub const META_SECTOR_BYTES: u64 = 512;
/// Completed writes that may wait in the cache; beyond it the disk writes back the older half.
const CACHE_WRITES_MAX: usize = 400;

/// How likely operations fail, as long as the fault lasts.
#[derive(Clone, Copy, Debug)]
pub struct Errors {
    /// A read.
    pub read: Ratio,
    /// A write or zero.
    pub write: Ratio,
    /// A flush.
    pub flush: Ratio,
}

impl Errors {
    /// A healthy disk.
    pub const NONE: Self = Self {
        read: Ratio::NEVER,
        write: Ratio::NEVER,
        flush: Ratio::NEVER,
    };
}

/// Times of an operation, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Shortest.
    pub min_ns: u64,
    /// Usual spread above it.
    pub spread_ns: u64,
    /// One in 32 takes up to this much longer.
    pub tail_ns: u64,
}

impl Latency {
    /// One drawn time.
    pub fn draw(&self, rng: &mut Rng) -> u64 {
        let tail = if rng.below(32) == 0 {
            rng.below(self.tail_ns + 1)
        } else {
            0
        };
        self.min_ns + rng.below(self.spread_ns + 1) + tail
    }
}

#[derive(Clone, Debug)]
struct Written {
    index: u64,
    offset: u64,
    data: Bytes,
}

#[derive(Clone, Debug)]
struct InFlight {
    life: u64,
    io: IoId,
    op: DiskOp,
    /// Writes completed when it was submitted: what a flush covers.
    done_before: u64,
    fate: Fate,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It ends as it should.
    Lands,
    /// Its process was killed: it lands in part.
    Partly,
    /// Its process was killed: it never lands.
    Never,
}

/// An operation that ended.
#[derive(Clone, Debug)]
pub struct Done {
    /// The process that asked; an answer to a dead one goes nowhere.
    pub life: u64,
    /// Its name.
    pub io: IoId,
    /// How it ended.
    pub result: Result<Bytes, DiskError>,
}

/// One disk.
#[derive(Clone, Debug)]
pub struct Disk {
    cached: Vec<u8>,
    stable: Vec<u8>,
    log: Vec<Written>,
    done_writes: u64,
    in_flight: BTreeMap<u64, InFlight>,
    next_key: u64,
    data_end: u64,
    rng: Rng,
    /// Operations take this long.
    pub latency: Latency,
    /// Operations fail this often.
    pub errors: Errors,
    /// Operations that ended in an error.
    pub failed: u64,
    /// Operations that end before this true time end then.
    pub hung_until: u64,
    /// Flushes and durable writes of data are reported done and are not.
    pub lies: bool,
    /// Writes find no space any more.
    pub full: bool,
    /// Cannot be read until it is written over.
    pub unreadable: std::ops::Range<u64>,
    /// Raised whenever the metadata on stable storage changes.
    meta_version: u64,
}

/// A write that is about to land.
#[derive(Clone, Copy, Debug)]
pub struct Landing {
    /// The process that asked.
    pub life: u64,
    /// Its name.
    pub io: IoId,
    /// Where.
    pub offset: u64,
    /// Bytes.
    pub len: usize,
    /// In part only, because its process died.
    pub partly: bool,
}

impl Disk {
    /// A disk of zeroes. Below `data_end` sectors are [`DATA_SECTOR_BYTES`], above [`META_SECTOR_BYTES`].
    pub fn blank(bytes: u64, data_end: u64, latency: Latency, rng: Rng) -> Self {
        assert_eq!(data_end % META_SECTOR_BYTES, 0);
        Self {
            cached: vec![0; bytes as usize],
            stable: vec![0; bytes as usize],
            log: Vec::new(),
            done_writes: 0,
            in_flight: BTreeMap::new(),
            next_key: 0,
            data_end,
            rng,
            latency,
            errors: Errors::NONE,
            failed: 0,
            hung_until: 0,
            lies: false,
            full: false,
            unreadable: 0..0,
            meta_version: 0,
        }
    }

    /// Zeroes everything, as a new disk in its place.
    pub fn wipe(&mut self) {
        self.cached.fill(0);
        self.stable.fill(0);
        self.log.clear();
        self.in_flight.clear();
        self.repair();
        self.lies = false;
        self.failed = 0;
        self.hung_until = 0;
        self.meta_version += 1;
    }

    /// It works again; what it failed to write stays lost.
    pub fn repair(&mut self) {
        self.errors = Errors::NONE;
        self.full = false;
        self.unreadable = 0..0;
    }

    /// It stops lying, and what it had not written it writes.
    pub fn come_clean(&mut self) {
        self.lies = false;
        self.write_back(u64::MAX);
    }

    /// The disk as a power cut would leave it now, for [`Disk::put_back`].
    pub fn snapshot(&self) -> Vec<u8> {
        self.stable.clone()
    }
    /// As it was then: an operator restored a snapshot.
    pub fn put_back(&mut self, snapshot: &[u8]) {
        self.wipe();
        self.cached.copy_from_slice(snapshot);
        self.stable.copy_from_slice(snapshot);
    }

    /// What a read returns now.
    pub fn cached(&self) -> &[u8] {
        &self.cached
    }
    /// What a power cut leaves at the least.
    pub fn stable(&self) -> &[u8] {
        &self.stable
    }
    /// Writes to both at once: for initialising.
    pub fn put(&mut self, offset: u64, data: &[u8]) {
        put(&mut self.cached, offset, data);
        self.settle(offset, data);
    }

    /// Bytes reach stable storage.
    fn settle(&mut self, offset: u64, data: &[u8]) {
        put(&mut self.stable, offset, data);
        self.meta_version += u64::from(offset + data.len() as u64 > self.data_end);
    }
    /// Raised whenever the metadata on stable storage changes.
    pub fn meta_version(&self) -> u64 {
        self.meta_version
    }
    /// Writes completed so far: the number of the last one.
    pub fn done_writes(&self) -> u64 {
        self.done_writes
    }
    /// Number of the oldest write that a power cut may take away.
    pub fn oldest_unstable(&self) -> Option<u64> {
        self.log.first().map(|w| w.index)
    }
    /// The write that would land if this operation ended now.
    pub fn lands(&self, now: u64, key: u64) -> Option<Landing> {
        let op = self
            .in_flight
            .get(&key)
            .filter(|op| op.fate != Fate::Never)?;
        if now < self.hung_until {
            return None;
        }
        let (offset, len) = match &op.op {
            DiskOp::Write { offset, data, .. } => (*offset, data.len()),
            DiskOp::Zero { offset, len, .. } => (*offset, *len as usize),
            DiskOp::Read { .. } | DiskOp::Flush => return None,
        };
        Some(Landing {
            life: op.life,
            io: op.io,
            offset,
            len,
            partly: op.fate == Fate::Partly,
        })
    }
    /// Nothing in flight: the claim on the store is free.
    pub fn idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Takes an operation; it ends at the returned time.
    pub fn submit(&mut self, now: u64, life: u64, io: IoId, op: DiskOp) -> (u64, u64) {
        self.next_key += 1;
        let key = self.next_key;
        let at = (now + self.latency.draw(&mut self.rng)).max(self.hung_until);
        self.in_flight.insert(
            key,
            InFlight {
                life,
                io,
                op,
                done_before: self.done_writes,
                fate: Fate::Lands,
            },
        );
        (key, at)
    }

    /// Ends an operation. `None` if a power cut or a kill took it, or if it hangs (then with the new time).
    pub fn end(&mut self, now: u64, key: u64) -> Result<Option<Done>, u64> {
        if self.in_flight.contains_key(&key) && now < self.hung_until {
            return Err(self.hung_until);
        }
        let Some(op) = self.in_flight.remove(&key) else {
            return Ok(None);
        };
        match op.fate {
            Fate::Lands => {}
            Fate::Never => return Ok(None),
            Fate::Partly => {
                if let Some((offset, data)) = written(op.op) {
                    self.write_part(offset, &data);
                }
                return Ok(None);
            }
        }
        let result = match op.op {
            DiskOp::Read { offset, len } => {
                let bad = &self.unreadable;
                let unreadable = bad.start < offset + u64::from(len) && offset < bad.end;
                if self.rng.happens(self.errors.read) || unreadable {
                    self.failed += 1;
                    Err(DiskError::Io)
                } else {
                    let from = offset as usize;
                    Ok(Bytes::copy_from_slice(
                        &self.cached[from..from + len as usize],
                    ))
                }
            }
            DiskOp::Write {
                offset,
                data,
                durable,
            } => self.write(offset, data, durable),
            DiskOp::Zero {
                offset,
                len,
                durable,
            } => self.write(offset, vec![0; len as usize].into(), durable),
            DiskOp::Flush => self.flush(op.done_before),
        };
        Ok(Some(Done {
            life: op.life,
            io: op.io,
            result,
        }))
    }

    fn write(&mut self, offset: u64, data: Bytes, durable: bool) -> Result<Bytes, DiskError> {
        if self.full {
            self.failed += 1;
            return Err(DiskError::NoSpace);
        }
        if offset <= self.unreadable.start && self.unreadable.end <= offset + data.len() as u64 {
            self.unreadable = 0..0;
        }
        let durable = durable && !(self.lies && offset < self.data_end);
        if self.rng.happens(self.errors.write) {
            self.failed += 1;
            self.write_part(offset, &data);
            return Err(DiskError::Io);
        }
        put(&mut self.cached, offset, &data);
        if durable {
            let end = offset + data.len() as u64;
            // What lay under it in the cache must not come back over it. Everything up to that goes
            // to the medium, in order, so that what overlaps what keeps its order as well.
            let under = |w: &&Written| w.offset < end && offset < w.offset + w.data.len() as u64;
            if let Some(index) = self.log.iter().rfind(under).map(|w| w.index) {
                self.write_back(index);
            }
            self.settle(offset, &data);
            self.done_writes += 1;
        } else {
            self.push(offset, data);
            if self.log.len() > CACHE_WRITES_MAX {
                let half = self.log[CACHE_WRITES_MAX / 2].index;
                self.write_back(half);
            }
        }
        Ok(Bytes::new())
    }

    /// Any of its sectors are written.
    fn write_part(&mut self, offset: u64, data: &Bytes) {
        for (at, piece) in sectors(self.data_end, offset, data) {
            if self.rng.coin() {
                put(&mut self.cached, at, &piece);
                self.push(at, piece);
            }
        }
    }

    fn push(&mut self, offset: u64, data: Bytes) {
        self.done_writes += 1;
        self.log.push(Written {
            index: self.done_writes,
            offset,
            data,
        });
    }

    fn flush(&mut self, covered: u64) -> Result<Bytes, DiskError> {
        if self.rng.happens(self.errors.flush) {
            self.failed += 1;
            self.log.retain(|w| w.index > covered);
            return Err(DiskError::Io);
        }
        if !self.lies {
            self.write_back(covered);
        }
        Ok(Bytes::new())
    }

    fn write_back(&mut self, upto: u64) {
        let n = self.log.partition_point(|w| w.index <= upto);
        for w in self.log.drain(..n).collect::<Vec<_>>() {
            self.settle(w.offset, &w.data);
        }
    }

    /// The process died; what it had in flight lands at its time or never.
    pub fn kill(&mut self) {
        for op in self
            .in_flight
            .values_mut()
            .filter(|op| op.fate == Fate::Lands)
        {
            op.fate = *self.rng.pick(&[Fate::Lands, Fate::Partly, Fate::Never]);
        }
    }

    /// The power went: the cache is lost but for what a drawn subset of sectors made it to the medium.
    pub fn power_cut(&mut self) {
        let keep = [
            Ratio::NEVER,
            Ratio::new(1, 4),
            Ratio::new(1, 2),
            Ratio::new(7, 8),
            Ratio::new(1, 1),
        ];
        let keep = *self.rng.pick(&keep);
        let lost = std::mem::take(&mut self.log);
        let in_flight = std::mem::take(&mut self.in_flight);
        let torn = in_flight
            .into_values()
            .filter(|op| op.fate != Fate::Never)
            .filter_map(|op| written(op.op));
        for (offset, data) in lost.into_iter().map(|w| (w.offset, w.data)).chain(torn) {
            for (at, piece) in sectors(self.data_end, offset, &data) {
                if self.rng.happens(keep) {
                    self.settle(at, &piece);
                }
            }
        }
        self.cached.copy_from_slice(&self.stable);
    }
}

fn put(image: &mut [u8], offset: u64, data: &[u8]) {
    let at = offset as usize;
    image[at..at + data.len()].copy_from_slice(data);
}

/// Where and what an operation writes.
fn written(op: DiskOp) -> Option<(u64, Bytes)> {
    match op {
        DiskOp::Write { offset, data, .. } => Some((offset, data)),
        DiskOp::Zero { offset, len, .. } => Some((offset, vec![0; len as usize].into())),
        DiskOp::Read { .. } | DiskOp::Flush => None,
    }
}

/// `data` cut at the boundaries of sectors.
fn sectors(data_end: u64, offset: u64, data: &Bytes) -> Vec<(u64, Bytes)> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < data.len() as u64 {
        let place = offset + at;
        let unit = if place < data_end {
            DATA_SECTOR_BYTES
        } else {
            META_SECTOR_BYTES
        };
        let n = (unit - place % unit).min(data.len() as u64 - at);
        out.push((place, data.slice(at as usize..(at + n) as usize)));
        at += n;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATENCY: Latency = Latency {
        min_ns: 10,
        spread_ns: 0,
        tail_ns: 0,
    };

    fn disk(seed: u64) -> Disk {
        Disk::blank(4096, 2048, LATENCY, Rng::stream(seed, "disk"))
    }
    fn write(d: &mut Disk, offset: u64, byte: u8, len: usize, durable: bool) {
        let (key, at) = d.submit(
            0,
            1,
            IoId(1),
            DiskOp::Write {
                offset,
                data: vec![byte; len].into(),
                durable,
            },
        );
        assert!(d.end(at, key).unwrap().unwrap().result.is_ok());
    }

    #[test]
    fn a_power_cut_loses_sectors_but_never_flushed_ones() {
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let mut d = disk(seed);
            write(&mut d, 0, 1, 64, false);
            let (key, at) = d.submit(0, 1, IoId(2), DiskOp::Flush);
            // Completed after the flush was submitted: not covered.
            write(&mut d, 64, 2, 64, false);
            assert!(d.end(at, key).unwrap().unwrap().result.is_ok());
            write(&mut d, 2048, 3, 512, true);
            assert_eq!(d.cached()[64], 2);
            d.power_cut();
            assert_eq!(&d.cached()[..64], [1; 64], "flushed");
            assert_eq!(&d.cached()[2048..2560], [3; 512], "durable");
            match (d.cached()[64], d.cached()[96]) {
                (0, 0) => lost += 1,
                (2, 2) => kept += 1,
                _ => torn += 1,
            }
            assert_eq!(d.cached(), d.stable());
        }
        assert!(lost > 0);
        assert!(kept > 0);
        assert!(torn > 0);
    }

    #[test]
    fn a_durable_write_is_not_undone_by_an_older_cached_one() {
        for seed in 0..50 {
            let mut d = disk(seed);
            write(&mut d, 0, 1, 64, false);
            write(&mut d, 0, 2, 64, true);
            d.power_cut();
            assert_eq!(&d.cached()[..64], [2; 64]);
        }
    }

    #[test]
    fn writing_back_keeps_the_order_of_overlapping_writes() {
        let mut d = disk(1);
        write(&mut d, 0, 1, 64, false);
        write(&mut d, 32, 2, 64, false);
        // Lies over the second write only.
        write(&mut d, 64, 3, 64, true);
        let (key, at) = d.submit(0, 1, IoId(2), DiskOp::Flush);
        assert!(d.end(at, key).unwrap().unwrap().result.is_ok());
        d.power_cut();
        assert_eq!(&d.cached()[..32], [1; 32]);
        assert_eq!(&d.cached()[32..64], [2; 32]);
        assert_eq!(&d.cached()[64..128], [3; 64]);
    }

    #[test]
    fn after_a_kill_writes_in_flight_land_late_or_never() {
        let (mut landed, mut partly, mut never) = (0, 0, 0);
        for seed in 0..60 {
            let mut d = disk(seed);
            let op = DiskOp::Write {
                offset: 0,
                data: vec![5; 64].into(),
                durable: false,
            };
            let (key, at) = d.submit(0, 1, IoId(1), op);
            d.kill();
            assert!(!d.idle(), "the claim is held until it ended");
            let done = d.end(at, key).unwrap();
            assert!(d.idle());
            match (d.cached()[0], d.cached()[32]) {
                (5, 5) => landed += 1,
                (0, 0) => never += 1,
                _ => partly += 1,
            }
            assert!(done.is_none() || d.cached()[..64] == [5; 64]);
        }
        assert!(landed > 0);
        assert!(partly > 0);
        assert!(never > 0);
    }

    #[test]
    fn a_failed_flush_loses_what_it_covered() {
        let mut d = disk(1);
        write(&mut d, 0, 1, 32, false);
        d.errors.flush = Ratio::new(1, 1);
        let (key, at) = d.submit(0, 1, IoId(2), DiskOp::Flush);
        assert!(d.end(at, key).unwrap().unwrap().result.is_err());
        d.errors = Errors::NONE;
        let (key, at) = d.submit(0, 1, IoId(3), DiskOp::Flush);
        assert!(d.end(at, key).unwrap().unwrap().result.is_ok());
        d.power_cut();
        assert_eq!(
            d.cached()[0],
            0,
            "a retried flush reports success and the write is gone"
        );
    }

    #[test]
    fn a_hung_disk_ends_nothing_before_its_time() {
        let mut d = disk(1);
        let (key, at) = d.submit(0, 1, IoId(2), DiskOp::Flush);
        d.hung_until = 1_000_000;
        assert_eq!(d.end(at, key).unwrap_err(), 1_000_000);
        assert!(d.end(1_000_000, key).unwrap().is_some());
        let (_, at) = d.submit(5, 1, IoId(3), DiskOp::Flush);
        assert_eq!(at, 1_000_000);
    }
}
