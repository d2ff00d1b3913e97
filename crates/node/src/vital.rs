//! Threads without which the daemon is of no use.
//!
//! A daemon that has lost one of its loops to a panic would keep its lease and serve nobody. It ends at
//! once instead: the fencer undoes what it held, and the rest of the cluster takes over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

/// Longest name the kernel keeps for a thread, in bytes.
const NAME_BYTES_MAX: usize = 15;

/// Starts a thread whose panic ends the process.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let short: String = name.chars().take(NAME_BYTES_MAX).collect();
    let name = name.to_owned();
    Builder::new().name(short).spawn(move || {
        // Nothing is used after the panic but this line.
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!(
                "the thread \"{name}\" has panicked: the daemon cannot go on and ends at once"
            );
            std::process::abort();
        }
    })
}
