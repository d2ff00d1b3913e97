//! The operations the kernel has, and everything in memory they need.
//!
//! A key is a slot's index with the slot's generation above it, so that a late answer or a cancel
//! for an operation that has ended never meets the one that took its slot.

use std::ptr::NonNull;

use io_uring::types::Timespec;
use nix::sys::socket::{SockaddrStorage, UnixAddr};

use crate::Op;

/// Memory at a fixed address that the kernel reads through a raw pointer.
pub(crate) struct Fixed<T>(NonNull<T>);

impl<T> Fixed<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(NonNull::from(Box::leak(Box::new(value))))
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Fixed<T> {
    fn drop(&mut self) {
        // SAFETY: it came from a leaked Box in `new` and is dropped once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A message header with the iovecs it points to.
pub(crate) struct Message {
    pub(crate) header: libc::msghdr,
    pub(crate) iovecs: Vec<libc::iovec>,
}

/// What an operation needs beside its buffers.
#[expect(
    dead_code,
    reason = "the fields are held for the kernel, which reads them"
)]
pub(crate) enum Aux {
    None,
    Message(Fixed<Message>),
    Time(Fixed<Timespec>),
    Inet(Fixed<SockaddrStorage>),
    Unix(Fixed<UnixAddr>),
}

/// One operation from submit to its last answer.
pub(crate) struct InFlight {
    pub(crate) token: u64,
    pub(crate) op: Op,
    pub(crate) aux: Aux,
    /// Bytes a send has sent so far.
    pub(crate) sent: u64,
}

struct Slot {
    generation: u32,
    entry: Option<InFlight>,
}

/// Slots with a free list; grows to the number of operations ever in flight at once.
#[derive(Default)]
pub(crate) struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

const fn key(generation: u32, index: u32) -> u64 {
    ((generation as u64) << 32) | index as u64
}

impl Slab {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, entry: InFlight) -> u64 {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.entry = Some(entry);
            return key(slot.generation, index);
        }
        // The ring's limit on operations in flight is far below 2^32.
        let index = self.slots.len() as u32;
        self.slots.push(Slot {
            generation: 0,
            entry: Some(entry),
        });
        key(0, index)
    }

    fn slot(&mut self, key: u64) -> Option<&mut Slot> {
        let slot = self.slots.get_mut((key & u64::from(u32::MAX)) as usize)?;
        (slot.generation == (key >> 32) as u32).then_some(slot)
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut InFlight> {
        self.slot(key)?.entry.as_mut()
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<InFlight> {
        let slot = self.slot(key)?;
        let entry = slot.entry.take()?;
        // The highest generation is left out, so that no key is all ones (see the ring).
        slot.generation = (slot.generation + 1) % u32::MAX;
        self.free.push((key & u64::from(u32::MAX)) as u32);
        Some(entry)
    }

    pub(crate) fn keys_where(&self, pick: impl Fn(&InFlight) -> bool) -> Vec<u64> {
        let busy = self.slots.iter().enumerate();
        busy.filter(|(_, slot)| slot.entry.as_ref().is_some_and(&pick))
            .map(|(index, slot)| key(slot.generation, index as u32))
            .collect()
    }
}
