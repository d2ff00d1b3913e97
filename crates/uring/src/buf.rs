//! Aligned memory that is recycled.
//!
//! A buffer is mutable while one owner fills it, then frozen into [`Bytes`] that disk, peers and
//! the answer to the application share without a copy; when the last of them is gone the memory
//! goes back to the pool, from whatever thread.
//!
//! Invariants: the address is a multiple of [`BUF_ALIGN`]; all of the capacity is initialised
//! (with zeroes when new, with old content when recycled); the pool keeps at most the configured
//! number of bytes while nobody uses them.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Alignment of every buffer, bytes: what O_DIRECT asks of any disk in use.
pub const BUF_ALIGN: usize = 4096;
/// Largest recycled buffer, bytes; larger ones are allocated and freed each time.
pub const CLASS_BYTES_MAX: usize = 1 << 20;
/// Largest buffer, bytes: the largest request, with a block in front of it for a header.
pub const BUF_BYTES_MAX: usize = (32 << 20) + BUF_ALIGN;
/// Bytes a pool keeps unused unless told otherwise.
pub const RETAINED_BYTES_DEFAULT: usize = 64 << 20;

/// 4 KiB, 8 KiB ... 1 MiB.
const CLASSES: usize = (CLASS_BYTES_MAX / BUF_ALIGN).trailing_zeros() as usize + 1;

/// A buffer that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufError {
    /// Larger than any request may be.
    #[error("a buffer of {0} bytes is larger than the limit of {BUF_BYTES_MAX}")]
    TooLarge(usize),
}

/// Memory of a power-of-two class or of a multiple of [`BUF_ALIGN`].
struct Raw {
    ptr: NonNull<u8>,
    cap: usize,
}

// SAFETY: it owns its memory and nothing refers to it.
unsafe impl Send for Raw {}

impl Raw {
    fn layout(cap: usize) -> Layout {
        debug_assert!(cap > 0 && cap.is_multiple_of(BUF_ALIGN) && cap <= BUF_BYTES_MAX);
        // SAFETY: the alignment is a power of two, and the capacity (at most BUF_BYTES_MAX, a
        // multiple of the alignment) does not overflow isize.
        unsafe { Layout::from_size_align_unchecked(cap, BUF_ALIGN) }
    }

    fn new(cap: usize) -> Self {
        let layout = Self::layout(cap);
        // SAFETY: the layout has a size above zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        match NonNull::new(ptr) {
            Some(ptr) => Self { ptr, cap },
            None => handle_alloc_error(layout),
        }
    }

    fn free(self) {
        // SAFETY: allocated in `new` with the same layout, and owned.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.cap)) }
    }
}

struct Free {
    lists: [Vec<Raw>; CLASSES],
    bytes: usize,
}

struct Shared {
    free: Mutex<Free>,
    retained_max: usize,
    in_use: AtomicUsize,
}

impl Shared {
    fn put(&self, raw: Raw) {
        self.in_use.fetch_sub(raw.cap, Ordering::Relaxed);
        if let Some(class) = class_of(raw.cap) {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.bytes + raw.cap <= self.retained_max {
                free.bytes += raw.cap;
                free.lists[class].push(raw);
                return;
            }
        }
        raw.free();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner);
        for list in &mut free.lists {
            for raw in list.drain(..) {
                raw.free();
            }
        }
    }
}

/// The class of a length, `None` above [`CLASS_BYTES_MAX`].
fn class_of(len: usize) -> Option<usize> {
    (len <= CLASS_BYTES_MAX)
        .then(|| (len.max(BUF_ALIGN).next_power_of_two() / BUF_ALIGN).trailing_zeros() as usize)
}

/// Where buffers come from; cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct BufPool {
    shared: Arc<Shared>,
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufPool")
            .field("in_use_bytes", &self.in_use_bytes())
            .field("retained_bytes", &self.retained_bytes())
            .finish()
    }
}

impl Default for BufPool {
    fn default() -> Self {
        Self::new(RETAINED_BYTES_DEFAULT)
    }
}

impl BufPool {
    /// A pool that keeps at most `retained_max` unused bytes.
    #[must_use]
    pub fn new(retained_max: usize) -> Self {
        let free = Free {
            lists: std::array::from_fn(|_| Vec::new()),
            bytes: 0,
        };
        Self {
            shared: Arc::new(Shared {
                free: Mutex::new(free),
                retained_max,
                in_use: AtomicUsize::new(0),
            }),
        }
    }

    /// A buffer of `len` bytes of any content (of an earlier use, perhaps).
    ///
    /// # Errors
    /// `len` above [`BUF_BYTES_MAX`].
    pub fn get(&self, len: usize) -> Result<AlignedBuf, BufError> {
        if len > BUF_BYTES_MAX {
            return Err(BufError::TooLarge(len));
        }
        let raw = match class_of(len) {
            Some(class) => {
                let cap = BUF_ALIGN << class;
                let recycled = {
                    let mut free = self
                        .shared
                        .free
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    let raw = free.lists[class].pop();
                    if raw.is_some() {
                        free.bytes -= cap;
                    }
                    raw
                };
                recycled.unwrap_or_else(|| Raw::new(cap))
            }
            None => Raw::new(len.next_multiple_of(BUF_ALIGN)),
        };
        self.shared.in_use.fetch_add(raw.cap, Ordering::Relaxed);
        Ok(AlignedBuf {
            raw: Some(raw),
            len,
            shared: Arc::clone(&self.shared),
        })
    }

    /// A buffer of `len` zeroes.
    ///
    /// # Errors
    /// `len` above [`BUF_BYTES_MAX`].
    pub fn get_zeroed(&self, len: usize) -> Result<AlignedBuf, BufError> {
        let mut buf = self.get(len)?;
        buf.fill(0);
        Ok(buf)
    }

    /// A buffer with a copy of `data`.
    ///
    /// # Errors
    /// `data` longer than [`BUF_BYTES_MAX`].
    pub fn copy_from(&self, data: &[u8]) -> Result<AlignedBuf, BufError> {
        let mut buf = self.get(data.len())?;
        buf.copy_from_slice(data);
        Ok(buf)
    }

    /// Bytes of capacity somebody holds.
    #[must_use]
    pub fn in_use_bytes(&self) -> usize {
        self.shared.in_use.load(Ordering::Relaxed)
    }

    /// Bytes kept for the next use.
    #[must_use]
    pub fn retained_bytes(&self) -> usize {
        self.shared
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes
    }
}

/// An owned buffer at a multiple of [`BUF_ALIGN`], given back to its pool on drop.
pub struct AlignedBuf {
    /// `None` only while it is dropped.
    raw: Option<Raw>,
    len: usize,
    shared: Arc<Shared>,
}

// SAFETY: shared references only read the memory, which nothing else writes while they live.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Bytes that fit without another allocation.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.raw.as_ref().map_or(0, |raw| raw.cap)
    }

    /// Changes the length within the capacity; what comes to light has any content.
    ///
    /// # Panics
    /// If `len` is above [`AlignedBuf::capacity`].
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "length {len} above the capacity of {}",
            self.capacity()
        );
        self.len = len;
    }

    /// Ends the mutable life: shared, immutable bytes at the same address.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Start of the memory.
    pub(crate) fn as_raw(&self) -> *mut u8 {
        self.raw
            .as_ref()
            .map_or(std::ptr::null_mut(), |raw| raw.ptr.as_ptr())
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` is within the capacity, all of it initialised, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.as_raw(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.as_raw(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            self.shared.put(raw);
        }
    }
}
