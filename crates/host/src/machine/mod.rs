//! Machines made of namespaces, for the demo and the tests.
//!
//! A machine is a *holder* process, first of its own pid namespace, with a network, mount, host-name and IPC namespace.
//! Commands are started inside. When the holder ends the kernel kills everything in the machine, and its links, mounts
//! and FUSE connections go with it.
//!
//! Invariants
//! - the holder lives exactly as long as the process that made it, however that ends: it waits for the end of a pipe;
//! - the host's own network and mount namespaces are never touched;
//! - the FUSE connections made in a machine are aborted before its holder is killed;
//! - nothing of a machine outlives it: there are no cgroups inside (their directory is covered), because those would.
//!
//! Without root everything happens inside one user namespace, entered before the first machine is made (see
//! [`capability`]).

mod fuse;
mod holder;
mod lab;
mod userns;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

pub use lab::{Lab, Port};
pub use userns::{Capability, Mode, capability, enter_user_namespace, into_user_namespace};

use crate::mount::c_path;
use crate::{Error, Result, sys};

/// How long the end of a machine, or of everything in it, is waited for; a child of this process that was not waited
/// for can delay it.
const END_TIME_MAX: Duration = Duration::from_secs(2);
/// How often that is looked at.
const END_POLL: Duration = Duration::from_millis(2);

/// A running machine; it ends when dropped, or with this process.
#[derive(Debug)]
pub struct Machine {
    name: String,
    holder: libc::pid_t,
    /// The holder reads its other end.
    life: Option<OwnedFd>,
    namespaces: Namespaces,
    /// Devices of the FUSE mounts it was born with, which are the host's; `None` when they could not be listed.
    inherited: Option<BTreeSet<Vec<u8>>>,
}

#[derive(Debug)]
struct Namespaces {
    net: File,
    mount: File,
    pid: File,
    uts: File,
    ipc: File,
}

impl Machine {
    /// Boots a machine called `name` (its host name). Needs root, of the host or of a user namespace.
    pub fn new(name: &str) -> Result<Self> {
        let (holder, life) = holder::start(name, false)?;
        let open = |kind: &str| {
            let path = format!("/proc/{holder}/ns/{kind}");
            File::open(&path).map_err(|e| Error::system("open a namespace", path, e))
        };
        let namespaces = (|| {
            Ok(Namespaces {
                net: open("net")?,
                mount: open("mnt")?,
                pid: open("pid")?,
                uts: open("uts")?,
                ipc: open("ipc")?,
            })
        })();
        match namespaces {
            Ok(namespaces) => Ok(Self {
                name: name.into(),
                holder,
                life: Some(life),
                inherited: fuse::devices(&namespaces.mount).ok(),
                namespaces,
            }),
            Err(error) => {
                holder::end(holder, life);
                Err(error)
            }
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The holder's process number, for people (`nsenter -t PID -a`).
    pub fn pid(&self) -> u32 {
        self.holder as u32
    }

    /// Starts a command inside. The child is this process' own: wait for it before the machine is dropped. It does not
    /// depend on the calling thread.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let place = format!(
            "{} in machine {}",
            command.get_program().to_string_lossy(),
            self.name
        );
        let cwd = command
            .get_current_dir()
            .map(|d| Ok(d.to_path_buf()))
            .unwrap_or_else(std::env::current_dir);
        let cwd = cwd.map_err(|e| Error::system("find the working directory", place.clone(), e))?;
        let cwd = c_path(&cwd)?;
        let ns = &self.namespaces;
        let entered = [
            (ns.net.as_raw_fd(), libc::CLONE_NEWNET),
            (ns.uts.as_raw_fd(), libc::CLONE_NEWUTS),
            (ns.ipc.as_raw_fd(), libc::CLONE_NEWIPC),
            (ns.mount.as_raw_fd(), libc::CLONE_NEWNS),
        ];
        // SAFETY: the closure runs between fork and exec and makes only system calls, on values made before the fork.
        unsafe {
            command.pre_exec(move || {
                for (fd, kind) in entered {
                    sys::check(libc::setns(fd, kind))?;
                }
                // The mount namespace came with its own root and working directory.
                sys::check(libc::chdir(cwd.as_ptr())).map(|_| ())
            });
        }
        let pid = ns.pid.as_raw_fd();
        // A pid namespace is entered by a thread for its children to be; the thread is not to be used for more.
        let spawned = std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: changes only where this thread's children are born.
                sys::check(unsafe { libc::setns(pid, libc::CLONE_NEWPID) })?;
                command.spawn()
            });
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))
        });
        spawned.map_err(|e| Error::system("start a command", place, e))
    }

    /// Runs a closure on a thread in the machine's network namespace (only that one).
    pub fn in_network<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        let net = self.namespaces.net.as_raw_fd();
        let fail = |e| Error::system("enter the network of a machine", self.name.clone(), e);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: changes the network namespace of this thread, which ends with the closure.
                sys::check(unsafe { libc::setns(net, libc::CLONE_NEWNET) })?;
                Ok(act())
            });
            // A panic of the closure is the caller's.
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map_err(fail)
        })
    }

    /// Aborts every FUSE connection that was made inside; returns how many there were.
    pub fn abort_fuse(&self) -> Result<usize> {
        let Some(inherited) = &self.inherited else {
            return Ok(0);
        };
        fuse::abort(&self.namespaces.mount, inherited).map_err(|e| {
            Error::system(
                "abort the FUSE connections of a machine",
                self.name.clone(),
                e,
            )
        })
    }

    /// Cuts the power: everything inside is killed at once.
    pub fn power_off(self) {
        drop(self);
    }

    fn network_fd(&self) -> i32 {
        self.namespaces.net.as_raw_fd()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(life) = self.life.take() {
            if let Err(error) = self.abort_fuse() {
                tracing::warn!(%error, "killed with its FUSE connections");
            }
            holder::end(self.holder, life);
        }
    }
}

/// A pipe, both ends close-on-exec: reading end, writing end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    sys::check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both descriptors have just been made and are owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}
