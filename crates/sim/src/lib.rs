//! The world in virtual time: whole clusters of real replicator and control state machines on
//! simulated disks, networks and clocks, with faults drawn from one seed and checkers over what is
//! true. Same seed, same run.
//!
//! A run has two halves. In the first, faults of the classes the seed has chosen strike a cluster under
//! load. In the second they have ended, and within a bounded time everything must be well again. What must
//! hold at every instant is in `check`.

#![forbid(unsafe_code)]

mod agenda;
mod app;
mod check;
pub mod cli;
mod clock;
mod daemon;
mod disk;
mod faults;
mod host;
mod lanes;
mod liveness;
pub mod marks;
#[cfg(test)]
mod matrix;
mod messages;
pub mod mutation;
mod net;
mod node;
mod observe;
pub mod plan;
pub mod planted;
mod revert;
mod rng;
mod rot;
mod scenario;
#[cfg(test)]
mod schedules;
pub mod shrink;
mod strange_faults;
mod trace;
mod truth;
mod world;
pub use world::Outcome;
