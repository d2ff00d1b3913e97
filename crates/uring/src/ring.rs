//! The ring: submit, wait, pop.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, SubmitArgs};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};

use crate::entry::{Built, build, timespec};
use crate::slab::{Aux, InFlight, Slab};
use crate::{Completion, Done, Op, RingError, SubmitError};

/// Submission entries of a ring unless told otherwise; the completion queue has four times as many.
pub const SQ_ENTRIES: u32 = 256;
/// Operations a ring has in flight at once unless told otherwise.
pub const IN_FLIGHT_MAX: usize = 16 * 1024;
/// Completion entries for each submission entry: several answers may wait for one pass of the loop.
const CQ_FACTOR: u32 = 4;
/// How long dropping a ring waits for the kernel to let go of the buffers; after that they are
/// leaked, never freed.
const DROP_WAIT: Duration = Duration::from_secs(10);
/// Key of submissions whose answer nobody wants; no slot has it.
const KEY_IGNORED: u64 = u64::MAX;
/// IORING_ENTER_GETEVENTS: run deferred work and look for completions.
const ENTER_GETEVENTS: u32 = 1;
/// IORING_ENTER_EXT_ARG: the argument carries a timeout.
const ENTER_EXT_ARG: u32 = 1 << 3;

/// Operations without which a volume cannot run.
const REQUIRED: [(u8, &str); 13] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::Timeout::CODE, "TIMEOUT"),
    (opcode::TimeoutRemove::CODE, "TIMEOUT_REMOVE"),
    (opcode::AsyncCancel2::CODE, "ASYNC_CANCEL"),
    (opcode::Close::CODE, "CLOSE"),
];

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Submission entries, a power of two.
    pub entries: u32,
    /// Operations in flight at once; above that [`Ring::submit`] refuses.
    pub in_flight_max: usize,
    /// Without SINGLE_ISSUER, DEFER_TASKRUN and COOP_TASKRUN, as on an old kernel.
    pub plain: bool,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            entries: SQ_ENTRIES,
            in_flight_max: IN_FLIGHT_MAX,
            plain: false,
        }
    }
}

/// Names one operation in flight, for [`Ring::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(u64);

/// An io_uring for the thread that made it.
pub struct Ring {
    ring: IoUring,
    slots: Slab,
    /// Entries that did not fit into the submission queue, in order; one per operation or cancel.
    backlog: VecDeque<squeue::Entry>,
    ready: VecDeque<Completion>,
    in_flight_max: usize,
    plain: bool,
    /// SINGLE_ISSUER: the kernel serves only the thread that made it.
    _one_thread: PhantomData<*const ()>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.slots.len())
            .field("ready", &self.ready.len())
            .field("plain", &self.plain)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Makes a ring for this thread.
    ///
    /// # Errors
    /// The kernel refuses rings altogether, or lacks something that is needed.
    pub fn new(config: RingConfig) -> Result<Self, RingError> {
        let entries = config.entries;
        let refused = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => RingError::Unavailable(source),
            Some(libc::ENOMEM) => RingError::Memory { entries },
            _ => RingError::Setup { entries, source },
        };
        let mut plain = config.plain;
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries.saturating_mul(CQ_FACTOR));
        let mut tuned = builder.clone();
        tuned
            .setup_submit_all()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun();
        let ring = if plain {
            builder.build(entries)
        } else {
            tuned.build(entries).or_else(|error| {
                if error.raw_os_error() != Some(libc::EINVAL) {
                    return Err(error);
                }
                plain = true;
                builder.build(entries)
            })
        };
        let ring = ring.map_err(refused)?;
        if !ring.params().is_feature_nodrop() {
            return Err(RingError::Missing("NODROP"));
        }
        if !ring.params().is_feature_ext_arg() {
            return Err(RingError::Missing("EXT_ARG"));
        }
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(refused)?;
        if let Some((_, name)) = REQUIRED.iter().find(|(code, _)| !probe.is_supported(*code)) {
            return Err(RingError::Missing(name));
        }
        Ok(Self {
            ring,
            slots: Slab::default(),
            backlog: VecDeque::new(),
            ready: VecDeque::new(),
            in_flight_max: config.in_flight_max,
            plain,
            _one_thread: PhantomData,
        })
    }

    /// The kernel refused the faster modes, or they were not asked for.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Operations that have not answered for the last time.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Takes an operation; it starts at the latest in the next [`Ring::wait`]. What cannot be asked
    /// of the kernel (a range outside the buffer, a path too long) answers `EINVAL` like any failure.
    ///
    /// # Errors
    /// The limit of operations in flight is reached.
    pub fn submit(&mut self, op: Op, token: u64) -> Result<OpId, SubmitError> {
        if self.slots.len() >= self.in_flight_max {
            return Err(SubmitError::Full {
                limit: self.in_flight_max,
                op: Box::new(op),
            });
        }
        let key = self.slots.insert(InFlight {
            token,
            op,
            aux: Aux::None,
            sent: 0,
        });
        match self.slots.get_mut(key).map(build) {
            Some(Built::Entry(entry)) => self.push(entry.user_data(key)),
            Some(Built::Answer(result)) => self.finish(key, result),
            None => {}
        }
        Ok(OpId(key))
    }

    /// Asks the kernel to give up one operation, which then answers `ECANCELED`, or with its result
    /// if it ends first. False if it has answered already.
    pub fn cancel(&mut self, id: OpId) -> bool {
        let in_flight = self.slots.get_mut(id.0).is_some();
        if in_flight {
            self.push(
                opcode::AsyncCancel2::new(CancelBuilder::user_data(id.0))
                    .build()
                    .user_data(KEY_IGNORED),
            );
        }
        in_flight
    }

    /// Cancels all operations with this token; says how many there were.
    pub fn cancel_token(&mut self, token: u64) -> usize {
        let keys = self.slots.keys_where(|entry| entry.token == token);
        keys.iter().filter(|key| self.cancel(OpId(**key))).count()
    }

    /// Cancels all operations on this descriptor; says how many there were. To be called before the
    /// descriptor is closed.
    pub fn cancel_fd(&mut self, fd: RawFd) -> usize {
        let keys = self.slots.keys_where(|entry| entry.op.fd() == Some(fd));
        keys.iter().filter(|key| self.cancel(OpId(**key))).count()
    }

    /// Hands everything submitted to the kernel and waits until `min` answers are ready, the time
    /// is over, or a signal came; returns how many are ready, possibly fewer than `min`.
    ///
    /// # Errors
    /// The kernel refuses the ring itself; nothing can be done but to drop it.
    pub fn wait(&mut self, min: usize, timeout: Option<Duration>) -> io::Result<usize> {
        self.fill()?;
        self.reap();
        let want = min.saturating_sub(self.ready.len());
        let pending = self.ring.submission().len();
        if want > 0 || pending > 0 || self.ready.is_empty() {
            self.enter(pending, want, timeout)?;
            self.reap();
        }
        Ok(self.ready.len())
    }

    /// The next answer. Submitting between two pops is fine.
    pub fn pop(&mut self) -> Option<Completion> {
        if self.ready.is_empty() {
            self.reap();
        }
        self.ready.pop_front()
    }

    /// All answers that are ready now.
    pub fn completions(&mut self) -> impl Iterator<Item = Completion> + '_ {
        std::iter::from_fn(|| self.pop())
    }

    /// Queues an entry behind those before it.
    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.try_push(&entry) {
            return;
        }
        self.backlog.push_back(entry);
        // An error shows itself again in the next wait, where it can be told.
        let _ = self.fill();
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: whatever the entry points to is owned by its slot until the last completion (a
        // cancel points to nothing), and slots outlive the ring's use of them (see Drop).
        unsafe { self.ring.submission().push(entry).is_ok() }
    }

    /// Moves the backlog into the submission queue as far as the kernel makes room.
    fn fill(&mut self) -> io::Result<()> {
        while let Some(entry) = self.backlog.pop_front() {
            if self.try_push(&entry) {
                continue;
            }
            let pending = self.ring.submission().len();
            let taken = self.enter(pending, 0, None);
            if self.try_push(&entry) {
                taken?;
                continue;
            }
            self.backlog.push_front(entry);
            taken?;
            break;
        }
        Ok(())
    }

    fn enter(&mut self, submit: usize, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        let submit = submit as u32;
        let want = u32::try_from(want).unwrap_or(u32::MAX);
        let outcome = match timeout {
            Some(timeout) => {
                let time = timespec(timeout);
                let args = SubmitArgs::new().timespec(&time);
                // SAFETY: the argument is what EXT_ARG asks for and lives through the call.
                unsafe {
                    submitter.enter(submit, want, ENTER_GETEVENTS | ENTER_EXT_ARG, Some(&args))
                }
            }
            // SAFETY: without an argument nothing is pointed to.
            None => unsafe {
                submitter.enter::<libc::sigset_t>(submit, want, ENTER_GETEVENTS, None)
            },
        };
        match outcome {
            Ok(_) => Ok(()),
            // Time over, a signal, or the kernel wants its completions reaped first: not an end.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn reap(&mut self) {
        loop {
            let Some(cqe) = self.ring.completion().next() else {
                return;
            };
            let key = cqe.user_data();
            if key != KEY_IGNORED {
                self.answer(key, cqe.result(), cqueue::more(cqe.flags()));
            }
        }
    }

    /// One answer of the kernel.
    fn answer(&mut self, key: u64, result: i32, more: bool) {
        let Some(entry) = self.slots.get_mut(key) else {
            return;
        };
        let mut result = if result < 0 {
            Err(io::Error::from_raw_os_error(-result))
        } else {
            Ok(result as u32)
        };
        match &entry.op {
            Op::Timeout(_)
                if result
                    .as_ref()
                    .is_err_and(|error| error.raw_os_error() == Some(libc::ETIME)) =>
            {
                result = Ok(0);
            }
            Op::Send { data, .. } => {
                let total: u64 = data.iter().map(|piece| piece.len() as u64).sum();
                match result {
                    Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                    Ok(sent) => {
                        entry.sent += u64::from(sent);
                        if entry.sent < total {
                            if let Built::Entry(next) = build(entry) {
                                self.push(next.user_data(key));
                            }
                            return;
                        }
                        // `build` refuses totals above u32.
                        result = Ok(total as u32);
                    }
                    Err(_) => {}
                }
            }
            _ => {}
        }
        if more {
            let done = accepted(&entry.op, &result);
            let token = entry.token;
            self.ready.push_back(Completion {
                token,
                result,
                done,
                more,
            });
        } else {
            self.finish(key, result);
        }
    }

    /// The last answer of an operation.
    fn finish(&mut self, key: u64, result: io::Result<u32>) {
        let Some(InFlight { token, op, aux, .. }) = self.slots.remove(key) else {
            return;
        };
        drop(aux);
        let done = match op {
            Op::Read { buf, .. } | Op::Recv { buf, .. } => Done::Buf(buf),
            Op::Write { data, .. } => Done::Data(data),
            Op::Send { data, .. } => Done::List(data),
            Op::Accept { .. } => accepted(&op, &result),
            Op::Close(fd) => {
                // Closed by the kernel, also when it reports an error; not if it never got to it.
                if !result
                    .as_ref()
                    .is_err_and(|error| error.raw_os_error() == Some(libc::ECANCELED))
                {
                    let _ = fd.into_raw_fd();
                }
                Done::None
            }
            Op::Fsync { .. }
            | Op::Fallocate { .. }
            | Op::Connect { .. }
            | Op::Poll { .. }
            | Op::Timeout(_) => Done::None,
        };
        self.ready.push_back(Completion {
            token,
            result,
            done,
            more: false,
        });
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for key in self.slots.keys_where(|_| true) {
            self.cancel(OpId(key));
        }
        let end = Instant::now() + DROP_WAIT;
        while self.slots.len() > 0 {
            let left = end.saturating_duration_since(Instant::now());
            // Answers are dropped as they come, with the buffers and connections in them.
            self.ready.clear();
            if left.is_zero() || self.wait(1, Some(left)).is_err() {
                break;
            }
        }
        if self.slots.len() > 0 {
            // A disk that hangs may still write into them: leak rather than free.
            mem::forget(mem::take(&mut self.slots));
        }
    }
}

/// The connection in an answer of an accept.
fn accepted(op: &Op, result: &io::Result<u32>) -> Done {
    match (op, result) {
        (Op::Accept { .. }, Ok(fd)) => {
            // SAFETY: the kernel has just made this descriptor for us; each answer is seen once.
            Done::Fd(unsafe { OwnedFd::from_raw_fd(*fd as RawFd) })
        }
        _ => Done::None,
    }
}
