//! What can go wrong with the operating system, each with the place and, where there is one, the fix.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {what} ({place}): {source}")]
    System {
        /// What was tried, as a verb phrase.
        what: &'static str,
        /// On which file, address or process.
        place: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No interface has the VIP's subnet.
    #[error(
        "no network interface has a subnet that contains the virtual IP {vip}: give the node an address in that \
         subnet, or name the interface with `device` in the resource's vip"
    )]
    NoDeviceFor {
        /// The address.
        vip: IpAddr,
    },
    /// The named interface is not there.
    #[error("network interface `{name}` does not exist: `ip link` lists the ones there are")]
    NoSuchDevice {
        /// Its name.
        name: String,
    },
    /// A prefix longer than the address.
    #[error("prefix /{prefix} does not fit {vip}: at most /{most}")]
    BadPrefix {
        /// The address.
        vip: IpAddr,
        /// The prefix asked for.
        prefix: u8,
        /// The longest possible one.
        most: u8,
    },
    /// The device is not empty.
    #[error(
        "{} holds data (first non-zero byte at {offset}): it is not formatted; clear it with `wipefs -a` and zeros \
         if the data may go", device.display()
    )]
    NotBlank {
        /// The device or file.
        device: PathBuf,
        /// Where the first non-zero byte is.
        offset: u64,
    },
    /// A tool did not succeed.
    #[error("`{command}` failed ({status}): {output}")]
    Tool {
        /// The command line.
        command: String,
        /// Exit status in words.
        status: String,
        /// What it said, cut.
        output: String,
    },
    /// A filesystem type that is not supported.
    #[error("filesystem `{fstype}` is not supported: use ext4 or xfs")]
    UnknownFilesystem {
        /// The type named in the configuration.
        fstype: String,
    },
    /// The mount point is used by processes that would not go.
    #[error("{} is still busy after {tries} tries: {holders}", target.display())]
    Busy {
        /// The mount point.
        target: PathBuf,
        /// How often it was tried.
        tries: u32,
        /// Who holds it.
        holders: String,
    },
    /// Another daemon has the state directory.
    #[error(
        "state directory {} is in use by process {pid} (or the fencer cleaning up after it): stop that daemon, or give \
         this one another `state_dir`",
        dir.display()
    )]
    Claimed {
        /// The directory.
        dir: PathBuf,
        /// The holder as written in its lock file, `?` when unknown.
        pid: String,
    },
    /// A service's configuration makes no sense.
    #[error("service `{service}`: {problem}")]
    BadService {
        /// Its name.
        service: String,
        /// What is wrong and what to write instead.
        problem: String,
    },
    /// A service ended before it was ready.
    #[error("service `{service}` ended before it was ready ({status}); its output is in {}", log.display())]
    ServiceEnded {
        /// Its name.
        service: String,
        /// Exit status in words.
        status: String,
        /// Its log file.
        log: PathBuf,
    },
    /// A service was not ready in time.
    #[error("service `{service}` was not ready ({probe}) within {millis} ms; its output is in {}", log.display())]
    NotReady {
        /// Its name.
        service: String,
        /// The probe that did not succeed.
        probe: String,
        /// The time it had.
        millis: u64,
        /// Its log file.
        log: PathBuf,
    },
    /// A service survived SIGKILL.
    #[error(
        "service `{service}` did not end after SIGKILL: {left} process(es) left, probably waiting for a disk"
    )]
    Unkillable {
        /// Its name.
        service: String,
        /// How many processes are left.
        left: usize,
    },
    /// A limit of the fencer's memory was reached.
    #[error("the fencer has no room: {limit}")]
    FencerFull {
        /// Which limit.
        limit: String,
    },
    /// The fencer did not come up or went away.
    #[error("the fencer process {problem}")]
    Fencer {
        /// What happened.
        problem: String,
    },
    /// Namespaces are not to be had.
    #[error("cannot make a machine out of namespaces: {reason}")]
    NoNamespaces {
        /// Why not.
        reason: String,
    },
    /// `/proc` shows the processes of another pid namespace, so its numbers must not be used to kill.
    #[error(
        "/proc belongs to another pid namespace: mount a fresh one (`mount -t proc proc /proc`) in this namespace"
    )]
    ForeignProc,
}

impl Error {
    /// A failed system call at `place`.
    pub(crate) fn system(what: &'static str, place: impl Into<String>, source: io::Error) -> Self {
        Self::System {
            what,
            place: place.into(),
            source,
        }
    }
}
