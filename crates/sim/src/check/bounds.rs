//! Bounds: what waits, what is under way and what is written stays within declared limits.
//!
//! | what | at the most |
//! |---|---|
//! | superblock writes and log writes on their way to one disk | one of each |
//! | extents in the activity log | its slots |
//! | resync blocks without answer, of one primary | [`RESYNC_BLOCKS_MAX`] |
//! | write frames without answer, of one peer | [`FRAMES_MAX`] |
//! | requests the status counts | [`REQUESTS_MAX`] |
//! | control state, one message | [`STATE_BYTES_MAX`], the protocol's limit |
//!
//! The numbers are the documents' and the configuration's, written down here anew.

use super::order::Stored;
use holdfast_meta::Layout;
use holdfast_replicator::{DiskOp, IoId, Status};
use holdfast_types::NodeId;
use holdfast_wire::{Frame, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// Resync blocks of one primary that may be on their way: the jobs in flight, a whole job each.
pub const RESYNC_BLOCKS_MAX: u64 = 256 * 256;
/// Write frames one peer may leave unanswered: what the application may have in flight, cut into pieces.
pub const FRAMES_MAX: usize = 4096;
/// Requests one replica works on at once.
pub const REQUESTS_MAX: u32 = 1024;
/// The control state of a cluster with one resource: a few KB.
pub const STATE_BYTES_MAX: usize = 256 << 10;

/// One replica, in one life.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    superblock: BTreeSet<IoId>,
    log: BTreeSet<IoId>,
    resync: BTreeMap<(NodeId, u64), u64>,
    frames: BTreeMap<NodeId, BTreeSet<(Stamped, u64)>>,
}

type Stamped = (u64, u64);

fn stamped(stamp: Stamp) -> Stamped {
    (stamp.epoch.0, stamp.session.0)
}

impl Bounds {
    /// The replica's daemon is gone.
    pub fn gone(&mut self) {
        *self = Self::default();
    }

    /// The connection to a peer is gone, and with it what waited for answers.
    /// True if resync blocks were among it.
    pub fn peer_down(&mut self, peer: NodeId) -> bool {
        let before = self.resync.len();
        self.resync.retain(|(p, _), _| *p != peer);
        self.frames.remove(&peer);
        self.resync.len() < before
    }

    /// The replica gives its disk an operation.
    pub fn submits(&mut self, layout: &Layout, io: IoId, op: &DiskOp) -> Result<(), String> {
        let DiskOp::Write { offset, .. } = op else {
            return Ok(());
        };
        let (log, len) = layout.log_region();
        let (which, name) = if *offset >= layout.superblock_offset {
            (&mut self.superblock, "superblock")
        } else if (log..log + len).contains(offset) {
            (&mut self.log, "log")
        } else {
            return Ok(());
        };
        which.insert(io);
        if which.len() > 1 {
            return Err(format!(
                "bounds: {} {name} writes are on their way at once",
                which.len()
            ));
        }
        Ok(())
    }

    /// A disk operation ended.
    pub fn ended(&mut self, io: IoId) {
        self.superblock.remove(&io);
        self.log.remove(&io);
    }

    /// A log transaction is on the disk.
    pub fn log_landed(&self, stored: &Stored, slots: u32) -> Result<(), String> {
        if stored.active.len() > slots as usize {
            return Err(format!(
                "bounds: {} extents in an activity log of {slots} slots: {:?}",
                stored.active.len(),
                stored.active
            ));
        }
        Ok(())
    }

    /// The replica sends a frame.
    pub fn sends(&mut self, peer: NodeId, frame: &Frame) -> Result<(), String> {
        match frame {
            Frame::Resync { token, range, .. } => {
                self.resync.insert((peer, *token), range.count);
                let blocks: u64 = self.resync.values().sum();
                if blocks > RESYNC_BLOCKS_MAX {
                    return Err(format!(
                        "bounds: {blocks} resync blocks without answer, allowed are {RESYNC_BLOCKS_MAX}"
                    ));
                }
            }
            Frame::Write { stamp, seq, .. } | Frame::Zero { stamp, seq, .. } => {
                let waiting = self.frames.entry(peer).or_default();
                waiting.insert((stamped(*stamp), seq.0));
                if waiting.len() > FRAMES_MAX {
                    return Err(format!(
                        "bounds: {} writes without answer from {peer}, allowed are {FRAMES_MAX}",
                        waiting.len()
                    ));
                }
            }
            // A new session: nothing of the old one is answered any more.
            Frame::Attach(_) => {
                self.peer_down(peer);
            }
            _ => {}
        }
        Ok(())
    }

    /// A frame reaches the replica.
    pub fn received(&mut self, peer: NodeId, frame: &Frame) {
        match frame {
            Frame::Resynced { token, .. } => {
                self.resync.remove(&(peer, *token));
            }
            Frame::Ack { stamp, seq, .. } => {
                if let Some(waiting) = self.frames.get_mut(&peer) {
                    waiting.remove(&(stamped(*stamp), seq.0));
                }
            }
            _ => {}
        }
    }

    /// What the replica says of itself.
    pub fn status(status: &Status) -> Result<(), String> {
        if status.requests > REQUESTS_MAX {
            return Err(format!(
                "bounds: {} requests are worked on at once, allowed are {REQUESTS_MAX}",
                status.requests
            ));
        }
        Ok(())
    }

    /// A node writes its control state.
    pub fn state(bytes: usize) -> Result<(), String> {
        if bytes > STATE_BYTES_MAX {
            return Err(format!(
                "bounds: the control state has {bytes} bytes, allowed are {STATE_BYTES_MAX}"
            ));
        }
        Ok(())
    }

    /// A node sends a control message.
    pub fn message(bytes: usize) -> Result<(), String> {
        let max = holdfast_control::MESSAGE_BYTES_MAX;
        if bytes > max {
            return Err(format!(
                "bounds: a control message has {bytes} bytes, allowed are {max}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{BlockRange, Epoch, Geometry, Seq, SessionId};

    const STAMP: Stamp = Stamp {
        epoch: Epoch(1),
        session: SessionId(1),
    };

    #[test]
    fn one_metadata_write_of_a_kind_at_a_time() {
        let g = Geometry {
            block_bytes: 64,
            blocks: 32,
            extent_blocks: 4,
        };
        let bytes = Layout::bytes_needed_with_page(g, holdfast_meta::PEERS_MAX, 512);
        let layout = Layout::with_page(g, bytes, holdfast_meta::PEERS_MAX, 4, 512).unwrap();
        let at = |offset| DiskOp::Write {
            offset,
            data: vec![0; 512].into(),
            durable: true,
        };
        let mut b = Bounds::default();
        b.submits(&layout, IoId(1), &at(layout.superblock_offset))
            .unwrap();
        b.submits(&layout, IoId(2), &at(layout.log_offset)).unwrap();
        assert!(
            b.clone()
                .submits(&layout, IoId(3), &at(layout.log_offset + 512))
                .is_err()
        );
        b.ended(IoId(2));
        b.submits(&layout, IoId(3), &at(layout.log_offset + 512))
            .unwrap();
        assert!(
            b.submits(&layout, IoId(4), &at(layout.superblock_offset))
                .is_err()
        );
        let stored = |n: u32| crate::check::order::tests::stored(&(0..n).collect::<Vec<_>>());
        b.log_landed(&stored(4), 4).unwrap();
        assert!(b.log_landed(&stored(5), 4).is_err());
    }

    #[test]
    fn unanswered_frames_are_counted_until_answered_or_void() {
        let mut b = Bounds::default();
        let peer = NodeId(1);
        let resync = |token| Frame::Resync {
            stamp: STAMP,
            token,
            range: BlockRange::new(0, RESYNC_BLOCKS_MAX / 4),
            data: None,
        };
        (0..4).for_each(|t| b.sends(peer, &resync(t)).unwrap());
        assert!(b.clone().sends(peer, &resync(4)).is_err());
        b.received(
            peer,
            &Frame::Resynced {
                log: 0,
                stamp: STAMP,
                token: 0,
            },
        );
        b.sends(peer, &resync(4)).unwrap();
        b.peer_down(peer);
        let zero = |seq| Frame::Zero {
            stamp: STAMP,
            seq: Seq(seq),
            range: BlockRange::new(0, 1),
            fua: false,
        };
        (0..FRAMES_MAX as u64).for_each(|s| b.sends(peer, &zero(s)).unwrap());
        b.sends(peer, &zero(0)).unwrap();
        assert!(b.sends(peer, &zero(1 << 20)).is_err());
    }

    #[test]
    fn sizes_have_limits() {
        Bounds::state(STATE_BYTES_MAX).unwrap();
        assert!(Bounds::state(STATE_BYTES_MAX + 1).is_err());
        Bounds::message(holdfast_control::MESSAGE_BYTES_MAX).unwrap();
        assert!(Bounds::message(holdfast_control::MESSAGE_BYTES_MAX + 1).is_err());
    }
}
