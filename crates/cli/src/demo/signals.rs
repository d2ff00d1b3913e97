//! SIGINT, SIGTERM and SIGHUP: the first asks everything to end in order, the second ends at once.

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status of a process that a SIGINT ended, for a shell.
pub(super) const INTERRUPTED: u8 = 130;

/// Says whether everything should end.
#[derive(Clone, Debug, Default)]
pub(super) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// It should.
    pub(super) fn asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// From now on it should.
    pub(super) fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Blocks the signals in this thread and all it starts; programs started later have them unblocked.
pub(super) fn block() -> anyhow::Result<SigSet> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().context("blocking signals")?;
    Ok(set)
}

/// Waits for them on a thread of its own.
pub(super) fn watch(set: SigSet) -> anyhow::Result<Cancel> {
    let cancel = Cancel::default();
    let asked = cancel.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while set.wait().is_ok() {
                if asked.asked() {
                    // The machines and daemons die with this process.
                    std::process::exit(INTERRUPTED.into());
                }
                asked.ask();
            }
        })
        .context("starting a thread")?;
    Ok(cancel)
}
