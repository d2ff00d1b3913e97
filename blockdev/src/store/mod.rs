//! Where a replica's bytes rest: a file or block device, memory, and a wrapper that misbehaves.
//!
//! A store lives on the ring of its volume's loop. The loop does exactly this:
//!
//! ```text
//! store.submit(ring, op, token)            for each operation; then
//! while let Some(ended) = store.take_ready() { .. }
//! ring.wait(..); for each completion with store.owns(completion.token):
//!     if let Some(ended) = store.on_completion(ring, completion) { .. }
//!     while let Some(ended) = store.take_ready() { .. }
//! ```
//!
//! Tokens: two spaces. What the caller gives to [`Store::submit`] is his own, any `u64`, unique
//! among his open operations. What the store gives to the ring is
//! `holdfast_uring::token(tag, n)`: the high 8 bits are the tag the store was opened with, by which
//! the loop tells its completions from those of sockets and timers ([`Store::owns`]); of the low 56
//! bits the highest is set for the fault wrapper's timers and clear for the store under it.
//!
//! Invariants: every submitted operation ends exactly once, in any order; operations are whole
//! blocks of [`BLOCK_BYTES`] inside the store; the caller never has two overlapping operations in
//! flight of which one is a write (the replicator's range lock sees to that); after a failed flush
//! or durable write every later operation fails (what the device lost then nobody can know).

#![forbid(unsafe_code)]

mod claim;
mod faulty;
mod file;
mod memory;
mod overlay;
mod plan;
mod slots;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use holdfast_uring::{BufPool, Completion, Ring, token_tag};

pub use claim::{Created, create_file};
pub use faulty::{CACHE_BYTES_MAX, FaultyStore};
pub use file::FileStore;
pub use memory::MemoryStore;
pub use plan::{FaultPlan, PPM, PlanError};

/// Granularity of every operation, bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// How long opening waits for the process that had the store before, unless told otherwise.
pub const CLAIM_WAIT_DEFAULT: Duration = Duration::from_secs(10);
/// Tag of a store's ring tokens unless told otherwise.
pub const STORE_TAG_DEFAULT: u8 = 0x53;

/// One operation on a store, in bytes from its start; whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreOp {
    /// Read `len` bytes.
    Read {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write `data`, which need not be aligned in memory.
    Write {
        /// Byte offset.
        offset: u64,
        /// The bytes.
        data: Bytes,
        /// On stable storage before it is done.
        durable: bool,
    },
    /// Make the bytes read as zero.
    Zero {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
        /// On stable storage before it is done.
        durable: bool,
    },
    /// All writes done before this was submitted are on stable storage when it is done.
    Flush,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The device failed, or a flush failed before and the store takes nothing any more.
    #[error("input/output error of the store")]
    Io,
    /// No space under a sparse file.
    #[error("no space left under the store")]
    NoSpace,
    /// Outside the store or not whole blocks: the caller's mistake.
    #[error("operation outside the store or not in whole blocks")]
    Range,
}

/// How an operation ended: the bytes of a read, empty otherwise.
pub type StoreResult = Result<Bytes, StoreError>;

/// An operation that ended: its token and how.
pub type Ended = (u64, StoreResult);

/// Why a store could not be opened or created.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Any refusal of the operating system.
    #[error("{what} {}: {source}", path.display())]
    Os {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "{} is in use: another process has held it for the {} ms waited; stop that process (see `fuser -v {}`), \
         or unmount it if it is mounted",
        path.display(), waited_ms, path.display()
    )]
    InUse {
        /// What.
        path: PathBuf,
        /// How long was waited, milliseconds.
        waited_ms: u64,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is neither a regular file nor a block device", path.display())]
    Kind {
        /// What.
        path: PathBuf,
    },
    /// Smaller than one block.
    #[error("{} has {bytes} bytes; a store needs at least one block of {BLOCK_BYTES}", path.display())]
    TooSmall {
        /// What.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file to be created is there already.
    #[error("{} exists already; it is not overwritten: remove it or choose another name", path.display())]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// The size asked for is not a positive number of blocks.
    #[error("cannot create {} with {bytes} bytes: the size must be a positive multiple of {BLOCK_BYTES}", path.display())]
    Size {
        /// What.
        path: PathBuf,
        /// The size asked for.
        bytes: u64,
    },
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// High 8 bits of its ring tokens.
    pub tag: u8,
    /// Where read buffers come from.
    pub pool: BufPool,
    /// How long to wait for an earlier process to let go of it.
    pub claim_wait: Duration,
    /// How it shall misbehave.
    pub fault: Option<FaultPlan>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            tag: STORE_TAG_DEFAULT,
            pool: BufPool::default(),
            claim_wait: CLAIM_WAIT_DEFAULT,
            fault: None,
        }
    }
}

/// Opens a file or block device, misbehaving if the options say so.
///
/// # Errors
/// It is not there, in use, too small, or of another kind.
pub fn open(path: &std::path::Path, options: &OpenOptions) -> Result<Box<dyn Store>, OpenError> {
    let file: Box<dyn Store> = Box::new(FileStore::open(path, options)?);
    Ok(match &options.fault {
        Some(plan) => Box::new(FaultyStore::new(file, plan.clone(), options.tag)),
        None => file,
    })
}

/// What the volume loop knows of a store. It may be opened on one thread and used on another.
pub trait Store: fmt::Debug + Send {
    /// Size in bytes, whole blocks.
    fn size_bytes(&self) -> u64;

    /// What an operator should know about how it was opened, if anything.
    fn note(&self) -> Option<&str>;

    /// Tag of its tokens on the ring; `None` if it does not use the ring.
    fn tag(&self) -> Option<u8>;

    /// A completion with this token belongs to [`Store::on_completion`].
    fn owns(&self, token: u64) -> bool {
        self.tag() == Some(token_tag(token))
    }

    /// Makes the store at least this large, without changing what it holds, and durably so; returns how large it is now.
    /// A block device is only looked at again: somebody else makes it larger.
    ///
    /// # Errors
    /// It cannot be; then it is as large as before.
    fn grow(&mut self, bytes: u64) -> io::Result<u64>;

    /// Starts an operation. It ends through [`Store::on_completion`] or [`Store::take_ready`].
    fn submit(&mut self, ring: &mut Ring, op: StoreOp, token: u64);

    /// Takes a completion of the ring that this store [`Store::owns`]; says which operation ended
    /// by it, if one did. More may be had from [`Store::take_ready`].
    fn on_completion(&mut self, ring: &mut Ring, completion: Completion) -> Option<Ended>;

    /// The next operation that ended without a completion of its own.
    fn take_ready(&mut self) -> Option<Ended>;

    /// Reads at once, waiting for the device: for the time before the loop runs.
    ///
    /// # Errors
    /// Outside the store, or the device fails.
    fn read_region(&mut self, offset: u64, len: usize) -> io::Result<Bytes>;

    /// Writes at once and brings it to stable storage: for the time before the loop runs.
    ///
    /// # Errors
    /// Outside the store, or the device fails.
    fn write_region(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
}

/// True for whole blocks inside a store of `size` bytes.
fn in_range(offset: u64, len: u64, size: u64) -> bool {
    offset.is_multiple_of(BLOCK_BYTES)
        && len.is_multiple_of(BLOCK_BYTES)
        && offset.checked_add(len).is_some_and(|end| end <= size)
}

/// The range of an operation, empty for a flush.
fn extent(op: &StoreOp) -> (u64, u64) {
    match op {
        StoreOp::Read { offset, len } => (*offset, u64::from(*len)),
        StoreOp::Write { offset, data, .. } => (*offset, data.len() as u64),
        StoreOp::Zero { offset, len, .. } => (*offset, *len),
        StoreOp::Flush => (0, 0),
    }
}

fn too_small(have: u64, wanted: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::StorageFull,
        format!("it has {have} bytes, and {wanted} are needed"),
    )
}

fn outside(offset: u64, len: usize, size: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{len} bytes at {offset} are outside a store of {size} bytes"),
    )
}
