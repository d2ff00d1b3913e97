//! The undoing itself, run by a short-lived child of the fencer, so that a disk that hangs holds up nobody else.
//!
//! Order: signal the services (nothing waits yet), remove the addresses, abort the FUSE connections (which lets every
//! process that waits for the device go on to die, and a filesystem on it be detached), wait for the services to be
//! gone, detach mounts, free loop devices. Then verify all of it.

use std::ffi::CStr;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::page::{Bytes, Decoded, RECORDS_PER_SLOT, SlotCell};
use crate::netlink::Netlink;
use crate::procs::{Hunt, Suspects};
use crate::service::cgroup;
use crate::sys::{self, StackStr};
use crate::{address, mount};

/// Tries one child makes before it leaves the rest to the next.
const TRIES_MAX: u32 = 400;
/// Wait between two tries.
const TRY_GAP: Duration = Duration::from_millis(5);
/// Filesystems that may be stacked on one mount point.
const STACKED_MAX: u32 = 8;
/// Copies of each notice, because UDP may lose one.
const NOTICE_COPIES: u32 = 3;
/// From linux/loop.h.
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;

/// Undoes everything of a slot; true when all of it was verified to be gone.
pub(super) fn undo_slot(slot: &SlotCell, daemon: i32) -> bool {
    let mut hunts: [Option<Hunt>; RECORDS_PER_SLOT] = [const { None }; RECORDS_PER_SLOT];
    for (hunt, record) in hunts.iter_mut().zip(&slot.records) {
        if let Some(Decoded::Service { marker }) = record.read() {
            *hunt = Some(Hunt::new(Suspects {
                root: record.pid.load(Ordering::Acquire),
                root_started: record.started.load(Ordering::Acquire),
                marker,
                spare: daemon,
            }));
        }
    }
    for attempt in 0..TRIES_MAX {
        if attempt > 0 {
            sys::nap(TRY_GAP);
        }
        if undo_once(slot, &mut hunts) {
            send_notices(slot);
            return true;
        }
    }
    false
}

/// All records are acted upon, whatever the first ones answer.
fn each(slot: &SlotCell, mut act: impl FnMut(&Decoded) -> bool) -> bool {
    let mut all = true;
    for record in slot.records.iter().filter_map(|r| r.read()) {
        all &= act(&record);
    }
    all
}

fn undo_once(slot: &SlotCell, hunts: &mut [Option<Hunt>]) -> bool {
    let mut gone = each(slot, |record| match record {
        Decoded::Cgroup(path) => cgroup::signal(path.as_bytes()),
        _ => true,
    });
    for hunt in hunts.iter_mut().flatten() {
        gone &= matches!(hunt.round(), Ok(0));
    }
    gone &= each(slot, |record| match record {
        Decoded::Address {
            ip,
            prefix,
            ifindex,
        } => remove_address(*ip, *prefix, *ifindex),
        _ => true,
    });
    gone &= each(slot, |record| match record {
        Decoded::Fuse(path) => unmount(path, libc::MNT_FORCE | libc::MNT_DETACH),
        _ => true,
    });
    if !gone {
        // A filesystem is detached only after its users are gone: what they had open would keep it alive unseen.
        return false;
    }
    gone &= each(slot, |record| match record {
        Decoded::Mount(path) => unmount(path, libc::MNT_DETACH),
        _ => true,
    });
    gone &= each(slot, |record| match record {
        Decoded::Loop(path) => free_loop(path),
        _ => true,
    });
    if gone {
        each(slot, |record| {
            if let Decoded::Cgroup(path) = record {
                cgroup::remove(path.as_bytes());
            }
            true
        });
    }
    gone
}

/// Whether everything of the slot is (still) gone.
pub(super) fn is_undone(slot: &SlotCell) -> bool {
    let mut services_gone = true;
    for record in &slot.records {
        if let Some(Decoded::Service { .. }) = record.read() {
            let pid = record.pid.load(Ordering::Acquire);
            let started = record.started.load(Ordering::Acquire);
            let lives =
                |s: crate::procs::Stat| s.is_alive() && (started == 0 || s.started == started);
            services_gone &= pid <= 1 || !crate::procs::stat(pid).is_ok_and(lives);
        }
    }
    services_gone
        && each(slot, |record| match record {
            Decoded::Cgroup(path) => cgroup::is_empty(path.as_bytes()),
            Decoded::Address {
                ip,
                prefix: _,
                ifindex,
            } => !has_address(*ip, *ifindex),
            Decoded::Fuse(path) | Decoded::Mount(path) => !mount::is_mounted_raw(path.as_bytes()),
            Decoded::Loop(path) => loop_is_free(path),
            Decoded::Service { .. } | Decoded::Notice { .. } => true,
        })
}

/// How many side effects are registered.
pub(super) fn count(slot: &SlotCell) -> usize {
    slot.records.iter().filter(|r| r.read().is_some()).count()
}

fn remove_address(ip: IpAddr, prefix: u8, ifindex: u32) -> bool {
    let Ok(mut netlink) = Netlink::open() else {
        return false;
    };
    address::remove_raw(&mut netlink, ip, prefix, ifindex).is_ok() && !has_address(ip, ifindex)
}

fn has_address(ip: IpAddr, ifindex: u32) -> bool {
    let mut found = false;
    let listed = Netlink::open()
        .and_then(|mut n| n.addresses(|row| found |= row.ip == ip && row.ifindex == ifindex));
    // What cannot be listed is not verified.
    listed.is_err() || found
}

fn with_path<R>(path: &Bytes, act: impl FnOnce(&CStr) -> R) -> Option<R> {
    let mut text = StackStr::<512>::new();
    text.push_bytes(path.as_bytes());
    text.as_cstr().map(act)
}

fn unmount(path: &Bytes, flags: libc::c_int) -> bool {
    for _ in 0..STACKED_MAX {
        if !mount::is_mounted_raw(path.as_bytes()) {
            return true;
        }
        with_path(path, |path| {
            // SAFETY: `path` is a C string that outlives the call.
            unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) }
        });
    }
    !mount::is_mounted_raw(path.as_bytes())
}

fn on_loop(path: &Bytes, request: libc::c_ulong) -> Option<std::io::Result<()>> {
    // struct loop_info64 has 232 bytes.
    let mut info = [0_u64; 32];
    with_path(path, |path| {
        let fd = sys::open(path, libc::O_RDONLY | libc::O_NONBLOCK)?;
        // SAFETY: both requests are valid on any descriptor; the larger one writes no more than `info` has.
        sys::check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, info.as_mut_ptr()) })
            .map(|_| ())
    })
}

fn loop_is_free(path: &Bytes) -> bool {
    match on_loop(path, LOOP_GET_STATUS64) {
        Some(Err(e)) => matches!(
            e.raw_os_error(),
            Some(libc::ENXIO | libc::ENOENT | libc::ENODEV)
        ),
        _ => false,
    }
}

fn free_loop(path: &Bytes) -> bool {
    if loop_is_free(path) {
        return true;
    }
    on_loop(path, LOOP_CLR_FD);
    loop_is_free(path)
}

fn send_notices(slot: &SlotCell) {
    each(slot, |record| {
        if let Decoded::Notice { to, bytes } = record {
            send_notice(*to, bytes.as_bytes());
        }
        true
    });
}

fn send_notice(to: SocketAddr, bytes: &[u8]) {
    let any: SocketAddr = if to.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let Ok(socket) = UdpSocket::bind(any) else {
        return;
    };
    for _ in 0..NOTICE_COPIES {
        // A lost notice costs a lease time, nothing else.
        let _ = socket.send_to(bytes, to);
    }
}
