//! Why there is no ring, or an operation was not taken.

use std::io;

use crate::Op;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel or a sandbox forbids io_uring.
    #[error(
        "io_uring is not available: {0}; it needs Linux 5.15 or later, the sysctl kernel.io_uring_disabled=0, \
         and in a container a seccomp profile that allows io_uring_setup"
    )]
    Unavailable(io::Error),
    /// Not enough lockable memory (kernels before 5.12 count rings against it).
    #[error("no memory for an io_uring of {entries} entries; raise RLIMIT_MEMLOCK (ulimit -l)")]
    Memory {
        /// Submission entries asked for.
        entries: u32,
    },
    /// Any other refusal.
    #[error("io_uring setup with {entries} entries: {source}")]
    Setup {
        /// Submission entries asked for.
        entries: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel is too old for an operation or feature that is needed.
    #[error("this kernel's io_uring lacks {0}; Linux 5.15 or later is needed")]
    Missing(&'static str),
}

/// Why an operation was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// As many operations are in flight as may be; the operation comes back.
    #[error("the ring has {limit} operations in flight, its limit")]
    Full {
        /// The limit.
        limit: usize,
        /// What was not taken.
        op: Box<Op>,
    },
}
