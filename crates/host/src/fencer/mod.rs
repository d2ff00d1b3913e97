//! The second process of a node: it undoes the node's side effects when the daemon cannot.
//!
//! Daemon and fencer share one page of memory (`page`). The daemon writes there, per resource, until when it may hold
//! side effects (CLOCK_BOOTTIME) and, before each side effect is made, how to undo it. The fencer sleeps until the
//! earliest deadline or the daemon's death, and then kills services, removes VIPs, aborts FUSE connections, detaches
//! mounts and loop devices, verifies that all is gone, and says so in the page.
//!
//! Invariants
//! - deadline and state are one atomic word: either the daemon's renewal or the fencer's start wins, never both;
//! - once fencing of a slot has begun it cannot be taken back; the daemon sees [`SlotState::Fenced`] and must call
//!   [`FencerHandle::rearm`] before it may hold anything again;
//! - a record is accepted only under a deadline that has not passed;
//! - a record is complete before the fencer can see it, and taken off only after its side effect is gone;
//! - the fencer's loop allocates nothing, and never waits for a disk: what may hang is done by a child of it;
//! - a SIGSTOPped daemon does not stop it, a killed daemon starts it, a terminal's signals do not reach it.

mod handle;
mod page;
mod run;
#[cfg(test)]
mod tests;
mod undo;

pub use handle::{FencerHandle, PidCell, Record, Slot};
pub use page::{PATH_BYTES_MAX, RECORDS_PER_SLOT, SLOTS_MAX, SlotState};
pub use run::run;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Environment variable by which the fencer learns its two descriptors.
pub(crate) const FDS_VARIABLE: &str = "HOLDFAST_FENCER_FDS";

/// How a side effect is undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    /// Kill a service: its first process (in the record's [`PidCell`]), and all that descends from it or has the marker.
    Service {
        /// Value of the marker variable in its environment.
        marker: u64,
    },
    /// Kill everything in a cgroup and remove it.
    Cgroup {
        /// Its directory.
        path: PathBuf,
    },
    /// Remove an address.
    Address {
        /// The address.
        ip: IpAddr,
        /// Its prefix length.
        prefix: u8,
        /// Its interface.
        ifindex: u32,
    },
    /// Abort a FUSE connection (every waiting and further request fails) and detach its mount.
    Fuse {
        /// Mount point.
        path: PathBuf,
    },
    /// Detach a filesystem.
    Mount {
        /// Mount point.
        path: PathBuf,
    },
    /// Detach a loop device from its file.
    Loop {
        /// The block device.
        path: PathBuf,
    },
    /// When everything of the slot is verified to be gone, send these bytes by UDP: the release of the lease.
    Notice {
        /// To whom.
        to: SocketAddr,
        /// What, opaque here.
        bytes: Vec<u8>,
    },
}
