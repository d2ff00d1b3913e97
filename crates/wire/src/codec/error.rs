//! Why bytes are not taken as a frame, or a frame cannot become bytes.

use holdfast_types::VolumeId;

/// What is wrong with what a peer sent, or with what it is to be sent. The connection is of no use after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not our protocol at all.
    #[error(
        "not a replication connection: starts with {found:08x}; is something else listening on this address?"
    )]
    Magic {
        /// What came.
        found: u32,
    },
    /// The other end runs another version.
    #[error(
        "the peer speaks protocol version {theirs}, this node {ours}; run the same version on both"
    )]
    Version {
        /// The peer's.
        theirs: u8,
        /// Ours.
        ours: u8,
    },
    /// The header's checksum is wrong.
    #[error(
        "frame header damaged in transit: checksum {found:08x} where {computed:08x} was computed"
    )]
    HeaderCrc {
        /// In the header.
        found: u32,
        /// Of the header.
        computed: u32,
    },
    /// The payload's checksum is wrong.
    #[error(
        "payload of {kind} damaged in transit: checksum {found:08x} where {computed:08x} was computed"
    )]
    PayloadCrc {
        /// Of which frame.
        kind: &'static str,
        /// In the header.
        found: u32,
        /// Of the payload.
        computed: u32,
    },
    /// A frame about another volume.
    #[error(
        "a frame for another volume (folded id {found:08x}) on the connection of volume {ours}"
    )]
    Volume {
        /// Folded, from the header.
        found: u32,
        /// The connection's.
        ours: VolumeId,
    },
    /// A frame is missing or came twice.
    #[error("frame {expected} was due and {found} came: the connection has a gap")]
    Gap {
        /// Due.
        expected: u32,
        /// Came.
        found: u32,
    },
    /// No such kind of frame.
    #[error("unknown kind of frame: {found}")]
    Kind {
        /// In the header.
        found: u8,
    },
    /// A frame of the other lane.
    #[error("{kind} does not belong on this lane")]
    Lane {
        /// Which frame.
        kind: &'static str,
    },
    /// A payload that cannot be, or is over the limit.
    #[error("{kind} with {bytes} bytes of payload, allowed is {allowed}")]
    Length {
        /// Which frame.
        kind: &'static str,
        /// Claimed.
        bytes: u64,
        /// The limit, or the one right length.
        allowed: u64,
    },
    /// More entries than a list may have.
    #[error("{kind} with a list of {entries} entries, at most {max} are allowed")]
    List {
        /// Which frame.
        kind: &'static str,
        /// Claimed or given.
        entries: u64,
        /// The limit.
        max: u64,
    },
    /// Blocks outside the volume, or none.
    #[error("{kind} names {count} blocks from {first}, the volume has {blocks}")]
    Range {
        /// Which frame.
        kind: &'static str,
        /// First block.
        first: u64,
        /// How many.
        count: u64,
        /// Size of the volume in blocks.
        blocks: u64,
    },
    /// A field that cannot be.
    #[error("{kind} with an impossible {field}")]
    Field {
        /// Which frame.
        kind: &'static str,
        /// Which field.
        field: &'static str,
    },
    /// The decoder was used after an error, or a payload was handed in without its header.
    #[error(
        "no frame can be read here: the connection already failed, or the header was not read first"
    )]
    State,
}
