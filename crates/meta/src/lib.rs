//! The metadata region at the end of a replica's backing store: superblock, activity log, dirty bitmaps.
//!
//! Everything here is pure: structures turn into absolute byte offsets and bytes, and bytes into
//! structures. Who writes them, when, and in which order, is the replicator's business.
//!
//! What every structure relies on: the store writes 512-byte sectors ([`SECTOR_BYTES`]) whole or
//! not at all; of a larger write any subset of sectors may have arrived after a crash.
//! - The *superblock* has two slots written in turn, so that the older one outlives a torn write.
//! - The *activity log* is a ring of numbered transactions, each naming the whole active set.
//! - A *bitmap* is written in place; each sector checks itself, so after a crash each sector is the
//!   old or the new one, and a sector that is neither counts as all dirty.
//!
//! All numbers are little-endian.

#![forbid(unsafe_code)]

mod bitmap;
mod error;
mod layout;
mod log;
mod page;
mod region;
mod superblock;

pub use bitmap::{Bitmap, Unsaved};
pub use error::MetaError;
pub use layout::{
    LOG_SLOTS_MIN, LOG_TRANSACTIONS, Layout, META_PAGE_BYTES, PEERS_MAX, SECTOR_BYTES,
    SUPERBLOCK_SLOT_BYTES,
};
pub use log::{LogState, Transaction, recover_log};
pub use page::{Loaded, Owner};
pub use region::{
    BitmapStart, Located, Recovered, initialise, locate, locate_among, superblock_range,
};
pub use superblock::{COUNTER_MAX, FORMAT_VERSION, SlotState, Superblock, choose};
