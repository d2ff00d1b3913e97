//! What was last heard of a replica's disk.

use crate::{Incarnation, Run};
use serde::{Deserialize, Serialize};

/// Latest runs of a replica of which is kept where its activity log stood when they began.
pub const RUNS_KEPT: usize = 8;

/// What was last heard of a replica's disk. On one incarnation run and log number only ever grow, so a disk that
/// says less than was seen has been put back to an earlier state (rule 31).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Seen {
    /// Which initialisation of it.
    pub incarnation: Incarnation,
    /// Which life of the replica.
    pub run: Run,
    /// Number of its last durable activity-log transaction.
    pub log: u64,
}

/// Why a disk is not the one that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Strange {
    /// Another disk: replaced, or initialised anew.
    Replaced,
    /// The same disk, as it was earlier.
    WentBack,
    /// The cluster's record says that it is not to be trusted, for one of these reasons.
    Recorded,
}

impl Seen {
    /// Nothing is known yet.
    pub const fn is_nothing(&self) -> bool {
        self.incarnation.0 == 0
    }

    /// What is wrong with a disk that now says of itself: `incarnation`, `run`, its log's number at the start of this
    /// run and of those before, and now.
    pub fn contradicts(
        &self,
        incarnation: Incarnation,
        run: Run,
        found: &[u64; RUNS_KEPT],
        now: u64,
    ) -> Option<Strange> {
        if self.is_nothing() {
            return None;
        }
        if self.incarnation != incarnation {
            return Some(Strange::Replaced);
        }
        // A start after a crash writes a transaction, so what counts is what the first unseen run found.
        let log = match run.0.checked_sub(self.run.0) {
            None => return Some(Strange::WentBack),
            Some(0) => now,
            Some(later) => found[(later as usize - 1).min(RUNS_KEPT - 1)],
        };
        (log < self.log).then_some(Strange::WentBack)
    }

    /// This and what was heard elsewhere of the same disk; of another disk, what was heard elsewhere.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        if self.incarnation != other.incarnation {
            return other;
        }
        Self {
            incarnation: self.incarnation,
            run: self.run.max(other.run),
            log: self.log.max(other.log),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(incarnation: u64, run: u64, log: u64) -> Seen {
        Seen {
            incarnation: Incarnation(incarnation),
            run: Run(run),
            log,
        }
    }

    fn says(incarnation: u64, run: u64, found: &[u64], now: u64) -> Option<Strange> {
        let mut all = [0; RUNS_KEPT];
        all[..found.len()].copy_from_slice(found);
        let known = seen(1, 4, 9);
        known.contradicts(Incarnation(incarnation), Run(run), &all, now)
    }

    #[test]
    fn a_disk_that_says_less_went_back() {
        assert_eq!(says(1, 4, &[0], 9), None);
        assert_eq!(says(1, 4, &[0], 8), Some(Strange::WentBack));
        assert_eq!(says(1, 5, &[9], 9), None);
        let later = says(1, 5, &[8], 20);
        assert_eq!(
            later,
            Some(Strange::WentBack),
            "a later run of an earlier disk"
        );
        let twice = says(1, 6, &[12, 8], 20);
        assert_eq!(twice, Some(Strange::WentBack), "it started twice unseen");
        assert_eq!(says(1, 3, &[10], 10), Some(Strange::WentBack));
        assert_eq!(says(2, 5, &[10], 10), Some(Strange::Replaced));
        let nothing = Seen::default().contradicts(Incarnation(2), Run(1), &[0; RUNS_KEPT], 0);
        assert_eq!(nothing, None);
    }

    #[test]
    fn merging_keeps_the_highest_of_one_disk() {
        assert_eq!(seen(1, 4, 9).merged(seen(1, 5, 3)), seen(1, 5, 9));
        assert_eq!(seen(1, 4, 9).merged(seen(2, 1, 0)), seen(2, 1, 0));
    }
}
