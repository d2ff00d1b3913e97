//! Who descends from whom in `/proc`, and killing all of it; without allocation, so that the fencer can.
//!
//! A service may fork, change its process group or session, and lose its parent. A process belongs to it when it is
//! the service's first process, when its parent, group or session is one that belongs, or when it carries the service's
//! marker in its environment. The set only grows during one killing, so a child whose parent has just been killed is
//! still known by its session.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use crate::sys::{self, StackStr};

/// Environment variable that marks every process of a service.
pub(crate) const MARKER: &str = "HOLDFAST_SERVICE";
/// Processes one service may have while it is being killed; above it the rest is found in the next round.
const FAMILY_MAX: usize = 4096;
/// Rounds of killing before giving up.
const ROUNDS_MAX: u32 = 200;
/// Wait between two rounds, for the killed to end.
const ROUND_GAP: Duration = Duration::from_millis(5);

/// What one line of `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// In clock ticks since boot; with the pid it names one process for ever.
    pub(crate) started: u64,
}

impl Stat {
    /// Runs or can run again: neither a zombie nor about to vanish.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

fn open_of(pid: i32, file: &str) -> io::Result<OwnedFd> {
    let path = StackStr::<48>::of(format_args!("/proc/{pid}/{file}"));
    let path = path.as_cstr().ok_or(io::ErrorKind::InvalidInput)?;
    sys::open(path, libc::O_RDONLY)
}

/// Reads the state of a process; an error when there is none of that number.
pub(crate) fn stat(pid: i32) -> io::Result<Stat> {
    let fd = open_of(pid, "stat")?;
    let mut buffer = [0; 1024];
    let got = sys::read(fd.as_fd(), &mut buffer)?;
    parse_stat(&buffer[..got]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_stat(line: &[u8]) -> Option<Stat> {
    // The name in parentheses may contain anything, parentheses included: the last one ends it.
    let end = line.iter().rposition(|b| *b == b')')?;
    let text = std::str::from_utf8(&line[end + 1..]).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // Field 22 of the line; six have been taken with pid and name.
    let started = fields.nth(15)?.parse().ok()?;
    Some(Stat {
        state,
        parent,
        group,
        session,
        started,
    })
}

/// Whether `/proc` numbers processes as this process' own namespace does.
pub(crate) fn proc_is_ours() -> bool {
    let mut target = [0_u8; 32];
    // SAFETY: the buffer is valid for writes of its length.
    let got = unsafe {
        libc::readlink(
            c"/proc/self".as_ptr(),
            target.as_mut_ptr().cast(),
            target.len(),
        )
    };
    // SAFETY: getpid has no preconditions.
    let pid = unsafe { libc::getpid() };
    usize::try_from(got)
        .ok()
        .and_then(|got| std::str::from_utf8(&target[..got]).ok())
        .and_then(|text| text.parse::<i32>().ok())
        .is_some_and(|seen| seen == pid)
}

/// Hands every process id in `/proc` to `each`.
pub(crate) fn each_pid(mut each: impl FnMut(i32)) -> io::Result<()> {
    let dir = sys::open(c"/proc", libc::O_RDONLY | libc::O_DIRECTORY)?;
    let mut buffer = [0_u64; 1024];
    loop {
        // SAFETY: the buffer is valid for writes of its length and aligned for linux_dirent64.
        let got = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                dir.as_raw_fd(),
                buffer.as_mut_ptr(),
                size_of_val(&buffer),
            )
        };
        if got <= 0 {
            return if got == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            };
        }
        // SAFETY: the kernel has filled `got` bytes; any bytes are valid u8.
        let bytes =
            unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), got as usize) };
        let mut at = 0;
        // linux_dirent64: inode 8, offset 8, record length 2, type 1, name.
        while at + 19 < bytes.len() {
            let len = usize::from(u16::from_ne_bytes([bytes[at + 16], bytes[at + 17]]));
            if len < 20 || at + len > bytes.len() {
                break;
            }
            let name = &bytes[at + 19..at + len];
            let name = &name[..name.iter().position(|b| *b == 0).unwrap_or(name.len())];
            if let Some(pid) = std::str::from_utf8(name).ok().and_then(|n| n.parse().ok()) {
                each(pid);
            }
            at += len;
        }
    }
}

/// Whether the environment a process was started with has `MARKER=marker`.
fn has_marker(pid: i32, marker: u64) -> bool {
    let wanted = StackStr::<48>::of(format_args!("{MARKER}={marker:016x}"));
    let wanted = wanted.as_bytes();
    let Ok(fd) = open_of(pid, "environ") else {
        return false;
    };
    let mut buffer = [0; 4096];
    let mut held = 0;
    loop {
        let got = match sys::read(fd.as_fd(), &mut buffer[held..]) {
            Ok(0) | Err(_) => return false,
            Ok(got) => got,
        };
        let have = held + got;
        if buffer[..have].windows(wanted.len()).any(|w| w == wanted) {
            return true;
        }
        // The end may hold the beginning of the marker.
        held = have.min(wanted.len() - 1);
        buffer.copy_within(have - held..have, 0);
    }
}

/// A set of process ids found so far.
struct Family {
    pids: [i32; FAMILY_MAX],
    len: usize,
}

impl Family {
    fn has(&self, pid: i32) -> bool {
        self.pids[..self.len].contains(&pid)
    }
    /// Whether it was new and there was room.
    fn add(&mut self, pid: i32) -> bool {
        let fits = self.len < FAMILY_MAX && !self.has(pid);
        if fits {
            self.pids[self.len] = pid;
            self.len += 1;
        }
        fits
    }
}

/// What is known about a service's processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspects {
    /// Its first process, zero when none was started.
    pub(crate) root: i32,
    /// Start time of the first process, zero when unknown.
    pub(crate) root_started: u64,
    /// Value of [`MARKER`] in the environment, zero for none.
    pub(crate) marker: u64,
    /// A process that is never touched besides this one and init: the daemon.
    pub(crate) spare: i32,
}

/// The killing of one service: who belongs is remembered from round to round.
pub(crate) struct Hunt {
    who: Suspects,
    family: Family,
}

impl Hunt {
    /// Begins with what is known; looks at nothing yet.
    pub(crate) fn new(who: Suspects) -> Self {
        let mut family = Family {
            pids: [0; FAMILY_MAX],
            len: 0,
        };
        if who.root > 1 {
            // A number that was given to a new process does not belong.
            let reused = who.root_started != 0
                && stat(who.root).is_ok_and(|s| s.started != who.root_started);
            if !reused {
                family.add(who.root);
            }
        }
        Self { who, family }
    }

    /// Notes who belongs at this moment, without killing.
    pub(crate) fn look(&mut self) -> io::Result<()> {
        if !proc_is_ours() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        collect(&mut self.family, &self.who)
    }

    /// SIGKILLs all that belongs and lives; returns how many that were, so that 0 means that all are gone.
    pub(crate) fn round(&mut self) -> io::Result<usize> {
        if let Err(error) = self.look() {
            if error.kind() == io::ErrorKind::Unsupported && self.who.root > 1 {
                // The numbers in this /proc mean other processes to kill(2). The group is all that can be trusted.
                // SAFETY: signals the process group that the service was started as.
                unsafe { libc::kill(-self.who.root, libc::SIGKILL) };
            }
            return Err(error);
        }
        let mut alive = 0;
        for &pid in &self.family.pids[..self.family.len] {
            if stat(pid).is_ok_and(|s| s.is_alive()) {
                alive += 1;
                // SAFETY: signals one process by number.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        Ok(alive)
    }

    /// [`round`](Self::round) until nobody is left or the rounds are used up; returns how many are left.
    pub(crate) fn finish(&mut self) -> io::Result<usize> {
        let mut left = self.round()?;
        for _ in 1..ROUNDS_MAX {
            if left == 0 {
                break;
            }
            sys::nap(ROUND_GAP);
            left = self.round()?;
        }
        Ok(left)
    }

    /// Everybody who belonged.
    pub(crate) fn members(&self) -> &[i32] {
        &self.family.pids[..self.family.len]
    }
}

/// Adds every process that belongs, until a pass finds no new one.
fn collect(family: &mut Family, who: &Suspects) -> io::Result<()> {
    // SAFETY: getpid has no preconditions.
    let me = unsafe { libc::getpid() };
    loop {
        let mut grown = false;
        each_pid(|pid| {
            if pid == 1 || pid == me || pid == who.spare || family.has(pid) {
                return;
            }
            let Ok(stat) = stat(pid) else { return };
            let related =
                family.has(stat.parent) || family.has(stat.group) || family.has(stat.session);
            if stat.is_alive() && (related || (who.marker != 0 && has_marker(pid, who.marker))) {
                grown |= family.add(pid);
            }
        })?;
        if !grown {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let line = b"12 (a) b) S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 200 1";
        let stat = parse_stat(line).expect("well formed");
        assert_eq!(
            (
                stat.state,
                stat.parent,
                stat.group,
                stat.session,
                stat.started
            ),
            (b'S', 7, 8, 9, 777)
        );
    }

    #[test]
    fn this_process_is_seen() {
        let me = std::process::id() as i32;
        let mut seen = false;
        each_pid(|pid| seen |= pid == me).expect("/proc");
        assert!(seen && stat(me).expect("own stat").is_alive() && proc_is_ours());
    }
}
