//! The way from the daemon's other threads to a volume loop: a queue and an eventfd.

use crate::net::lanes::Pair;
use holdfast_replicator::{FromControl, Status};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

/// How a volume is, as its loop sees it.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// The replica.
    pub replica: Status,
    /// NBD clients connected.
    pub clients: u32,
}

/// Called on the loop's thread when something is done; must not block.
pub type Done<T> = Box<dyn FnOnce(T) + Send>;

/// What a volume loop can be told.
pub enum Command {
    /// A word of the control plane for the replica.
    Control(FromControl),
    /// A [`super::Report::Save`] is done: where it is, or why not.
    Saved {
        /// Which.
        save: u64,
        /// In words.
        result: Result<String, String>,
    },
    /// Both lanes to a peer, authenticated.
    Lanes(Pair),
    /// How is it?
    Status(Done<VolumeStatus>),
    /// Accept NBD clients on these listening sockets.
    Listen(Vec<OwnedFd>),
    /// Stop listening and cut all clients off; done when nothing of them is left in the loop.
    Unlisten(Done<()>),
    /// Fault injection: the peers' sockets carry nothing either way, or work again.
    Isolate(bool),
    /// End the thread.
    End,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(c) => write!(f, "Control({c:?})"),
            Self::Saved { save, .. } => write!(f, "Saved({save})"),
            Self::Lanes(p) => write!(f, "Lanes({}, {:x})", p.peer, p.connection),
            Self::Status(_) => f.write_str("Status"),
            Self::Listen(l) => write!(f, "Listen({})", l.len()),
            Self::Unlisten(_) => f.write_str("Unlisten"),
            Self::Isolate(on) => write!(f, "Isolate({on})"),
            Self::End => f.write_str("End"),
        }
    }
}

/// The sending end; clone it freely.
#[derive(Clone, Debug)]
pub struct Commands {
    queue: Sender<Command>,
    wake: Arc<EventFd>,
}

/// The loop's end.
#[derive(Debug)]
pub struct Mailbox {
    queue: Receiver<Command>,
    wake: Arc<EventFd>,
}

pub(super) fn channel() -> std::io::Result<(Commands, Mailbox)> {
    let wake = Arc::new(EventFd::from_flags(
        EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
    )?);
    let (send, receive) = mpsc::channel();
    Ok((
        Commands {
            queue: send,
            wake: wake.clone(),
        },
        Mailbox {
            queue: receive,
            wake,
        },
    ))
}

impl Commands {
    /// Tells the loop. False: it has ended.
    pub fn send(&self, command: Command) -> bool {
        let sent = self.queue.send(command).is_ok();
        // A saturated counter means the loop is being woken already.
        let _ = self.wake.write(1);
        sent
    }
}

impl Mailbox {
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
    /// To be called before draining, never after, so that nothing is overlooked.
    pub(super) fn clear_wake(&self) {
        // EAGAIN: nobody had woken us.
        let _ = self.wake.read();
    }
    /// The next command. Nobody left to send one means the same as being told to end.
    pub(super) fn try_recv(&self) -> Option<Command> {
        match self.queue.try_recv() {
            Ok(command) => Some(command),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Command::End),
        }
    }
}
