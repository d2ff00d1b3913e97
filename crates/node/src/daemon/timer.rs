//! One alarm on CLOCK_BOOTTIME, for the control loop.

use holdfast_replicator::Now;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The alarm.
#[derive(Debug)]
pub struct BootTimer {
    fd: AsyncFd<Fd>,
    set: Option<Now>,
}

impl BootTimer {
    /// A new one, not set; needs a runtime.
    pub fn new() -> std::io::Result<Self> {
        let timer = TimerFd::new(
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )?;
        // The descriptor is owned by the very value that is registered, and never given out.
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for descriptors that change under it; this one cannot"
        )]
        let fd = AsyncFd::new(Fd(timer))?;
        Ok(Self { fd, set: None })
    }

    /// Sets it; a time in the past goes off at once.
    pub fn set(&mut self, at: Option<Now>) -> std::io::Result<()> {
        if self.set == at {
            return Ok(());
        }
        self.set = at;
        let timer = &self.fd.get_ref().0;
        match at {
            Some(at) => {
                let ns = i64::try_from(at.0.max(1)).unwrap_or(i64::MAX);
                let time = TimeSpec::new(ns / 1_000_000_000, ns % 1_000_000_000);
                timer.set(
                    Expiration::OneShot(time),
                    TimerSetTimeFlags::TFD_TIMER_ABSTIME,
                )?;
            }
            None => timer.unset()?,
        }
        Ok(())
    }

    /// Waits until it goes off. May be dropped and called again.
    pub async fn off(&mut self) -> std::io::Result<()> {
        let mut ready = self.fd.readable().await?;
        // Reading it makes it silent; if it was set anew meanwhile there is nothing to read, which is fine.
        let mut count = [0; 8];
        let read = nix::unistd::read(self.fd.get_ref().0.as_fd(), &mut count);
        ready.clear_ready();
        self.set = None;
        match read {
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn it_goes_off_at_its_time_and_only_then() {
        let rt = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        rt.block_on(async {
            let mut t = BootTimer::new().unwrap();
            let at = clock::now().plus_ms(30);
            t.set(Some(at)).unwrap();
            t.off().await.unwrap();
            assert!(clock::now() >= at);
            // In the past: at once.
            t.set(Some(Now(5))).unwrap();
            t.off().await.unwrap();
            // Taken back: never.
            t.set(Some(clock::now().plus_ms(10))).unwrap();
            t.set(None).unwrap();
            let silent = tokio::time::timeout(std::time::Duration::from_millis(60), t.off()).await;
            assert!(silent.is_err());
        });
    }
}
