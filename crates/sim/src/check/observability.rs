//! Observability: what a replica's status says is what is true.
//!
//! Compared between events, when nothing is on its way from the world to the replica:
//! - who it is: identity and run of its disk, size, epoch and openness;
//! - whom it is connected to;
//! - its in-sync set is one that was committed, and `UpToDate` is said only of a member;
//! - what it counted: bytes the application was served, log transactions written, resync bytes sent;
//! - what it says a peer lacks is not less than what the peer's disk really lacks (but for what is in flight).

use super::order::Stored;
use holdfast_replicator::Status;
use holdfast_types::{DiskState, NodeId, NodeSet};
use holdfast_wire::Frame;
use std::collections::{BTreeMap, BTreeSet};

/// What was seen of one replica, in one life.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Log transactions given to the disk.
    pub log_writes: u64,
    /// Bytes of resync frames sent to each peer.
    pub resync_bytes: BTreeMap<NodeId, u64>,
}

/// What is true of a replica when its status is read.
#[derive(Clone, Debug)]
pub struct Truth<'a> {
    /// Whose.
    pub node: NodeId,
    /// What its disk says.
    pub stored: &'a Stored,
    /// Epoch in which it opened last.
    pub open: Option<u64>,
    /// Bytes of the volume.
    pub size: u64,
    /// Per peer: connected as far as this end knows.
    pub connected: Vec<(NodeId, bool)>,
    /// Every in-sync set that was ever committed.
    pub sets: &'a BTreeSet<NodeSet>,
    /// Per peer whose disk is known: bytes that differ outside of what is in flight. Filled for an open primary.
    pub lacking: Vec<(NodeId, u64)>,
}

impl Seen {
    /// The replica's daemon is gone.
    pub fn gone(&mut self) {
        *self = Self::default();
    }

    /// The replica sends a frame.
    pub fn sends(&mut self, peer: NodeId, frame: &Frame) {
        if let Frame::Resync {
            data: Some(data), ..
        } = frame
        {
            *self.resync_bytes.entry(peer).or_default() += data.len() as u64;
        }
    }

    /// Is the status true?
    pub fn check(&self, status: &Status, truth: &Truth<'_>) -> Result<(), String> {
        let lie = |what: &str, says: &dyn std::fmt::Debug, is: &dyn std::fmt::Debug| {
            Err(format!(
                "observability: the status of {} says {what} {says:?}, true is {is:?}",
                truth.node
            ))
        };
        let s = &truth.stored.superblock;
        if status.size_bytes != truth.size {
            return lie("size", &status.size_bytes, &truth.size);
        }
        if status.incarnation != s.incarnation {
            return lie("incarnation", &status.incarnation, &s.incarnation);
        }
        if status.open && truth.open != Some(status.epoch.0) {
            return lie("open in epoch", &status.epoch, &truth.open);
        }
        if !status.in_sync.is_empty() && !truth.sets.contains(&status.in_sync) {
            return lie("in-sync set", &status.in_sync, &truth.sets);
        }
        if status.log_writes != self.log_writes {
            return lie("log writes", &status.log_writes, &self.log_writes);
        }
        if status.disk == DiskState::UpToDate && !status.in_sync.has(truth.node) {
            return lie("UpToDate with in-sync set", &status.in_sync, &truth.node);
        }
        for peer in &status.peers {
            let connected = truth.connected.iter().find(|(n, _)| *n == peer.node);
            if connected.is_some_and(|(_, up)| *up != peer.connected) {
                return lie(
                    &format!("connected to {}", peer.node),
                    &peer.connected,
                    &connected,
                );
            }
            if peer.disk == DiskState::UpToDate && !status.in_sync.has(peer.node) {
                return lie(
                    &format!("UpToDate of {}", peer.node),
                    &peer.disk,
                    &status.in_sync,
                );
            }
            let sent = self.resync_bytes.get(&peer.node).copied().unwrap_or(0);
            if peer.resync_sent_bytes > sent {
                return lie(
                    &format!("resync bytes to {}", peer.node),
                    &peer.resync_sent_bytes,
                    &sent,
                );
            }
            let lacks = truth.lacking.iter().find(|(n, _)| *n == peer.node);
            let diskless = status.trouble.is_some(); // its own disk is not what peers are measured by
            let more = |(_, bytes): &&(NodeId, u64)| !diskless && *bytes > peer.out_of_sync_bytes;
            if let Some((_, bytes)) = lacks.filter(more) {
                return lie(
                    &format!("out of sync of {}", peer.node),
                    &peer.out_of_sync_bytes,
                    bytes,
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_replicator::PeerStatus;
    use holdfast_types::{Epoch, Incarnation, Role, Run};

    fn status() -> Status {
        Status {
            role: Role::Primary,
            open: true,
            held: None,
            disk: DiskState::UpToDate,
            trouble: None,
            reads_from: None,
            read_errors: 0,
            epoch: Epoch(3),
            in_sync: NodeSet(0b01),
            incarnation: Incarnation(7),
            run: Run(3),
            size_bytes: 1024,
            requests: 2,
            open_writes: 0,
            written_bytes: 0,
            read_bytes: 0,
            log_writes: 5,
            resync: Default::default(),
            verify: None,
            peers: vec![PeerStatus {
                trouble: None,
                node: NodeId(1),
                connected: true,
                attached: true,
                disk: DiskState::Syncing,
                out_of_sync_bytes: 128,
                resync_sent_bytes: 64,
                resync_zero_bytes: 0,
                resync_equal_bytes: 0,
                resync_bytes_per_second: 0,
                verify_done_bytes: None,
            }],
        }
    }

    #[test]
    fn every_figure_is_compared() {
        let stored = crate::check::order::tests::stored(&[]);
        let sets = BTreeSet::from([NodeSet(0b01), NodeSet(0b11)]);
        let truth = Truth {
            node: NodeId(0),
            stored: &stored,
            open: Some(3),
            size: 1024,
            connected: vec![(NodeId(1), true)],
            sets: &sets,
            lacking: vec![(NodeId(1), 128)],
        };
        let mut seen = Seen {
            log_writes: 5,
            ..Seen::default()
        };
        seen.resync_bytes.insert(NodeId(1), 64);
        seen.check(&status(), &truth).unwrap();
        let lies: [fn(&mut Status); 9] = [
            |s| s.size_bytes += 1,
            |s| s.incarnation = Incarnation(8),
            |s| s.epoch = Epoch(2),
            |s| s.in_sync = NodeSet(0b10),
            |s| s.log_writes += 1,
            |s| s.peers[0].connected = false,
            |s| s.peers[0].disk = DiskState::UpToDate,
            |s| s.peers[0].resync_sent_bytes = 65,
            |s| s.peers[0].out_of_sync_bytes = 64,
        ];
        for (i, lie) in lies.into_iter().enumerate() {
            let mut s = status();
            lie(&mut s);
            assert!(seen.check(&s, &truth).is_err(), "lie {i}");
        }
    }
}
