//! Waiting: always with a limit, always ended by a signal, always with a word on what for.

use super::signals::Cancel;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// Why a wait ended without what was waited for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    /// A signal.
    #[error("interrupted")]
    Interrupted,
    /// The limit.
    #[error("not within {seconds} s: {waiting}")]
    TooLate {
        /// It.
        seconds: u64,
        /// What was waited for, and how far it was.
        waiting: String,
    },
}

/// What a look found.
pub(super) type Look<T> = Result<T, String>;

/// Looks until it is so; a look says what it found instead.
pub(super) fn until<T>(
    cancel: &Cancel,
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> anyhow::Result<Look<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        let instead = match look()? {
            Ok(found) => return Ok(found),
            Err(instead) => instead,
        };
        if cancel.asked() {
            return Err(Stopped::Interrupted.into());
        }
        if start.elapsed() > patience {
            let waiting = match instead.as_str() {
                "" => what.to_owned(),
                instead => format!("{what} ({instead})"),
            };
            return Err(Stopped::TooLate {
                seconds: patience.as_secs(),
                waiting,
            }
            .into());
        }
        std::thread::sleep(LOOK);
    }
}

/// Does something that may take long on a thread of its own; the thread is left behind if it takes too long.
pub(super) fn run<T: Send + 'static>(
    cancel: &Cancel,
    what: &str,
    patience: Duration,
    job: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let thread = std::thread::Builder::new().spawn(job)?;
    until(cancel, what, patience, || {
        Ok(if thread.is_finished() {
            Ok(())
        } else {
            Err(String::new())
        })
    })?;
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("a thread failed: {what}"))?
}

/// Lets time pass.
pub(super) fn pass(cancel: &Cancel, time: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if cancel.asked() {
            return Err(Stopped::Interrupted.into());
        }
        std::thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_waited_for_is_said() {
        let cancel = Cancel::default();
        let none: anyhow::Result<()> = until(&cancel, "rain", Duration::ZERO, || {
            Ok(Err("it is dry".into()))
        });
        assert_eq!(
            none.expect_err("no rain").to_string(),
            "not within 0 s: rain (it is dry)"
        );
        let some = until(&cancel, "rain", Duration::ZERO, || Ok(Ok(7)));
        assert_eq!(some.expect("rain"), 7);
    }

    #[test]
    fn a_signal_ends_every_wait() {
        let cancel = Cancel::default();
        cancel.ask();
        let long = Duration::from_secs(3600);
        let waits: [anyhow::Result<()>; 3] = [
            until(&cancel, "rain", long, || Ok(Err(String::new()))),
            run(&cancel, "rain", long, || {
                std::thread::park();
                Ok(())
            }),
            pass(&cancel, long),
        ];
        for wait in waits {
            let error = wait.expect_err("ended");
            assert!(matches!(error.downcast_ref(), Some(Stopped::Interrupted)));
        }
    }
}
