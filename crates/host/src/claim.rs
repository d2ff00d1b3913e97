//! One daemon per state directory, one identity per boot, one clock.
//!
//! The lock is an advisory `flock` on `lock` in the directory: the kernel drops it with the process, however that ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Name of the lock file in a state directory.
pub const LOCK_FILE: &str = "lock";
/// How often a taken directory is tried again.
const PATIENCE_POLL: Duration = Duration::from_millis(10);
/// Where the kernel names the current boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The exclusive use of a state directory, until dropped or the process ends.
#[derive(Debug)]
pub struct Claim {
    dir: PathBuf,
    file: File,
}

impl Claim {
    /// Takes `dir` (made if absent) for this process, or says who has it.
    pub fn take(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::system("make the state directory", dir.display().to_string(), e))?;
        let path = dir.join(LOCK_FILE);
        let place = || path.display().to_string();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::system("open the lock file", place(), e))?;
        // SAFETY: `file` owns a valid descriptor.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = std::io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EWOULDBLOCK) {
                return Err(Error::system("lock the state directory", place(), error));
            }
            let mut text = String::new();
            let known = file.read_to_string(&mut text).is_ok() && !text.trim().is_empty();
            let pid = if known {
                text.trim().to_string()
            } else {
                "?".to_string()
            };
            return Err(Error::Claimed {
                dir: dir.to_path_buf(),
                pid,
            });
        }
        // The pid is for people; the lock itself is the kernel's.
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|e| Error::system("write the lock file", place(), e))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            file,
        })
    }

    /// [`take`](Self::take), with patience for a daemon that is ending or a fencer that still cleans up after one.
    pub fn take_within(dir: &Path, patience: Duration) -> Result<Self> {
        let until = Instant::now() + patience;
        loop {
            match Self::take(dir) {
                Err(Error::Claimed { .. }) if Instant::now() < until => {
                    std::thread::sleep(PATIENCE_POLL)
                }
                other => return other,
            }
        }
    }

    /// The claimed directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl AsFd for Claim {
    /// The locked file: who has a copy of this descriptor holds the claim too.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The identity of this boot of the machine: a lease or an unclean mark of another boot is recognised by it.
pub fn boot_id() -> Result<String> {
    std::fs::read_to_string(BOOT_ID)
        .map(|text| text.trim().to_string())
        .map_err(|e| Error::system("read the boot id", BOOT_ID, e))
}

/// Nanoseconds of CLOCK_BOOTTIME: never stepped, counts suspend.
pub fn now_ns() -> u64 {
    crate::sys::boottime_ns()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_claim_names_the_first() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = Claim::take(dir.path()).expect("free");
        let error = Claim::take(dir.path()).expect_err("taken");
        assert!(
            matches!(&error, Error::Claimed { pid, .. } if *pid == std::process::id().to_string()),
            "{error}"
        );
        assert!(error.to_string().contains("state_dir"));
        drop(first);
        Claim::take(dir.path()).expect("free again");
    }

    #[test]
    fn the_boot_has_an_identity_and_the_clock_goes_on() {
        assert_eq!(boot_id().expect("boot id").len(), 36);
        let before = now_ns();
        assert!(now_ns() >= before && before > 0);
    }
}
