//! What must hold, one file per property. Each checker recomputes from the true disk images and from what passed between the
//! state machines and the world, never from what a state machine believes; each has tests of its own, and `tests/planted.rs`
//! shows for each a bug, or a lie of an interpreter, that it catches.
//!
//! | file | property |
//! |---|---|
//! | [`durability`] | G1 what is acknowledged or flushed rests on every member |
//! | [`history`] | G6 each read returns a legal value, and what was read stays |
//! | [`dirty`] | G4 where replicas differ there is a durable trace |
//! | [`writer`] | G2, G5 one node acknowledges per epoch, one at a time answers |
//! | [`direction`] | a resync source holds everything acknowledged; disks never go back |
//! | [`landing`] | nothing that lands on a disk replaces something newer |
//! | [`order`] | log, promise, run, bitmaps are durable before what depends on them |
//! | [`convergence`] | G7 in the end all replicas are identical and no bitmap says otherwise |
//! | [`bounds`] | what waits and what is under way stays within limits |
//! | [`consensus`] | one leader per term, one record per generation |
//! | [`services`] | G5 side effects on one host at a time, in order, only where the device is open |
//! | [`observability`] | the status says what is true |
//! | [`promotion`] | G3 only members are promoted, epochs grow by one |
//!
//! That loss of unflushed writes is permitted only where all members are unclean (rule 9) is judged in `truth`, which knows
//! who lost what.

pub mod bounds;
pub mod consensus;
pub mod convergence;
pub mod direction;
pub mod dirty;
pub mod durability;
pub mod history;
pub mod landing;
pub mod observability;
pub mod order;
pub mod promotion;
pub mod services;
pub mod writer;

use crate::scenario::Scenario;
use holdfast_replicator::SetChange;
use holdfast_types::{NodeId, NodeSet};
use std::collections::{BTreeMap, BTreeSet};

/// What is watched of one replica.
#[derive(Clone, Debug, Default)]
pub struct NodeChecks {
    /// What its stable storage says, and the version of the disk at which that was read.
    pub stored: Option<order::Stored>,
    /// See [`Self::stored`].
    pub stored_version: Option<u64>,
    /// Metadata order.
    pub order: order::Order,
    /// Bounds.
    pub bounds: bounds::Bounds,
    /// The disk never goes back.
    pub direction: direction::Direction,
    /// What its status is compared with.
    pub seen: observability::Seen,
    /// The set change it waits for.
    pub proposing: Option<SetChange>,
    /// When it last received a resync block.
    pub resync_at: Option<u64>,
    /// When it last took a session, in its present life.
    pub attached_at: Option<u64>,
    /// The newest write sent to each peer: epoch and sequence.
    pub last_sent: BTreeMap<NodeId, (u64, u64)>,
}

/// All checkers of a run.
#[derive(Clone, Debug)]
pub struct Checks {
    /// Per node.
    pub nodes: Vec<NodeChecks>,
    /// G1, G6.
    pub history: history::History,
    /// G2, G5.
    pub writer: writer::Writer,
    /// G3.
    pub promotion: promotion::Promotion,
    /// G5.
    pub services: services::Services,
    /// Consensus.
    pub consensus: consensus::Consensus,
    /// Every in-sync set that was ever committed.
    pub sets: BTreeSet<NodeSet>,
    /// Requests asked so far: the last one's name.
    pub asked: u64,
}

impl Checks {
    /// For a run of this scenario.
    pub fn new(scenario: &Scenario) -> Self {
        let claimed = !scenario.wild_clocks;
        Self {
            nodes: vec![NodeChecks::default(); scenario.nodes()],
            history: history::History::new(scenario.geometry.bytes() / history::CELL_BYTES),
            writer: writer::Writer::new(claimed),
            promotion: promotion::Promotion::default(),
            services: services::Services::new(scenario.nodes(), claimed),
            consensus: consensus::Consensus::default(),
            sets: BTreeSet::new(),
            asked: 0,
        }
    }
}
