//! The replication state machine of one volume on one data node: roles, epochs, in-sync set, range
//! locks, activity log, dirty bitmaps, resync, reconciliation, verify. Sans-IO: `(now, Event)` in,
//! [`Action`]s out; no runtime, no system call, no clock, no randomness.

#![forbid(unsafe_code)]

mod api;

pub use api::*;
