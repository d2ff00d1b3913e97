//! An explicit-state model of the replication protocol: every schedule within given bounds is walked, and in every
//! state the guarantees are checked.
//!
//! The simulator runs the real code along some schedules; this walks *all* schedules of a small copy of the rules. Each
//! rule can be switched off, and then a shortest schedule that breaks a guarantee is found: that is how one knows
//! that the rule is needed and that the checks can see.
//!
//! - [`rules`]: the switches, with the numbers of the findings behind them;
//! - [`bounds`]: how many nodes, blocks, writes and faults;
//! - [`state`]: all of the modelled world in one small value;
//! - [`steps`]: what can happen next; carried out by `control` (the register and the candidates), `primary`, `session`
//!   (connect, resync, grow), `replica` (a secondary, its disk, its crashes);
//! - [`checks`]: the oracle of what a client may read, and what must hold in every state;
//! - [`mod@explore`]: breadth-first search, shortest traces.
//!
//! Invariants: no clock, no randomness, no I/O; the same model and bounds give the same states and the same trace.
//! The model follows `replicator` and `control` step by step and uses their words; what it leaves out is said in
//! `docs/PROTOCOL.md`.

#![forbid(unsafe_code)]

pub mod bounds;
pub mod checks;
mod control;
pub mod explore;
mod primary;
mod replica;
pub mod rules;
mod session;
pub mod state;
pub mod steps;

pub use bounds::Bounds;
pub use checks::Violation;
pub use explore::{Report, Trace, explore};
pub use rules::{Rule, Rules};
pub use state::State;
pub use steps::{Model, Step};
