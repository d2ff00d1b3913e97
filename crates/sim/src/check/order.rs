//! Metadata order, on the stream of actions: what a step depends on is durable before the step is taken.
//!
//! | step | what must be on stable storage by then |
//! |---|---|
//! | a data write is given to the disk | its extents in the activity log |
//! | a log transaction drops an extent | (nothing of that extent is on its way to the disk) |
//! | `Ack` is sent | the write is on the disk (with FUA: stable) and what it carries is what lies there |
//! | `Flushed` is sent | everything on the disk when the flush arrived |
//! | `CutDone` is sent | the same, and the bitmaps the cut brought |
//! | `Attached` is sent | the promise of the session's epoch |
//! | a resync block is given to the disk | the disk state Syncing (rule 32) |
//! | `Promised` is told | the promise, with no data write on its way (rule 18) |
//! | `Started` is told, `Hello` is sent | the run |
//! | `Stopped` is told, if the start was clean | the clean mark |
//!
//! It knows the metadata only from the disk's stable image, and the frames from the wire.

use super::history::{CELL_BYTES, History};
use bytes::Bytes;
use holdfast_meta::{Layout, Superblock};
use holdfast_replicator::{DiskOp, IoId, ToControl};
use holdfast_types::{BlockRange, DiskState, Geometry, NodeId, NodeSet};
use holdfast_wire::{Frame, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// What the stable storage of a replica says of itself.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The superblock.
    pub superblock: Superblock,
    /// Extents in the activity log.
    pub active: Vec<u32>,
    /// Number of the log's newest transaction.
    pub log_number: u64,
}

impl Stored {
    /// As this stable image holds it.
    pub fn read(layout: &Layout, image: &[u8]) -> Result<Self, String> {
        let slot = holdfast_meta::SUPERBLOCK_SLOT_BYTES as usize;
        let at = layout.superblock_offset as usize;
        let superblock =
            holdfast_meta::choose(&image[at..at + slot], &image[at + slot..at + 2 * slot])
                .map_err(|e| e.to_string())?;
        let (at, len) = layout.log_region();
        let log = holdfast_meta::recover_log(
            &image[at as usize..(at + len) as usize],
            layout,
            superblock.incarnation,
            superblock.log_floor,
        );
        Ok(Self {
            superblock,
            active: log.active,
            log_number: log.number,
        })
    }
}

/// A replica's disk at the moment of a step.
#[derive(Clone, Copy, Debug)]
pub struct Disk<'a> {
    /// What a read returns.
    pub cached: &'a [u8],
    /// What a power cut leaves at the least.
    pub stable: &'a [u8],
    /// Number of the oldest write that is in the first and not in the second.
    pub oldest_unstable: Option<u64>,
    /// What the stable storage says.
    pub stored: &'a Stored,
}

type Key = (u64, u64, u64);

fn key(stamp: Stamp, number: u64) -> Key {
    (stamp.epoch.0, stamp.session.0, number)
}

#[derive(Clone, Debug)]
struct Received {
    range: BlockRange,
    data: Option<Bytes>,
    fua: bool,
}

/// One replica, in one life.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// It says that it stops cleanly when it stops.
    marks: bool,
    writes: BTreeMap<Key, Received>,
    /// Flushes and cuts that wait for their answer, with the number of writes done when they came.
    barriers: BTreeMap<Key, u64>,
    bitmaps: BTreeMap<Key, Vec<(NodeId, Vec<BlockRange>)>>,
    /// Resync blocks that came and are not given to the disk yet, with their bytes, known by where they lie.
    resync: Vec<(BlockRange, Option<Bytes>)>,
    /// Disk writes that carry them.
    resync_io: BTreeSet<IoId>,
    /// Data writes on their way to the disk: first and last extent.
    in_flight: BTreeMap<IoId, (u32, u32)>,
}

impl Order {
    /// The replica's daemon is gone.
    pub fn gone(&mut self) {
        *self = Self::default();
    }

    /// A frame reaches the replica, whose disk has completed so many writes; for a cut, the other replicas it knows of.
    pub fn received(&mut self, frame: &Frame, done_writes: u64, placed: NodeSet) {
        match frame {
            Frame::Write {
                stamp,
                seq,
                range,
                fua,
                data,
            } => {
                let received = Received {
                    range: *range,
                    data: Some(data.clone()),
                    fua: *fua,
                };
                self.writes.insert(key(*stamp, seq.0), received);
            }
            Frame::Zero {
                stamp,
                seq,
                range,
                fua,
            } => {
                let received = Received {
                    range: *range,
                    data: None,
                    fua: *fua,
                };
                self.writes.insert(key(*stamp, seq.0), received);
            }
            Frame::Flush { stamp, token } => {
                self.barriers.insert(key(*stamp, *token), done_writes);
            }
            Frame::Cut {
                stamp,
                token,
                bitmaps,
            } => {
                self.barriers.insert(key(*stamp, *token), done_writes);
                // Of a node it does not know of (yet, or again) it keeps nothing, and all of that one's copy counts as dirty.
                let known = bitmaps.iter().filter(|(node, _)| placed.has(*node));
                self.bitmaps
                    .insert(key(*stamp, *token), known.cloned().collect());
            }
            // Bits for the new member, or for what a replica has been given meanwhile, may go.
            Frame::Grown { node, .. } | Frame::Synced { node, .. } => {
                for maps in self.bitmaps.values_mut() {
                    maps.retain(|(n, _)| n != node);
                }
            }
            Frame::Reconciled { set, .. } => {
                for maps in self.bitmaps.values_mut() {
                    maps.retain(|(n, _)| !set.has(*n));
                }
            }
            Frame::Resync { range, data, .. } => {
                self.resync.push((*range, data.clone()));
            }
            Frame::Attach(_) => {
                // A new session: what the old one brought is void, but for what the disk has already.
                self.writes.clear();
                self.barriers.clear();
                self.bitmaps.clear();
                self.resync.clear();
            }
            _ => {}
        }
    }

    /// The replica gives its disk an operation.
    pub fn submits(
        &mut self,
        g: &Geometry,
        io: IoId,
        op: &DiskOp,
        stored: &Stored,
    ) -> Result<(), String> {
        let (offset, len, data) = match op {
            DiskOp::Write { offset, data, .. } => (*offset, data.len() as u64, Some(data.clone())),
            DiskOp::Zero { offset, len, .. } => (*offset, *len, None),
            DiskOp::Read { .. } | DiskOp::Flush => return Ok(()),
        };
        if offset >= g.bytes() {
            return Ok(());
        }
        let block = u64::from(g.block_bytes);
        let range = BlockRange::new(offset / block, len.div_ceil(block));
        let extents = (g.extent_of(range.first), g.extent_of(range.end() - 1));
        self.in_flight.insert(io, extents);
        if let Some(missing) = (extents.0..=extents.1).find(|e| !stored.active.contains(e)) {
            return Err(format!(
                "order: a write of blocks {}..{} is given to the disk, but extent {missing} is not in the durable \
                 activity log {:?}",
                range.first,
                range.end(),
                stored.active
            ));
        }
        let same = |held: &Option<Bytes>| match (held, &data) {
            (Some(held), Some(data)) => held.as_ptr() == data.as_ptr(),
            // Zeroes look like those of a write of the same blocks.
            (None, None) => !self.writes.values().any(|w| w.range == range),
            _ => false,
        };
        let brought = self.resync.iter().position(|(r, d)| *r == range && same(d));
        if let Some(at) = brought {
            self.resync.swap_remove(at);
            self.resync_io.insert(io);
            if stored.superblock.disk != DiskState::Syncing {
                return Err(format!(
                    "order: a resync block is given to the disk, whose superblock still says {:?}",
                    stored.superblock.disk
                ));
            }
        }
        Ok(())
    }

    /// A disk operation ended: true if it carried a resync block.
    pub fn ended(&mut self, io: IoId) -> bool {
        self.in_flight.remove(&io);
        self.resync_io.remove(&io)
    }

    /// Is this data write one that carries a resync block?
    pub fn is_resync(&self, io: IoId) -> bool {
        self.resync_io.contains(&io)
    }

    /// A log transaction is on the disk.
    pub fn log_landed(&self, stored: &Stored) -> Result<(), String> {
        for (io, &(first, last)) in &self.in_flight {
            if let Some(gone) = (first..=last).find(|e| !stored.active.contains(e)) {
                return Err(format!(
                    "order: log transaction {} drops extent {gone}, but disk write {} is on its way there",
                    stored.log_number, io.0
                ));
            }
        }
        Ok(())
    }

    /// The replica sends a frame.
    pub fn sends(
        &mut self,
        frame: &Frame,
        g: &Geometry,
        disk: Disk<'_>,
        history: &History,
    ) -> Result<(), String> {
        let stored = &disk.stored.superblock;
        match frame {
            Frame::Ack { stamp, seq, .. } => match self.writes.remove(&key(*stamp, seq.0)) {
                Some(received) => acknowledges(&received, g, disk, history).map_err(|e| {
                    format!(
                        "order: write {seq} of epoch {} is answered, {e}",
                        stamp.epoch
                    )
                }),
                None => Ok(()),
            },
            Frame::Flushed { stamp, token, .. } => self.flushed(key(*stamp, *token), disk),
            Frame::CutDone { stamp, token, .. } => {
                self.flushed(key(*stamp, *token), disk)?;
                match self.bitmaps.remove(&key(*stamp, *token)) {
                    Some(bitmaps) => bitmaps_durable(&bitmaps, disk.stable),
                    None => Ok(()),
                }
            }
            Frame::Attached { stamp, .. } if stored.promised < stamp.epoch => Err(format!(
                "order: a session of epoch {} is taken, but the disk has promised {}",
                stamp.epoch, stored.promised
            )),
            Frame::Hello(hello) if hello.run != stored.run => Err(format!(
                "order: run {} is announced, the disk knows of {}",
                hello.run, stored.run
            )),
            _ => Ok(()),
        }
    }

    fn flushed(&mut self, key: Key, disk: Disk<'_>) -> Result<(), String> {
        match (self.barriers.remove(&key), disk.oldest_unstable) {
            (Some(done), Some(oldest)) if oldest <= done => Err(format!(
                "order: a flush that came after {done} disk writes is answered, but write {oldest} is not stable"
            )),
            _ => Ok(()),
        }
    }

    /// The replica tells its control plane something.
    pub fn says(&mut self, msg: &ToControl, stored: &Stored, failed: bool) -> Result<(), String> {
        let s = &stored.superblock;
        match msg {
            ToControl::Started { run, .. } if *run != s.run => Err(format!(
                "order: run {run} is told, the disk knows of {}",
                s.run
            )),
            ToControl::Started { unclean, .. } => {
                // One that lost its cache has no clean mark to give until it is made good.
                self.marks = !unclean;
                Ok(())
            }
            ToControl::Promised { epoch } if s.promised < *epoch => Err(format!(
                "order: the promise of epoch {epoch} is told, the disk has {}",
                s.promised
            )),
            ToControl::Promised { epoch } => match self.in_flight.keys().next() {
                Some(io) => Err(format!(
                    "order: epoch {epoch} is promised while disk write {} of an older one is on its way",
                    io.0
                )),
                None => Ok(()),
            },
            ToControl::DiskFailed { .. } => {
                self.marks = false;
                Ok(())
            }
            ToControl::Stopped if self.marks && !s.clean && !failed => {
                Err("order: the stop is told, but the disk has no clean mark".into())
            }
            _ => Ok(()),
        }
    }
}

fn acknowledges(
    received: &Received,
    g: &Geometry,
    disk: Disk<'_>,
    history: &History,
) -> Result<(), String> {
    let Some(data) = &received.data else {
        return Ok(());
    };
    let from = received.range.first * u64::from(g.block_bytes);
    let image = if received.fua {
        disk.stable
    } else {
        disk.cached
    };
    let first = from / CELL_BYTES;
    let held = &image[from as usize..from as usize + data.len()];
    history.not_older(first, held, data).map_err(|e| {
        format!(
            "but its disk{} {e}",
            if received.fua {
                "'s stable storage"
            } else {
                ""
            }
        )
    })
}

fn bitmaps_durable(wanted: &[(NodeId, Vec<BlockRange>)], stable: &[u8]) -> Result<(), String> {
    let meta = super::dirty::decode(stable).map_err(|e| e.to_string())?;
    for (node, ranges) in wanted {
        let Some((_, bits)) = meta.bitmaps.iter().find(|(n, _)| n == node) else {
            continue; // counts as all dirty
        };
        for range in ranges {
            if let Some(block) = (range.first..range.end()).find(|b| !bits.get(*b)) {
                return Err(format!(
                    "order: the cut is confirmed, but the bit of block {block} for {node} is not durable"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "order_tests.rs"]
pub(crate) mod tests;
