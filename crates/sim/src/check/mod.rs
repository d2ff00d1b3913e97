//! What must hold, one file per property. Each checker recomputes from the true disk images and from
//! what the application saw, never from what the replicator believes; each has tests of its own, and
//! `tests/planted.rs` shows that together they catch bugs put there for them.
//!
//! | file | property |
//! |---|---|
//! | [`history`] | G1 acknowledged writes stay and rest on every member; G6 what was read stays |
//! | [`writer`] | G2 one node acknowledges per epoch |
//! | [`promotion`] | G3 only members are promoted, epochs grow by one, loss of unflushed writes is permitted only to all |
//! | [`dirty`] | G4 where replicas differ there is a durable trace |
//! | [`exclusive`] | G5 side effects on one node at a time, nothing answered once a newer epoch serves |
//! | [`convergence`] | G7 in the end all replicas are identical |
//! | [`consensus`] | one leader per term, one record per generation |

pub mod consensus;
pub mod convergence;
pub mod dirty;
pub mod exclusive;
pub mod history;
pub mod promotion;
pub mod writer;

use crate::scenario::Scenario;

/// All checkers of a run.
#[derive(Clone, Debug)]
pub struct Checks {
    /// G1, G6.
    pub history: history::History,
    /// G2.
    pub writer: writer::Writer,
    /// G3.
    pub promotion: promotion::Promotion,
    /// G5.
    pub exclusive: exclusive::Exclusive,
    /// Consensus.
    pub consensus: consensus::Consensus,
    /// Requests asked so far: the last one's name.
    pub asked: u64,
}

impl Checks {
    /// For a run of this scenario.
    pub fn new(scenario: &Scenario) -> Self {
        Self {
            history: history::History::new(scenario.geometry.bytes() / history::CELL_BYTES),
            writer: writer::Writer::default(),
            promotion: promotion::Promotion::default(),
            exclusive: exclusive::Exclusive::new(!scenario.wild_clocks),
            consensus: consensus::Consensus::default(),
            asked: 0,
        }
    }
}
