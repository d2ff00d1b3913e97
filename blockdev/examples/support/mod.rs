//! For the example and the integration tests: a disk in memory behind a port, and the smallest loop
//! that serves NBD connections from ports, one thread each. The daemon's volume loop does the same
//! with one ring for all of them.

use bytes::Bytes;
use holdfast_blockdev::frontend::Op;
use holdfast_blockdev::frontend::nbd::{Cookie, ExportTable, NbdError, Session};
use holdfast_blockdev::frontend::port::{self, PortError, PortReceiver, PortSender};
use holdfast_uring::BufPool;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

/// Pieces given to one `writev`.
const PIECES_MAX: usize = 512;

/// What a memory disk was asked, for tests.
#[derive(Debug, Default)]
pub struct Counts {
    /// Writes.
    pub writes: AtomicU64,
    /// Writes with FUA.
    pub fua: AtomicU64,
    /// Zero requests.
    pub zeroes: AtomicU64,
    /// Flushes.
    pub flushes: AtomicU64,
}

/// Start a disk of `size` zero bytes on its own thread; it ends when all senders are gone.
pub fn memory_disk(size: u64) -> io::Result<(PortSender, Arc<Counts>)> {
    let (sender, receiver) = port::port()?;
    let counts = Arc::new(Counts::default());
    let shared = Arc::clone(&counts);
    let size = usize::try_from(size).map_err(io::Error::other)?;
    thread::spawn(move || run_disk(&receiver, &mut vec![0; size], &shared));
    Ok((sender, counts))
}

fn run_disk(receiver: &PortReceiver, disk: &mut [u8], counts: &Counts) {
    while let Some(request) = receiver.recv() {
        let result = apply(disk, &request.op, counts);
        request.reply.send(result);
    }
}

fn apply(disk: &mut [u8], op: &Op, counts: &Counts) -> Result<Bytes, PortError> {
    let range = |offset: u64, len: u64| {
        let end = offset.checked_add(len).ok_or(PortError::Range)?;
        let start = usize::try_from(offset).map_err(|_| PortError::Range)?;
        Ok(start..usize::try_from(end).map_err(|_| PortError::Range)?)
    };
    match op {
        Op::Read { offset, len } => {
            let range = range(*offset, u64::from(*len))?;
            disk.get(range)
                .map(Bytes::copy_from_slice)
                .ok_or(PortError::Range)
        }
        Op::Write { offset, data, fua } => {
            counts.writes.fetch_add(1, Ordering::Relaxed);
            counts.fua.fetch_add(u64::from(*fua), Ordering::Relaxed);
            let range = range(*offset, data.len() as u64)?;
            disk.get_mut(range)
                .ok_or(PortError::Range)?
                .copy_from_slice(data);
            Ok(Bytes::new())
        }
        Op::Zero { offset, len, .. } => {
            counts.zeroes.fetch_add(1, Ordering::Relaxed);
            let range = range(*offset, *len)?;
            disk.get_mut(range).ok_or(PortError::Range)?.fill(0);
            Ok(Bytes::new())
        }
        Op::Flush => {
            counts.flushes.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::new())
        }
    }
}

/// Serve one connection until it ends; `ports` in the order of the exports.
pub fn serve(socket: OwnedFd, exports: Arc<ExportTable>, ports: &[PortSender]) -> io::Result<()> {
    let mut socket = File::from(socket);
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(flags))?;
    let wake = Arc::new(EventFd::from_flags(
        EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
    )?);
    let (done, answers) = mpsc::channel::<(Cookie, Result<Bytes, NbdError>)>();
    let mut session = Session::new(exports, BufPool::default());
    let mut target = None;
    let mut unsent: Vec<Bytes> = Vec::new();
    loop {
        // Answers lift back-pressure, so they come before requests.
        let _ = wake.read();
        while let Ok((cookie, result)) = answers.try_recv() {
            session.reply(cookie, result);
        }
        while let Some(request) = session.next_request().map_err(io::Error::other)? {
            let (done, wake, cookie) = (done.clone(), Arc::clone(&wake), request.cookie);
            let port = session
                .export()
                .and_then(|index| ports.get(index))
                .ok_or_else(|| io::Error::other("no port for the export"))?;
            port.submit(request.op, move |result| {
                let _ = done.send((cookie, result.map_err(error)));
                let _ = wake.write(1);
            });
        }
        if !unsent.is_empty() || session.take_output(&mut unsent) {
            send(&mut socket, &mut unsent)?;
            if unsent.is_empty() {
                // There may be more to send, and what was taken lifts back-pressure.
                continue;
            }
        }
        if session.finished() && unsent.is_empty() && !session.has_output() {
            return Ok(());
        }
        target = target.or_else(|| session.take_target());
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, target.is_some());
        events.set(PollFlags::POLLOUT, !unsent.is_empty());
        let mut fds = [
            PollFd::new(socket.as_fd(), events),
            PollFd::new(wake.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let readable = fds[0].revents().is_some_and(|events| !events.is_empty());
        if readable && let Some(mut taken) = target.take() {
            match socket.read(taken.room()) {
                Ok(n) => session.received(taken, n).map_err(io::Error::other)?,
                Err(error) if again(&error) => target = Some(taken),
                Err(error) => return Err(error),
            }
        }
    }
}

fn send(socket: &mut File, unsent: &mut Vec<Bytes>) -> io::Result<()> {
    while !unsent.is_empty() {
        let pieces: Vec<IoSlice<'_>> = unsent
            .iter()
            .take(PIECES_MAX)
            .map(|piece| IoSlice::new(piece))
            .collect();
        let mut n = match socket.write_vectored(&pieces) {
            Ok(n) => n,
            Err(error) if again(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let whole = unsent
            .iter()
            .take_while(|piece| {
                let fits = n >= piece.len();
                n -= if fits { piece.len() } else { 0 };
                fits
            })
            .count();
        unsent.drain(..whole);
        if let Some(first) = unsent.first_mut() {
            drop(first.split_to(n));
        }
    }
    Ok(())
}

fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn error(error: PortError) -> NbdError {
    match error {
        PortError::Io => NbdError::Io,
        PortError::Range => NbdError::Invalid,
        PortError::NotPrimary | PortError::Gone => NbdError::Shutdown,
    }
}

/// Accept connections from `accept` for ever, a thread for each.
pub fn serve_all(
    mut accept: impl FnMut() -> io::Result<OwnedFd> + Send + 'static,
    exports: Arc<ExportTable>,
    ports: Vec<PortSender>,
) {
    thread::spawn(move || {
        while let Ok(socket) = accept() {
            let (exports, ports) = (Arc::clone(&exports), ports.clone());
            thread::spawn(move || {
                if let Err(error) = serve(socket, exports, &ports) {
                    eprintln!("connection ended: {error}");
                }
            });
        }
    });
}
