//! The superblock: who this replica is and what it has promised. One sector in one of two slots,
//! written in turn by its update number, so that a torn write leaves the predecessor.
//!
//! One superblock write may be in flight at a time.

use crate::layout::{META_PAGE_BYTES, SECTOR_BYTES};
use crate::{Layout, MetaError, PEERS_MAX};
use bytes::Bytes;
use holdfast_types::{
    DiskState, Epoch, Geometry, Incarnation, NODES_MAX, NodeId, NodeSet, RUNS_KEPT, Run, Seen,
    VolumeId,
};

/// Format of everything in the region.
pub const FORMAT_VERSION: u32 = 1;
/// Largest value of whatever only grows, one by one: nothing gets there, so what is larger is rot, and one more fits.
pub const COUNTER_MAX: u64 = 1 << 62;
const MAGIC: [u8; 8] = *b"HOLDFAST";
const SECTOR: usize = SECTOR_BYTES as usize;
/// Magic, version and checksum stay where they are in every format, so that any program can name any other's.
const CRC_AT: usize = SECTOR - 4;
const PEERS_AT: usize = 128;
const SEEN_AT: usize = 136;
const SEEN_BYTES: usize = 24;
const FOUND_AT: usize = SEEN_AT + SEEN_BYTES * PEERS_MAX as usize;
const _: () = assert!(FOUND_AT + 8 * RUNS_KEPT <= CAPACITY_AT);
const NO_PEER: u8 = 0xff;
const FLAG_CLEAN: u8 = 1;
const FLAG_TAIL: u8 = 2;
/// Zero where the capacity is the volume's size.
const CAPACITY_AT: usize = CRC_AT - 8;

/// A replica's superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Of the region; [`FORMAT_VERSION`].
    pub version: u32,
    /// Which cluster.
    pub cluster: u64,
    /// Which volume.
    pub volume: VolumeId,
    /// Whose replica.
    pub node: NodeId,
    /// Size and unit of the volume.
    pub geometry: Geometry,
    /// Blocks there is metadata for: the volume's, or more while it is about to grow.
    pub capacity: u64,
    /// What the blocks past the volume's size hold is not known; else they are zero.
    pub tail_unknown: bool,
    /// Bytes per metadata page.
    pub page_bytes: u32,
    /// Identity of this initialisation of the disk.
    pub incarnation: Incarnation,
    /// Life of the daemon on this replica; raised at each start.
    pub run: Run,
    /// Boot of the machine that run started in.
    pub boot_id: u128,
    /// The run was stopped cleanly.
    pub clean: bool,
    /// Highest epoch promised.
    pub promised: Epoch,
    /// Epoch last served or attached under.
    pub epoch: Epoch,
    /// State of the disk.
    pub disk: DiskState,
    /// Line of history its content belongs to; a forced promotion starts a new one. Zero: none yet.
    pub lineage: u64,
    /// Extents the activity log may hold active.
    pub log_slots: u32,
    /// Activity-log transactions up to this number are void.
    pub log_floor: u64,
    /// Which peer the bitmap in each slot is about.
    pub peer_slots: [Option<NodeId>; PEERS_MAX as usize],
    /// What was last heard of the disk of the peer in each slot (rule 31).
    pub seen: [Seen; PEERS_MAX as usize],
    /// Where the activity log stood at the start of this run, of the one before, and so on (rule 31).
    pub found: [u64; RUNS_KEPT],
    /// Number of this superblock, raised at each write; it goes to slot `update % 2`.
    pub update: u64,
}

/// What one superblock slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// All zero.
    Blank,
    /// Data that is not ours.
    Foreign,
    /// Ours, checksum wrong: torn or rotten.
    Damaged,
    /// Ours and whole, of another format.
    Version(u32),
    /// Ours and whole, with a field that cannot be.
    Invalid(MetaError),
    /// A superblock.
    Valid(Box<Superblock>),
}

impl Superblock {
    /// The superblock's page.
    pub fn encode(&self) -> Bytes {
        let mut b = vec![0; self.page_bytes.clamp(SECTOR_BYTES, META_PAGE_BYTES) as usize];
        b[0..8].copy_from_slice(&MAGIC);
        b[8..12].copy_from_slice(&self.version.to_le_bytes());
        b[12] = self.node.0;
        b[13] = disk_code(self.disk);
        b[14] =
            if self.clean { FLAG_CLEAN } else { 0 } | if self.tail_unknown { FLAG_TAIL } else { 0 };
        if self.capacity != self.geometry.blocks {
            b[CAPACITY_AT..CAPACITY_AT + 8].copy_from_slice(&self.capacity.to_le_bytes());
        }
        b[16..24].copy_from_slice(&self.cluster.to_le_bytes());
        b[24..32].copy_from_slice(&self.volume.0.to_le_bytes());
        b[32..36].copy_from_slice(&self.geometry.block_bytes.to_le_bytes());
        b[36..40].copy_from_slice(&self.geometry.extent_blocks.to_le_bytes());
        b[40..48].copy_from_slice(&self.geometry.blocks.to_le_bytes());
        b[48..52].copy_from_slice(&self.page_bytes.to_le_bytes());
        b[52..56].copy_from_slice(&self.log_slots.to_le_bytes());
        b[56..64].copy_from_slice(&self.incarnation.0.to_le_bytes());
        b[64..72].copy_from_slice(&self.run.0.to_le_bytes());
        b[72..88].copy_from_slice(&self.boot_id.to_le_bytes());
        b[88..96].copy_from_slice(&self.promised.0.to_le_bytes());
        b[96..104].copy_from_slice(&self.epoch.0.to_le_bytes());
        b[104..112].copy_from_slice(&self.lineage.to_le_bytes());
        b[112..120].copy_from_slice(&self.log_floor.to_le_bytes());
        b[120..128].copy_from_slice(&self.update.to_le_bytes());
        for (byte, slot) in b[PEERS_AT..].iter_mut().zip(self.peer_slots) {
            *byte = slot.map_or(NO_PEER, |n| n.0);
        }
        for (at, found) in b[FOUND_AT..].chunks_exact_mut(8).zip(self.found) {
            at.copy_from_slice(&found.to_le_bytes());
        }
        for (at, seen) in b[SEEN_AT..].chunks_exact_mut(SEEN_BYTES).zip(self.seen) {
            at[..8].copy_from_slice(&seen.incarnation.0.to_le_bytes());
            at[8..16].copy_from_slice(&seen.run.0.to_le_bytes());
            at[16..].copy_from_slice(&seen.log.to_le_bytes());
        }
        let crc = crc32fast::hash(&b[..CRC_AT]);
        b[CRC_AT..SECTOR].copy_from_slice(&crc.to_le_bytes());
        b.into()
    }

    /// What is in a slot: at least its first sector.
    pub fn decode(slot: &[u8]) -> SlotState {
        let Some(b) = slot.get(..SECTOR) else {
            return SlotState::Damaged;
        };
        if b[0..8] != MAGIC {
            return if slot.iter().all(|&x| x == 0) {
                SlotState::Blank
            } else {
                SlotState::Foreign
            };
        }
        if crc32fast::hash(&b[..CRC_AT]).to_le_bytes() != b[CRC_AT..] {
            return SlotState::Damaged;
        }
        let version = u32_at(b, 8);
        if version != FORMAT_VERSION {
            return SlotState::Version(version);
        }
        match Self::fields(b) {
            Ok(superblock) => SlotState::Valid(Box::new(superblock)),
            Err(error) => SlotState::Invalid(error),
        }
    }

    fn fields(b: &[u8]) -> Result<Self, MetaError> {
        let wrong = |field, value: u8| {
            Err(MetaError::Field {
                field,
                value: value.into(),
            })
        };
        if b[12] >= NODES_MAX {
            return wrong("node", b[12]);
        }
        let Some(disk) = disk_state(b[13]) else {
            return wrong("disk state", b[13]);
        };
        if b[14] & !(FLAG_CLEAN | FLAG_TAIL) != 0 {
            return wrong("flags", b[14]);
        }
        let mut peer_slots = [None; PEERS_MAX as usize];
        for (i, &byte) in (0..peer_slots.len()).zip(&b[PEERS_AT..]) {
            let node = NodeId(byte);
            match byte {
                NO_PEER => {}
                // Two bitmaps of one peer: neither would be all that it lacks.
                0..NODES_MAX if peer_slots.contains(&Some(node)) || byte == b[12] => {
                    return wrong("peer slot, named twice or the replica's own node", byte);
                }
                0..NODES_MAX => peer_slots[i] = Some(node),
                _ => return wrong("peer slot", byte),
            }
        }
        let superblock = Self {
            version: u32_at(b, 8),
            cluster: u64_at(b, 16),
            volume: VolumeId(u64_at(b, 24)),
            node: NodeId(b[12]),
            geometry: Geometry {
                block_bytes: u32_at(b, 32),
                extent_blocks: u32_at(b, 36),
                blocks: u64_at(b, 40),
            },
            capacity: match u64_at(b, CAPACITY_AT) {
                0 => u64_at(b, 40),
                more => more,
            },
            tail_unknown: b[14] & FLAG_TAIL != 0,
            page_bytes: u32_at(b, 48),
            incarnation: Incarnation(u64_at(b, 56)),
            run: Run(u64_at(b, 64)),
            boot_id: u128::from(u64_at(b, 72)) | u128::from(u64_at(b, 80)) << 64,
            clean: b[14] & FLAG_CLEAN != 0,
            promised: Epoch(u64_at(b, 88)),
            epoch: Epoch(u64_at(b, 96)),
            disk,
            lineage: u64_at(b, 104),
            log_slots: u32_at(b, 52),
            log_floor: u64_at(b, 112),
            peer_slots,
            seen: std::array::from_fn(|slot| {
                let at = SEEN_AT + slot * SEEN_BYTES;
                Seen {
                    incarnation: Incarnation(u64_at(b, at)),
                    run: Run(u64_at(b, at + 8)),
                    log: u64_at(b, at + 16),
                }
            }),
            found: std::array::from_fn(|run| u64_at(b, FOUND_AT + 8 * run)),
            update: u64_at(b, 120),
        };
        if superblock.capacity < superblock.geometry.blocks {
            return Err(MetaError::Field {
                field: "capacity",
                value: superblock.capacity,
            });
        }
        let counters = [
            ("run", superblock.run.0),
            ("promised epoch", superblock.promised.0),
            ("epoch", superblock.epoch.0),
            ("activity-log floor", superblock.log_floor),
            ("update number", superblock.update),
        ];
        match counters.into_iter().find(|(_, value)| *value > COUNTER_MAX) {
            Some((field, value)) => Err(MetaError::Field { field, value }),
            None => Ok(superblock),
        }
    }

    /// What there is metadata for.
    pub fn room(&self) -> Geometry {
        Geometry {
            blocks: self.capacity,
            ..self.geometry
        }
    }

    /// Offset and bytes of this superblock's write.
    pub fn write(&self, layout: &Layout) -> (u64, Bytes) {
        (layout.superblock_slot_offset(self.update), self.encode())
    }

    /// The slot of a peer's bitmap.
    pub fn slot_of(&self, node: NodeId) -> Option<u8> {
        self.peer_slots
            .iter()
            .position(|&s| s == Some(node))
            .map(|i| i as u8)
    }

    /// Gives a peer a slot if it has none. The slot's bits read as all dirty until they are written.
    pub fn give_slot(&mut self, node: NodeId) -> Result<u8, MetaError> {
        if let Some(slot) = self.slot_of(node) {
            return Ok(slot);
        }
        let free = self
            .peer_slots
            .iter()
            .position(Option::is_none)
            .ok_or(MetaError::NoPeerSlot { node })?;
        self.peer_slots[free] = Some(node);
        Ok(free as u8)
    }

    /// The nodes this replica knows to hold one, itself included.
    pub fn data_nodes(&self) -> NodeSet {
        let peers = self.peer_slots.iter().flatten();
        peers.copied().chain([self.node]).collect()
    }

    /// Takes a peer's slot back, and what was seen of its disk.
    pub fn free_slot(&mut self, node: NodeId) {
        for (slot, seen) in self.peer_slots.iter_mut().zip(&mut self.seen) {
            if slot.take_if(|n| *n == node).is_some() {
                *seen = Seen::default();
            }
        }
    }

    /// Refuses a store that belongs to another cluster, volume or node.
    pub fn check_identity(
        &self,
        cluster: u64,
        volume: VolumeId,
        node: NodeId,
    ) -> Result<(), MetaError> {
        if self.cluster != cluster {
            return Err(MetaError::OtherCluster {
                found: self.cluster,
                ours: cluster,
            });
        }
        if self.volume != volume {
            return Err(MetaError::OtherVolume {
                found: self.volume,
                ours: volume,
            });
        }
        if self.node != node {
            return Err(MetaError::OtherNode {
                found: self.node,
                ours: node,
            });
        }
        Ok(())
    }
}

/// The newest superblock of two slots.
///
/// A slot of another format is an error even beside a good one: it may be the newer of the two.
pub fn choose(slot_a: &[u8], slot_b: &[u8]) -> Result<Superblock, MetaError> {
    let slots = [Superblock::decode(slot_a), Superblock::decode(slot_b)];
    for slot in &slots {
        match slot {
            SlotState::Version(found) => {
                return Err(MetaError::Version {
                    found: *found,
                    known: FORMAT_VERSION,
                });
            }
            SlotState::Invalid(error) => return Err(error.clone()),
            _ => {}
        }
    }
    match slots {
        [SlotState::Valid(a), SlotState::Valid(b)] => {
            Ok(if a.update >= b.update { *a } else { *b })
        }
        [SlotState::Valid(a), _] | [_, SlotState::Valid(a)] => Ok(*a),
        [SlotState::Damaged, _] | [_, SlotState::Damaged] => Err(MetaError::Damaged),
        [SlotState::Blank, SlotState::Blank] => Err(MetaError::Blank),
        _ => Err(MetaError::Foreign),
    }
}

const fn disk_code(disk: DiskState) -> u8 {
    match disk {
        DiskState::Diskless => 0,
        DiskState::Failed => 1,
        DiskState::Syncing => 2,
        DiskState::Outdated => 3,
        DiskState::UpToDate => 4,
    }
}

const fn disk_state(code: u8) -> Option<DiskState> {
    Some(match code {
        0 => DiskState::Diskless,
        1 => DiskState::Failed,
        2 => DiskState::Syncing,
        3 => DiskState::Outdated,
        4 => DiskState::UpToDate,
        _ => return None,
    })
}

/// A number at a place that is inside: callers have checked the length.
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The same for eight bytes.
pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}
