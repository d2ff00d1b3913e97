//! The operating system as the daemon needs it: everything that leaves a trace outside the process.
//!
//! | room | what it does |
//! |---|---|
//! | [`address`] | virtual IPs: add, remove, probe for conflicts, announce |
//! | [`mount`] | filesystems: make, check, mount, unmount, who keeps one busy |
//! | [`service`] | configured commands as services: start, readiness, stop, exit |
//! | [`fencer`] | the second process that undoes all of that when the daemon cannot |
//! | [`machine`] | namespaces as machines, for the demo and the tests |
//! | [`claim`] | the state directory's lock, the boot id, the clock |
//!
//! Invariants
//! - every side effect is registered with the fencer before it exists and taken off after it is gone;
//! - nothing here decides who may hold a side effect: that is the control plane's;
//! - all functions work in a user + network + mount namespace, needing no more than the capabilities there.

pub mod address;
pub mod claim;
mod error;
pub mod fencer;
pub mod machine;
pub mod mount;
mod netlink;
mod procs;
pub mod service;
mod sys;

pub use error::{Error, Result};
