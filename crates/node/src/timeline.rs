//! What happened on this node, in order, kept in memory with the time of CLOCK_BOOTTIME.
//!
//! `history` and the demo read it; each entry is also one log line. BOOTTIME is the same for all
//! processes of one machine, so entries of several nodes there can be put on one axis.

use holdfast_replicator::Now;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Entries kept; older ones are dropped.
pub const ENTRIES_MAX: usize = 1024;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of this entry since the daemon's start: a reader asks for what is newer.
    pub number: u64,
    /// When, on CLOCK_BOOTTIME.
    pub at: Now,
    /// When, in milliseconds since 1970, for people.
    pub wall_ms: u64,
    /// The resource, empty for the node itself.
    pub resource: String,
    /// A fixed word, for programs.
    pub kind: &'static str,
    /// One sentence, for people.
    pub text: String,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    entries: VecDeque<Entry>,
}

/// The node's timeline; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Timeline(Arc<Mutex<Inner>>);

impl Timeline {
    /// Adds an entry and logs it.
    pub fn add(&self, resource: &str, kind: &'static str, text: impl Into<String>) {
        self.add_at(crate::clock::now(), resource, kind, text);
    }

    /// Adds an entry that happened at `at` and logs it.
    pub fn add_at(&self, at: Now, resource: &str, kind: &'static str, text: impl Into<String>) {
        let text = text.into();
        let ms = at.0 / 1_000_000;
        if resource.is_empty() {
            tracing::info!("[{ms} ms] {kind}: {text}");
        } else {
            tracing::info!("[{ms} ms] {resource} {kind}: {text}");
        }
        let mut inner = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.next += 1;
        let entry = Entry {
            number: inner.next,
            at,
            wall_ms: crate::clock::wall_ms(),
            resource: resource.to_owned(),
            kind,
            text,
        };
        if inner.entries.len() == ENTRIES_MAX {
            inner.entries.pop_front();
        }
        inner.entries.push_back(entry);
    }

    /// All kept entries with a number above `after`, oldest first.
    pub fn since(&self, after: u64) -> Vec<Entry> {
        let inner = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        inner
            .entries
            .iter()
            .filter(|e| e.number > after)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entries_go_first_and_numbers_do_not_repeat() {
        let t = Timeline::default();
        for i in 0..ENTRIES_MAX + 3 {
            t.add_at(Now(i as u64), "r", "test", format!("entry {i}"));
        }
        let all = t.since(0);
        assert_eq!(all.len(), ENTRIES_MAX);
        assert_eq!(all[0].number, 4);
        assert!(all.windows(2).all(|w| w[0].number + 1 == w[1].number));
        assert_eq!(t.since(all.last().unwrap().number - 1).len(), 1);
    }
}
