//! Configured commands as services.
//!
//! Invariants
//! - a service is a session of its own and carries a marker in its environment; where cgroup v2 can be written it has a
//!   cgroup too, and then nothing it starts can get out of reach;
//! - its first process writes its number into the fencer's memory before it runs the command;
//! - it does not die with the thread that started it: stopping and fencing end it, nothing else.

pub(crate) mod cgroup;
mod leftover;
mod ready;
#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use self::cgroup::{Cgroup, root as cgroup_root};
pub use leftover::{HOME_VARIABLE, end_cgroup, end_leftovers};
pub use ready::Readiness;

use crate::fencer::{PidCell, Undo};
use crate::procs::{self, Hunt, Suspects};
use crate::{Error, Result, sys};

/// How often a stopping service is looked at.
const STOP_POLL: Duration = Duration::from_millis(10);

/// A service as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Name, for messages and for the log file.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables added to the daemon's environment.
    pub env: Vec<(String, String)>,
    /// Working directory; absent means `/`.
    pub cwd: Option<PathBuf>,
    /// User to run as; absent means the daemon's.
    pub user: Option<String>,
    /// When it counts as started.
    pub ready: Readiness,
    /// Signal number that asks it to end; `None` means SIGTERM.
    pub stop_signal: Option<i32>,
}

impl Spec {
    /// A service that runs `argv` and is ready once started.
    pub fn new(name: impl Into<String>, argv: Vec<String>) -> Self {
        Self {
            name: name.into(),
            argv,
            env: Vec::new(),
            cwd: None,
            user: None,
            ready: Readiness::None,
            stop_signal: None,
        }
    }
}

/// What must be known, and registered with the fencer, before a service is started.
#[derive(Debug)]
pub struct Plan {
    spec: Spec,
    marker: u64,
    cgroup: Option<Cgroup>,
    log: PathBuf,
}

impl Plan {
    /// Prepares `spec`; its output will be appended to `<name>.log` in `log_dir`. Nothing runs yet, but the cgroup exists.
    pub fn new(spec: Spec, log_dir: &Path) -> Result<Self> {
        let bad = |problem: &str| Error::BadService {
            service: spec.name.clone(),
            problem: problem.into(),
        };
        if spec.argv.is_empty() {
            return Err(bad(
                "has no command: write `command = [\"program\", \"argument\"]`",
            ));
        }
        if spec.name.is_empty() || spec.name.contains('/') || spec.name.starts_with('.') {
            return Err(bad(
                "its name becomes a file name: use letters, digits and `-`",
            ));
        }
        let log = log_dir.join(format!("{}.log", spec.name));
        let marker = fresh_marker();
        let cgroup = Cgroup::create(&spec.name, marker)?;
        Ok(Self {
            spec,
            marker,
            cgroup,
            log,
        })
    }

    /// What the fencer must be told before [`Service::start`]. The [`PidCell`] of the `Undo::Service` record goes into
    /// `start`.
    pub fn undo(&self) -> Vec<Undo> {
        let mut undo = vec![Undo::Service {
            marker: self.marker,
        }];
        undo.extend(self.cgroup.as_ref().map(|c| Undo::Cgroup {
            path: c.path().to_path_buf(),
        }));
        undo
    }
}

/// A number no other service of this boot has: time of day in nanoseconds mixed with pid and a counter.
fn fresh_marker() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let mixed = sys::boottime_ns() ^ (u64::from(std::process::id()) << 40) ^ (n << 56);
    mixed.max(1)
}

/// A service that was started. Dropping it does not stop it.
#[derive(Debug)]
pub struct Service {
    spec: Spec,
    marker: u64,
    cgroup: Option<Cgroup>,
    log: PathBuf,
    child: Child,
    pidfd: OwnedFd,
    started: u64,
    status: Option<ExitStatus>,
}

impl Service {
    /// Starts the planned command. With a cell, the child writes its pid there before anything else.
    pub fn start(plan: Plan, cell: Option<PidCell>) -> Result<Self> {
        let Plan {
            spec,
            marker,
            cgroup,
            log,
        } = plan;
        let place = || format!("service `{}`: {}", spec.name, spec.argv.join(" "));
        let mut command = Command::new(&spec.argv[0]);
        command
            .args(&spec.argv[1..])
            .current_dir(spec.cwd.as_deref().unwrap_or(Path::new("/")));
        command
            .envs(spec.env.iter().map(|(k, v)| (k, v)))
            .env(procs::MARKER, format!("{marker:016x}"));
        let output = open_log(&log)?;
        let errors = output
            .try_clone()
            .map_err(|e| Error::system("open the service log", place(), e))?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let account = spec
            .user
            .as_deref()
            .map(|user| Account::find(&spec.name, user))
            .transpose()?;
        if let Some(account) = &account {
            command
                .env("HOME", &account.home)
                .env("USER", &account.name)
                .env("LOGNAME", &account.name);
        }
        let join = cgroup.as_ref().map(Cgroup::open_join).transpose()?;
        let join_fd = join.as_ref().map(|f| f.as_raw_fd());
        let identity = account.map(|a| (a.uid, a.gid, a.groups));
        // SAFETY: the closure runs between fork and exec and makes only async-signal-safe calls: it allocates nothing,
        // takes no lock, and its captures were made before the fork.
        unsafe {
            command.pre_exec(move || {
                let pid = libc::getpid();
                if let Some(cell) = &cell {
                    cell.store(pid);
                }
                sys::check(libc::setsid())?;
                if let Some(fd) = join_fd {
                    sys::write(BorrowedFd::borrow_raw(fd), b"0")?;
                }
                reset_signals();
                if let Some((uid, gid, groups)) = &identity {
                    sys::check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                    sys::check(libc::setgid(*gid))?;
                    sys::check(libc::setuid(*uid))?;
                }
                Ok(())
            });
        }
        let child = command
            .spawn()
            .map_err(|e| Error::system("start a service", place(), e))?;
        let pid = child.id() as i32;
        let pidfd =
            sys::pidfd_open(pid).map_err(|e| Error::system("watch a service", place(), e))?;
        // Zero (unknown) when it has ended already.
        let started = procs::stat(pid).map_or(0, |s| s.started);
        Ok(Self {
            spec,
            marker,
            cgroup,
            log,
            child,
            pidfd,
            started,
            status: None,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }
    /// Its first process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }
    /// Becomes readable when the first process has ended; for callers with a poll loop of their own.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The exit status, if the first process has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            // A child of ours that cannot be waited for is gone: reported as killed.
            self.status = self
                .child
                .try_wait()
                .unwrap_or(Some(ExitStatus::from_raw(libc::SIGKILL)));
        }
        self.status
    }

    /// Waits for the first process to end. Needs a tokio runtime with I/O; may be dropped and called again.
    pub async fn exited(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait() {
                return Ok(status);
            }
            let place = || format!("service `{}`", self.spec.name);
            let pidfd = self
                .pidfd
                .try_clone()
                .map_err(|e| Error::system("watch a service", place(), e))?;
            sys::readable_async(pidfd)
                .await
                .map_err(|e| Error::system("watch a service", place(), e))?;
        }
    }

    /// Waits until the service is ready; an error when it ends before or `deadline` passes. It keeps running then:
    /// whether to stop it is the caller's to decide.
    pub async fn ready(&mut self, deadline: Duration) -> Result<()> {
        ready::wait(self, deadline).await
    }

    /// Asks the service to end, kills everything of it that is left after `grace`, and waits until all is gone.
    pub async fn stop(mut self, grace: Duration) -> Result<ExitStatus> {
        let name = self.spec.name.clone();
        tokio::task::spawn_blocking(move || self.stop_blocking(grace))
            .await
            .unwrap_or_else(|e| Err(Error::system("stop a service", name, io::Error::other(e))))
    }

    /// [`stop`](Self::stop) without a runtime. After an error something of it may live on, and this may be tried again.
    pub fn stop_blocking(&mut self, grace: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + grace;
        // Who belongs is looked up while the tree is whole: a child that outlives its parent has no parent to show.
        let mut hunt = self.hunt();
        if self.cgroup.is_none() {
            self.scanned(hunt.look().map(|()| 0))?;
        }
        if self.try_wait().is_none() {
            // SAFETY: the child has not been waited for, so its number is still its own.
            unsafe {
                libc::kill(
                    self.child.id() as i32,
                    self.spec.stop_signal.unwrap_or(libc::SIGTERM),
                )
            };
        }
        while self.try_wait().is_none() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            sys::readable(self.pidfd.as_raw_fd(), left.min(STOP_POLL))
                .map_err(|e| Error::system("wait for a service", self.spec.name.clone(), e))?;
        }
        self.kill_all(&mut hunt)
    }

    /// Kills every process of the service at once and waits until all are gone.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let mut hunt = self.hunt();
        self.kill_all(&mut hunt)
    }

    fn hunt(&self) -> Box<Hunt> {
        let root = self.child.id() as i32;
        Box::new(Hunt::new(Suspects {
            root,
            root_started: self.started,
            marker: self.marker,
            spare: 0,
        }))
    }

    /// With a cgroup, a foreign /proc does not matter.
    fn scanned(&self, result: io::Result<usize>) -> Result<usize> {
        match result {
            Ok(left) => Ok(left),
            Err(e) if e.kind() == io::ErrorKind::Unsupported && self.cgroup.is_some() => Ok(0),
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Err(Error::ForeignProc),
            Err(e) => Err(Error::system(
                "find a service's processes",
                self.spec.name.clone(),
                e,
            )),
        }
    }

    fn kill_all(&mut self, hunt: &mut Hunt) -> Result<ExitStatus> {
        let in_cgroup = self.cgroup.as_ref().map_or(0, Cgroup::kill);
        let left = self.scanned(hunt.finish())?.max(in_cgroup);
        for pid in hunt
            .members()
            .iter()
            .filter(|p| **p != self.child.id() as i32)
        {
            // Orphans come to a subreaper; the kernel refuses those that are not ours.
            // SAFETY: reaps one process by number without waiting.
            unsafe { libc::waitpid(*pid, std::ptr::null_mut(), libc::WNOHANG) };
        }
        if left > 0 {
            return Err(Error::Unkillable {
                service: self.spec.name.clone(),
                left,
            });
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        if let Some(status) = self.status {
            return Ok(status);
        }
        let status = self
            .child
            .wait()
            .map_err(|e| Error::system("wait for a service", self.spec.name.clone(), e))?;
        self.status = Some(status);
        Ok(status)
    }
}

/// Makes this process adopt the orphans of its services, so that they stay in reach where there is no cgroup.
pub fn become_subreaper() -> Result<()> {
    // SAFETY: a prctl that takes one integer.
    sys::check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })
        .map(|_| ())
        .map_err(|e| Error::system("become the reaper of orphans", "prctl", e))
}

/// Whom a service runs as.
struct Account {
    name: String,
    home: PathBuf,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Account {
    fn find(service: &str, user: &str) -> Result<Self> {
        let bad = |problem: String| Error::BadService {
            service: service.to_string(),
            problem,
        };
        let found = nix::unistd::User::from_name(user)
            .map_err(|e| Error::system("look up the user", user, e.into()))?
            .ok_or_else(|| {
                bad(format!(
                    "user `{user}` does not exist: create it or correct `user`"
                ))
            })?;
        let name = CString::new(user).map_err(|_| bad("the user name has a zero byte".into()))?;
        let groups = nix::unistd::getgrouplist(&name, found.gid)
            .map_err(|e| Error::system("look up the user's groups", user, e.into()))?;
        Ok(Self {
            name: found.name,
            home: found.dir,
            uid: found.uid.as_raw(),
            gid: found.gid.as_raw(),
            groups: groups.iter().map(|g| g.as_raw()).collect(),
        })
    }
}

fn open_log(path: &Path) -> Result<File> {
    let fail = |e| Error::system("open the service log", path.display().to_string(), e);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(fail)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(fail)
}

/// Gives the service default signal dispositions and an empty mask, whatever the daemon had.
fn reset_signals() {
    // SAFETY: plain signal calls with valid arguments; failures (SIGKILL, SIGSTOP) change nothing.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}
