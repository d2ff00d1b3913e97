//! A cgroup (v2) per service where one can be made: then nothing the service starts gets out of reach.
//! What works on a path of bytes allocates nothing, for the fencer.
//!
//! Only membership is used, no controller, so no line needs to be delegated. Where the hierarchy is absent, read-only
//! or not ours, there is none and the service is found by its process tree.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::{self, StackStr};
use crate::{Error, Result};

/// Longest path of a cgroup, in bytes: it must fit a fencer record.
const PATH_BYTES_MAX: usize = 400;
/// Rounds of waiting for a killed cgroup to be empty, and the wait between two.
const EMPTY_ROUNDS_MAX: u32 = 200;
const EMPTY_GAP: Duration = Duration::from_millis(5);

/// A cgroup of our own.
#[derive(Debug)]
pub struct Cgroup {
    pub(super) path: PathBuf,
}

/// The directory of this process' own cgroup in the v2 hierarchy, if cgroups can be made in it.
pub fn root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // A bind mount of a part of the hierarchy does not show where we are.
        (after.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })?;
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let dir = mount.join(own);
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    // SAFETY: `path` is a C string that outlives the call.
    let writable = unsafe { libc::access(path.as_ptr(), libc::W_OK) } == 0;
    (writable && dir.join("cgroup.procs").exists()).then_some(dir)
}

impl Cgroup {
    /// Makes a cgroup for a service; `None` where that is not possible.
    pub(super) fn create(name: &str, marker: u64) -> Result<Option<Self>> {
        let Some(root) = root() else { return Ok(None) };
        let path = root.join(format!("holdfast-{name}-{marker:016x}"));
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Ok(None);
        }
        match std::fs::create_dir(&path) {
            Ok(()) => Ok(Some(Self { path })),
            // Allowed by the permission bits, refused by the kernel (nested containers): do without.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EACCES | libc::EPERM | libc::EROFS)
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(Error::system(
                "make a cgroup",
                path.display().to_string(),
                e,
            )),
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file through which a child puts itself in.
    pub(super) fn open_join(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        let opened = OpenOptions::new().write(true).open(&path);
        opened.map_err(|e| Error::system("open a cgroup", path.display().to_string(), e))
    }

    /// Kills everything in it; returns 0 when it is empty, else 1.
    pub(super) fn kill(&self) -> usize {
        let path = self.path.as_os_str().as_bytes();
        for _ in 0..EMPTY_ROUNDS_MAX {
            if signal(path) {
                return 0;
            }
            sys::nap(EMPTY_GAP);
        }
        1
    }

    pub(super) fn remove(&self) {
        remove(self.path.as_os_str().as_bytes());
    }
}

impl Drop for Cgroup {
    /// Leaves no empty directory behind; one with processes stays, as they do.
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes an empty cgroup; one that is not empty or not there stays as it is.
pub(crate) fn remove(path: &[u8]) {
    if let Some(path) = file_of(path, "").as_cstr() {
        // SAFETY: `path` is a C string that outlives the call. Failure leaves an empty directory, which does no harm.
        unsafe { libc::rmdir(path.as_ptr()) };
    }
}

/// Kills every process in the cgroup at `path`, without waiting. True when it is empty already (or not there).
pub(crate) fn signal(path: &[u8]) -> bool {
    if is_empty(path) {
        return true;
    }
    if !write_to(path, "/cgroup.kill", b"1") {
        // Before Linux 5.14.
        kill_one_by_one(path);
    }
    false
}

fn file_of(path: &[u8], file: &str) -> StackStr<512> {
    let mut text = StackStr::new();
    text.push_bytes(path);
    text.push_bytes(file.as_bytes());
    text
}

fn write_to(path: &[u8], file: &str, text: &[u8]) -> bool {
    let name = file_of(path, file);
    let Some(name) = name.as_cstr() else {
        return false;
    };
    sys::open(name, libc::O_WRONLY)
        .and_then(|fd| sys::write(fd.as_fd(), text))
        .is_ok()
}

/// No live process in it or below it, or it does not exist.
pub(crate) fn is_empty(path: &[u8]) -> bool {
    let name = file_of(path, "/cgroup.events");
    let Some(name) = name.as_cstr() else {
        return false;
    };
    match sys::open(name, libc::O_RDONLY) {
        Ok(fd) => {
            let mut buffer = [0; 256];
            let got = sys::read(fd.as_fd(), &mut buffer).unwrap_or(0);
            buffer[..got]
                .split(|b| *b == b'\n')
                .any(|line| line == b"populated 0")
        }
        Err(e) => e.raw_os_error() == Some(libc::ENOENT),
    }
}

fn kill_one_by_one(path: &[u8]) {
    let name = file_of(path, "/cgroup.procs");
    let Some(name) = name.as_cstr() else { return };
    let Ok(fd) = sys::open(name, libc::O_RDONLY) else {
        return;
    };
    let mut buffer = [0; 4096];
    let got = sys::read(fd.as_fd(), &mut buffer).unwrap_or(0);
    // A number cut by the end of the buffer is left for the next round.
    let whole = buffer[..got].iter().rposition(|b| *b == b'\n').unwrap_or(0);
    for line in buffer[..whole].split(|b| *b == b'\n') {
        let pid = std::str::from_utf8(line)
            .ok()
            .and_then(|t| t.parse::<i32>().ok());
        if let Some(pid) = pid.filter(|p| *p > 1) {
            // SAFETY: signals one process by number.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}
