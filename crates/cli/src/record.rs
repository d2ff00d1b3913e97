//! The record server: the smallest service whose loss of data can be proven. It appends numbered,
//! checksummed records to a file or a volume, makes them durable, and only then answers.
//!
//! Lines over TCP, one answer per line:
//! ```text
//! APPEND client sequence   OK number            durable; a repeated sequence gets its old number
//!                          ERR gap last n       the client's sequences do not follow: something is lost
//! COUNT                    OK n
//! GET number               OK client sequence   read from the medium and checked
//!                          ERR none
//! CHECK                    OK n                 every record read and checked, numbers contiguous
//!                          ERR bad number
//! ```
//!
//! Invariants
//! - an answer `OK number` to `APPEND` leaves only after the record is durable;
//! - record `n` lies at byte `(n - 1) * 4096`; numbers are contiguous from 1;
//! - the newest record carries the last sequence and number of every client it knows of, so that a
//!   retry after a lost answer appends nothing, and a start reads a few records however long the log;
//! - after any error of the medium nothing is answered any more: the process ends, not with status 0.

mod client;
mod committer;
mod layout;
mod log;
mod medium;
mod server;

pub(crate) use client::{ClientOptions, RecordClient};
pub(crate) use server::serve;

#[cfg(test)]
mod tests;
