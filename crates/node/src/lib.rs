//! The daemon: the loops that turn the pure crates' actions into I/O.
//!
//! - [`net`]: connections between nodes, authenticated;
//! - [`claim`]: the state directory belongs to one daemon of one node;
//! - [`timeline`]: what happened, for people and for the demo.
//!
//! Nothing that decides about data, roles or leases lives here.

pub mod api_types;
pub mod backing;
pub mod claim;
pub mod clock;
pub mod net;
pub mod timeline;
pub mod volume;
