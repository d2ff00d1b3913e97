//! The in-process way to a volume loop: other threads (FUSE, tests) hand in an [`Op`] with a
//! callback; an eventfd wakes the loop, which may sleep in its ring or in `poll`.
//!
//! Invariants
//! - every submitted request is answered exactly once: one that is dropped unanswered (the loop
//!   ended) answers [`PortError::Gone`] by itself;
//! - at most [`PORT_DEPTH`] requests wait in the channel; a submitter beyond that is blocked.
//!
//! Callbacks run on the thread that answers, normally the volume loop: they must be short and must
//! not submit to the same port (a full channel would wait for the thread that empties it).

use super::Op;
use bytes::Bytes;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};

/// Requests that may wait in a port for its loop, at the most.
pub const PORT_DEPTH: usize = 1024;

/// Why a request through a port failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// The disk failed and no other copy could serve.
    #[error("input/output error on the volume")]
    Io,
    /// Outside the volume or too large.
    #[error("request outside the volume or larger than {max} bytes", max = super::REQUEST_BYTES_MAX)]
    Range,
    /// This node is not, or no longer, the primary.
    #[error("this node is not the primary of the volume")]
    NotPrimary,
    /// The volume loop has ended.
    #[error("the volume loop has ended; is the volume still open on this node?")]
    Gone,
}

type Callback = Box<dyn FnOnce(Result<Bytes, PortError>) + Send>;

/// Answers one request; dropped unanswered it answers [`PortError::Gone`].
pub struct Reply(Option<Callback>);

impl Reply {
    /// A reply that calls `callback`.
    pub fn new(callback: impl FnOnce(Result<Bytes, PortError>) + Send + 'static) -> Self {
        Self(Some(Box::new(callback)))
    }
    /// Answer. `Ok` carries the bytes of a read and is empty otherwise.
    pub fn send(mut self, result: Result<Bytes, PortError>) {
        if let Some(callback) = self.0.take() {
            callback(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback(Err(PortError::Gone));
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// One request with the way back.
#[derive(Debug)]
pub struct PortRequest {
    /// What is asked.
    pub op: Op,
    /// Where the answer goes.
    pub reply: Reply,
}

/// The asking end; clone it freely.
#[derive(Clone, Debug)]
pub struct PortSender {
    queue: SyncSender<PortRequest>,
    wake: Arc<EventFd>,
}

/// The volume loop's end.
#[derive(Debug)]
pub struct PortReceiver {
    queue: Receiver<PortRequest>,
    wake: Arc<EventFd>,
}

/// A new port.
pub fn port() -> io::Result<(PortSender, PortReceiver)> {
    let wake = Arc::new(EventFd::from_flags(
        EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
    )?);
    let (send, receive) = mpsc::sync_channel(PORT_DEPTH);
    Ok((
        PortSender {
            queue: send,
            wake: wake.clone(),
        },
        PortReceiver {
            queue: receive,
            wake,
        },
    ))
}

impl PortSender {
    /// Hand in `op`; `done` is called with the answer, on the answering thread (or on this one with
    /// [`PortError::Gone`] if the loop has ended). Blocks while [`PORT_DEPTH`] requests wait.
    pub fn submit(&self, op: Op, done: impl FnOnce(Result<Bytes, PortError>) + Send + 'static) {
        let request = PortRequest {
            op,
            reply: Reply::new(done),
        };
        // A refused request comes back in the error and answers `Gone` when dropped here.
        if self.queue.send(request).is_ok() {
            // A saturated counter (EAGAIN) means the loop is being woken already.
            let _ = self.wake.write(1);
        }
    }

    /// Hand in `op` and wait for the answer. Not for the loop's own thread.
    pub fn call(&self, op: Op) -> Result<Bytes, PortError> {
        let (send, receive) = mpsc::sync_channel(1);
        self.submit(op, move |result| {
            // The caller waits below, so the receiver is there.
            let _ = send.send(result);
        });
        receive.recv().unwrap_or(Err(PortError::Gone))
    }
}

impl PortReceiver {
    /// Readable whenever a request was submitted since the last [`Self::clear_wake`].
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Reset the wake-up. Call it before draining with [`Self::try_recv`], never after, so that no
    /// request is overlooked. Not needed if the ring itself reads the eventfd.
    pub fn clear_wake(&self) {
        // EAGAIN: nobody had woken us.
        let _ = self.wake.read();
    }

    /// The next waiting request.
    pub fn try_recv(&self) -> Option<PortRequest> {
        self.queue.try_recv().ok()
    }

    /// Wait for the next request; `None` when every sender is gone. For loops that serve nothing else.
    pub fn recv(&self) -> Option<PortRequest> {
        self.queue.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_answered_by_the_loop() {
        let (sender, receiver) = port().expect("eventfd");
        let served = std::thread::spawn(move || {
            let mut count = 0;
            while let Some(request) = receiver.recv() {
                count += 1;
                let answer = match request.op {
                    Op::Read { len, .. } => Ok(Bytes::from(vec![7; len as usize])),
                    Op::Flush => Ok(Bytes::new()),
                    Op::Write { .. } | Op::Zero { .. } => Err(PortError::NotPrimary),
                };
                request.reply.send(answer);
            }
            count
        });
        assert_eq!(
            sender.call(Op::Read { offset: 0, len: 3 }),
            Ok(Bytes::from_static(&[7, 7, 7]))
        );
        assert_eq!(sender.call(Op::Flush), Ok(Bytes::new()));
        let write = Op::Write {
            offset: 0,
            data: Bytes::from_static(b"x"),
            fua: true,
        };
        assert_eq!(sender.call(write), Err(PortError::NotPrimary));
        drop(sender);
        assert_eq!(served.join().expect("loop"), 3);
    }

    #[test]
    fn a_dropped_request_and_a_dead_loop_answer_gone() {
        let (sender, receiver) = port().expect("eventfd");
        let (send, answers) = mpsc::channel();
        let other = send.clone();
        sender.submit(Op::Flush, move |r| send.send(r).expect("test waits"));
        let request = receiver.try_recv().expect("submitted");
        drop(request);
        assert_eq!(answers.recv(), Ok(Err(PortError::Gone)));
        sender.submit(Op::Flush, move |r| other.send(r).expect("test waits"));
        drop(receiver);
        assert_eq!(answers.recv(), Ok(Err(PortError::Gone)));
        assert_eq!(sender.call(Op::Flush), Err(PortError::Gone));
    }

    #[test]
    fn submitting_wakes_until_cleared() {
        let (sender, receiver) = port().expect("eventfd");
        let readable = || {
            let mut fds = [nix::poll::PollFd::new(
                receiver.wake_fd(),
                nix::poll::PollFlags::POLLIN,
            )];
            nix::poll::poll(&mut fds, 0u8).expect("poll") == 1
        };
        assert!(!readable());
        sender.submit(Op::Flush, |_| {});
        assert!(readable());
        receiver.clear_wake();
        assert!(!readable());
        assert!(receiver.try_recv().is_some());
        assert!(receiver.try_recv().is_none());
    }
}
