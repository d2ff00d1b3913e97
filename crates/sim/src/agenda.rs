//! What happens when: one heap for the whole world.
//!
//! Ordered by (virtual time, a tie-break drawn from the `schedule` stream, order of entry). The drawn
//! tie-break lets things of the same instant happen in any order, and in the same order for the same seed.

use crate::rng::Rng;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

#[derive(Debug)]
struct Entry<E> {
    at: u64,
    tie: u32,
    seq: u64,
    event: E,
}

impl<E> Entry<E> {
    fn key(&self) -> (u64, u32, u64) {
        (self.at, self.tie, self.seq)
    }
}
impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl<E> Eq for Entry<E> {}
impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// The heap.
#[derive(Debug)]
pub struct Agenda<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    seq: u64,
    schedule: Rng,
}

impl<E> Agenda<E> {
    /// An empty one; ties are drawn from `schedule`.
    pub fn new(schedule: Rng) -> Self {
        Self {
            heap: BinaryHeap::new(),
            seq: 0,
            schedule,
        }
    }

    /// `event` happens at `at`, in any order with others of that instant.
    pub fn at(&mut self, at: u64, event: E) {
        let tie = (self.schedule.bits() >> 33) as u32;
        self.push(at, tie, event);
    }

    /// `event` happens at `at`, after everything already entered this way for that instant.
    pub fn in_order(&mut self, at: u64, event: E) {
        self.push(at, u32::MAX, event);
    }

    fn push(&mut self, at: u64, tie: u32, event: E) {
        self.seq += 1;
        self.heap.push(Reverse(Entry {
            at,
            tie,
            seq: self.seq,
            event,
        }));
    }

    /// The next event and its time.
    pub fn next(&mut self) -> Option<(u64, E)> {
        self.heap.pop().map(|Reverse(e)| (e.at, e.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_first_then_drawn_ties_then_entry() {
        let mut agenda = Agenda::new(Rng::stream(3, "schedule"));
        for i in 0..50 {
            agenda.at(10, i);
        }
        agenda.at(5, 100);
        agenda.in_order(20, 200);
        agenda.in_order(20, 201);
        assert_eq!(agenda.next(), Some((5, 100)));
        let same: Vec<i32> = (0..50).map(|_| agenda.next().unwrap().1).collect();
        let mut sorted = same.clone();
        sorted.sort_unstable();
        assert_ne!(same, sorted, "ties are not in order of entry");
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_eq!(agenda.next(), Some((20, 200)));
        assert_eq!(agenda.next(), Some((20, 201)));
        assert_eq!(agenda.next(), None);
    }
}
