//! The words every room shares: identities, sets, ranges, numbered things with their units.
//!
//! Invariants
//! - a [`NodeId`] is below [`NODES_MAX`], so a [`NodeSet`] is one machine word;
//! - a [`BlockRange`] is never empty and never overflows;
//! - an [`Epoch`] of zero means "never had a primary".

#![forbid(unsafe_code)]

mod ids;
mod level;
mod range;
mod seen;
mod set;

pub use ids::{Epoch, Gen, Incarnation, NodeId, Run, Seq, SessionId, VolumeId};
pub use level::Level;
pub use range::BlockRange;
pub use seen::{RUNS_KEPT, Seen, Strange};
pub use set::NodeSet;

/// Bytes in a block: the unit of dirty bits, range locks and resync. The simulator uses
/// smaller blocks through [`Geometry::block_bytes`]; everything real uses this one.
pub const BLOCK_BYTES: u32 = 4096;
/// Nodes in a cluster at the most (voters and data nodes together).
pub const NODES_MAX: u8 = 8;
/// Largest request a frontend may hand in, in bytes (32 MiB, what NBD clients send at most).
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// Size and unit of a volume, the same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Geometry {
    /// Bytes per block.
    pub block_bytes: u32,
    /// Blocks in the volume.
    pub blocks: u64,
    /// Blocks per activity-log extent.
    pub extent_blocks: u32,
}

impl Geometry {
    /// The geometry of a real volume of `bytes` (rounded down to whole blocks), with extents of 4 MiB.
    pub const fn of_bytes(bytes: u64) -> Self {
        Self {
            block_bytes: BLOCK_BYTES,
            blocks: bytes / BLOCK_BYTES as u64,
            extent_blocks: 1024,
        }
    }
    /// Bytes the application sees.
    pub const fn bytes(&self) -> u64 {
        self.blocks * self.block_bytes as u64
    }
    /// Number of activity-log extents, the last one possibly short.
    pub const fn extents(&self) -> u64 {
        self.blocks.div_ceil(self.extent_blocks as u64)
    }
    /// The extent that holds `block`.
    pub const fn extent_of(&self, block: u64) -> u32 {
        (block / self.extent_blocks as u64) as u32
    }
    /// The blocks of extent `extent`.
    pub fn extent_range(&self, extent: u32) -> BlockRange {
        let first = u64::from(extent) * u64::from(self.extent_blocks);
        let count = u64::from(self.extent_blocks).min(self.blocks - first);
        BlockRange::new(first, count)
    }
}

/// How current a replica is, in the words DRBD users know.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum DiskState {
    /// No usable disk.
    Diskless,
    /// The disk returned a write or flush error; it is not used any more.
    Failed,
    /// Being resynced: a mixture of old and new blocks.
    Syncing,
    /// Consistent, but the in-sync set went on without it.
    Outdated,
    /// A member of the in-sync set.
    UpToDate,
}

/// Role of a resource on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Role {
    /// Serves the application.
    Primary,
    /// Holds a copy.
    Secondary,
}
