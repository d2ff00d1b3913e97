//! The peer protocol: what two replicas of a volume say to each other.
//!
//! A volume has two lanes to each peer, each its own connection: the *write lane* (writes, closes,
//! flushes, membership news: whatever must stay in order with writes) and the *bulk lane* (resync,
//! hashes). [`Frame`] is what travels; [`codec`] is how it looks in bytes.

#![forbid(unsafe_code)]

pub mod codec;
mod frame;

pub use codec::{Decoder, Encoded, Encoder, Pending, Preamble, Proof, WireError, coarsen};
pub use frame::{Attach, Frame, Hello, Lane, Refusal, Stamp, UNREADABLE};
