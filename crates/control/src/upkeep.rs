//! What is agreed about the care of a volume: what the operator said about its resync, when it was last compared
//! and with what result, when that is due again. It survives every failover, so that a new primary neither forgets
//! an order nor begins a scrub anew that was just done.

use crate::api::{ResyncOrder, VolumeIx};
use crate::state::{Change, ResourceRecord};
use serde::{Deserialize, Serialize};

/// The care of one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upkeep {
    /// What the operator said about resync.
    pub resync: ResyncOrder,
    /// When the next scrub is due, in milliseconds since 1970; zero: as soon as can be.
    pub scrub_due_ms: u64,
    /// The last verify that went through.
    pub verified: Option<Verified>,
}

/// How a verify went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// When it ended, in milliseconds since 1970.
    pub ended_ms: u64,
    /// By the calendar.
    pub scrub: bool,
    /// Bytes of the primary's copy that were compared.
    pub compared_bytes: u64,
    /// Bytes that differed, over all copies.
    pub differing_bytes: u64,
    /// Bytes of those that were made equal.
    pub repaired_bytes: u64,
}

/// A change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Care {
    /// The operator said something about resync.
    Resync(ResyncOrder),
    /// The next scrub is due then.
    ScrubDue(u64),
    /// A verify went through.
    Verified(Verified),
}

impl ResourceRecord {
    /// Takes a change in; false if it says nothing new.
    pub(crate) fn care(&mut self, volume: VolumeIx, care: Care) -> bool {
        let Some(record) = self.volumes.get_mut(usize::from(volume.0)) else {
            return false;
        };
        let upkeep = &mut record.upkeep;
        let before = *upkeep;
        match care {
            Care::Resync(order) => upkeep.resync = order,
            Care::ScrubDue(at) => upkeep.scrub_due_ms = at,
            // Messages pass one another: the latest one stays.
            Care::Verified(v) if before.verified.is_some_and(|b| b.ended_ms > v.ended_ms) => {}
            Care::Verified(verified) => upkeep.verified = Some(verified),
        }
        if *upkeep == before {
            return false;
        }
        if let Care::Verified(v) = care
            && v.differing_bytes > 0
        {
            self.changed(Change::Differed {
                volume,
                differing_bytes: v.differing_bytes,
                repaired_bytes: v.repaired_bytes,
            });
        }
        true
    }
}
