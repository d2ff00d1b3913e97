//! What a run leaves behind: a rolling hash (same seed, same hash), marks that say which rare things
//! happened, and, if asked for, a readable line per event.
//!
//! The hash takes in the time, kind and place of every event and every action that came of it. For the guard of
//! determinism its value after each event is kept, so that of two runs the first event that differs can be named.

use std::collections::BTreeMap;
use std::ops::Range;

/// How much of its story a run tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Telling {
    /// Nothing: the usual run, whose story nobody will read.
    #[default]
    Nothing,
    /// The last lines are kept for the report of a failure.
    Tail,
    /// Every line is printed.
    All,
    /// The events with these numbers are kept in full.
    Events(Range<u64>),
}

/// The record of a run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    telling: Telling,
    /// The hash after each event, if asked for.
    steps: Option<Vec<u64>>,
    /// The last lines, for the report of a failure.
    tail: std::collections::VecDeque<String>,
    marks: BTreeMap<&'static str, u64>,
    /// Events handled.
    pub events: u64,
    /// Requests of the application answered.
    pub ops: u64,
}

/// Lines kept for the report of a failure.
const TAIL_LINES: usize = 40;

impl Trace {
    /// Telling so much; `steps`: keep the hash after each event.
    pub fn new(telling: Telling, steps: bool) -> Self {
        Self {
            telling,
            steps: steps.then(Vec::new),
            ..Self::default()
        }
    }

    /// An event is about to happen.
    pub fn event(&mut self, now: u64, what: impl FnOnce() -> String) {
        if let Telling::Events(wanted) = &self.telling
            && wanted.contains(&self.events)
        {
            let line = format!(
                "event {} at {:.6} ms: {}",
                self.events,
                now as f64 / 1e6,
                what()
            );
            self.tail.push_back(line);
        }
        self.events += 1;
        self.mix(now);
    }

    /// It has happened, with everything that came of it.
    pub fn event_ends(&mut self) {
        if let Some(steps) = &mut self.steps {
            steps.push(self.hash);
        }
    }

    /// The hash after each event.
    pub fn steps(&mut self) -> Vec<u64> {
        self.steps.take().unwrap_or_default()
    }

    /// Something that happened goes into the hash.
    pub fn mix(&mut self, value: u64) {
        self.hash = crate::rng::split_mix(self.hash.rotate_left(7) ^ value);
    }

    /// The same for bytes.
    pub fn mix_bytes(&mut self, bytes: &[u8]) {
        self.mix(bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        let mut hash = self.hash;
        let add = |hash: u64, word: u64| {
            (hash ^ word)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(23)
        };
        for word in &mut words {
            hash = add(
                hash,
                u64::from_le_bytes(word.try_into().unwrap_or_default()),
            );
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            hash = add(hash, u64::from_le_bytes(word));
        }
        self.hash = hash;
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// This rare thing happened.
    pub fn mark(&mut self, name: &'static str) {
        *self.marks.entry(name).or_default() += 1;
    }

    /// What happened how often.
    pub fn marks(&self) -> &BTreeMap<&'static str, u64> {
        &self.marks
    }

    /// A line of a run that tells everything.
    pub fn line(&mut self, now: u64, place: impl std::fmt::Display, what: impl FnOnce() -> String) {
        if self.telling == Telling::All {
            println!("{:>14.6} ms  {place:<8} {}", now as f64 / 1e6, what());
        }
    }

    /// A line worth keeping for the report of a failure.
    pub fn news(&mut self, now: u64, place: impl std::fmt::Display, what: impl FnOnce() -> String) {
        if !matches!(self.telling, Telling::All | Telling::Tail) {
            return;
        }
        let line = format!("{:>14.6} ms  {place:<8} {}", now as f64 / 1e6, what());
        if self.telling == Telling::All {
            println!("{line}");
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// The lines kept.
    pub fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_content_change_the_hash() {
        let hash = |parts: &[&[u8]]| {
            let mut t = Trace::default();
            parts.iter().for_each(|p| t.mix_bytes(p));
            t.hash()
        };
        assert_eq!(hash(&[b"one", b"two"]), hash(&[b"one", b"two"]));
        assert_ne!(hash(&[b"one", b"two"]), hash(&[b"two", b"one"]));
        assert_ne!(hash(&[b"onetwo"]), hash(&[b"one", b"two"]));
    }
}
