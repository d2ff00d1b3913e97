//! From an operation to the entry the kernel reads.

use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, TimeoutFlags, Timespec};
use io_uring::{opcode, squeue};
use nix::sys::socket::{SockaddrLike, SockaddrStorage, UnixAddr};

use crate::slab::{Aux, Fixed, InFlight, Message};
use crate::{Addr, Op, Timer};

/// Pieces of one sendmsg: the kernel's UIO_MAXIOV. A longer list goes in several.
const IOVECS_MAX: usize = 1024;

pub(crate) fn timespec(time: Duration) -> Timespec {
    Timespec::new()
        .sec(time.as_secs())
        .nsec(time.subsec_nanos())
}

/// What became of an operation.
pub(crate) enum Built {
    /// Ask the kernel.
    Entry(squeue::Entry),
    /// No need to ask the kernel.
    Answer(io::Result<u32>),
}

impl Built {
    fn invalid() -> Self {
        Self::Answer(Err(io::Error::from_raw_os_error(libc::EINVAL)))
    }
}

/// Makes the submission entry for an operation in its slot.
pub(crate) fn build(entry: &mut InFlight) -> Built {
    let InFlight { op, aux, sent, .. } = entry;
    Built::Entry(match op {
        Op::Read {
            fd,
            offset,
            buf,
            range,
        } => {
            if range.start > range.end || range.end > buf.len() {
                return Built::invalid();
            }
            let start = buf.as_raw().wrapping_add(range.start);
            opcode::Read::new(Fd(*fd), start, range.len() as u32)
                .offset(*offset)
                .build()
        }
        Op::Write {
            fd,
            offset,
            data,
            dsync,
        } => {
            let Ok(len) = u32::try_from(data.len()) else {
                return Built::invalid();
            };
            let flags = if *dsync { libc::RWF_DSYNC } else { 0 };
            opcode::Write::new(Fd(*fd), data.as_ptr(), len)
                .offset(*offset)
                .rw_flags(flags)
                .build()
        }
        Op::Fsync { fd, datasync } => {
            let flags = if *datasync {
                FsyncFlags::DATASYNC
            } else {
                FsyncFlags::empty()
            };
            opcode::Fsync::new(Fd(*fd)).flags(flags).build()
        }
        Op::Fallocate {
            fd,
            mode,
            offset,
            len,
        } => opcode::Fallocate::new(Fd(*fd), *len)
            .offset(*offset)
            .mode(mode.bits())
            .build(),
        Op::Recv {
            fd,
            buf,
            range,
            wait_all,
        } => {
            if range.start > range.end || range.end > buf.len() {
                return Built::invalid();
            }
            let start = buf.as_raw().wrapping_add(range.start);
            let flags = if *wait_all { libc::MSG_WAITALL } else { 0 };
            opcode::Recv::new(Fd(*fd), start, range.len() as u32)
                .flags(flags)
                .build()
        }
        Op::Send { fd, data } => {
            let total: u64 = data.iter().map(|piece| piece.len() as u64).sum();
            if total > u64::from(u32::MAX) {
                return Built::invalid();
            }
            if total == 0 {
                return Built::Answer(Ok(0));
            }
            let mut skip = *sent;
            let mut iovecs = Vec::with_capacity(data.len().min(IOVECS_MAX));
            for piece in data.iter() {
                let len = piece.len() as u64;
                if skip >= len {
                    skip -= len;
                    continue;
                }
                if iovecs.len() == IOVECS_MAX {
                    break;
                }
                let rest = &piece[skip as usize..];
                skip = 0;
                iovecs.push(libc::iovec {
                    iov_base: rest.as_ptr().cast_mut().cast(),
                    iov_len: rest.len(),
                });
            }
            // SAFETY: all zeroes is a valid msghdr: no name, no control data, no iovecs.
            let header: libc::msghdr = unsafe { mem::zeroed() };
            let message = Fixed::new(Message { header, iovecs });
            let at = message.as_ptr();
            // SAFETY: `at` points to the value just made, which nothing else refers to yet.
            let header = unsafe {
                (*at).header.msg_iov = (*at).iovecs.as_mut_ptr();
                (*at).header.msg_iovlen = (*at).iovecs.len() as _;
                &raw const (*at).header
            };
            *aux = Aux::Message(message);
            let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
            opcode::SendMsg::new(Fd(*fd), header).flags(flags).build()
        }
        Op::Accept {
            fd,
            multishot: true,
        } => opcode::AcceptMulti::new(Fd(*fd))
            .flags(libc::SOCK_CLOEXEC)
            .build(),
        Op::Accept {
            fd,
            multishot: false,
        } => opcode::Accept::new(Fd(*fd), std::ptr::null_mut(), std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build(),
        Op::Connect { fd, addr } => {
            let (name, len) = match addr {
                Addr::Inet(addr) => {
                    let storage = SockaddrStorage::from(*addr);
                    let len = storage.len();
                    let fixed = Fixed::new(storage);
                    let name = fixed.as_ptr().cast_const().cast();
                    *aux = Aux::Inet(fixed);
                    (name, len)
                }
                Addr::Unix(path) => {
                    let Ok(unix) = UnixAddr::new(path.as_path()) else {
                        return Built::invalid();
                    };
                    let len = unix.len();
                    let fixed = Fixed::new(unix);
                    // SAFETY: `fixed` owns an initialised address.
                    let name = unsafe { (*fixed.as_ptr()).as_ptr().cast() };
                    *aux = Aux::Unix(fixed);
                    (name, len)
                }
            };
            opcode::Connect::new(Fd(*fd), name, len).build()
        }
        Op::Poll {
            fd,
            events,
            multishot,
        } => opcode::PollAdd::new(Fd(*fd), *events)
            .multi(*multishot)
            .build(),
        Op::Timeout(timer) => {
            let (ns, flags) = match timer {
                Timer::BoottimeNs(ns) => (*ns, TimeoutFlags::ABS | TimeoutFlags::BOOTTIME),
                Timer::AfterNs(ns) => (*ns, TimeoutFlags::BOOTTIME),
            };
            let time = Fixed::new(timespec(Duration::from_nanos(ns)));
            let at = time.as_ptr().cast_const();
            *aux = Aux::Time(time);
            opcode::Timeout::new(at).flags(flags).build()
        }
        Op::Close(fd) => opcode::Close::new(Fd(fd.as_raw_fd())).build(),
    })
}
