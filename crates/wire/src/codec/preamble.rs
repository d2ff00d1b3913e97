//! What a connection starts with: who connects to whom, about what, as which lane; and the proof of the cluster's secret.
//! The proof is a keyed hash over [`transcript`](Preamble::transcript); computing it is not this room's business.

use super::header::{u32_at, u64_at};
use super::{PROTOCOL_VERSION, WireError};
use crate::Lane;
use holdfast_types::{NODES_MAX, NodeId, VolumeId};

/// Bytes of a preamble.
pub const PREAMBLE_BYTES: usize = 64;
/// Bytes of a proof.
pub const PROOF_BYTES: usize = 32;
const MAGIC: u32 = u32::from_le_bytes(*b"HFDC");
const CRC_AT: usize = PREAMBLE_BYTES - 4;
const NONCE_AT: usize = 32;
const NONCE_BYTES: usize = 16;
const KIND: &str = "Preamble";

/// First bytes of either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// Which cluster.
    pub cluster: u64,
    /// Which volume.
    pub volume: VolumeId,
    /// Who speaks.
    pub from: NodeId,
    /// To whom.
    pub to: NodeId,
    /// Which of the volume's two connections this is.
    pub lane: Lane,
    /// The same on both lanes of a pair, so that lanes of different attempts are never paired.
    pub connection: u64,
    /// Fresh random bytes, so that a proof cannot be used twice.
    pub nonce: [u8; NONCE_BYTES],
}

/// A keyed hash that shows knowledge of the cluster's secret. Not comparable: the hash's own
/// constant-time check is the one to use.
#[derive(Clone, Copy)]
pub struct Proof(pub [u8; PROOF_BYTES]);

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof(..)")
    }
}

impl Preamble {
    /// Its bytes.
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let mut b = [0; PREAMBLE_BYTES];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4] = PROTOCOL_VERSION;
        b[5] = match self.lane {
            Lane::Write => 0,
            Lane::Bulk => 1,
        };
        b[6] = self.from.0;
        b[7] = self.to.0;
        b[8..16].copy_from_slice(&self.cluster.to_le_bytes());
        b[16..24].copy_from_slice(&self.volume.0.to_le_bytes());
        b[24..32].copy_from_slice(&self.connection.to_le_bytes());
        b[NONCE_AT..NONCE_AT + NONCE_BYTES].copy_from_slice(&self.nonce);
        let crc = crc32fast::hash(&b[..CRC_AT]);
        b[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// A preamble from bytes. Whether it is for us is the caller's to check.
    pub fn decode(b: &[u8; PREAMBLE_BYTES]) -> Result<Self, WireError> {
        let found = u32_at(b, 0);
        if found != MAGIC {
            return Err(WireError::Magic { found });
        }
        if b[4] != PROTOCOL_VERSION {
            return Err(WireError::Version {
                theirs: b[4],
                ours: PROTOCOL_VERSION,
            });
        }
        let (found, computed) = (u32_at(b, CRC_AT), crc32fast::hash(&b[..CRC_AT]));
        if found != computed {
            return Err(WireError::HeaderCrc { found, computed });
        }
        let wrong = |field| Err(WireError::Field { kind: KIND, field });
        let lane = match b[5] {
            0 => Lane::Write,
            1 => Lane::Bulk,
            _ => return wrong("lane"),
        };
        if b[6] >= NODES_MAX || b[7] >= NODES_MAX {
            return wrong("node");
        }
        if b[NONCE_AT + NONCE_BYTES..CRC_AT].iter().any(|&x| x != 0) {
            return wrong("byte that should be zero");
        }
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&b[NONCE_AT..NONCE_AT + NONCE_BYTES]);
        Ok(Self {
            cluster: u64_at(b, 8),
            volume: VolumeId(u64_at(b, 16)),
            from: NodeId(b[6]),
            to: NodeId(b[7]),
            lane,
            connection: u64_at(b, 24),
            nonce,
        })
    }

    /// What this side's proof is computed over: its own preamble, then the other side's.
    pub fn transcript(&self, other: &Self) -> [u8; 2 * PREAMBLE_BYTES] {
        let mut both = [0; 2 * PREAMBLE_BYTES];
        both[..PREAMBLE_BYTES].copy_from_slice(&self.encode());
        both[PREAMBLE_BYTES..].copy_from_slice(&other.encode());
        both
    }
}
