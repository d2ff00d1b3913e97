//! The region as a whole: making a blank one, finding one, reading everything in it.

use crate::layout::store_end;
use crate::{
    Bitmap, LOG_TRANSACTIONS, Layout, LogState, MetaError, Owner, PEERS_MAX, SUPERBLOCK_SLOT_BYTES,
    SlotState, Superblock, choose, recover_log,
};
use bytes::Bytes;
use holdfast_types::NodeId;
use std::fmt;

/// What the bitmaps of a new replica say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapStart {
    /// Peers lack everything. Costs no writes: a bitmap that was never written reads so.
    AllDirty,
    /// Peers lack nothing, because all replicas are created together with the same content.
    Clean,
}

/// The writes that make a blank replica, to be durable before it is used. Any order is
/// right but for the last, the superblock: it must follow the others.
pub fn initialise(
    layout: &Layout,
    superblock: &Superblock,
    bitmaps: BitmapStart,
) -> Result<Vec<(u64, Bytes)>, MetaError> {
    if superblock.room() != layout.geometry || superblock.page_bytes != layout.page_bytes {
        return Err(MetaError::Impossible {
            what: "superblock page size",
            value: superblock.page_bytes.into(),
            allowed: "the layout's geometry and page size",
        });
    }
    let page = Bytes::from(vec![0; layout.page_bytes as usize]);
    let mut writes = Vec::new();
    if bitmaps == BitmapStart::Clean {
        let empty = Bitmap::new(layout);
        for (slot, node) in slots(superblock) {
            let owner = Owner {
                incarnation: superblock.incarnation,
                node,
            };
            writes.extend(
                (0..empty.pages())
                    .map(|n| (layout.bitmap_page_offset(slot, n), empty.page(n, owner))),
            );
        }
    }
    writes.extend(
        (0..u64::from(LOG_TRANSACTIONS)).map(|n| (layout.transaction_offset(n), page.clone())),
    );
    // The other slot may hold an earlier replica's superblock with a higher update number.
    let other = layout.superblock_slot_offset(superblock.update + 1);
    writes.push((other, Bytes::from(vec![0; superblock.encode().len()])));
    writes.push(superblock.write(layout));
    Ok(writes)
}

/// Offset and length of the two superblock slots on a store, whatever it holds.
pub const fn superblock_range(store_bytes: u64) -> Result<(u64, u64), MetaError> {
    let len = 2 * SUPERBLOCK_SLOT_BYTES as u64;
    match store_end(store_bytes).checked_sub(len) {
        Some(offset) => Ok((offset, len)),
        None => Err(MetaError::TooSmall {
            have: store_bytes,
            needed: len,
        }),
    }
}

/// A superblock that was found, and where everything else is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The newest whole superblock.
    pub superblock: Superblock,
    /// What follows from it.
    pub layout: Layout,
    /// The slot that was not chosen holds neither an older superblock nor nothing: a write was torn, or it is rotten.
    pub other_slot_damaged: bool,
}

/// Finds a replica on a store of `store_bytes` from the bytes at [`superblock_range`].
pub fn locate(store_bytes: u64, tail: &[u8]) -> Result<Located, MetaError> {
    let (offset, len) = superblock_range(store_bytes)?;
    if (tail.len() as u64) < len {
        return Err(MetaError::Short {
            have: tail.len() as u64,
            needed: len,
        });
    }
    let (a, b) = tail.split_at(SUPERBLOCK_SLOT_BYTES as usize);
    let b = &b[..SUPERBLOCK_SLOT_BYTES as usize];
    let superblock = choose(a, b)?;
    let layout = Layout::with_page(
        superblock.room(),
        store_bytes,
        PEERS_MAX,
        superblock.log_slots,
        superblock.page_bytes,
    )?;
    debug_assert_eq!(layout.superblock_offset, offset);
    let other = if superblock.update.is_multiple_of(2) {
        b
    } else {
        a
    };
    let other_slot_damaged = !matches!(
        Superblock::decode(other),
        SlotState::Valid(_) | SlotState::Blank
    );
    Ok(Located {
        superblock,
        layout,
        other_slot_damaged,
    })
}

/// Finds a replica whose metadata ends at one of several places, from the bytes at their [`superblock_range`]s: while a
/// volume grows there are two. The newest superblock counts: it was written after everything around it.
pub fn locate_among(ends: &[(u64, &[u8])]) -> Result<Located, MetaError> {
    let mut newest: Option<Located> = None;
    let mut refusal = None;
    for &(end, tail) in ends {
        match locate(end, tail) {
            Ok(found)
                if newest
                    .as_ref()
                    .is_none_or(|n| n.superblock.update < found.superblock.update) =>
            {
                newest = Some(found);
            }
            Ok(_) => {}
            // Who has nothing says less than who has something that cannot be read.
            Err(e) => {
                if refusal.as_ref().is_none_or(|r| *r == MetaError::Blank) {
                    refusal = Some(e);
                }
            }
        }
    }
    newest.ok_or_else(|| refusal.unwrap_or(MetaError::Blank))
}

impl Located {
    /// Everything, from the bytes at [`Layout::region`].
    pub fn recover(self, region: &[u8]) -> Result<Recovered, MetaError> {
        let (start, len) = self.layout.region();
        if (region.len() as u64) < len {
            return Err(MetaError::Short {
                have: region.len() as u64,
                needed: len,
            });
        }
        self.recover_with(|offset, len| {
            let from = (offset - start) as usize;
            Ok(Bytes::copy_from_slice(&region[from..from + len as usize]))
        })
    }

    /// Everything, reading only what is needed through `read` (offset and length in bytes).
    pub fn recover_with<E: From<MetaError>>(
        self,
        mut read: impl FnMut(u64, u64) -> Result<Bytes, E>,
    ) -> Result<Recovered, E> {
        let Self {
            superblock,
            layout,
            other_slot_damaged,
        } = self;
        let (offset, len) = layout.log_region();
        let log = recover_log(
            &read(offset, len)?,
            &layout,
            superblock.incarnation,
            superblock.log_floor,
        );
        if let Some(&extent) = log
            .active
            .iter()
            .find(|&&e| u64::from(e) >= layout.geometry.extents())
        {
            return Err(MetaError::Field {
                field: "activity-log extent",
                value: extent.into(),
            }
            .into());
        }
        let mut bitmaps = Vec::new();
        let mut damaged_sectors = 0;
        for (slot, node) in slots(&superblock) {
            let owner = Owner {
                incarnation: superblock.incarnation,
                node,
            };
            let (offset, len) = layout.bitmap_region(slot);
            let bytes = read(offset, len)?;
            let mut bitmap = Bitmap::new(&layout);
            for page in 0..bitmap.pages() {
                let from = page as usize * layout.page_bytes as usize;
                let bytes = bytes.get(from..).unwrap_or_default();
                damaged_sectors += bitmap.load_page(page, owner, bytes)?.damaged_sectors;
            }
            bitmaps.push((node, bitmap));
        }
        Ok(Recovered {
            superblock,
            layout,
            log,
            bitmaps,
            damaged_sectors,
            other_slot_damaged,
        })
    }
}

/// A replica's metadata as the disk holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The newest whole superblock.
    pub superblock: Superblock,
    /// Where everything is.
    pub layout: Layout,
    /// The activity log.
    pub log: LogState,
    /// The bitmaps of the peers that have a slot, in slot order.
    pub bitmaps: Vec<(NodeId, Bitmap)>,
    /// Bitmap sectors that failed their check and count as all dirty.
    pub damaged_sectors: u32,
    /// See [`Located::other_slot_damaged`].
    pub other_slot_damaged: bool,
}

impl fmt::Display for Recovered {
    /// For people: what an offline inspection prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.superblock;
        let g = s.geometry;
        writeln!(
            f,
            "format       {}, update {}, pages of {} bytes",
            s.version, s.update, s.page_bytes
        )?;
        writeln!(
            f,
            "identity     cluster {:016x}, volume {}, {}, incarnation {:016x}",
            s.cluster, s.volume, s.node, s.incarnation.0
        )?;
        writeln!(
            f,
            "volume       {} bytes: {} blocks of {}, extents of {} blocks",
            g.bytes(),
            g.blocks,
            g.block_bytes,
            g.extent_blocks
        )?;
        let stop = if s.clean {
            "stopped cleanly"
        } else {
            "not stopped cleanly"
        };
        writeln!(
            f,
            "run          {} in boot {:032x}, {stop}",
            s.run, s.boot_id
        )?;
        writeln!(
            f,
            "epoch        {}, promised {}, lineage {:016x}",
            s.epoch, s.promised, s.lineage
        )?;
        writeln!(f, "disk         {:?}", s.disk)?;
        writeln!(
            f,
            "layout       metadata at {}, log at {}, superblocks at {}, end {}",
            self.layout.region_offset,
            self.layout.log_offset,
            self.layout.superblock_offset,
            self.layout.region_end
        )?;
        writeln!(
            f,
            "activity log transaction {} (floor {}), {} of {} slots: {:?}",
            self.log.number,
            s.log_floor,
            self.log.active.len(),
            s.log_slots,
            self.log.active
        )?;
        for (node, bitmap) in &self.bitmaps {
            writeln!(f, "bitmap       {node} lacks {bitmap:?}")?;
        }
        if self.damaged_sectors > 0 {
            writeln!(
                f,
                "damage       {} bitmap sectors failed their check and count as dirty",
                self.damaged_sectors
            )?;
        }
        if self.other_slot_damaged {
            writeln!(
                f,
                "damage       the older superblock slot is torn or rotten"
            )?;
        }
        Ok(())
    }
}

fn slots(superblock: &Superblock) -> impl Iterator<Item = (u8, NodeId)> + '_ {
    superblock
        .peer_slots
        .iter()
        .enumerate()
        .filter_map(|(slot, node)| Some((slot as u8, (*node)?)))
}
