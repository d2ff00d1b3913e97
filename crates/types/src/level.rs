//! When a write is acknowledged.

use serde::{Deserialize, Serialize};

/// What the acknowledgement of a write on a volume means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Level {
    /// It left this node: the peers follow at their pace, are never in the in-sync set and never promoted unasked.
    A,
    /// It is in the memory of every member, whose activity log covers it durably.
    B,
    /// It is on the disk of every member.
    #[default]
    C,
}
