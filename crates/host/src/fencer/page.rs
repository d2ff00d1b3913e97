//! The memory shared by daemon and fencer: its layout, and the atomics both sides use.
//!
//! Every field is an atomic, because the other process may read or write at any instant. A record is published by its
//! kind (release) after its payload, and read as kind, payload, kind again.

use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering, fence};

use super::Undo;
use crate::sys;
use crate::{Error, Result};

/// Resources one daemon can have.
pub const SLOTS_MAX: usize = 64;
/// Side effects one resource can have at a time.
pub const RECORDS_PER_SLOT: usize = 32;
/// Longest path in a record, in bytes.
pub const PATH_BYTES_MAX: usize = PAYLOAD_BYTES - 8;
/// Bytes of payload in a record.
pub(super) const PAYLOAD_BYTES: usize = PAYLOAD_WORDS * 8;
const PAYLOAD_WORDS: usize = 62;
/// First word of the page, with the layout's version in the last byte.
const MAGIC: u64 = u64::from_le_bytes(*b"HOLDFNC\x01");
/// Bytes of a slot's name.
const NAME_BYTES: usize = 32;

/// Deadline word of a slot that is being fenced.
pub(super) const FENCING: u64 = u64::MAX - 1;
/// Deadline word of a slot where all is verified to be gone.
pub(super) const FENCED: u64 = u64::MAX;
/// Largest word that is a time.
const TIME_MAX: u64 = u64::MAX - 2;

/// Kinds of records; zero is a free record.
pub(super) const KIND_FREE: u32 = 0;
/// Taken by the daemon, not yet published.
const KIND_RESERVED: u32 = 1;
const KIND_SERVICE: u32 = 2;
const KIND_CGROUP: u32 = 3;
const KIND_ADDRESS: u32 = 4;
const KIND_FUSE: u32 = 5;
const KIND_MOUNT: u32 = 6;
const KIND_LOOP: u32 = 7;
const KIND_NOTICE: u32 = 8;

/// What a slot's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing may be held; there is no deadline.
    Idle,
    /// Side effects may be held until this instant of CLOCK_BOOTTIME, in nanoseconds.
    Held(u64),
    /// The fencer is undoing them.
    Fencing,
    /// The fencer has undone them and verified it.
    Fenced,
}

impl SlotState {
    pub(super) fn of(word: u64) -> Self {
        match word {
            0 => Self::Idle,
            FENCING => Self::Fencing,
            FENCED => Self::Fenced,
            time => Self::Held(time),
        }
    }
}

#[repr(C)]
pub(super) struct RecordCell {
    pub(super) kind: AtomicU32,
    /// First process of a service; zero until it exists.
    pub(super) pid: AtomicI32,
    /// Start time of that process in clock ticks; zero while unknown.
    pub(super) started: AtomicU64,
    words: [AtomicU64; PAYLOAD_WORDS],
}

#[repr(C)]
pub(super) struct SlotCell {
    pub(super) deadline: AtomicU64,
    name: [AtomicU64; NAME_BYTES / 8],
    pub(super) records: [RecordCell; RECORDS_PER_SLOT],
}

#[repr(C)]
pub(super) struct Page {
    magic: AtomicU64,
    /// Pid of the daemon, never touched by killing.
    pub(super) daemon: AtomicI32,
    /// Pid of the fencer that serves, zero before it has started.
    pub(super) fencer: AtomicI32,
    /// The daemon wants the fencer to end once nothing is registered.
    pub(super) quit: AtomicU32,
    /// Memory could be locked.
    pub(super) locked: AtomicU32,
    pub(super) slots: [SlotCell; SLOTS_MAX],
}

/// The two processes may be different builds during an upgrade: the layout is part of the interface.
const _: () = {
    assert!(size_of::<RecordCell>() == 512);
    assert!(size_of::<SlotCell>() == 40 + 512 * RECORDS_PER_SLOT);
    assert!(offset_of!(Page, slots) == 24);
};

/// A record as the fencer reads it: on the stack.
#[derive(Clone, Copy)]
pub(super) enum Decoded {
    Service {
        marker: u64,
    },
    Cgroup(Bytes),
    Address {
        ip: IpAddr,
        prefix: u8,
        ifindex: u32,
    },
    Fuse(Bytes),
    Mount(Bytes),
    Loop(Bytes),
    Notice {
        to: SocketAddr,
        bytes: Bytes,
    },
}

/// Bytes on the stack.
#[derive(Clone, Copy)]
pub(super) struct Bytes {
    bytes: [u8; PAYLOAD_BYTES],
    from: usize,
    len: usize,
}

impl Bytes {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.len]
    }
}

/// The payload of a record under construction: two bytes of length, then fixed fields, then the variable part.
struct Payload {
    bytes: [u8; PAYLOAD_BYTES],
}

/// Offset of the variable part of a path record.
const PATH_AT: usize = 2;
/// Offset of the variable part of a notice: length 2, family 1, port 2, address 16, rounded.
const NOTICE_AT: usize = 24;

impl Payload {
    fn new() -> Self {
        Self {
            bytes: [0; PAYLOAD_BYTES],
        }
    }
    fn tail(mut self, at: usize, tail: &[u8]) -> Result<Self> {
        if tail.len() > PAYLOAD_BYTES - at
            || tail.contains(&0) && at == PATH_AT
            || tail.len() > PATH_BYTES_MAX
        {
            return Err(Error::FencerFull {
                limit: format!(
                    "a path or message of {} bytes, at most {} fit",
                    tail.len(),
                    PATH_BYTES_MAX - NOTICE_AT
                ),
            });
        }
        self.bytes[..2].copy_from_slice(&(tail.len() as u16).to_le_bytes());
        self.bytes[at..at + tail.len()].copy_from_slice(tail);
        Ok(self)
    }
    fn path(path: &Path) -> Result<Self> {
        Self::new().tail(PATH_AT, path.as_os_str().as_bytes())
    }
    fn ip(&mut self, at: usize, ip: IpAddr) {
        match ip {
            IpAddr::V4(v4) => {
                self.bytes[at] = 4;
                self.bytes[at + 1..at + 5].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                self.bytes[at] = 6;
                self.bytes[at + 1..at + 17].copy_from_slice(&v6.octets());
            }
        }
    }
    fn read_ip(&self, at: usize) -> Option<IpAddr> {
        let b = &self.bytes[at + 1..at + 17];
        match self.bytes[at] {
            4 => Some(IpAddr::V4(Ipv4Addr::new(b[0], b[1], b[2], b[3]))),
            6 => <[u8; 16]>::try_from(b)
                .ok()
                .map(|b| IpAddr::V6(Ipv6Addr::from(b))),
            _ => None,
        }
    }
    fn read_tail(&self, from: usize) -> Option<Bytes> {
        let len = usize::from(u16::from_le_bytes([self.bytes[0], self.bytes[1]]));
        (from + len <= PAYLOAD_BYTES).then_some(Bytes {
            bytes: self.bytes,
            from,
            len,
        })
    }
}

fn encode(undo: &Undo) -> Result<(u32, Payload)> {
    Ok(match undo {
        Undo::Service { marker } => {
            let mut p = Payload::new();
            p.bytes[8..16].copy_from_slice(&marker.to_le_bytes());
            (KIND_SERVICE, p)
        }
        Undo::Cgroup { path } => (KIND_CGROUP, Payload::path(path)?),
        Undo::Fuse { path } => (KIND_FUSE, Payload::path(path)?),
        Undo::Mount { path } => (KIND_MOUNT, Payload::path(path)?),
        Undo::Loop { path } => (KIND_LOOP, Payload::path(path)?),
        Undo::Address {
            ip,
            prefix,
            ifindex,
        } => {
            let mut p = Payload::new();
            p.bytes[2] = *prefix;
            p.bytes[4..8].copy_from_slice(&ifindex.to_le_bytes());
            p.ip(8, *ip);
            (KIND_ADDRESS, p)
        }
        Undo::Notice { to, bytes } => {
            let mut p = Payload::new();
            p.bytes[2..4].copy_from_slice(&to.port().to_le_bytes());
            p.ip(4, to.ip());
            (KIND_NOTICE, p.tail(NOTICE_AT, bytes)?)
        }
    })
}

fn decode(kind: u32, p: &Payload) -> Option<Decoded> {
    Some(match kind {
        KIND_SERVICE => Decoded::Service {
            marker: u64::from_le_bytes(p.bytes[8..16].try_into().ok()?),
        },
        KIND_CGROUP => Decoded::Cgroup(p.read_tail(PATH_AT)?),
        KIND_FUSE => Decoded::Fuse(p.read_tail(PATH_AT)?),
        KIND_MOUNT => Decoded::Mount(p.read_tail(PATH_AT)?),
        KIND_LOOP => Decoded::Loop(p.read_tail(PATH_AT)?),
        KIND_ADDRESS => Decoded::Address {
            ip: p.read_ip(8)?,
            prefix: p.bytes[2],
            ifindex: u32::from_le_bytes(p.bytes[4..8].try_into().ok()?),
        },
        KIND_NOTICE => Decoded::Notice {
            to: SocketAddr::new(p.read_ip(4)?, u16::from_le_bytes([p.bytes[2], p.bytes[3]])),
            bytes: p.read_tail(NOTICE_AT)?,
        },
        _ => return None,
    })
}

impl RecordCell {
    /// Takes a free record and publishes `undo` in it; false when it is taken.
    fn try_publish(&self, kind: u32, payload: &Payload) -> bool {
        let taken = self.kind.compare_exchange(
            KIND_FREE,
            KIND_RESERVED,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        if taken.is_err() {
            return false;
        }
        self.pid.store(0, Ordering::Relaxed);
        self.started.store(0, Ordering::Relaxed);
        for (word, bytes) in self.words.iter().zip(payload.bytes.chunks_exact(8)) {
            let mut raw = [0; 8];
            raw.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(raw), Ordering::Relaxed);
        }
        self.kind.store(kind, Ordering::Release);
        true
    }

    pub(super) fn free(&self) {
        self.kind.store(KIND_FREE, Ordering::Release);
    }

    /// The record, if there is one and it was not changed meanwhile.
    pub(super) fn read(&self) -> Option<Decoded> {
        let kind = self.kind.load(Ordering::Acquire);
        if kind == KIND_FREE || kind == KIND_RESERVED {
            return None;
        }
        let mut payload = Payload::new();
        for (word, bytes) in self.words.iter().zip(payload.bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        fence(Ordering::Acquire);
        if self.kind.load(Ordering::Relaxed) != kind {
            return None;
        }
        decode(kind, &payload)
    }
}

impl SlotCell {
    pub(super) fn set_name(&self, name: &str) {
        let mut bytes = [0; NAME_BYTES];
        let cut = name.len().min(NAME_BYTES);
        bytes[..cut].copy_from_slice(&name.as_bytes()[..cut]);
        for (word, raw) in self.name.iter().zip(bytes.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(raw);
            word.store(u64::from_le_bytes(eight), Ordering::Relaxed);
        }
    }

    pub(super) fn name(&self) -> sys::StackStr<40> {
        let mut bytes = [0; NAME_BYTES];
        for (word, raw) in self.name.iter().zip(bytes.chunks_exact_mut(8)) {
            raw.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        let mut name = sys::StackStr::new();
        name.push_bytes(&bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(NAME_BYTES)]);
        name
    }

    /// Sets the deadline (0: nothing held); false when fencing has begun.
    pub(super) fn set_deadline(&self, ns: u64) -> bool {
        let ns = ns.min(TIME_MAX);
        self.deadline
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                (word < FENCING).then_some(ns)
            })
            .is_ok()
    }

    /// Starts fencing if the slot's word is still `seen`.
    pub(super) fn begin_fencing(&self, seen: u64) -> bool {
        self.deadline
            .compare_exchange(seen, FENCING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    pub(super) fn publish(&self, undo: &Undo) -> Result<usize> {
        let (kind, payload) = encode(undo)?;
        // Addresses and the like are found in any order; the fencer has an order of its own.
        self.records
            .iter()
            .position(|r| r.try_publish(kind, &payload))
            .ok_or_else(|| Error::FencerFull {
                limit: format!("{RECORDS_PER_SLOT} side effects per resource"),
            })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records
            .iter()
            .all(|r| r.kind.load(Ordering::Acquire) == KIND_FREE)
    }
}

/// The page mapped into this process.
pub(super) struct Mapping {
    page: NonNull<Page>,
}

// SAFETY: the page consists of atomics only and stays mapped until the last owner of the Mapping drops it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping").finish_non_exhaustive()
    }
}

impl Mapping {
    /// Makes the memory and maps it.
    pub(super) fn create() -> io::Result<(OwnedFd, Self)> {
        // SAFETY: the name is a C string; a new descriptor or -1 comes back.
        let fd = sys::check(unsafe {
            libc::memfd_create(c"holdfast-fencer".as_ptr(), libc::MFD_CLOEXEC)
        })?;
        // SAFETY: the descriptor has just been made and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain ftruncate on our descriptor.
        sys::check(unsafe { libc::ftruncate(fd.as_raw_fd(), size_of::<Page>() as libc::off_t) })?;
        let mapping = Self::map(&fd)?;
        mapping.page().magic.store(MAGIC, Ordering::Release);
        Ok((fd, mapping))
    }

    /// Maps memory made by [`Mapping::create`] in another process.
    pub(super) fn attach(fd: &OwnedFd) -> io::Result<Self> {
        let file = std::fs::File::from(fd.as_fd().try_clone_to_owned()?);
        if file.metadata()?.len() != size_of::<Page>() as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mapping = Self::map(fd)?;
        if mapping.page().magic.load(Ordering::Acquire) != MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(mapping)
    }

    fn map(fd: &OwnedFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping of the whole file at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Page>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(at.cast::<Page>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { page })
    }

    pub(super) fn page(&self) -> &Page {
        // SAFETY: the mapping is as large as a Page, page-aligned, lives as long as self, and any bytes are valid atomics.
        unsafe { self.page.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmaps what `map` mapped; no reference into it outlives self.
        unsafe { libc::munmap(self.page.as_ptr().cast(), size_of::<Page>()) };
    }
}
