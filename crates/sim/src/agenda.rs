//! What happens when: one heap for the whole world.
//!
//! Ordered by (virtual time, a tie-break drawn from the `schedule` stream, order of entry). The drawn
//! tie-break lets things of the same instant happen in any order, and in the same order for the same seed.

use crate::rng::Rng;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// When, in which order among things of that instant, and where the event rests. Small, because the heap moves it about.
type Entry = (u64, u32, u64, u32);

/// The heap.
#[derive(Debug)]
pub struct Agenda<E> {
    heap: BinaryHeap<Reverse<Entry>>,
    events: Vec<Option<E>>,
    free: Vec<u32>,
    seq: u64,
    schedule: Rng,
}

impl<E> Agenda<E> {
    /// An empty one; ties are drawn from `schedule`.
    pub fn new(schedule: Rng) -> Self {
        Self {
            heap: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            seq: 0,
            schedule,
        }
    }

    /// `event` happens at `at`, in any order with others of that instant.
    pub fn at(&mut self, at: u64, event: E) {
        let tie = (self.schedule.bits() >> 33) as u32 + 1;
        self.push(at, tie, event);
    }

    /// `event` happens at `at`, after everything already entered this way for that instant.
    pub fn in_order(&mut self, at: u64, event: E) {
        self.push(at, u32::MAX, event);
    }

    /// `event` happens at `at`, before everything but what was entered this way earlier. Draws nothing, so that
    /// what is entered this way can be left out without a change to the order of all else.
    pub fn first(&mut self, at: u64, event: E) {
        self.push(at, 0, event);
    }

    fn push(&mut self, at: u64, tie: u32, event: E) {
        self.seq += 1;
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.events.push(None);
                (self.events.len() - 1) as u32
            }
        };
        self.events[place as usize] = Some(event);
        self.heap.push(Reverse((at, tie, self.seq, place)));
    }

    /// The next event and its time.
    pub fn next(&mut self) -> Option<(u64, E)> {
        let Reverse((at, _, _, place)) = self.heap.pop()?;
        self.free.push(place);
        Some((at, self.events[place as usize].take()?))
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
        agenda.first(10, 300);
        assert_eq!(agenda.next(), Some((5, 100)));
        assert_eq!(agenda.next(), Some((10, 300)));
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
