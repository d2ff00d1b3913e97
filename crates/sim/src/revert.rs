//! Disks that are put back to a snapshot, and which of them the cluster must recognise.
//!
//! What tells them is what others stored of a disk: its run, and how far its log was. They store that every few seconds while
//! a primary serves, so that the last seconds before all of them end may be missing; and a disk that was put back may, in
//! restarts of which the cluster never hears, come as far as it was. No number tells then, and a run that fails because such
//! a disk was trusted is one that lost its last good copy to the faults.

use crate::scenario::S;
use crate::world::{Outcome, World};
use holdfast_types::{NodeId, Seen};

/// Only a snapshot this old is put back.
const SNAPSHOT_AGE_NS: u64 = 10 * S;
/// What a disk was while it was served so long ago, the others have stored: they tell each other and store every two
/// seconds, and a disk may hang for as long as that before it counts as failed.
const STORED_AFTER_NS: u64 = 6 * S;

/// What the others were told of a disk.
#[derive(Debug, Default)]
pub struct Told {
    /// At these times (of service), not yet stored for sure.
    recent: std::collections::VecDeque<(u64, Seen)>,
    /// Stored by all who were there.
    stored: Seen,
}

impl World {
    /// Time has passed: a primary that serves tells of all disks it has a session with.
    pub(crate) fn tell_of_disks(&mut self, passed_ns: u64) {
        let serving = |n: &crate::node::SimNode| n.open_epoch.is_some() && !n.paused;
        let Some(primary) = self.nodes.iter().position(serving) else {
            return;
        };
        let node = &self.nodes[primary];
        let Some(replica) = node.process.as_ref().and_then(|p| p.replica.as_ref()) else {
            return;
        };
        let peers = replica.status().peers;
        let attached = peers.iter().filter(|p| p.attached).map(|p| p.node);
        let told: Vec<NodeId> = attached.chain([node.id]).collect();
        self.served_ns += passed_ns;
        for n in told.into_iter().map(|n| usize::from(n.0)) {
            let node = &self.nodes[n];
            if node.bad_disk || node.put_back.is_some() || !self.refresh_stored(n) {
                continue;
            }
            let Some(stored) = &self.checks.nodes[n].stored else {
                continue;
            };
            let seen = Seen {
                incarnation: stored.superblock.incarnation,
                run: stored.superblock.run,
                log: stored.log_number,
            };
            self.nodes[n].told.recent.push_back((self.served_ns, seen));
        }
    }

    /// What the others must have stored of a disk.
    fn known_of(&mut self, n: usize) -> Seen {
        let told = &mut self.nodes[n].told;
        while let Some((at, seen)) = told.recent.front().copied()
            && at + STORED_AFTER_NS <= self.served_ns
        {
            told.stored = seen;
            told.recent.pop_front();
        }
        told.stored
    }

    /// Was the disk of `n` put back, and says nothing now by which the others could tell?
    pub(crate) fn is_beyond_telling(&mut self, n: usize) -> bool {
        let Some(known) = self.nodes[n].put_back else {
            return false;
        };
        if !self.refresh_stored(n) {
            return false;
        }
        let Some(stored) = &self.checks.nodes[n].stored else {
            return false;
        };
        let own = &stored.superblock;
        let strange = known.contradicts(own.incarnation, own.run, &own.found, stored.log_number);
        strange.is_none()
    }

    /// The run ends: a disk was trusted of which nobody could know better.
    pub(crate) fn nobody_could_tell(&mut self) {
        self.trace.mark("disk put back that nothing tells");
        self.outcome = Some(Outcome::Unrecoverable);
    }

    /// A snapshot of a disk is taken, or put back.
    pub(crate) fn revert(&mut self, n: usize) {
        let Some((taken, snapshot)) = self.nodes[n].snapshot.clone() else {
            let taken = self.now;
            let node = &mut self.nodes[n];
            let snapshot = node.disk.as_ref().map(crate::disk::Disk::snapshot);
            node.snapshot = snapshot.map(|s| (taken, s));
            return;
        };
        if self.now < taken + SNAPSHOT_AGE_NS || !self.expendable(n) {
            return;
        }
        self.trace.mark("disk put back");
        self.trace.news(self.now, NodeId(n as u8), || {
            "its disk is put back to a snapshot".into()
        });
        let delay = self.downtime();
        self.end_daemon(n, true);
        let known = self.known_of(n);
        let node = &mut self.nodes[n];
        if let Some(disk) = &mut node.disk {
            disk.put_back(&snapshot);
        }
        node.bad_disk = false;
        node.strange_disk = true;
        node.put_back = Some(known);
        node.unclean = true;
        node.lossy = true;
        self.checks.nodes[n].direction.exchanged();
        self.start_later(n, delay);
    }
}
