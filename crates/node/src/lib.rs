//! The daemon: the loops that turn the pure crates' actions into I/O.
//!
//! - [`daemon`]: the control loop, and [`run`] that starts everything;
//! - [`volume`]: the volume loop, one thread and one ring per volume;
//! - [`net`]: connections between nodes, authenticated;
//! - [`hostops`]: what a resource does to this host, one thread per resource;
//! - [`backing`]: what lies under a replica, looked at, initialised, opened;
//! - [`claim`], [`persist`]: the state directory and the control plane's state in it;
//! - [`saved`]: blocks of a line of history that was given up, in files;
//! - [`timeline`]: what happened, for people and for the demo;
//! - [`api_types`]: what is said on the API socket.
//!
//! Nothing that decides about data, roles or leases lives here.

#![forbid(unsafe_code)]

pub mod api_types;
pub mod backing;
pub mod claim;
pub mod clock;
pub mod daemon;
pub mod hostops;
pub mod net;
pub mod persist;
pub mod saved;
pub mod settings;
pub mod timeline;
mod vital;
pub mod volume;

pub use daemon::{NodeOptions, run};
