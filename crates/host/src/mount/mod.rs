//! Filesystems on the replicated device: make, check, mount, unmount.
//!
//! Invariants
//! - nothing is formatted that is not blank, whatever the configuration says;
//! - an unmount that cannot be done names who holds it, kills them if allowed, and as a last resort detaches lazily and
//!   says so;
//! - no look at a busy mount touches the filesystem itself: a hung device must not hang the looker.

mod holders;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};

pub use holders::{Holder, holders};
pub(crate) use table::{is_mounted_raw, unescape};

use crate::{Error, Result};

/// How much of a device must be zero for it to count as blank: every supported filesystem, partition table, LVM and RAID
/// header of the usual kinds lies within, in bytes.
pub const BLANK_BYTES: u64 = 1 << 20;
/// Wait between two tries to unmount.
const BUSY_GAP: Duration = Duration::from_millis(50);
/// Longest part of a tool's output kept in an error, in bytes.
const OUTPUT_BYTES_MAX: usize = 500;

/// A supported filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fs {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl Fs {
    /// Its name for the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl std::str::FromStr for Fs {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            other => Err(Error::UnknownFilesystem {
                fstype: other.into(),
            }),
        }
    }
}

/// What is mounted where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Block device.
    pub source: PathBuf,
    /// Mount point; made if absent.
    pub target: PathBuf,
    /// Filesystem.
    pub fs: Fs,
    /// Options as in fstab, comma-separated.
    pub options: String,
}

/// How a busy filesystem is unmounted.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Tries before the last resort.
    pub tries: u32,
    /// Kill who holds it (after naming them in the log).
    pub kill_holders: bool,
    /// Detach it lazily when it stays busy.
    pub lazy: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            tries: 20,
            kill_holders: true,
            lazy: true,
        }
    }
}

/// How an unmount went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unmounted {
    /// Who was killed for it.
    pub killed: Vec<Holder>,
    /// It is detached, but somebody still uses it.
    pub lazy: bool,
}

/// The first non-zero byte in the first [`BLANK_BYTES`] of a device or file, `None` when it is blank.
pub fn first_data(device: &Path) -> Result<Option<u64>> {
    let fail = |e| Error::system("read the device", device.display().to_string(), e);
    let mut file = File::open(device).map_err(fail)?.take(BLANK_BYTES);
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let got = file.read(&mut buffer).map_err(fail)?;
        if got == 0 {
            return Ok(None);
        }
        if let Some(n) = buffer[..got].iter().position(|b| *b != 0) {
            return Ok(Some(at + n as u64));
        }
        at += got as u64;
    }
}

/// Formats a blank device; refuses one with data.
pub fn make(device: &Path, fs: Fs, label: &str) -> Result<()> {
    if let Some(offset) = first_data(device)? {
        return Err(Error::NotBlank {
            device: device.into(),
            offset,
        });
    }
    let device = device.as_os_str();
    match fs {
        // Discards have been asked for by nobody: a replica that is new is zero.
        Fs::Ext4 => tool(
            "mkfs.ext4",
            &["-q", "-F", "-E", "nodiscard", "-L", label].map(OsStr::new),
            device,
            &[0],
        ),
        Fs::Xfs => tool(
            "mkfs.xfs",
            &["-q", "-K", "-L", label].map(OsStr::new),
            device,
            &[0],
        ),
    }
}

/// What a check before mounting did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Nothing to do: the journal is replayed by the mount.
    Clean,
    /// Errors were corrected.
    Repaired,
}

/// Checks a filesystem before it is mounted: `e2fsck -p` for ext4, which replays the journal and repairs what is safe to
/// repair; XFS replays its log at the mount and has nothing to check.
pub fn check(device: &Path, fs: Fs) -> Result<Checked> {
    if fs == Fs::Xfs {
        return Ok(Checked::Clean);
    }
    let output = run("e2fsck", &[OsStr::new("-p"), device.as_os_str()])?;
    match output.status.code() {
        Some(0) => Ok(Checked::Clean),
        // 1: corrected; 2: corrected, and a reboot is asked for if it was mounted, which it was not.
        Some(1..=3) => Ok(Checked::Repaired),
        _ => Err(tool_error(
            &format!("e2fsck -p {}", device.display()),
            &output,
        )),
    }
}

/// Mounts; a mount of the same device at the same place is success.
pub fn mount(spec: &Spec) -> Result<()> {
    let place = || format!("{} on {}", spec.source.display(), spec.target.display());
    if is_mounted(&spec.target)? {
        return match mounted_source(&spec.target)? {
            Some(source) if source == spec.source => Ok(()),
            other => Err(Error::system(
                "mount, because something else is mounted there",
                format!(
                    "{}: {}",
                    spec.target.display(),
                    other.unwrap_or_default().display()
                ),
                std::io::Error::from_raw_os_error(libc::EBUSY),
            )),
        };
    }
    std::fs::create_dir_all(&spec.target)
        .map_err(|e| Error::system("make the mount point", place(), e))?;
    let (flags, data) = split_options(&spec.options);
    nix::mount::mount(
        Some(&spec.source),
        &spec.target,
        Some(spec.fs.name()),
        flags,
        Some(data.as_str()),
    )
    .map_err(|e| Error::system("mount", place(), e.into()))
}

/// Separates what `mount(2)` takes as flags from what the filesystem reads.
fn split_options(options: &str) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options.split(',').map(str::trim).filter(|o| !o.is_empty()) {
        match option {
            "defaults" | "rw" | "auto" | "noauto" | "nofail" | "_netdev" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            "lazytime" => flags |= MsFlags::MS_LAZYTIME,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

/// Unmounts; what is not mounted is success. May wait for the device: call it on a thread that can afford it.
pub fn unmount(target: &Path, policy: &Policy) -> Result<Unmounted> {
    let fail = |e: nix::Error| Error::system("unmount", target.display().to_string(), e.into());
    let mut done = Unmounted::default();
    let mut last = Vec::new();
    for attempt in 0..policy.tries.max(1) {
        match nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => return Ok(done),
            Err(nix::Error::EINVAL | nix::Error::ENOENT) if !is_mounted(target)? => {
                return Ok(done);
            }
            Err(nix::Error::EBUSY) => {}
            Err(e) => return Err(fail(e)),
        }
        if attempt > 0 {
            std::thread::sleep(BUSY_GAP);
        }
        last = holders(target)?;
        if policy.kill_holders {
            for holder in &last {
                if !done.killed.iter().any(|k| k.pid == holder.pid) {
                    tracing::warn!(mount = %target.display(), %holder, "killing a process that keeps the mount busy");
                    done.killed.push(holder.clone());
                }
                holder.kill();
            }
        }
    }
    if !policy.lazy {
        let holders = last
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let holders = if holders.is_empty() {
            "nobody visible (the kernel, or another namespace)".into()
        } else {
            holders
        };
        return Err(Error::Busy {
            target: target.into(),
            tries: policy.tries,
            holders,
        });
    }
    tracing::warn!(mount = %target.display(), "still busy: detached lazily");
    nix::mount::umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(fail)?;
    done.lazy = true;
    Ok(done)
}

/// Aborts a FUSE connection and detaches its mount: everything that waits for the device gets an error. Works while the
/// process that serves it is stopped.
pub fn abort_fuse(target: &Path) -> Result<()> {
    let flags = MntFlags::MNT_FORCE | MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    match nix::mount::umount2(target, flags) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(e) => Err(Error::system(
            "abort the FUSE connection",
            target.display().to_string(),
            e.into(),
        )),
    }
}

/// Whether something is mounted at exactly this place in this mount namespace.
pub fn is_mounted(target: &Path) -> Result<bool> {
    Ok(table::find(target)?.is_some())
}

/// What is mounted there.
pub fn mounted_source(target: &Path) -> Result<Option<PathBuf>> {
    Ok(table::find(target)?.map(|m| m.source))
}

fn run(program: &'static str, args: &[&OsStr]) -> Result<Output> {
    // The administrator's tools are where an ordinary user's PATH does not look.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command
        .args(args)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
        .output()
        .map_err(|e| Error::system("run a tool (is it installed?)", program, e))
}

fn tool(program: &'static str, args: &[&OsStr], last: &OsStr, good: &[i32]) -> Result<()> {
    let args: Vec<_> = args.iter().copied().chain([last]).collect();
    let output = run(program, &args)?;
    if output.status.code().is_some_and(|c| good.contains(&c)) {
        return Ok(());
    }
    let words: Vec<_> = args.iter().map(|a| a.to_string_lossy()).collect();
    Err(tool_error(
        &format!("{program} {}", words.join(" ")),
        &output,
    ))
}

fn tool_error(command: &str, output: &Output) -> Error {
    let mut said = output.stderr.clone();
    said.extend_from_slice(&output.stdout);
    let text = String::from_utf8_lossy(&said[..said.len().min(OUTPUT_BYTES_MAX)])
        .trim()
        .to_string();
    Error::Tool {
        command: command.into(),
        status: output.status.to_string(),
        output: text,
    }
}

/// A path as the kernel takes it.
pub(crate) fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| {
        Error::system(
            "use a path with a zero byte",
            path.display().to_string(),
            e.into(),
        )
    })
}
