//! The activity log in memory: which extents may have writes in flight.
//!
//! Invariants
//! - a write is started only while every extent it touches is *durable* here, that is named by an
//!   activity-log transaction on stable storage (DESIGN part 4, Write);
//! - an extent with users (open writes) is never evicted (rule 4);
//! - before a transaction that evicts extents is written, the owner has flushed the data and saved
//!   the dirty bits under them ([`Step::Evict`], rule 4 and 14);
//! - at most `slots` extents are named at once, at most `limit` have users (rule 30).

use holdfast_types::{BlockRange, Geometry};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the owner has to do next for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Flush the data and save the bits under these extents, then call [`ActivityLog::traced`].
    Evict(Vec<u32>),
    /// Write this transaction durably, then call [`ActivityLog::written`].
    Write { number: u64, active: Vec<u32> },
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    users: u32,
    /// When it was last used, for choosing whom to evict.
    used: u64,
    durable: bool,
    leaving: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Turn {
    Idle,
    Tracing,
    Writing,
}

/// The log of one replica; `T` names who waits for extents.
#[derive(Clone, Debug)]
pub(crate) struct ActivityLog<T> {
    geometry: Geometry,
    slots: usize,
    limit: usize,
    extents: BTreeMap<u32, Slot>,
    waiting: VecDeque<(T, Vec<u32>)>,
    turn: Turn,
    /// A write to extents in the log may pass one that waits for a transaction.
    passing: bool,
    number: u64,
    /// Of the last transaction on stable storage.
    durable: u64,
    clock: u64,
}

impl<T: Copy> ActivityLog<T> {
    /// An empty log after transaction `number`.
    pub(crate) fn new(geometry: Geometry, slots: u32, number: u64) -> Self {
        assert!(slots >= holdfast_meta::LOG_SLOTS_MIN);
        let slots = slots as usize;
        Self {
            geometry,
            slots,
            limit: slots,
            extents: BTreeMap::new(),
            waiting: VecDeque::new(),
            turn: Turn::Idle,
            passing: false,
            number,
            durable: number,
            clock: 0,
        }
    }

    /// Number of the last transaction on stable storage (at the start: of the last one found, which the start flushes).
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// For a primary: see `may_pass`.
    pub(crate) fn set_passing(&mut self, passing: bool) {
        self.passing = passing;
    }

    /// How many extents may have users at once; never fewer than the largest request needs.
    pub(crate) fn set_limit(&mut self, limit: u32) {
        self.limit = (limit as usize).clamp(2, self.slots);
    }

    /// Most blocks one write may touch, so that a single one always fits (rule 29).
    pub(crate) fn write_blocks_max(slots: u32, geometry: Geometry) -> u64 {
        // A run of n extents' length can touch n + 1 of them.
        u64::from((slots / 4).max(2) - 1) * u64::from(geometry.extent_blocks)
    }

    fn extents_of(&self, range: BlockRange) -> Vec<u32> {
        (self.geometry.extent_of(range.first)..=self.geometry.extent_of(range.end() - 1)).collect()
    }

    fn in_use(&self) -> usize {
        self.extents.values().filter(|s| s.users > 0).count()
    }

    fn fits(&self, extents: &[u32]) -> bool {
        let mut more = 0;
        for e in extents {
            match self.extents.get(e) {
                Some(s) if s.durable && !s.leaving => more += usize::from(s.users == 0),
                _ => return false,
            }
        }
        // Slots counted only when something would be added: an extent in use already costs nothing.
        more == 0 || self.in_use() + more <= self.limit.max(extents.len())
    }

    fn take(&mut self, extents: &[u32]) {
        self.clock += 1;
        for e in extents {
            let slot = self.extents.get_mut(e).expect("fits");
            slot.users += 1;
            slot.used = self.clock;
        }
    }

    /// Asks for the extents under `range`. True: granted, until [`Self::release`]. False: `who` comes back later.
    /// `None` asks for no extent, only for its turn.
    pub(crate) fn acquire(&mut self, who: T, range: Option<BlockRange>) -> bool {
        let extents = range.map_or_else(Vec::new, |r| self.extents_of(r));
        if self.may_pass() && self.fits(&extents) {
            self.take(&extents);
            return true;
        }
        self.waiting.push_back((who, extents));
        false
    }

    /// Gives back what was granted for `range`; returns who is granted now.
    pub(crate) fn release(&mut self, range: BlockRange) -> Vec<T> {
        for e in self.extents_of(range) {
            let slot = self.extents.get_mut(&e).expect("granted");
            assert!(slot.users > 0, "released as often as granted");
            slot.users -= 1;
        }
        self.grant()
    }

    /// All users are gone (a role ended; its open writes became dirty bits), and nobody waits.
    pub(crate) fn forget_users(&mut self) {
        for slot in self.extents.values_mut() {
            slot.users = 0;
        }
        self.cancel_waiting();
    }

    /// Nobody waits any more (the session of those who did is over).
    pub(crate) fn cancel_waiting(&mut self) {
        self.waiting.clear();
    }

    /// May somebody be granted before those who wait? On a primary, while a transaction for them is under way;
    /// never on a secondary: a write that passed an earlier one could hold the slots that one needs, and could
    /// not be closed before it (rule 30).
    fn may_pass(&self) -> bool {
        self.waiting.is_empty() || (self.passing && self.turn != Turn::Idle)
    }

    fn grant(&mut self) -> Vec<T> {
        let mut granted = Vec::new();
        let mut still = VecDeque::new();
        for (who, extents) in std::mem::take(&mut self.waiting) {
            let first = still.is_empty() || (self.passing && self.turn != Turn::Idle);
            if first && self.fits(&extents) {
                self.take(&extents);
                granted.push(who);
            } else {
                still.push_back((who, extents));
            }
        }
        self.waiting = still;
        granted
    }

    /// The extents of those who wait and can be granted within the limit, first come first served.
    fn planned(&self) -> BTreeSet<u32> {
        let mut budget = self.limit.saturating_sub(self.in_use());
        let mut planned = BTreeSet::new();
        for (_, extents) in &self.waiting {
            let idle = |e: &&u32| {
                self.extents.get(e).is_none_or(|s| s.users == 0) && !planned.contains(*e)
            };
            let cost = extents.iter().filter(idle).count();
            let alone = planned.is_empty() && self.in_use() == 0;
            if cost > budget && !alone {
                break;
            }
            budget = budget.saturating_sub(cost);
            planned.extend(extents);
        }
        planned
    }

    /// What has to be done next, if anything. While a step is under way there is no other.
    pub(crate) fn step(&mut self) -> Option<Step> {
        if self.turn != Turn::Idle || self.waiting.is_empty() {
            return None;
        }
        let planned = self.planned();
        let missing = planned
            .iter()
            .filter(|e| !self.extents.contains_key(e))
            .count();
        if missing == 0 {
            return None; // what waits is named already, or waits for others to end
        }
        let free = self.slots - self.extents.len();
        if missing <= free {
            return Some(self.transaction());
        }
        let mut idle: Vec<(u64, u32)> = self
            .extents
            .iter()
            .filter(|(e, s)| s.users == 0 && !planned.contains(e))
            .map(|(&e, s)| (s.used, e))
            .collect();
        if idle.len() < missing - free {
            return None; // starved: closes will free some
        }
        idle.sort_unstable();
        idle.truncate((missing - free).max(self.slots / 8));
        let leaving: Vec<u32> = idle.into_iter().map(|(_, e)| e).collect();
        for e in &leaving {
            self.extents.get_mut(e).expect("chosen from these").leaving = true;
        }
        self.turn = Turn::Tracing;
        Some(Step::Evict(leaving))
    }

    /// Somebody waits for slots that only closes can free.
    pub(crate) fn starved(&self) -> bool {
        self.turn == Turn::Idle && !self.waiting.is_empty()
    }

    /// The data under the leaving extents is flushed and their bits are saved.
    pub(crate) fn traced(&mut self) -> Step {
        assert_eq!(self.turn, Turn::Tracing);
        self.extents.retain(|_, s| !s.leaving);
        self.transaction()
    }

    fn transaction(&mut self) -> Step {
        let wanted: Vec<u32> = self
            .planned()
            .into_iter()
            .filter(|e| !self.extents.contains_key(e))
            .collect();
        let wanted = wanted.into_iter().take(self.slots - self.extents.len());
        self.clock += 1;
        for e in wanted.collect::<Vec<_>>() {
            self.extents.insert(
                e,
                Slot {
                    users: 0,
                    used: self.clock,
                    durable: false,
                    leaving: false,
                },
            );
        }
        self.turn = Turn::Writing;
        self.number += 1;
        assert!(self.extents.len() <= self.slots);
        Step::Write {
            number: self.number,
            active: self.extents.keys().copied().collect(),
        }
    }

    /// The transaction is on stable storage; returns who is granted now.
    pub(crate) fn written(&mut self) -> Vec<T> {
        assert_eq!(self.turn, Turn::Writing);
        for slot in self.extents.values_mut() {
            slot.durable = true;
        }
        self.durable = self.number;
        self.turn = Turn::Idle;
        self.grant()
    }

    /// A transaction that names no extent at all, for an orderly stop: all is traced by bits. Nobody may wait.
    pub(crate) fn clear(&mut self) -> Step {
        assert!(self.waiting.is_empty());
        assert_eq!(self.turn, Turn::Idle);
        self.extents.clear();
        self.transaction()
    }

    /// Number of the last transaction asked for.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The extents a transaction names now.
    pub(crate) fn active(&self) -> Vec<u32> {
        self.extents.keys().copied().collect()
    }

    /// The extents that are named, or about to be.
    pub(crate) fn extents(&self) -> impl Iterator<Item = u32> + '_ {
        self.extents.keys().copied()
    }

    /// Extents are leaving: [`Step::Evict`] is under way.
    pub(crate) fn is_tracing(&self) -> bool {
        self.turn == Turn::Tracing
    }

    /// No step under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.turn == Turn::Idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(slots: u32) -> ActivityLog<u32> {
        ActivityLog::new(
            Geometry {
                block_bytes: 64,
                blocks: 64,
                extent_blocks: 4,
            },
            slots,
            0,
        )
    }

    fn blocks(first: u64, count: u64) -> BlockRange {
        BlockRange::new(first, count)
    }

    #[test]
    fn a_cold_extent_waits_for_its_transaction_and_a_hot_one_does_not() {
        let mut log = log(4);
        assert!(!log.acquire(1, Some(blocks(0, 1))));
        assert_eq!(
            log.step(),
            Some(Step::Write {
                number: 1,
                active: vec![0]
            })
        );
        assert!(!log.acquire(2, Some(blocks(1, 1))), "not durable yet");
        assert_eq!(log.written(), vec![1, 2], "in the order they came");
        assert!(log.acquire(3, Some(blocks(2, 2))));
        assert_eq!(log.step(), None);
    }

    #[test]
    fn eviction_traces_first_and_never_takes_an_extent_in_use() {
        let mut log = log(4);
        for e in 0..4 {
            assert!(!log.acquire(e, Some(blocks(u64::from(e) * 4, 1))));
        }
        assert_eq!(
            log.step(),
            Some(Step::Write {
                number: 1,
                active: vec![0, 1, 2, 3]
            })
        );
        assert_eq!(log.written(), vec![0, 1, 2, 3]);
        assert!(!log.acquire(9, Some(blocks(40, 1))));
        assert_eq!(log.step(), None);
        assert!(log.starved());
        assert!(log.release(blocks(4, 1)).is_empty());
        assert_eq!(log.step(), Some(Step::Evict(vec![1])));
        assert!(
            !log.acquire(10, Some(blocks(4, 1))),
            "leaving: must be named again"
        );
        assert_eq!(
            log.traced(),
            Step::Write {
                number: 2,
                active: vec![0, 2, 3, 10]
            }
        );
        assert_eq!(log.written(), vec![9]);
        assert!(log.starved());
    }

    #[test]
    fn the_limit_counts_extents_in_use() {
        let mut log = log(8);
        log.set_limit(2);
        for e in 0..3 {
            assert!(!log.acquire(e, Some(blocks(u64::from(e) * 4, 1))));
        }
        assert_eq!(
            log.step(),
            Some(Step::Write {
                number: 1,
                active: vec![0, 1]
            })
        );
        assert_eq!(log.written(), vec![0, 1]);
        assert_eq!(log.step(), None);
        assert!(log.release(blocks(0, 1)).is_empty());
        assert_eq!(
            log.step(),
            Some(Step::Write {
                number: 2,
                active: vec![0, 1, 2]
            })
        );
        assert_eq!(log.written(), vec![2]);
    }
}
