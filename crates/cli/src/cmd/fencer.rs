//! `fencer`: started by the daemon, which tells it everything through inherited descriptors.

/// Never returns.
pub(super) fn run() -> ! {
    holdfast_host::fencer::run()
}
