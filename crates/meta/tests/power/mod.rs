//! A disk with a volatile cache, and every image that a loss of power may leave of it.
//!
//! What a write covers is cut into units that are stored whole or not at all. A unit is *pending* from
//! the submission of its write until a flush that came after the write's end has ended, or until the write's
//! own end if it is durable by itself. A loss of power keeps any subset of the pending units; of several
//! for one place the latest that is kept counts. Used by the replicator's tests too.
#![allow(dead_code)] // each test file uses its part

use std::collections::{BTreeMap, BTreeSet};

/// Pending units up to which every subset is looked at.
pub const EXHAUSTIVE_MAX: usize = 12;
/// Random subsets looked at beyond that.
const RANDOM: usize = 48;

/// Deterministic numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Debug)]
struct Unit {
    write: u64,
    at: usize,
    bytes: Vec<u8>,
}

/// The disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Bytes before this place are stored in units of `data_unit`, the others in units of `unit`.
    data_end: usize,
    data_unit: usize,
    unit: usize,
    stable: Vec<u8>,
    pending: Vec<Unit>,
    ended: BTreeSet<u64>,
    /// What each flush under way makes stable.
    flushes: BTreeMap<u64, BTreeSet<u64>>,
    /// Planted: writes in this range are never durable by themselves.
    lies: std::ops::Range<usize>,
    /// Planted: a flush makes nothing stable.
    flushes_nothing: bool,
}

impl Disk {
    pub fn new(content: Vec<u8>, unit: usize, data_end: usize, data_unit: usize) -> Self {
        Self {
            data_end,
            data_unit,
            unit,
            stable: content,
            pending: Vec::new(),
            ended: BTreeSet::new(),
            flushes: BTreeMap::new(),
            lies: 0..0,
            flushes_nothing: false,
        }
    }

    /// From now on writes between these places are stable only by a flush, whatever they ask for.
    pub fn lies(&mut self, from: u64, to: u64) {
        self.lies = from as usize..to as usize;
    }

    /// From now on flushes are answered and do nothing.
    pub fn flushes_nothing(&mut self) {
        self.flushes_nothing = true;
    }

    /// A write is submitted.
    pub fn write(&mut self, write: u64, offset: u64, bytes: &[u8]) {
        let at = offset as usize;
        let unit = if at < self.data_end {
            self.data_unit
        } else {
            self.unit
        };
        assert!(at.is_multiple_of(unit) && bytes.len().is_multiple_of(unit));
        for (i, bytes) in bytes.chunks(unit).enumerate() {
            self.pending.push(Unit {
                write,
                at: at + i * unit,
                bytes: bytes.to_vec(),
            });
        }
    }

    /// A write has ended; if `durable`, it is stable by itself.
    pub fn written(&mut self, write: u64, durable: bool) {
        let lies = |unit: &Unit| unit.write == write && self.lies.contains(&unit.at);
        if durable && !self.pending.iter().any(lies) {
            self.settle(|unit| unit.write == write);
        } else {
            self.ended.insert(write);
        }
    }

    /// A flush is submitted: it is about what has ended by now.
    pub fn flush(&mut self, flush: u64) {
        if self.flushes_nothing {
            return;
        }
        self.flushes.insert(flush, self.ended.clone());
    }

    /// A flush has ended.
    pub fn flushed(&mut self, flush: u64) {
        if let Some(writes) = self.flushes.remove(&flush) {
            self.settle(|unit| writes.contains(&unit.write));
            self.ended.retain(|w| !writes.contains(w));
        }
    }

    fn settle(&mut self, is: impl Fn(&Unit) -> bool) {
        for i in 0..self.pending.len() {
            if is(&self.pending[i]) {
                let unit = &self.pending[i];
                self.stable[unit.at..unit.at + unit.bytes.len()].copy_from_slice(&unit.bytes);
            }
        }
        // What is older than a stable unit of the same place is gone with it.
        let newest: BTreeMap<usize, usize> = self
            .pending
            .iter()
            .enumerate()
            .filter(|(_, u)| is(u))
            .map(|(i, u)| (u.at, i))
            .collect();
        let mut i = 0;
        self.pending.retain(|unit| {
            let keep = newest.get(&unit.at).is_none_or(|&n| i > n);
            i += 1;
            keep
        });
    }

    /// What is stable whatever happens.
    pub fn stable(&self) -> &[u8] {
        &self.stable
    }

    /// What a read returns.
    pub fn cached(&self) -> Vec<u8> {
        self.image(|_| true)
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The stable content and those pending units.
    pub fn image(&self, kept: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut image = self.stable.clone();
        for (i, unit) in self.pending.iter().enumerate() {
            if kept(i) {
                image[unit.at..unit.at + unit.bytes.len()].copy_from_slice(&unit.bytes);
            }
        }
        image
    }

    /// Every image a loss of power may leave: all of them up to `exhaustive` pending units; beyond that every
    /// prefix, all but one, only one, and random subsets.
    pub fn images(&self, exhaustive: usize, rng: &mut Rng, mut look: impl FnMut(&[u8])) {
        let n = self.pending.len();
        if n <= exhaustive {
            for subset in 0..1_u64 << n {
                look(&self.image(|i| subset >> i & 1 == 1));
            }
            return;
        }
        for some in 0..=n {
            look(&self.image(|i| i < some));
            if some < n {
                look(&self.image(|i| i != some));
                look(&self.image(|i| i == some));
            }
        }
        for _ in 0..RANDOM {
            let words: Vec<u64> = (0..n.div_ceil(64)).map(|_| rng.next()).collect();
            look(&self.image(|i| words[i / 64] >> (i % 64) & 1 == 1));
        }
    }
}
