//! The holder of a machine: what runs in the child between its making and its end.
//!
//! The child is made by a bare `clone` in a process that may have threads, so it may do nothing but system calls until
//! it exits: no allocation, no locks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::{END_POLL, END_TIME_MAX, pipe};
use crate::netlink::Netlink;
use crate::sys::{self, StackStr};
use crate::{Error, Result};

/// Index of the loopback interface in every new network namespace.
const LOOPBACK: u32 = 1;

/// What the child does before it is a machine; the number travels to the parent when one fails.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Step {
    Ready = 0,
    UserMap,
    PrivateMounts,
    Proc,
    HostName,
    Loopback,
}

impl Step {
    fn meaning(code: u8) -> &'static str {
        match code {
            c if c == Self::UserMap as u8 => "map this user to root in a user namespace",
            c if c == Self::PrivateMounts as u8 => "make the mounts private",
            c if c == Self::Proc as u8 => "mount a fresh /proc",
            c if c == Self::HostName as u8 => "set the host name",
            c if c == Self::Loopback as u8 => "bring up the loopback interface",
            _ => "start the holder process",
        }
    }
}

/// Starts a holder; with `user`, in a user namespace of its own. Returns its pid and the pipe end that keeps it alive.
pub(super) fn start(name: &str, user: bool) -> Result<(libc::pid_t, OwnedFd)> {
    let fail = |e| Error::system("make a pipe", "machine", e);
    let (life_read, life_write) = pipe().map_err(fail)?;
    let (ready_read, ready_write) = pipe().map_err(fail)?;
    let mut host = StackStr::<65>::new();
    host.push_bytes(name.as_bytes());
    // SAFETY: these calls cannot fail.
    let ids = user.then(|| unsafe { (libc::geteuid(), libc::getegid()) });
    let mut flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::SIGCHLD;
    if user {
        flags |= libc::CLONE_NEWUSER;
    }
    // SAFETY: without CLONE_VM and with a null stack this is fork: the child goes on with a copy of everything, makes
    // only system calls and never returns from `hold`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    match pid {
        0 => hold(&life_read, &ready_write, &host, ids),
        pid if pid < 0 => {
            let error = io::Error::last_os_error();
            let hint = match error.raw_os_error() {
                Some(libc::EPERM) => {
                    "this process may not (no root, or a container that forbids it)"
                }
                Some(libc::ENOSPC | libc::EUSERS) => "a limit in /proc/sys/user/ is reached",
                Some(libc::EINVAL) => "this kernel lacks a kind of namespace",
                _ => "clone failed",
            };
            return Err(Error::NoNamespaces {
                reason: format!("{hint}: {error}"),
            });
        }
        _ => {}
    }
    let pid = pid as libc::pid_t;
    drop((life_read, ready_write));
    let mut report = [u8::MAX; 5];
    let got = read_all(&ready_read, &mut report);
    if got == report.len() && report[0] == Step::Ready as u8 {
        return Ok((pid, life_write));
    }
    end(pid, life_write);
    let what = Step::meaning(if got == report.len() {
        report[0]
    } else {
        u8::MAX
    });
    let code = i32::from_ne_bytes([report[1], report[2], report[3], report[4]]);
    let why = if got == report.len() {
        io::Error::from_raw_os_error(code).to_string()
    } else {
        "it ended".into()
    };
    Err(Error::NoNamespaces {
        reason: format!("cannot {what}: {why}"),
    })
}

fn read_all(fd: &OwnedFd, buffer: &mut [u8]) -> usize {
    let mut have = 0;
    while have < buffer.len() {
        match sys::read(fd.as_fd(), &mut buffer[have..]) {
            Ok(0) => break,
            Ok(got) => have += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    have
}

/// Ends a holder and waits for it, within reason.
pub(super) fn end(pid: libc::pid_t, life: OwnedFd) {
    drop(life);
    // SAFETY: the holder is our child and not waited for, so its number is still its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let until = std::time::Instant::now() + END_TIME_MAX;
    // SAFETY: waits for our own child without blocking.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } == 0 {
        if std::time::Instant::now() > until {
            // The kernel finishes when the last child inside has been waited for, at the latest when this process ends.
            tracing::warn!(
                pid,
                "a machine is still ending: a process started in it was not waited for"
            );
            return;
        }
        sys::nap(END_POLL);
    }
}

/// The child: sets the machine up, reports, waits for the end of its maker.
fn hold(life: &OwnedFd, ready: &OwnedFd, host: &StackStr<65>, ids: Option<(u32, u32)>) -> ! {
    let mut keep: [RawFd; 2] = [life.as_raw_fd(), ready.as_raw_fd()];
    keep.sort_unstable();
    // Other machines' pipes above all: a copy of their writing end would keep them alive.
    sys::close_all_from(0, &keep);
    // SAFETY: a session of its own, so that no terminal reaches it; zombies that come to pid 1 vanish by themselves.
    unsafe {
        libc::setsid();
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
    let (step, code) = match set_up(host, ids) {
        Ok(()) => (Step::Ready, 0),
        Err((step, error)) => (step, error.raw_os_error().unwrap_or(libc::EIO)),
    };
    let mut report = [step as u8; 5];
    report[1..].copy_from_slice(&code.to_ne_bytes());
    let told = sys::write(ready.as_fd(), &report).is_ok();
    // The maker waits for the end of this pipe if the report is cut short.
    // SAFETY: closes a descriptor of this process that is not used again.
    unsafe { libc::close(ready.as_raw_fd()) };
    let mut byte = [0];
    if told && code == 0 {
        // An interrupted read is the only reason to read again: nothing is ever written to this pipe.
        while sys::read(life.as_fd(), &mut byte)
            .is_err_and(|e| e.kind() == io::ErrorKind::Interrupted)
        {}
        empty();
    }
    // SAFETY: ends this process without running anything of the maker's; the kernel kills the rest of the namespace.
    unsafe { libc::_exit(0) }
}

/// Kills everything in the machine, and waits until it is gone: the holder must be the last one in the mount
/// namespace. A process that serves FUSE and is the last one there takes its mounts down while it still holds its end
/// of FUSE open, and then waits for an answer of its own, for ever.
fn empty() {
    let mut tries = END_TIME_MAX.as_micros() / END_POLL.as_micros();
    // SAFETY: sends a signal to all processes of this pid namespace but the first, which is this one.
    while tries > 0 && unsafe { libc::kill(-1, libc::SIGKILL) } == 0 {
        sys::nap(END_POLL);
        tries -= 1;
    }
}

fn set_up(
    host: &StackStr<65>,
    ids: Option<(u32, u32)>,
) -> std::result::Result<(), (Step, io::Error)> {
    if let Some((uid, gid)) = ids {
        map_to_root(uid, gid).map_err(|e| (Step::UserMap, e))?;
    }
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    mount(c"none", c"/", c"", flags).map_err(|e| (Step::PrivateMounts, e))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(c"proc", c"/proc", c"proc", flags).map_err(|e| (Step::Proc, e))?;
    // Best effort: where there is no cgroup directory, or it cannot be covered, it cannot be written in either.
    let _ = mount(
        c"none",
        c"/sys/fs/cgroup",
        c"tmpfs",
        flags | libc::MS_RDONLY,
    );
    let name = host.as_bytes();
    // SAFETY: the slice is valid for reads of its length.
    sys::check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
        .map_err(|e| (Step::HostName, e))?;
    Netlink::open()
        .and_then(|mut n| n.set_up(LOOPBACK, true))
        .map_err(|e| (Step::Loopback, e))
}

fn mount(
    source: &std::ffi::CStr,
    target: &std::ffi::CStr,
    kind: &std::ffi::CStr,
    flags: u64,
) -> io::Result<()> {
    // SAFETY: three C strings that outlive the call, and no data.
    sys::check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags as libc::c_ulong,
            std::ptr::null(),
        )
    })
    .map(|_| ())
}

/// Makes the user outside root inside; allocation-free, for forked children.
pub(super) fn map_to_root(uid: u32, gid: u32) -> io::Result<()> {
    let put = |path: &std::ffi::CStr, text: &[u8]| {
        let fd = sys::open(path, libc::O_WRONLY)?;
        sys::write(fd.as_fd(), text).map(|_| ())
    };
    put(
        c"/proc/self/uid_map",
        StackStr::<32>::of(format_args!("0 {uid} 1")).as_bytes(),
    )?;
    // Without this an ordinary user may not map groups; kernels before 3.19 do not have it.
    let _ = put(c"/proc/self/setgroups", b"deny");
    put(
        c"/proc/self/gid_map",
        StackStr::<32>::of(format_args!("0 {gid} 1")).as_bytes(),
    )
}
