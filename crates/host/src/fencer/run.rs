//! The fencer process: prepares itself so that nothing keeps it from running, then watches.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::exit;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::page::{FENCED, Mapping, Page, SLOTS_MAX, SlotCell, SlotState};
use super::{FDS_VARIABLE, undo};
use crate::sys::{self, StackStr};

/// Longest sleep, in nanoseconds of CLOCK_BOOTTIME: a first deadline is noticed no later than this after it was set.
const TICK_NS: u64 = 50_000_000;
/// Sleep while a child is at work.
const WORK_TICK_NS: u64 = 1_000_000;
/// How often a fenced slot is looked at again: a daemon that was stopped between registering and making a side effect
/// makes it when it wakes.
const RECHECK_NS: u64 = 250_000_000;
/// Pause after a child that could not undo everything.
const RETRY_NS: u64 = 50_000_000;
/// Real-time priority: above ordinary programs, below the kernel's threads.
const PRIORITY: libc::c_int = 50;

/// What the fencer remembers of a slot.
#[derive(Clone, Copy)]
struct Work {
    /// The child that undoes, zero for none.
    child: libc::pid_t,
    began: u64,
    /// Not before this time is it looked at again.
    next: u64,
    failures: u32,
}

/// The fencer. Called by the process that [`FencerHandle::spawn`](super::FencerHandle::spawn) starts; never returns.
/// It ends when the daemon has ended and all is undone, with status 0; with 2 when it was not started as a fencer.
pub fn run() -> ! {
    match prepare() {
        Ok((mapping, daemon)) => watch(mapping.page(), &daemon),
        Err(problem) => {
            eprintln!("holdfast fencer: {problem}; it is started by the daemon, not by hand");
            exit(2)
        }
    }
}

fn prepare() -> Result<(Mapping, OwnedFd), String> {
    let text = std::env::var(FDS_VARIABLE).map_err(|_| format!("{FDS_VARIABLE} is not set"))?;
    let mut fds = text
        .split(',')
        .map(str::parse::<RawFd>)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| e.to_string())?;
    let [memory, daemon] = fds[..] else {
        let [memory, daemon, _claim] = fds[..] else {
            return Err(format!("{FDS_VARIABLE}={text} is not understood"));
        };
        return prepare_with(memory, daemon, &mut fds);
    };
    prepare_with(memory, daemon, &mut fds)
}

fn prepare_with(
    memory: RawFd,
    daemon: RawFd,
    keep: &mut [RawFd],
) -> Result<(Mapping, OwnedFd), String> {
    keep.sort_unstable();
    if keep[0] < 3 {
        return Err("a descriptor below 3 was given".into());
    }
    // Nothing of the daemon's (sockets, devices, locks) may live on in here, except the claim.
    sys::close_all_from(3, keep);
    // SAFETY: the daemon has passed these descriptors for this purpose; nothing else in this process owns them.
    let (memory, daemon) = unsafe { (OwnedFd::from_raw_fd(memory), OwnedFd::from_raw_fd(daemon)) };
    let mapping =
        Mapping::attach(&memory).map_err(|e| format!("the shared memory cannot be used: {e}"))?;
    ignore_signals();
    let locked = secure();
    mapping
        .page()
        .locked
        .store(locked.into(), Ordering::Release);
    // SAFETY: getpid has no preconditions.
    mapping
        .page()
        .fencer
        .store(unsafe { libc::getpid() }, Ordering::Release);
    Ok((mapping, daemon))
}

/// A service manager that stops the whole group must not take the fencer before the daemon has cleaned up.
fn ignore_signals() {
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGTSTP,
    ] {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Best effort, as far as this process may: memory locked (that is what is returned), real-time, not for the OOM killer.
fn secure() -> bool {
    let param = libc::sched_param {
        sched_priority: PRIORITY,
    };
    // SAFETY: plain calls on this process with valid arguments.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &param);
    }
    if let Ok(fd) = sys::open(c"/proc/self/oom_score_adj", libc::O_WRONLY) {
        let _ = sys::write(std::os::fd::AsFd::as_fd(&fd), b"-1000");
    }
    // SAFETY: as above.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) == 0 }
}

fn timer() -> io::Result<OwnedFd> {
    // SAFETY: makes a new descriptor or fails.
    let fd = sys::check(unsafe {
        libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)
    })?;
    // SAFETY: the descriptor has just been made and is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn watch(page: &Page, daemon: &OwnedFd) -> ! {
    let mut work = [Work {
        child: 0,
        began: 0,
        next: 0,
        failures: 0,
    }; SLOTS_MAX];
    let timer = timer().ok();
    let mut died = false;
    loop {
        died = died || sys::readable(daemon.as_raw_fd(), Duration::ZERO).unwrap_or(false);
        let now = sys::boottime_ns();
        let mut wake = now + TICK_NS;
        let mut open = 0;
        for (slot, work) in page.slots.iter().zip(&mut work) {
            let (unfinished, next) = tend(page, slot, work, now, died);
            open += usize::from(unfinished);
            wake = wake.min(next);
        }
        let wanted = !died && page.quit.load(Ordering::Acquire) == 0;
        if open == 0 && !wanted {
            exit(0);
        }
        sleep_until(timer.as_ref(), daemon, died, wake, now);
    }
}

/// Looks after one slot. Returns whether it keeps the fencer from ending, and when to look again.
fn tend(page: &Page, slot: &SlotCell, work: &mut Work, now: u64, died: bool) -> (bool, u64) {
    let word = slot.deadline.load(Ordering::Acquire);
    match SlotState::of(word) {
        SlotState::Idle if !died || slot.is_empty() => return (!slot.is_empty(), u64::MAX),
        SlotState::Held(until) if !died && until > now => return (true, until),
        SlotState::Idle | SlotState::Held(_) => {
            if !slot.begin_fencing(word) {
                // Renewed in this very moment.
                return (true, now);
            }
            *work = Work {
                child: 0,
                began: now,
                next: now,
                failures: 0,
            };
        }
        SlotState::Fencing => {}
        SlotState::Fenced if work.child == 0 => {
            if !died && now < work.next {
                return (false, work.next);
            }
            if undo::is_undone(slot) {
                work.next = now + RECHECK_NS;
                return (false, work.next);
            }
        }
        SlotState::Fenced => {}
    }
    if work.began == 0 {
        // Taken over from a fencer that died in the middle.
        work.began = now;
    }
    let done = labour(page, slot, work, now);
    if done {
        let first = slot.deadline.swap(FENCED, Ordering::AcqRel) != FENCED;
        if first {
            report(slot, work, died);
        }
        work.next = now + RECHECK_NS;
        return (false, if died { now } else { work.next });
    }
    (
        true,
        if work.child == 0 {
            work.next
        } else {
            now + WORK_TICK_NS
        },
    )
}

/// Starts or looks at the child that undoes the slot; true when it has verified that all is gone.
fn labour(page: &Page, slot: &SlotCell, work: &mut Work, now: u64) -> bool {
    if work.child == 0 {
        if now < work.next {
            return false;
        }
        let daemon = page.daemon.load(Ordering::Acquire);
        // SAFETY: this process has one thread, so the child is a whole copy; it leaves by `_exit`.
        match unsafe { libc::fork() } {
            0 => {
                let gone = undo::undo_slot(slot, daemon);
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(i32::from(!gone)) }
            }
            // No memory for a child: do it here, which is right but may hold up the other slots.
            -1 => return undo::undo_slot(slot, daemon),
            child => work.child = child,
        }
    }
    let mut status = 0;
    // SAFETY: waits for our own child without blocking; `status` is valid.
    let got = unsafe { libc::waitpid(work.child, &mut status, libc::WNOHANG) };
    if got == 0 {
        return false;
    }
    work.child = 0;
    if got > 0 && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
        return true;
    }
    work.next = now + RETRY_NS;
    work.failures += 1;
    if work.failures == 1 {
        let name = slot.name();
        let name = name_of(&name);
        say(format_args!(
            "holdfast fencer: resource {name}: not everything could be undone yet, trying on\n"
        ));
    }
    false
}

fn report(slot: &SlotCell, work: &Work, died: bool) {
    let name = slot.name();
    let name = name_of(&name);
    let why = if died {
        "the daemon has ended"
    } else {
        "the lease has ended"
    };
    let (count, took) = (
        undo::count(slot),
        sys::boottime_ns().saturating_sub(work.began) / 1_000_000,
    );
    say(format_args!(
        "holdfast fencer: resource {name}: {why}; {count} side effect(s) undone and verified in {took} ms\n"
    ));
}

fn name_of(name: &StackStr<40>) -> &str {
    match std::str::from_utf8(name.as_bytes()) {
        Ok("") | Err(_) => "(unnamed)",
        Ok(name) => name,
    }
}

/// Writes one line to stderr, unless that would block: a full pipe must not stop the fencer.
fn say(line: std::fmt::Arguments<'_>) {
    let text = StackStr::<256>::of(line);
    let mut poll = libc::pollfd {
        fd: libc::STDERR_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one valid pollfd; a valid slice.
    unsafe {
        if libc::poll(&mut poll, 1, 0) > 0 {
            libc::write(
                libc::STDERR_FILENO,
                text.as_bytes().as_ptr().cast(),
                text.as_bytes().len(),
            );
        }
    }
}

/// Sleeps until `wake` or the daemon's death.
fn sleep_until(timer: Option<&OwnedFd>, daemon: &OwnedFd, died: bool, wake: u64, now: u64) {
    let mut polls = [
        // A descriptor of -1 is not looked at: the death of the daemon is news once.
        libc::pollfd {
            fd: if died { -1 } else { daemon.as_raw_fd() },
            events: libc::POLLIN,
            revents: 0,
        },
        libc::pollfd {
            fd: timer.map_or(-1, |t| t.as_raw_fd()),
            events: libc::POLLIN,
            revents: 0,
        },
    ];
    let mut millis = -1;
    match timer {
        Some(timer) => {
            let at = libc::timespec {
                tv_sec: (wake / 1_000_000_000) as _,
                tv_nsec: (wake % 1_000_000_000) as _,
            };
            let spec = libc::itimerspec {
                it_interval: libc::timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                it_value: at,
            };
            // SAFETY: a valid timer and a valid itimerspec. Setting it also takes back an earlier expiry.
            unsafe {
                libc::timerfd_settime(
                    timer.as_raw_fd(),
                    libc::TFD_TIMER_ABSTIME,
                    &spec,
                    std::ptr::null_mut(),
                )
            };
        }
        None => {
            millis =
                (wake.saturating_sub(now) / 1_000_000).clamp(1, TICK_NS / 1_000_000) as libc::c_int
        }
    }
    // SAFETY: two valid pollfds.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as _, millis) };
}
