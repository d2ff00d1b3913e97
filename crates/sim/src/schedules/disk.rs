//! The disk of a schedule: nothing is drawn, the script says what lands, in which order, and what a power cut keeps.

use super::stage::GEOMETRY;
use bytes::Bytes;
use holdfast_replicator::{DiskError, DiskOp, IoId};
use std::collections::VecDeque;

/// Which operations wait for the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// None.
    Nothing,
    /// Writes of the volume's blocks.
    Data,
    /// Writes of metadata.
    Meta,
    /// Flushes.
    Flush,
}

/// What a power cut leaves of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Everything that was written.
    All,
    /// What was flushed.
    Flushed,
}

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) cached: Vec<u8>,
    pub(super) stable: Vec<u8>,
    /// In the cache and not on the medium.
    unflushed: Vec<(u64, Bytes)>,
    queue: VecDeque<(IoId, DiskOp)>,
    /// Of a process that was killed.
    orphans: Vec<DiskOp>,
    pub(super) hold: Hold,
    /// Every write and flush fails.
    pub(super) broken: bool,
}

impl Disk {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            cached: vec![0; bytes],
            stable: vec![0; bytes],
            unflushed: Vec::new(),
            queue: VecDeque::new(),
            orphans: Vec::new(),
            hold: Hold::Nothing,
            broken: false,
        }
    }

    pub(super) fn put(&mut self, offset: u64, data: &[u8]) {
        put(&mut self.cached, offset, data);
        put(&mut self.stable, offset, data);
    }

    pub(super) fn submit(&mut self, io: IoId, op: DiskOp) {
        self.queue.push_back((io, op));
    }

    fn is_held(&self, op: &DiskOp) -> bool {
        match (self.hold, op) {
            (Hold::Nothing, _) | (_, DiskOp::Read { .. }) => false,
            (Hold::Flush, op) => *op == DiskOp::Flush,
            (_, DiskOp::Flush) => false,
            (hold, DiskOp::Write { offset, .. } | DiskOp::Zero { offset, .. }) => {
                (*offset < GEOMETRY.bytes()) == (hold == Hold::Data)
            }
        }
    }

    /// Ends the first operation that does not wait for the script.
    pub(super) fn next(&mut self) -> Option<(IoId, Result<Bytes, DiskError>)> {
        let at = self.queue.iter().position(|(_, op)| !self.is_held(op))?;
        self.end(at)
    }

    /// Ends the last held operation before all others: disks reorder.
    pub(super) fn land_last(&mut self) -> Option<(IoId, Result<Bytes, DiskError>)> {
        let at = self.queue.iter().rposition(|(_, op)| self.is_held(op))?;
        self.end(at)
    }

    fn end(&mut self, at: usize) -> Option<(IoId, Result<Bytes, DiskError>)> {
        let (io, op) = self.queue.remove(at)?;
        let result = if self.broken && !matches!(op, DiskOp::Read { .. }) {
            Err(DiskError::Io)
        } else {
            Ok(self.apply(op))
        };
        Some((io, result))
    }

    fn apply(&mut self, op: DiskOp) -> Bytes {
        let (offset, data, durable) = match op {
            DiskOp::Read { offset, len } => {
                let from = offset as usize;
                return Bytes::copy_from_slice(&self.cached[from..from + len as usize]);
            }
            DiskOp::Flush => {
                self.write_back();
                return Bytes::new();
            }
            DiskOp::Write {
                offset,
                data,
                durable,
            } => (offset, data, durable),
            DiskOp::Zero {
                offset,
                len,
                durable,
            } => (offset, vec![0; len as usize].into(), durable),
        };
        put(&mut self.cached, offset, &data);
        if durable {
            put(&mut self.stable, offset, &data);
        } else {
            self.unflushed.push((offset, data));
        }
        Bytes::new()
    }

    fn write_back(&mut self) {
        for (offset, data) in self.unflushed.drain(..) {
            put(&mut self.stable, offset, &data);
        }
    }

    /// The process was killed: what it had in flight is still on its way.
    pub(super) fn orphan(&mut self) {
        self.hold = Hold::Nothing;
        self.orphans.extend(
            std::mem::take(&mut self.queue)
                .into_iter()
                .map(|(_, op)| op),
        );
    }

    /// What a killed process left in flight lands.
    pub(super) fn land_orphans(&mut self) {
        for op in std::mem::take(&mut self.orphans) {
            self.apply(op);
        }
    }

    /// A snapshot is put back.
    pub(super) fn revert(&mut self, image: &[u8]) {
        self.unflushed.clear();
        self.cached.copy_from_slice(image);
        self.stable.copy_from_slice(image);
    }

    pub(super) fn power_cut(&mut self, keep: Keep) {
        if keep == Keep::All {
            self.write_back();
        }
        self.unflushed.clear();
        self.queue.clear();
        self.orphans.clear();
        self.hold = Hold::Nothing;
        self.cached.copy_from_slice(&self.stable);
    }
}

fn put(image: &mut [u8], offset: u64, data: &[u8]) {
    let at = offset as usize;
    image[at..at + data.len()].copy_from_slice(data);
}
