//! The replication state machine of one volume on one data node: roles, epochs, in-sync set, range
//! locks, activity log, dirty bitmaps, resync, reconciliation, verify. Sans-IO: `(now, Event)` in,
//! [`Action`]s out; no runtime, no system call, no clock, no randomness.
//!
//! Rooms: `replica` puts the roles together; `follower` is a secondary, `primary` a primary;
//! `ctx` is what both need (disk, metadata, links); `activity`, `bits` and `locks` are the three
//! structures the rules hang on. [`api`](Action) is the contract with the interpreters.
//!
//! Numbers in parentheses, as in "(rule 13)", are those of DESIGN part 4.

#![forbid(unsafe_code)]

mod activity;
mod api;
mod bits;
mod config;
mod ctx;
mod discard;
mod follower;
mod hash;
mod locks;
mod primary;
mod replica;
mod room;
mod rules;

pub use api::*;
pub use config::{Config, Timing};
pub use replica::Replica;
pub use rules::Rule;
