//! What a disk's volatile cache holds, block by block: data of the fault wrapper's lost cache.
//!
//! Every write has a number. A block remembers the number of its last write and of the first one
//! that is not on the disk yet; so a flush knows which blocks it owes, and what it has brought to
//! the disk leaves the cache only if it was not overwritten meanwhile.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::{BLOCK_BYTES, StoreOp};

/// Largest single write to the disk below, blocks.
const RUN_BLOCKS: usize = 256;
/// What a block of zeroes is counted as, bytes: its entry, no data.
const ZERO_COST: usize = 64;

/// Content of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Patch {
    Data(Bytes),
    Zero,
}

impl Patch {
    fn cost(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Zero => ZERO_COST,
        }
    }

    pub(super) fn apply(&self, block: &mut [u8]) {
        match self {
            Self::Data(data) => block.copy_from_slice(data),
            Self::Zero => block.fill(0),
        }
    }
}

#[derive(Debug)]
struct Cell {
    patch: Patch,
    last: u64,
    first: u64,
}

/// Blocks with the number of the write they hold.
pub(super) type Written = Vec<(u64, u64)>;

#[derive(Debug, Default)]
pub(super) struct Overlay {
    cells: BTreeMap<u64, Cell>,
    cost: usize,
    writes: u64,
}

fn blocks(offset: u64, len: u64) -> Range<u64> {
    offset / BLOCK_BYTES..(offset + len) / BLOCK_BYTES
}

impl Overlay {
    /// Number of the last write.
    pub(super) fn now(&self) -> u64 {
        self.writes
    }

    /// Bytes of memory it takes, about.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    pub(super) fn clear(&mut self) {
        self.cells.clear();
        self.cost = 0;
    }

    /// Numbers a write that does not come here, so that [`Overlay::forget`] knows what is older.
    pub(super) fn pass(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    pub(super) fn write(&mut self, offset: u64, data: &Bytes) {
        let seq = self.pass();
        for (block, piece) in
            blocks(offset, data.len() as u64).zip(data.chunks(BLOCK_BYTES as usize))
        {
            self.put(block, Patch::Data(Bytes::copy_from_slice(piece)), seq);
        }
    }

    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        let seq = self.pass();
        for block in blocks(offset, len) {
            self.put(block, Patch::Zero, seq);
        }
    }

    fn put(&mut self, block: u64, patch: Patch, seq: u64) {
        self.cost += patch.cost();
        let first = match self.take(block) {
            Some(old) => old.first,
            None => seq,
        };
        self.cells.insert(
            block,
            Cell {
                patch,
                last: seq,
                first,
            },
        );
    }

    fn take(&mut self, block: u64) -> Option<Cell> {
        let cell = self.cells.remove(&block)?;
        self.cost -= cell.patch.cost();
        Some(cell)
    }

    /// What a range has here.
    pub(super) fn within(&self, offset: u64, len: u64) -> Vec<(u64, Patch)> {
        self.cells
            .range(blocks(offset, len))
            .map(|(block, cell)| (*block, cell.patch.clone()))
            .collect()
    }

    /// What must be written so that all writes up to this number are on the disk: operations, and
    /// for [`Overlay::settle`] the blocks in them.
    pub(super) fn due(&self, upto: u64) -> (Vec<StoreOp>, Written) {
        let mut ops = Vec::new();
        let mut written = Vec::new();
        let mut run: Vec<(u64, &Patch)> = Vec::new();
        for (block, cell) in self.cells.iter().filter(|(_, cell)| cell.first <= upto) {
            written.push((*block, cell.last));
            let goes_on = run.last().is_some_and(|(last, patch)| {
                last + 1 == *block
                    && matches!(patch, Patch::Zero) == matches!(cell.patch, Patch::Zero)
            });
            if !goes_on || run.len() == RUN_BLOCKS {
                ops.extend(operation(&run));
                run.clear();
            }
            run.push((*block, &cell.patch));
        }
        ops.extend(operation(&run));
        (ops, written)
    }

    /// These blocks, with these writes, are on the disk.
    pub(super) fn settle(&mut self, written: &Written) {
        for (block, seq) in written {
            match self.cells.get_mut(block) {
                Some(cell) if cell.last == *seq => {
                    self.take(*block);
                }
                Some(cell) => cell.first = cell.first.max(seq + 1),
                None => {}
            }
        }
    }

    /// A durable write with this number has replaced what a range had here.
    pub(super) fn forget(&mut self, offset: u64, len: u64, seq: u64) {
        let old: Vec<u64> = self
            .cells
            .range(blocks(offset, len))
            .filter(|(_, cell)| cell.last < seq)
            .map(|(block, _)| *block)
            .collect();
        for block in old {
            self.take(block);
        }
    }
}

/// One operation for neighbouring blocks of one kind.
fn operation(run: &[(u64, &Patch)]) -> Option<StoreOp> {
    let (first, patch) = run.first()?;
    let offset = first * BLOCK_BYTES;
    if matches!(patch, Patch::Zero) {
        return Some(StoreOp::Zero {
            offset,
            len: run.len() as u64 * BLOCK_BYTES,
            durable: false,
        });
    }
    let mut data = BytesMut::zeroed(run.len() * BLOCK_BYTES as usize);
    for ((_, patch), block) in run.iter().zip(data.chunks_mut(BLOCK_BYTES as usize)) {
        patch.apply(block);
    }
    Some(StoreOp::Write {
        offset,
        data: data.freeze(),
        durable: false,
    })
}

/// Lays what the cache has over what the disk has.
pub(super) fn patched(offset: u64, disk: Bytes, patches: &[(u64, Patch)]) -> Bytes {
    if patches.is_empty() {
        return disk;
    }
    let mut data = BytesMut::from(&disk[..]);
    for (block, patch) in patches {
        let at = (block * BLOCK_BYTES - offset) as usize;
        patch.apply(&mut data[at..at + BLOCK_BYTES as usize]);
    }
    data.freeze()
}
