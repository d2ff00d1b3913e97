//! The control plane of a node, sans-IO: consensus, leases, in-sync sets, placement, the life of a
//! resource. `(now, Event)` in, [`Action`]s out; no runtime, no system call, no clock, no randomness
//! but what [`Start`] brings.
//!
//! Rooms: [`durable`] bytes of the state file; `consensus` the driver around `noraft`; [`state`] the
//! replicated state; `lease` promises, fences and rounds; `resource` the life of a resource on a node;
//! `admin` what operators ask. [`Node`] ties them together.

#![forbid(unsafe_code)]

mod admin;
mod admin_placement;
mod api;
mod config;
mod consensus;
pub mod durable;
mod lease;
mod message;
mod node;
mod placement;
mod resource;
mod rng;
pub mod state;
mod status;
mod upkeep;
mod votes;

#[cfg(test)]
mod tests;

pub use api::*;
pub use message::MessageError;
pub use node::{Node, StartError};
