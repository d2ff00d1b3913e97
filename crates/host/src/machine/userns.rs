//! What kind of machines can be made here, and the user namespace for those who are not root.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{Machine, holder};
use crate::{Error, Result, sys};

/// The kinds of laboratory, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Machines with real block devices.
    Root,
    /// Machines inside a user namespace: networks and VIPs, no block devices.
    Userns,
    /// No machines; loopback addresses only.
    Loopback,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Userns => "userns",
            Self::Loopback => "loopback",
        })
    }
}

/// What is possible here, and why nothing better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The best kind there is.
    pub mode: Mode,
    /// Why, in a sentence.
    pub reason: String,
    /// In [`Mode::Userns`]: a user namespace must be entered first ([`enter_user_namespace`], [`into_user_namespace`]).
    pub must_enter: bool,
}

/// Tries what can be had, by making a machine and ending it again.
pub fn capability() -> Capability {
    let direct = match Machine::new("probe") {
        Ok(_) => match devices() {
            Ok(()) => {
                let reason =
                    "root, with network, mount and pid namespaces, FUSE and loop devices".into();
                return Capability {
                    mode: Mode::Root,
                    reason,
                    must_enter: false,
                };
            }
            Err(why) => {
                let reason = format!("namespaces can be made, but no block devices: {why}");
                return Capability {
                    mode: Mode::Userns,
                    reason,
                    must_enter: false,
                };
            }
        },
        Err(error) => error,
    };
    match holder::start("probe", true) {
        Ok((pid, life)) => {
            holder::end(pid, life);
            let reason = "not root, but the kernel allows user namespaces".into();
            Capability {
                mode: Mode::Userns,
                reason,
                must_enter: true,
            }
        }
        Err(error) => {
            let hint = match std::fs::read_to_string(
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            ) {
                Ok(text) if text.trim() == "1" => {
                    " (AppArmor restricts them: sysctl kernel.apparmor_restrict_unprivileged_userns=0 allows them)"
                }
                _ => "",
            };
            let reason = format!(
                "no namespaces as this user ({direct}), nor in a user namespace ({error}){hint}"
            );
            Capability {
                mode: Mode::Loopback,
                reason,
                must_enter: false,
            }
        }
    }
}

/// Whether FUSE and loop devices can be used: root of the host, not of a user namespace.
fn devices() -> std::result::Result<(), String> {
    let map = std::fs::read_to_string("/proc/self/uid_map")
        .map_err(|e| format!("/proc/self/uid_map: {e}"))?;
    let whole = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    if !whole {
        return Err(
            "this is a user namespace, where filesystems of devices cannot be mounted".into(),
        );
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(device);
        opened.map_err(|e| format!("{device}: {e}"))?;
    }
    Ok(())
}

/// Makes this process root of a new user namespace. Only before the first thread is started.
pub fn enter_user_namespace() -> Result<()> {
    enter().map_err(|e| {
        let hint = if e.raw_os_error() == Some(libc::EINVAL) {
            "the process has threads already"
        } else {
            "refused"
        };
        Error::NoNamespaces {
            reason: format!("cannot enter a user namespace, {hint}: {e}"),
        }
    })
}

/// Makes the command root of a new user namespace.
pub fn into_user_namespace(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs between fork and exec and makes only system calls.
    unsafe { command.pre_exec(enter) }
}

fn enter() -> io::Result<()> {
    // SAFETY: these calls cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: changes this process' user namespace; refused when it has threads.
    sys::check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
    // A process that has just changed its user does not own its files in /proc, the maps among them, until this.
    // SAFETY: a prctl that takes one integer; the process holds nothing that its own user must not see.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    holder::map_to_root(uid, gid)
}
