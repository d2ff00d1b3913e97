//! Runs of blocks.

use serde::{Deserialize, Serialize};

/// A non-empty run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockRange {
    /// First block.
    pub first: u64,
    /// Number of blocks, at least one.
    pub count: u64,
}

impl BlockRange {
    /// The run of `count` blocks from `first`.
    ///
    /// # Panics
    /// If `count` is zero or the end overflows: callers check what comes from outside first
    /// (see [`BlockRange::checked`]).
    pub const fn new(first: u64, count: u64) -> Self {
        assert!(count > 0);
        assert!(first.checked_add(count).is_some());
        Self { first, count }
    }
    /// The same for numbers from outside: `None` unless non-empty and inside `blocks`.
    pub const fn checked(first: u64, count: u64, blocks: u64) -> Option<Self> {
        match first.checked_add(count) {
            Some(end) if count > 0 && end <= blocks => Some(Self { first, count }),
            _ => None,
        }
    }
    /// One past the last block.
    pub const fn end(self) -> u64 {
        self.first + self.count
    }
    /// Do the two share a block?
    pub const fn overlaps(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }
    /// Is every block of `other` in this?
    pub const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.end() <= self.end()
    }
    /// The run cut into pieces of at most `max` blocks.
    pub fn pieces(self, max: u64) -> impl Iterator<Item = Self> {
        assert!(max > 0);
        (0..self.count.div_ceil(max)).map(move |i| {
            let first = self.first + i * max;
            Self::new(first, max.min(self.end() - first))
        })
    }
}
