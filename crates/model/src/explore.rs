//! Breadth-first search over all states, with the shortest schedule to whatever breaks.
//!
//! States are remembered by a 64-bit hash: two of them may fall together and hide one (for ten million states the chance
//! that any do is below one in 100,000). The way to a state is a chain of step numbers that is walked again.

use crate::checks::Violation;
use crate::state::State;
use crate::steps::{Model, Step};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

/// How a search ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// Different states seen.
    pub states: usize,
    /// Steps of the longest shortest schedule.
    pub depth: u32,
    /// Every state within the bounds was seen.
    pub complete: bool,
    /// The shortest schedule that breaks a guarantee.
    pub trace: Option<Trace>,
}

/// A schedule that breaks a guarantee.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Which.
    pub violation: Violation,
    /// Its steps.
    pub steps: Vec<Step>,
    /// The same in words.
    pub words: Vec<String>,
}

impl std::fmt::Display for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, step) in self.words.iter().enumerate() {
            writeln!(f, "{:3}. {step}", i + 1)?;
        }
        write!(f, "     => {:?}", self.violation)
    }
}

/// Walks everything within the model's bounds, up to so many states.
pub fn explore(model: &Model, states_max: usize) -> Report {
    let initial = model.initial();
    let mut seen = Seen::new();
    seen.insert(fingerprint(&initial));
    // Of each state: the one it was reached from, and by which step.
    let mut from: Vec<(u32, u16)> = vec![(0, 0)];
    let mut next: VecDeque<(u32, u32, State)> = VecDeque::from([(0, 0, initial)]);
    let mut reached = 0;
    while let Some((id, depth, state)) = next.pop_front() {
        reached = depth;
        for (number, &step) in model.steps().iter().enumerate() {
            let Some((after, broken)) = model.next(&state, step) else {
                continue;
            };
            if let Some(violation) = broken {
                let mut steps = way(model, &from, id);
                steps.push(step);
                return Report {
                    states: from.len(),
                    depth: depth + 1,
                    complete: false,
                    trace: Some(retrace(model, steps, violation)),
                };
            }
            if seen.insert(fingerprint(&after)) {
                next.push_back((from.len() as u32, depth + 1, after));
                from.push((id, number as u16));
            }
        }
        if from.len() >= states_max {
            break;
        }
    }
    Report {
        states: from.len(),
        depth: reached,
        complete: next.is_empty(),
        trace: None,
    }
}

fn way(model: &Model, from: &[(u32, u16)], mut id: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    while id != 0 {
        let (before, number) = from[id as usize];
        steps.push(model.steps()[usize::from(number)]);
        id = before;
    }
    steps.reverse();
    steps
}

fn retrace(model: &Model, steps: Vec<Step>, violation: Violation) -> Trace {
    let mut state = model.initial();
    let mut words = Vec::new();
    for &step in &steps {
        words.push(model.describe(&state, step));
        if let Some((after, _)) = model.next(&state, step) {
            state = after;
        }
    }
    Trace {
        violation,
        steps,
        words,
    }
}

fn fingerprint(state: &State) -> u64 {
    let mut hasher = Mix(0x243f_6a88_85a3_08d3);
    state.hash(&mut hasher);
    // Zero marks an empty place of the table.
    hasher.finish().max(1)
}

/// A hasher by folded multiplication; the same on every machine and in every run.
struct Mix(u64);

impl Mix {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ ((product >> 64) as u64).rotate_left(23) ^ 0xa076_1d64;
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word) + 1);
    }
    fn write_isize(&mut self, word: isize) {
        self.mix(word as u64);
    }
    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }
    fn finish(&self) -> u64 {
        let mut last = Mix(self.0);
        last.mix(0xd6e8_feb8_6659_fd93);
        last.0
    }
}

/// A set of fingerprints: open addressing, at most half full.
struct Seen {
    places: Vec<u64>,
    count: usize,
}

impl Seen {
    fn new() -> Self {
        Self {
            places: vec![0; 1 << 16],
            count: 0,
        }
    }

    /// True if it was not there.
    fn insert(&mut self, print: u64) -> bool {
        if self.count * 2 >= self.places.len() {
            let larger = vec![0; self.places.len() * 2];
            let old = std::mem::replace(&mut self.places, larger);
            for print in old.into_iter().filter(|&p| p != 0) {
                let at = self.place(print);
                self.places[at] = print;
            }
        }
        let at = self.place(print);
        if self.places[at] == print {
            return false;
        }
        self.places[at] = print;
        self.count += 1;
        true
    }

    fn place(&self, print: u64) -> usize {
        let mask = self.places.len() - 1;
        let mut at = print as usize & mask;
        while self.places[at] != 0 && self.places[at] != print {
            at = (at + 1) & mask;
        }
        at
    }
}
