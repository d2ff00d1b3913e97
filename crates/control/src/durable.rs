//! The bytes of a node's control state, and the two slots they are written to in turn.
//!
//! Invariants
//! - a slot carries magic, version, generation, length and CRC: one torn or damaged slot is recognised and the
//!   other one, one write older, is used; nothing had been sent that depended on the torn one;
//! - damaged state is never mistaken for no state: a node whose slots both hold something unreadable does
//!   not start (rule 37 treats a *missing* state, as a new member).

use crate::api::{DiskTrouble, ResourceIx, VolumeIx};
use crate::message::{Entry, Position, RaftId, WireConfig};
use crate::state::ClusterState;
use holdfast_types::{Epoch, Gen, Incarnation};
use serde::{Deserialize, Serialize};

/// First bytes of a slot.
pub const SLOT_MAGIC: [u8; 8] = *b"HFCTRL\0\x01";
/// Bytes before the payload: magic, generation, length, CRC.
pub const SLOT_HEADER_BYTES: usize = 8 + 8 + 4 + 4;
/// Largest payload of a slot, in bytes.
pub const SLOT_PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Why no state can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurableError {
    /// There is something, but nothing sound.
    #[error(
        "the control state is damaged (neither slot is sound): move the state file away to let this node rejoin as a new voter"
    )]
    Damaged,
    /// The payload does not parse.
    #[error(
        "the control state does not parse ({0}): it was written by another version, or move the state file away to let this node rejoin as a new voter"
    )]
    Malformed(String),
}

/// Which slot is next, and with which generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Generation of the latest sound slot; zero: none.
    pub generation: u64,
}

impl Slots {
    /// The slot (0 or 1) and its bytes for the next write.
    pub fn next(&mut self, payload: &[u8]) -> (usize, Vec<u8>) {
        self.generation += 1;
        (
            (self.generation % 2) as usize,
            encode_slot(self.generation, payload),
        )
    }
}

/// The bytes of a slot.
pub fn encode_slot(generation: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SLOT_HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&SLOT_MAGIC);
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc(generation, payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn crc(generation: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&generation.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// The generation and payload of a sound slot (bytes after the payload are ignored).
pub fn decode_slot(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let rest = bytes.strip_prefix(&SLOT_MAGIC)?;
    let (generation, rest) = rest.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    let generation = u64::from_le_bytes(*generation);
    if len > SLOT_PAYLOAD_BYTES_MAX || generation == 0 {
        return None;
    }
    let payload = rest.get(..len)?;
    (crc(generation, payload) == u32::from_le_bytes(*sum)).then_some((generation, payload))
}

/// The payload to start from, and where to write next. A slot of nothing (or only zeroes) is empty.
///
/// # Errors
/// [`DurableError::Damaged`] if something is there but nothing sound.
pub fn choose(slots: [&[u8]; 2]) -> Result<(Option<Vec<u8>>, Slots), DurableError> {
    let sound = slots
        .iter()
        .filter_map(|s| decode_slot(s))
        .max_by_key(|(generation, _)| *generation);
    match sound {
        Some((generation, payload)) => Ok((Some(payload.to_vec()), Slots { generation })),
        // The very first write, torn, leaves one damaged and one empty slot: nothing was sent before
        // it was durable, so nothing is lost by starting blank.
        None if slots.iter().any(|s| s.iter().all(|&b| b == 0)) => Ok((None, Slots::default())),
        None => Err(DurableError::Damaged),
    }
}

/// Version of the payload.
const VERSION: u16 = 3;

/// Everything a node must not forget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// The identity of this state (rule 37).
    pub(crate) id: RaftId,
    pub(crate) term: u64,
    pub(crate) voted_for: Option<RaftId>,
    pub(crate) snapshot_position: Position,
    pub(crate) snapshot_config: WireConfig,
    pub(crate) snapshot_state: ClusterState,
    pub(crate) entries: Vec<Entry>,
    /// Takeovers let in as a voter: resource, epoch to be, generation it was made for.
    pub(crate) fences: Vec<(ResourceIx, Epoch, Gen)>,
    /// Local disks that failed and were not made equal since: the cluster may not have heard of it, and the disk
    /// itself may have forgotten.
    pub(crate) distrusted: Vec<(ResourceIx, VolumeIx, Incarnation, DiskTrouble)>,
}

const CODEC: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<SLOT_PAYLOAD_BYTES_MAX>,
> = bincode::config::standard().with_limit::<SLOT_PAYLOAD_BYTES_MAX>();

impl Stored {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        // Encoding plain data into a vector cannot fail; were it to, nothing is written that
        // would be taken for a state.
        bytes.extend(bincode::serde::encode_to_vec(self, CODEC).unwrap_or_default());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DurableError> {
        let malformed = |why: &str| DurableError::Malformed(why.to_owned());
        let (version, rest) = bytes
            .split_first_chunk::<2>()
            .ok_or_else(|| malformed("too short"))?;
        if u16::from_le_bytes(*version) != VERSION {
            return Err(malformed("another version"));
        }
        let (stored, used) = bincode::serde::decode_from_slice(rest, CODEC)
            .map_err(|e| DurableError::Malformed(e.to_string()))?;
        if used == rest.len() {
            Ok(stored)
        } else {
            Err(malformed("trailing bytes"))
        }
    }
}
