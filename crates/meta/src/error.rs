//! What can be wrong with a metadata region.

use holdfast_types::{NodeId, VolumeId};

/// Why a metadata region cannot be made or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// The store cannot hold the volume and its metadata.
    #[error(
        "backing store too small: {have} bytes, but the volume and its metadata need {needed} bytes"
    )]
    TooSmall {
        /// Bytes the store has.
        have: u64,
        /// Bytes it needs.
        needed: u64,
    },
    /// A size or count that no region can have.
    #[error("impossible {what}: {value} ({allowed})")]
    Impossible {
        /// Which.
        what: &'static str,
        /// As given.
        value: u64,
        /// What would be right.
        allowed: &'static str,
    },
    /// Both superblock slots are zero.
    #[error(
        "no replica here: the metadata area at the end of the store is empty; create the volume on this node first"
    )]
    Blank,
    /// There is data where the superblocks should be, and it is not ours.
    #[error(
        "the end of the store holds something that is not a replica's metadata; \
         nothing was touched: wipe its last {} KiB or choose another store",
        2 * crate::SUPERBLOCK_SLOT_BYTES / 1024
    )]
    Foreign,
    /// Superblocks are there, and none has a right checksum.
    #[error(
        "the replica's superblock is damaged in both slots (checksum wrong); recreate this replica and let it resync from its peers"
    )]
    Damaged,
    /// Written by a program with another format.
    #[error(
        "metadata format {found} is not the format {known} this program reads; run the version that wrote it"
    )]
    Version {
        /// In the superblock.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A structure has a right checksum and a value that cannot be.
    #[error(
        "metadata field {field} holds an impossible value ({value}); recreate this replica and let it resync from its peers"
    )]
    Field {
        /// Which.
        field: &'static str,
        /// As found.
        value: u64,
    },
    /// Fewer bytes were handed in than the layout says.
    #[error("metadata region cut short: {have} bytes where {needed} are expected")]
    Short {
        /// Bytes handed in.
        have: u64,
        /// Bytes expected.
        needed: u64,
    },
    /// The store belongs to another cluster.
    #[error(
        "the store holds a replica of cluster {found:016x}, not of this cluster {ours:016x}; choose another store"
    )]
    OtherCluster {
        /// On disk.
        found: u64,
        /// Asked for.
        ours: u64,
    },
    /// The store belongs to another volume.
    #[error("the store holds a replica of volume {found}, not of {ours}; choose another store")]
    OtherVolume {
        /// On disk.
        found: VolumeId,
        /// Asked for.
        ours: VolumeId,
    },
    /// The store was made by another node.
    #[error(
        "the store holds the replica of {found}, not of {ours}; a copied or moved disk must be recreated and resynced"
    )]
    OtherNode {
        /// On disk.
        found: NodeId,
        /// Asked for.
        ours: NodeId,
    },
    /// All peer slots are taken.
    #[error(
        "no free bitmap slot for {node}: a volume has at most {} peers",
        crate::PEERS_MAX
    )]
    NoPeerSlot {
        /// Who wanted one.
        node: NodeId,
    },
    /// More extents than a transaction can name.
    #[error("{count} active extents do not fit into an activity-log transaction of at most {max}")]
    TooManyExtents {
        /// Wanted.
        count: usize,
        /// Fit.
        max: u32,
    },
}
