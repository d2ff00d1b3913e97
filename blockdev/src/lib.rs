//! Where I/O enters (`frontend`) and where a replica's bytes rest (`store`).

pub mod frontend;
pub mod store;
