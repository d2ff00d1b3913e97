//! The daemon's side of the fencer.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::page::{Mapping, RecordCell, SLOTS_MAX, SlotCell, SlotState};
use super::{FDS_VARIABLE, Undo};
use crate::claim::Claim;
use crate::{Error, Result, procs, sys};

/// How long a new fencer may take to report for duty.
const START_TIME_MAX: Duration = Duration::from_secs(5);
/// How often that, and the end of one, is looked for.
const START_POLL: Duration = Duration::from_millis(2);
/// How long a fencer may take to end after it was told to.
const QUIT_TIME_MAX: Duration = Duration::from_secs(2);

/// Which resource of this daemon; below [`SLOTS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// The slot of the `index`th resource.
    pub fn new(index: usize) -> Result<Self> {
        if index < SLOTS_MAX {
            Ok(Self(index as u8))
        } else {
            Err(Error::FencerFull {
                limit: format!("{SLOTS_MAX} resources per daemon"),
            })
        }
    }
    /// Its number.
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// A registered side effect; given back to [`FencerHandle::unregister`] once it is gone.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a side effect that is not unregistered is undone when the daemon ends"]
pub struct Record {
    slot: Slot,
    index: usize,
    /// How often the slot had been rearmed: a record of before that is void.
    life: u32,
}

/// Where a service's first process writes its number.
#[derive(Clone, Debug)]
pub struct PidCell {
    mapping: Arc<Mapping>,
    slot: Slot,
    index: usize,
}

impl PidCell {
    fn cell(&self) -> &RecordCell {
        &self.mapping.page().slots[self.slot.index()].records[self.index]
    }
    /// Stores the number; async-signal-safe.
    pub(crate) fn store(&self, pid: i32) {
        self.cell().pid.store(pid, Ordering::Release);
    }
}

/// The fencer process and the memory shared with it. Deadlines and registrations are atomics: no lock, no system call.
#[derive(Debug)]
pub struct FencerHandle {
    mapping: Arc<Mapping>,
    memory: OwnedFd,
    exe: PathBuf,
    args: Vec<OsString>,
    /// Shared with the fencer, so that the next daemon waits for both.
    claim: Option<OwnedFd>,
    /// Times each slot was rearmed.
    lives: [AtomicU32; SLOTS_MAX],
    /// Only starting, watching and ending the process take this lock.
    process: Mutex<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    pidfd: OwnedFd,
}

impl FencerHandle {
    /// Starts `exe args...`, which must call [`run`](super::run()), and waits until it is on duty. The fencer shares
    /// `claim`: a new daemon gets the state directory only after everything of this one has been undone.
    pub fn spawn(exe: &Path, args: &[OsString], claim: Option<&Claim>) -> Result<Self> {
        let claim = claim.map(|c| c.as_fd().try_clone_to_owned()).transpose();
        let claim = claim.map_err(|e| Error::system("share the claim", "fencer", e))?;
        let (memory, mapping) =
            Mapping::create().map_err(|e| Error::system("make shared memory", "fencer", e))?;
        mapping
            .page()
            .daemon
            .store(std::process::id() as i32, Ordering::Release);
        let mapping = Arc::new(mapping);
        let process = launch(exe, args, &memory, claim.as_ref(), &mapping)?;
        Ok(Self {
            mapping,
            memory,
            exe: exe.into(),
            args: args.to_vec(),
            claim,
            lives: std::array::from_fn(|_| AtomicU32::new(0)),
            process: Mutex::new(process),
        })
    }

    fn slot(&self, slot: Slot) -> &SlotCell {
        &self.mapping.page().slots[slot.index()]
    }

    /// Names a slot for the fencer's log lines (cut to 32 bytes).
    pub fn name(&self, slot: Slot, name: &str) {
        self.slot(slot).set_name(name);
    }

    /// Side effects of the slot may be held until `ns` of CLOCK_BOOTTIME. False when fencing has begun: the deadline
    /// does not count and everything of the slot is being undone.
    #[must_use = "false means that the slot is fenced"]
    pub fn set_deadline(&self, slot: Slot, ns: u64) -> bool {
        self.slot(slot).set_deadline(ns.max(1))
    }

    /// Nothing of the slot is held any more; there is no deadline. False when fencing has begun.
    pub fn clear(&self, slot: Slot) -> bool {
        self.slot(slot).set_deadline(0)
    }

    /// What the slot's word says.
    pub fn state(&self, slot: Slot) -> SlotState {
        SlotState::of(self.slot(slot).deadline.load(Ordering::Acquire))
    }

    /// Whether fencing of the slot has begun or is done: the daemon must regard everything there as gone.
    pub fn is_fenced(&self, slot: Slot) -> bool {
        matches!(self.state(slot), SlotState::Fencing | SlotState::Fenced)
    }

    /// Whether side effects of the slot may be made at this instant: it has a deadline, and that has not passed. Asked
    /// right before each act, because a process that was stopped in between wakes before it is fenced.
    pub fn may_hold(&self, slot: Slot) -> bool {
        matches!(self.state(slot), SlotState::Held(until) if until > sys::boottime_ns())
    }

    /// Whether anything of the slot is registered.
    pub fn has_records(&self, slot: Slot) -> bool {
        !self.slot(slot).is_empty()
    }

    /// Takes note of a finished fencing: forgets the slot's records and makes it usable again. False while the fencer is
    /// still at work on it.
    pub fn rearm(&self, slot: Slot) -> bool {
        let cell = self.slot(slot);
        match self.state(slot) {
            SlotState::Fencing => false,
            SlotState::Fenced => {
                self.lives[slot.index()].fetch_add(1, Ordering::AcqRel);
                cell.records.iter().for_each(RecordCell::free);
                cell.deadline.store(0, Ordering::Release);
                true
            }
            SlotState::Idle | SlotState::Held(_) => true,
        }
    }

    /// Notes how to undo a side effect that is about to be made; refused when the slot has no deadline, when that has
    /// passed, and when fencing of the slot has begun. Because fencing may begin right after, the caller looks at
    /// [`is_fenced`](Self::is_fenced) once more when the side effect exists, and undoes it then; the fencer looks again
    /// and again too, until [`rearm`](Self::rearm).
    pub fn register(&self, slot: Slot, undo: &Undo) -> Result<Record> {
        let life = self.lives[slot.index()].load(Ordering::Acquire);
        self.demand(slot)?;
        let index = self.slot(slot).publish(undo)?;
        let record = Record { slot, index, life };
        if let Err(e) = self.demand(slot) {
            // Nothing has been made. In a fenced slot the record stays until `rearm`.
            self.unregister(record);
            return Err(e);
        }
        Ok(record)
    }

    /// Fails when nothing may be held in the slot.
    fn demand(&self, slot: Slot) -> Result<()> {
        if self.may_hold(slot) {
            return Ok(());
        }
        let why = match self.state(slot) {
            SlotState::Fencing | SlotState::Fenced => "has fenced",
            SlotState::Idle => "knows of no lease for",
            SlotState::Held(_) => "is about to fence",
        };
        Err(Error::Fencer {
            problem: format!("{why} slot {}: nothing may be held there", slot.0),
        })
    }

    /// Forgets a side effect that is gone. After a fencing there is nothing to forget: `rearm` has done it.
    pub fn unregister(&self, record: Record) {
        let current = self.lives[record.slot.index()].load(Ordering::Acquire) == record.life;
        if current && !self.is_fenced(record.slot) {
            self.slot(record.slot).records[record.index].free();
        }
    }

    /// Where the first process of the service with this record writes its number.
    pub fn pid_cell(&self, record: &Record) -> PidCell {
        PidCell {
            mapping: Arc::clone(&self.mapping),
            slot: record.slot,
            index: record.index,
        }
    }

    /// Completes a service's record after its start, so that a reused process number is not killed.
    pub fn service_started(&self, record: &Record, pid: u32) {
        let cell = &self.slot(record.slot).records[record.index];
        cell.pid.store(pid as i32, Ordering::Release);
        cell.started.store(
            procs::stat(pid as i32).map_or(0, |s| s.started),
            Ordering::Release,
        );
    }

    /// Whether the fencer could lock its memory; without it a swapping machine may delay it.
    pub fn memory_locked(&self) -> bool {
        self.mapping.page().locked.load(Ordering::Acquire) != 0
    }

    /// The fencer's process number.
    pub fn pid(&self) -> u32 {
        self.process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .child
            .id()
    }

    /// Whether the fencer is there. When it is not, no side effect may be held until [`respawn`](Self::respawn).
    /// Never waits: while one is being started there is none.
    pub fn is_alive(&self) -> bool {
        let mut process = match self.process.try_lock() {
            Ok(process) => process,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        matches!(process.child.try_wait(), Ok(None))
    }

    /// A descriptor that becomes readable when the fencer ends.
    pub fn pidfd(&self) -> Result<OwnedFd> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process
            .pidfd
            .try_clone()
            .map_err(|e| Error::system("watch the fencer", "pidfd", e))
    }

    /// Waits until the fencer ends, which it does on its own only by accident.
    pub async fn died(&self) -> Result<()> {
        sys::readable_async(self.pidfd()?)
            .await
            .map_err(|e| Error::system("watch the fencer", "pidfd", e))
    }

    /// Starts a new fencer on the same memory, after the old one has ended: deadlines, records and fencings that had
    /// begun go on.
    pub fn respawn(&self) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(process.child.try_wait(), Ok(None)) {
            return Ok(());
        }
        self.mapping.page().fencer.store(0, Ordering::Release);
        *process = launch(
            &self.exe,
            &self.args,
            &self.memory,
            self.claim.as_ref(),
            &self.mapping,
        )?;
        Ok(())
    }

    /// Ends the fencer of a daemon that stops in order. What is still registered it undoes when the daemon has ended.
    pub fn quit(self) -> Result<()> {
        self.mapping.page().quit.store(1, Ordering::Release);
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.mapping.page().slots.iter().all(SlotCell::is_empty) {
            return Ok(());
        }
        sys::readable(process.pidfd.as_raw_fd(), QUIT_TIME_MAX)
            .map_err(|e| Error::system("wait for the fencer", "pidfd", e))?;
        match process.child.try_wait() {
            Ok(Some(_)) => Ok(()),
            _ => Err(Error::Fencer {
                problem: format!("{} does not end", process.child.id()),
            }),
        }
    }
}

fn launch(
    exe: &Path,
    args: &[OsString],
    memory: &OwnedFd,
    claim: Option<&OwnedFd>,
    mapping: &Mapping,
) -> Result<Process> {
    let place = || exe.display().to_string();
    let own = sys::pidfd_open(std::process::id() as i32)
        .map_err(|e| Error::system("open a pidfd", "self", e))?;
    let (memory_fd, daemon_fd) = (memory.as_raw_fd(), own.as_raw_fd());
    let claim_fd = claim.map(|c| c.as_raw_fd());
    let mut command = Command::new(exe);
    let claim_text = claim_fd.map_or(String::new(), |fd| format!(",{fd}"));
    command
        .args(args)
        .env(FDS_VARIABLE, format!("{memory_fd},{daemon_fd}{claim_text}"));
    // Its one line per fencing goes where the daemon's lines go. The root directory pins no mount.
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe calls on integers.
    unsafe {
        command.pre_exec(move || {
            sys::check(libc::setsid())?;
            sys::inherit(memory_fd)?;
            claim_fd.map_or(Ok(()), sys::inherit)?;
            sys::inherit(daemon_fd)
        });
    }
    let mut child = command
        .spawn()
        .map_err(|e| Error::system("start the fencer", place(), e))?;
    let pidfd = sys::pidfd_open(child.id() as i32)
        .map_err(|e| Error::system("watch the fencer", place(), e))?;
    let until = Instant::now() + START_TIME_MAX;
    while mapping.page().fencer.load(Ordering::Acquire) != child.id() as i32 {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Error::Fencer {
                problem: format!("`{}` ended at its start ({status})", place()),
            });
        }
        if Instant::now() > until {
            // Killing an unborn fencer is safe: nothing was registered with it, or the next one goes on.
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Fencer {
                problem: format!("`{}` did not report for duty", place()),
            });
        }
        sys::readable(pidfd.as_fd().as_raw_fd(), START_POLL)
            .map_err(|e| Error::system("watch the fencer", place(), e))?;
    }
    Ok(Process { child, pidfd })
}

impl AsFd for FencerHandle {
    /// The shared memory.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}
