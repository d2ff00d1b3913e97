//! `holdfast demo`: a real cluster on this machine, broken on purpose while a service writes, and
//! judged by what its clients were told.
//!
//! Rooms: `site` (where the nodes live: machines made of namespaces, or loopback addresses), `files`
//! (configuration, secret, logs), `cluster` (the daemons, and what is done to them), `workload` and `postgres` (who writes, and what it remembers),
//! `raw` (the same on a bare volume), `late` (who tries to write to the old primary), `story` (what happens in which order), `failover` (its middle),
//! `storm` (kills for minutes instead of one fault), `timeline`
//! and `report` (what is told), `compare` (the replicas, byte for byte), `patience` and `signals`
//! (nothing waits without end, and a signal ends everything in order).
//!
//! Invariants
//! - everything that is waited for has a limit, and what was waited for is said when it is reached;
//! - nothing outlives the demonstration, however it ends: machines and daemons die with it;
//! - it is judged only by what its own clients were told and by the bytes on the replicas, never by
//!   what the cluster says of itself;
//! - the exit status is 0 only if nothing was lost, the replicas are identical, and a woken old
//!   primary acknowledged nothing.

mod cluster;
mod compare;
mod failover;
mod files;
mod late;
mod patience;
mod postgres;
mod raw;
mod report;
mod signals;
mod site;
mod storm;
mod story;
mod timeline;
mod workload;

use crate::args::DemoArgs;
use crate::failure::Failure;

/// Where a run speaks: people on standard output, or on standard error if that is for JSON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Voice {
    json: bool,
}

impl Voice {
    fn say(self, line: &str) {
        if self.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
struct Told {
    good: bool,
    verdict: String,
}

/// Runs the demonstration.
///
/// # Errors
/// It could not be run, it was interrupted, or what it shows is not as it should be.
pub(crate) fn run(args: &DemoArgs, json: bool) -> Result<(), Failure> {
    let voice = Voice { json };
    // Before the first thread: signals are blocked in all, and a user namespace can still be entered.
    let blocked = signals::block()?;
    let ground = site::choose(args.mode, voice)?;
    let cancel = signals::watch(blocked)?;
    let told = story::tell(args, voice, ground, &cancel).map_err(|error| match error
        .downcast::<patience::Stopped>(
    ) {
        Ok(patience::Stopped::Interrupted) => Failure::Interrupted,
        Ok(patience::Stopped::TooLate { seconds, waiting }) => {
            Failure::TimedOut { seconds, waiting }
        }
        Err(error) => Failure::Internal(error),
    })?;
    if told.good {
        return Ok(());
    }
    Err(Failure::CheckFailed(told.verdict))
}
