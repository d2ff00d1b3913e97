//! Who keeps a mount busy.
//!
//! Looked at through `/proc`: open files, working and root directories, programs, mapped files; compared by device
//! number, asked for without synchronising (`AT_STATX_DONT_SYNC`), so that a FUSE or network filesystem whose server
//! hangs is not waited for.

use std::ffi::CStr;
use std::fmt;
use std::path::Path;

use super::c_path;
use super::table::find;
use crate::{Error, Result, procs};

/// A process that uses a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// By what it holds the mount: `cwd`, `root`, `exe`, `fd N` or `map`.
    pub by: String,
    started: u64,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.pid, self.by)
    }
}

impl Holder {
    /// SIGKILLs it, if it is still the same process.
    pub(super) fn kill(&self) {
        if procs::stat(self.pid).is_ok_and(|s| s.started == self.started) {
            // SAFETY: signals one process by number.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
    }
}

/// Every process that uses what is mounted at `target`, except this one.
pub fn holders(target: &Path) -> Result<Vec<Holder>> {
    let Some(mounted) = find(target)? else {
        return Ok(Vec::new());
    };
    if !procs::proc_is_ours() {
        return Err(Error::ForeignProc);
    }
    let me = std::process::id() as i32;
    let mut found = Vec::new();
    let listed = procs::each_pid(|pid| {
        if pid == me || pid == 1 {
            return;
        }
        if let (Some(by), Ok(stat)) = (held_by(pid, mounted.device), procs::stat(pid)) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            found.push(Holder {
                pid,
                name: name.trim().into(),
                by,
                started: stat.started,
            });
        }
    });
    listed.map_err(|e| Error::system("list processes", "/proc", e))?;
    Ok(found)
}

fn held_by(pid: i32, device: (u32, u32)) -> Option<String> {
    let base = format!("/proc/{pid}");
    for link in ["cwd", "root", "exe"] {
        if is_on(&format!("{base}/{link}"), device) {
            return Some(link.into());
        }
    }
    for entry in std::fs::read_dir(format!("{base}/fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        if is_on(&entry.path().to_string_lossy(), device) {
            return Some(format!("fd {}", entry.file_name().to_string_lossy()));
        }
    }
    // address perms offset major:minor inode path, the device in hexadecimal.
    let wanted = format!("{:02x}:{:02x}", device.0, device.1);
    let maps = std::fs::read_to_string(format!("{base}/maps")).unwrap_or_default();
    let mapped = maps
        .lines()
        .any(|line| line.split_ascii_whitespace().nth(3) == Some(wanted.as_str()));
    mapped.then(|| "map".into())
}

/// Whether what the link in `/proc` stands for is on the device.
fn is_on(link: &str, device: (u32, u32)) -> bool {
    let Ok(path) = c_path(Path::new(link)) else {
        return false;
    };
    device_of(&path) == Some(device)
}

fn device_of(path: &CStr) -> Option<(u32, u32)> {
    // SAFETY: an all-zero statx is valid.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a C string and `stat` a valid place for the answer.
    let ret = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC,
            libc::STATX_TYPE,
            &mut stat,
        )
    };
    (ret == 0).then_some((stat.stx_dev_major, stat.stx_dev_minor))
}
