//! Where everything is. From the end of the store: two superblock slots, before them the ring of
//! activity-log transactions, before that one bitmap per peer slot, before that free space, and the data at 0.
//!
//! The superblocks' place depends on nothing but the size of the store, so they can be found; all
//! other places follow from what they say.

use crate::MetaError;
use crate::page::{SECTOR_BITS, page_bits};
use holdfast_types::{Geometry, NODES_MAX};

/// Bytes a store writes whole or not at all.
pub const SECTOR_BYTES: u32 = 512;
/// Bytes of a metadata page on a real store: the unit of metadata writes.
pub const META_PAGE_BYTES: u32 = 4096;
/// Largest page, in bytes.
pub const META_PAGE_BYTES_MAX: u32 = 64 << 10;
/// Distance of the two superblock slots in bytes, whatever the page size, so that they can be found.
pub const SUPERBLOCK_SLOT_BYTES: u32 = 4096;
/// Peers of a replica at the most: everyone else.
pub const PEERS_MAX: u8 = NODES_MAX - 1;
/// Transactions in the activity-log ring. The newest is never overwritten while its successors are in flight.
pub const LOG_TRANSACTIONS: u32 = 8;
/// Extents the activity log must be able to hold: the largest write touches a quarter of them, and one more.
pub const LOG_SLOTS_MIN: u32 = 4;
/// Blocks in a volume at the most (16 TiB of 4 KiB blocks; 512 MiB of bitmap per peer).
pub const BLOCKS_MAX: u64 = 1 << 32;

/// Absolute places of a replica's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of the volume.
    pub geometry: Geometry,
    /// Bytes per metadata page: a power of two from 512 up.
    pub page_bytes: u32,
    /// Extents the activity log may hold active.
    pub log_slots: u32,
    /// Peer slots there is a bitmap for.
    pub peers_max: u8,
    /// First byte of the region: the first bitmap.
    pub region_offset: u64,
    /// First byte of the ring of transactions.
    pub log_offset: u64,
    /// First byte of superblock slot A; slot B follows at [`SUPERBLOCK_SLOT_BYTES`].
    pub superblock_offset: u64,
    /// One past the region's last byte.
    pub region_end: u64,
}

impl Layout {
    /// The layout on a store of `store_bytes` with pages of [`META_PAGE_BYTES`].
    pub fn new(
        geometry: Geometry,
        store_bytes: u64,
        peers_max: u8,
        log_slots: u32,
    ) -> Result<Self, MetaError> {
        Self::with_page(geometry, store_bytes, peers_max, log_slots, META_PAGE_BYTES)
    }

    /// The same with pages of another size, for stores that are simulated.
    pub fn with_page(
        geometry: Geometry,
        store_bytes: u64,
        peers_max: u8,
        log_slots: u32,
        page_bytes: u32,
    ) -> Result<Self, MetaError> {
        check(geometry, peers_max, log_slots, page_bytes)?;
        let needed = Self::bytes_needed_with_page(geometry, peers_max, page_bytes);
        let region_end = store_end(store_bytes);
        if region_end < needed {
            return Err(MetaError::TooSmall {
                have: store_bytes,
                needed,
            });
        }
        let superblock_offset = region_end - 2 * u64::from(SUPERBLOCK_SLOT_BYTES);
        // Down to a page boundary: a page may be larger than a superblock slot.
        let log_offset = (superblock_offset - log_bytes(page_bytes)) & !(u64::from(page_bytes) - 1);
        let region_offset = log_offset - bitmap_bytes(geometry, page_bytes) * u64::from(peers_max);
        Ok(Self {
            geometry,
            page_bytes,
            log_slots,
            peers_max,
            region_offset,
            log_offset,
            superblock_offset,
            region_end,
        })
    }

    /// Bytes a store must have for this volume and its metadata.
    pub fn bytes_needed(geometry: Geometry, peers_max: u8) -> u64 {
        Self::bytes_needed_with_page(geometry, peers_max, META_PAGE_BYTES)
    }

    /// The same with pages of another size.
    pub fn bytes_needed_with_page(geometry: Geometry, peers_max: u8, page_bytes: u32) -> u64 {
        let slot = u64::from(SUPERBLOCK_SLOT_BYTES);
        let unit = slot.max(u64::from(page_bytes));
        let data = geometry.bytes().next_multiple_of(u64::from(page_bytes));
        let bitmaps = bitmap_bytes(geometry, page_bytes) * u64::from(peers_max);
        // One unit more where pages are larger than superblock slots pays for their alignment.
        let slack = unit - slot;
        (data + bitmaps + log_bytes(page_bytes) + 2 * slot + slack).next_multiple_of(slot)
    }

    /// The largest volume that a replica with this one can grow to on a store of `store_bytes`, without its regions
    /// overlapping; `None`: not larger than it is.
    pub fn largest(now: Geometry, store_bytes: u64, peers_max: u8) -> Option<Geometry> {
        let old = Self::new(now, Self::bytes_needed(now, peers_max), peers_max, 1).ok()?;
        let end = store_end(store_bytes);
        let (mut fits, mut too_many) = (now.blocks, end / u64::from(now.block_bytes) + 1);
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            if old.bytes_to_grow(middle) <= end && middle <= BLOCKS_MAX {
                fits = middle;
            } else {
                too_many = middle;
            }
        }
        (fits > now.blocks).then_some(Geometry {
            blocks: fits,
            ..now
        })
    }

    /// Bytes a store must have for the volume to grow to `blocks`: the new region begins behind the end of this one,
    /// so that each is whole until the other is.
    pub fn bytes_to_grow(&self, blocks: u64) -> u64 {
        let geometry = Geometry {
            blocks,
            ..self.geometry
        };
        let needed = Self::bytes_needed_with_page(geometry, self.peers_max, self.page_bytes);
        let data = geometry
            .bytes()
            .next_multiple_of(u64::from(self.page_bytes));
        needed.max(self.region_end + (needed - data))
    }

    /// The most extents one transaction of a page can name: the limit of `log_slots`.
    pub const fn log_slots_max(page_bytes: u32) -> u32 {
        (page_bytes - crate::log::HEADER_BYTES) / 4
    }

    /// Blocks whose bits are in one bitmap page.
    pub const fn page_bits(&self) -> u64 {
        page_bits(self.page_bytes)
    }

    /// Pages of one bitmap.
    pub const fn bitmap_pages(&self) -> u32 {
        self.geometry.blocks.div_ceil(self.page_bits()) as u32
    }

    /// Where a page of the bitmap in a peer slot is.
    ///
    /// # Panics
    /// If there is no such slot or page: both come from this layout.
    pub const fn bitmap_page_offset(&self, slot: u8, page: u32) -> u64 {
        assert!(slot < self.peers_max && page < self.bitmap_pages());
        let pages = self.bitmap_pages() as u64 * slot as u64 + page as u64;
        self.region_offset + pages * self.page_bytes as u64
    }

    /// Where the transaction with this number is.
    pub const fn transaction_offset(&self, number: u64) -> u64 {
        self.log_offset + (number % LOG_TRANSACTIONS as u64) * self.page_bytes as u64
    }

    /// Where the superblock with this update number is.
    pub const fn superblock_slot_offset(&self, update: u64) -> u64 {
        self.superblock_offset + (update % 2) * SUPERBLOCK_SLOT_BYTES as u64
    }

    /// Offset and length of the whole region.
    pub const fn region(&self) -> (u64, u64) {
        (self.region_offset, self.region_end - self.region_offset)
    }

    /// Offset and length of the ring of transactions.
    pub const fn log_region(&self) -> (u64, u64) {
        (self.log_offset, log_bytes(self.page_bytes))
    }

    /// Offset and length of the bitmap in a peer slot.
    pub const fn bitmap_region(&self, slot: u8) -> (u64, u64) {
        (
            self.bitmap_page_offset(slot, 0),
            bitmap_bytes(self.geometry, self.page_bytes),
        )
    }
}

/// The part of the store that metadata may end at: whole superblock slots.
pub(crate) const fn store_end(store_bytes: u64) -> u64 {
    store_bytes & !(SUPERBLOCK_SLOT_BYTES as u64 - 1)
}

const fn log_bytes(page_bytes: u32) -> u64 {
    LOG_TRANSACTIONS as u64 * page_bytes as u64
}

const fn bitmap_bytes(geometry: Geometry, page_bytes: u32) -> u64 {
    geometry.blocks.div_ceil(page_bits(page_bytes)) * page_bytes as u64
}

/// Everything a layout is computed from is possible; what a superblock says passes through here too.
fn check(
    geometry: Geometry,
    peers_max: u8,
    log_slots: u32,
    page_bytes: u32,
) -> Result<(), MetaError> {
    let impossible = |what, value, allowed| {
        Err(MetaError::Impossible {
            what,
            value,
            allowed,
        })
    };
    if !page_bytes.is_power_of_two() || !(SECTOR_BYTES..=META_PAGE_BYTES_MAX).contains(&page_bytes)
    {
        return impossible(
            "metadata page size",
            page_bytes.into(),
            "a power of two from 512 to 65536 bytes",
        );
    }
    if !geometry.block_bytes.is_power_of_two() || geometry.block_bytes > (1 << 20) {
        return impossible(
            "block size",
            geometry.block_bytes.into(),
            "a power of two up to 1 MiB",
        );
    }
    if geometry.blocks == 0 || geometry.blocks > BLOCKS_MAX {
        return impossible("number of blocks", geometry.blocks, "from 1 to 2^32");
    }
    if geometry.extent_blocks == 0 || geometry.extents() > u64::from(u32::MAX) {
        return impossible(
            "blocks per extent",
            geometry.extent_blocks.into(),
            "at least 1",
        );
    }
    if peers_max == 0 || peers_max > PEERS_MAX {
        return impossible("number of peer slots", peers_max.into(), "from 1 to 7");
    }
    if log_slots < LOG_SLOTS_MIN || log_slots > Layout::log_slots_max(page_bytes) {
        return impossible(
            "number of activity-log slots",
            log_slots.into(),
            "from 4 to what one metadata page holds",
        );
    }
    // A bitmap that ends in the middle of a word has its last sector part empty; both are fine.
    debug_assert!(page_bits(page_bytes).is_multiple_of(SECTOR_BITS));
    Ok(())
}
