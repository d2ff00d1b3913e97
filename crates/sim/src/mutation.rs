//! Lies of the interpreters: each makes the simulated daemon, disk or host break its contract in one way, so that a
//! checker whose rule no bug of the state machines alone would break can be seen to catch it.

/// One lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Something that is no function of the seed decides when a message arrives.
    Wobble,
}

/// Counts what the process did before: different in each run.
static WOBBLE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// A number that no seed determines.
pub(crate) fn wobble() -> u64 {
    WOBBLE.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
