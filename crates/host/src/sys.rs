//! Small system helpers that neither allocate nor take locks, so that the fencer and forked children may use them.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Nanoseconds of CLOCK_BOOTTIME.
pub(crate) fn boottime_ns() -> u64 {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `ts` is a valid timespec; the clock exists on every kernel this runs on.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut ts) };
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// Turns a `-1` into the error of the call just made.
pub(crate) fn check(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Sleeps without allocation.
pub(crate) fn nap(time: Duration) {
    std::thread::sleep(time);
}

/// A C string built on the stack; what does not fit makes it invalid instead of cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StackStr<const N: usize> {
    bytes: [u8; N],
    len: usize,
    overflow: bool,
}

impl<const N: usize> StackStr<N> {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
            overflow: false,
        }
    }
    pub(crate) fn of(args: fmt::Arguments<'_>) -> Self {
        let mut text = Self::new();
        // An overflow is remembered in the value itself.
        let _ = fmt::Write::write_fmt(&mut text, args);
        text
    }
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        // One byte stays zero as the terminator.
        if self.len + bytes.len() + 1 > N {
            self.overflow = true;
            return;
        }
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
    pub(crate) fn as_cstr(&self) -> Option<&CStr> {
        if self.overflow {
            return None;
        }
        CStr::from_bytes_with_nul(&self.bytes[..self.len + 1]).ok()
    }
}

impl<const N: usize> fmt::Write for StackStr<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_bytes(text.as_bytes());
        Ok(())
    }
}

/// Opens a file without allocating; close-on-exec.
pub(crate) fn open(path: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: `path` is a C string that outlives the call.
    let fd = check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })?;
    // SAFETY: `open` has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads once.
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for writes of its length.
    let got = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    if got < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(got as usize)
    }
}

/// Writes once.
pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the slice is valid for reads of its length.
    let put = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    if put < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(put as usize)
    }
}

/// A descriptor for a process that never means another one.
pub(crate) fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(fd as libc::c_int)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether `fd` has something to read (or has ended) within `timeout`.
pub(crate) fn readable(fd: RawFd, timeout: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = timeout.as_millis().min(i32::MAX as u128) as libc::c_int;
    // SAFETY: one valid pollfd.
    let ready = unsafe { libc::poll(&mut poll, 1, millis) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted {
            Ok(false)
        } else {
            Err(error)
        };
    }
    Ok(ready > 0)
}

/// Waits in a task until `fd` has something to read or has ended. Takes a descriptor of its own, so that several tasks
/// may wait for the same thing.
pub(crate) async fn readable_async(fd: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open and owned by the AsyncFd until that is dropped.
    let watch = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(io::Error::from)?;
    watch.readable().await.map(drop)
}

/// Closes every descriptor from `first` on, except those in `keep` (which must be sorted).
pub(crate) fn close_all_from(first: RawFd, keep: &[RawFd]) {
    let mut from = first;
    for &fd in keep {
        if fd < from {
            continue;
        }
        if fd > from {
            close_range(from, fd - 1);
        }
        from = fd + 1;
    }
    close_range(from, RawFd::MAX);
}

fn close_range(from: RawFd, to: RawFd) {
    // SAFETY: closing descriptors by number; the caller is a process of its own (forked or just started) and none of
    // the closed ones is owned by a live Rust value there.
    unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
}

/// Clears close-on-exec on `fd`; for use between fork and exec.
pub(crate) fn inherit(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain fcntl on a descriptor number.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(|_| ())
}
