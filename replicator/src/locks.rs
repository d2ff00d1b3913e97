//! The range lock: who may touch which blocks now, first come first served.
//!
//! Invariants
//! - no two granted entries overlap unless both are shared;
//! - an entry waits only for granted or earlier waiting entries that overlap it and are not both shared;
//! - so entries on the same block are granted in the order they came (rule 12).

use holdfast_types::BlockRange;
use std::collections::BTreeMap;

/// How a range is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// With other readers.
    Shared,
    /// Alone.
    Exclusive,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    owner: T,
    range: BlockRange,
    mode: Mode,
    granted: bool,
}

/// Names one acquisition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LockId(u64);

/// Range locks of one volume; `T` is what the owner wants back when it is granted.
#[derive(Clone, Debug)]
pub(crate) struct RangeLocks<T> {
    // Ordered by arrival. A linear scan over what is in flight (some dozens to a few hundred) beats a tree there.
    entries: BTreeMap<LockId, Entry<T>>,
    next: u64,
}

impl<T: Copy> RangeLocks<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            next: 1,
        }
    }

    /// Asks for `range`; true if it is granted at once, else `owner` comes back from a later [`Self::release`].
    pub(crate) fn acquire(&mut self, owner: T, range: BlockRange, mode: Mode) -> (LockId, bool) {
        let id = LockId(self.next);
        self.next += 1;
        let granted = !self
            .entries
            .values()
            .any(|e| conflicts(e.range, e.mode, range, mode));
        self.entries.insert(
            id,
            Entry {
                owner,
                range,
                mode,
                granted,
            },
        );
        (id, granted)
    }

    /// Gives a range back, or stops waiting for it; returns the owners that hold theirs from now on.
    pub(crate) fn release(&mut self, id: LockId) -> Vec<T> {
        let gone = self.entries.remove(&id).expect("a lock is released once");
        let waiting: Vec<LockId> = self
            .entries
            .iter()
            .filter(|(i, e)| **i > id && !e.granted && e.range.overlaps(gone.range))
            .map(|(&i, _)| i)
            .collect();
        let mut woken = Vec::new();
        for candidate in waiting {
            let (range, mode) = {
                let e = &self.entries[&candidate];
                (e.range, e.mode)
            };
            let blocked = self
                .entries
                .range(..candidate)
                .any(|(_, e)| conflicts(e.range, e.mode, range, mode));
            if !blocked {
                let entry = self.entries.get_mut(&candidate).expect("just seen");
                entry.granted = true;
                woken.push(entry.owner);
            }
        }
        woken
    }

    #[cfg(test)]
    fn check(&self) {
        let granted: Vec<_> = self.entries.values().filter(|e| e.granted).collect();
        for (i, a) in granted.iter().enumerate() {
            for b in &granted[i + 1..] {
                assert!(!conflicts(a.range, a.mode, b.range, b.mode));
            }
        }
    }
}

fn conflicts(a: BlockRange, a_mode: Mode, b: BlockRange, b_mode: Mode) -> bool {
    a.overlaps(b) && !(a_mode == Mode::Shared && b_mode == Mode::Shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> BlockRange {
        BlockRange::new(first, count)
    }

    #[test]
    fn writers_of_one_block_go_in_order() {
        let mut locks = RangeLocks::new();
        let (a, now) = locks.acquire('a', range(0, 4), Mode::Exclusive);
        assert!(now);
        let (b, now) = locks.acquire('b', range(3, 2), Mode::Exclusive);
        assert!(!now);
        let (_c, now) = locks.acquire('c', range(4, 1), Mode::Exclusive);
        assert!(!now, "overlaps the waiting b, so it comes after it");
        assert_eq!(locks.release(a), vec!['b']);
        assert_eq!(locks.release(b), vec!['c']);
    }

    #[test]
    fn readers_share_and_do_not_overtake_a_waiting_writer() {
        let mut locks = RangeLocks::new();
        let (r1, now) = locks.acquire(1, range(0, 2), Mode::Shared);
        assert!(now);
        let (r2, now) = locks.acquire(2, range(1, 2), Mode::Shared);
        assert!(now);
        let (w, now) = locks.acquire(3, range(1, 1), Mode::Exclusive);
        assert!(!now);
        let (_r4, now) = locks.acquire(4, range(1, 1), Mode::Shared);
        assert!(!now);
        assert!(locks.release(r1).is_empty());
        assert_eq!(locks.release(r2), vec![3]);
        assert_eq!(locks.release(w), vec![4]);
        locks.check();
    }

    #[test]
    fn giving_up_a_wait_wakes_those_behind() {
        let mut locks = RangeLocks::new();
        let (_a, _) = locks.acquire('a', range(0, 1), Mode::Shared);
        let (b, _) = locks.acquire('b', range(0, 1), Mode::Exclusive);
        let (_c, now) = locks.acquire('c', range(0, 1), Mode::Shared);
        assert!(!now);
        assert_eq!(locks.release(b), vec!['c']);
        locks.check();
    }
}
