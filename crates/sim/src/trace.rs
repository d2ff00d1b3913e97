//! What a run leaves behind: a rolling hash (same seed, same hash), marks that say which rare things
//! happened, and, if asked for, a readable line per event.

use std::collections::BTreeMap;

/// The record of a run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    /// Print a line per event.
    pub verbose: bool,
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
    /// Printing or not.
    pub fn new(verbose: bool) -> Self {
        Self {
            verbose,
            ..Self::default()
        }
    }

    /// Something that happened goes into the hash.
    pub fn mix(&mut self, value: u64) {
        self.hash = crate::rng::split_mix(self.hash.rotate_left(7) ^ value);
    }

    /// The same for bytes.
    pub fn mix_bytes(&mut self, bytes: &[u8]) {
        self.mix(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.hash = (self.hash ^ u64::from_le_bytes(word))
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(23);
        }
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

    /// A line of a verbose run.
    pub fn line(&mut self, now: u64, place: impl std::fmt::Display, what: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>14.6} ms  {place:<8} {}", now as f64 / 1e6, what());
        }
    }

    /// A line worth keeping for the report of a failure, verbose or not.
    pub fn news(&mut self, now: u64, place: impl std::fmt::Display, what: impl FnOnce() -> String) {
        let line = format!("{:>14.6} ms  {place:<8} {}", now as f64 / 1e6, what());
        if self.verbose {
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
