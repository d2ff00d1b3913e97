//! A dense set of blocks, fast by whole words, that knows which of its pages the disk lacks.
//!
//! Invariants
//! - bits at and past `blocks` are zero;
//! - `page_counts` are the numbers of set bits per page, `count` is their sum;
//! - a page that got a bit since its last save began is in `unsaved_set`; one that only lost bits
//!   is in `unsaved_clear`. What the disk holds then differs from memory only in those pages and in the
//!   ones being saved.

use crate::page::{self, Loaded, Owner, SECTOR_BITS, SECTOR_WORDS};
use crate::{Layout, MetaError, SECTOR_BYTES};
use bytes::Bytes;
use holdfast_types::BlockRange;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How a page differs from what the disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unsaved {
    /// Only bits were cleared: the disk claims too much, which is safe.
    Clear,
    /// Bits were set that the disk may lack.
    Set,
}

/// A set of blocks of one volume.
#[derive(Clone)]
pub struct Bitmap {
    blocks: u64,
    page_bytes: u32,
    words: Vec<u64>,
    page_counts: Vec<u32>,
    count: u64,
    unsaved_set: BTreeSet<u32>,
    unsaved_clear: BTreeSet<u32>,
    saving: BTreeMap<u32, Unsaved>,
}

impl Bitmap {
    /// The empty set for the volume and page size of a layout; nothing is unsaved.
    pub fn new(layout: &Layout) -> Self {
        Self::with_blocks(layout.geometry.blocks, layout.page_bytes)
    }

    /// The empty set over `blocks` blocks, in pages of `page_bytes`.
    ///
    /// # Panics
    /// If a page holds no sector.
    pub fn with_blocks(blocks: u64, page_bytes: u32) -> Self {
        assert!(page_bytes >= SECTOR_BYTES);
        let pages = blocks.div_ceil(page::page_bits(page_bytes));
        Self {
            blocks,
            page_bytes,
            words: vec![0; blocks.div_ceil(64) as usize],
            page_counts: vec![0; pages as usize],
            count: 0,
            unsaved_set: BTreeSet::new(),
            unsaved_clear: BTreeSet::new(),
            saving: BTreeMap::new(),
        }
    }

    /// Blocks of the volume.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Makes it a set over more blocks; the new ones are not in it. What the disk holds is forgotten.
    pub fn grow(&mut self, blocks: u64) {
        assert!(blocks >= self.blocks);
        self.blocks = blocks;
        let pages = blocks.div_ceil(page::page_bits(self.page_bytes));
        self.words.resize(blocks.div_ceil(64) as usize, 0);
        self.page_counts.resize(pages as usize, 0);
        self.saving.clear();
        self.mark_all_unsaved();
    }

    /// Blocks in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// No block in the set?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Is `block` in the set? Blocks outside the volume are not.
    pub fn get(&self, block: u64) -> bool {
        block < self.blocks && self.words[(block / 64) as usize] & (1 << (block % 64)) != 0
    }

    /// Is any block of `range` in the set?
    pub fn any(&self, range: BlockRange) -> bool {
        self.next_run(range.first, 1)
            .is_some_and(|run| run.first < range.end())
    }

    /// Is every block of `range` in the set?
    pub fn all(&self, range: BlockRange) -> bool {
        self.count_in(range) == range.count
    }

    /// Blocks of `range` in the set.
    pub fn count_in(&self, range: BlockRange) -> u64 {
        self.clip(range).map_or(0, |range| {
            word_masks(range)
                .map(|(word, mask)| u64::from((self.words[word] & mask).count_ones()))
                .sum()
        })
    }

    /// Adds the blocks of `range` that are in the volume; returns how many were not there.
    pub fn set(&mut self, range: BlockRange) -> u64 {
        self.change(range, true)
    }

    /// Takes the blocks of `range` out; returns how many were there.
    pub fn clear(&mut self, range: BlockRange) -> u64 {
        self.change(range, false)
    }

    /// Adds every block.
    pub fn set_all(&mut self) {
        if self.blocks > 0 {
            self.set(BlockRange::new(0, self.blocks));
        }
    }

    /// Takes every block out.
    pub fn clear_all(&mut self) {
        if self.blocks > 0 {
            self.clear(BlockRange::new(0, self.blocks));
        }
    }

    /// Adds the blocks of all `ranges`; returns how many were not there.
    pub fn set_ranges(&mut self, ranges: &[BlockRange]) -> u64 {
        ranges.iter().map(|&r| self.set(r)).sum()
    }

    /// Takes the blocks of all `ranges` out; returns how many were there.
    pub fn clear_ranges(&mut self, ranges: &[BlockRange]) -> u64 {
        ranges.iter().map(|&r| self.clear(r)).sum()
    }

    /// Makes this exactly the blocks of `ranges`; only pages that change become unsaved.
    pub fn replace(&mut self, ranges: &[BlockRange]) {
        let mut wanted = Self::with_blocks(self.blocks, self.page_bytes);
        wanted.set_ranges(ranges);
        self.each_word(&wanted, |_, theirs| theirs);
    }

    /// Adds every block of `other`.
    ///
    /// # Panics
    /// If the two are not about volumes of one size.
    pub fn union(&mut self, other: &Self) {
        self.each_word(other, |ours, theirs| ours | theirs);
    }

    /// The first run of set blocks that starts at or after `from` (or covers it, cut at `from`), whole.
    pub fn next_set_run(&self, from: u64) -> Option<BlockRange> {
        self.next_run(from, u64::MAX)
    }

    /// The same, cut to at most `max` blocks.
    pub fn next_run(&self, from: u64, max: u64) -> Option<BlockRange> {
        let first = self.next_set(from)?;
        let limit = first.saturating_add(max.max(1)).min(self.blocks);
        let end = self.next_clear(first, limit);
        Some(BlockRange::new(first, end - first))
    }

    /// The runs of set blocks in order, each at most `max` blocks.
    pub fn runs(&self, max: u64) -> impl Iterator<Item = BlockRange> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next_run(from, max)?;
            from = run.end();
            Some(run)
        })
    }

    /// All runs of set blocks.
    pub fn to_ranges(&self) -> Vec<BlockRange> {
        self.runs(u64::MAX).collect()
    }

    // ---- pages

    /// Number of pages.
    pub fn pages(&self) -> u32 {
        self.page_counts.len() as u32
    }

    /// The page that holds the bit of `block`.
    pub fn page_of(&self, block: u64) -> u32 {
        (block / page::page_bits(self.page_bytes)) as u32
    }

    /// Pages whose bits the disk may lack: those with bits set since their last save began, and, with
    /// [`Unsaved::Clear`], also those with bits cleared only. Pages being saved are named if they changed again.
    pub fn pages_unsaved(&self, least: Unsaved) -> Vec<u32> {
        match least {
            Unsaved::Set => self.unsaved_set.iter().copied().collect(),
            Unsaved::Clear => self
                .unsaved_set
                .union(&self.unsaved_clear)
                .copied()
                .collect(),
        }
    }

    /// Is every set bit of this on disk: no page with new bits unsaved or being saved?
    pub fn is_durable(&self) -> bool {
        self.unsaved_set.is_empty() && !self.saving.values().any(|&u| u == Unsaved::Set)
    }

    /// Is every set bit of `range` on disk?
    pub fn is_durable_in(&self, range: BlockRange) -> bool {
        (self.page_of(range.first)..=self.page_of(range.end() - 1))
            .all(|p| !self.unsaved_set.contains(&p) && self.saving.get(&p) != Some(&Unsaved::Set))
    }

    /// Does the disk hold exactly this set?
    pub fn is_saved(&self) -> bool {
        self.unsaved_set.is_empty() && self.unsaved_clear.is_empty() && self.saving.is_empty()
    }

    /// Begins to save a page: its bytes, or `None` if the disk has it or a save of it is under way
    /// (two writes of one page must not race on the disk).
    pub fn begin_save(&mut self, page: u32, owner: Owner) -> Option<Bytes> {
        if self.saving.contains_key(&page) {
            return None;
        }
        let set = self.unsaved_set.remove(&page);
        let cleared = self.unsaved_clear.remove(&page);
        if !set && !cleared {
            return None;
        }
        self.saving
            .insert(page, if set { Unsaved::Set } else { Unsaved::Clear });
        Some(self.page(page, owner))
    }

    /// The save of a page is durable.
    pub fn saved(&mut self, page: u32) {
        self.saving.remove(&page);
    }

    /// The save of a page failed: the disk may hold either.
    pub fn save_failed(&mut self, page: u32) {
        if let Some(unsaved) = self.saving.remove(&page) {
            self.mark(page, unsaved);
        }
    }

    /// Forgets what the disk holds: every page is to be saved.
    pub fn mark_all_unsaved(&mut self) {
        for page in 0..self.pages() {
            self.mark(page, Unsaved::Set);
        }
    }

    /// A page in bytes, without any bookkeeping.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn page(&self, page: u32, owner: Owner) -> Bytes {
        assert!(page < self.pages());
        let mut out = Vec::with_capacity(self.page_bytes as usize);
        for sector in self.sectors_of(page) {
            let first = (sector as usize * SECTOR_WORDS).min(self.words.len());
            let end = (first + SECTOR_WORDS).min(self.words.len());
            page::put_sector(&mut out, owner, sector, &self.words[first..end]);
        }
        out.into()
    }

    /// Takes a page over as the disk holds it; a sector that fails its check counts as all set, and
    /// the page as unsaved.
    pub fn load_page(
        &mut self,
        page: u32,
        owner: Owner,
        bytes: &[u8],
    ) -> Result<Loaded, MetaError> {
        if page >= self.pages() {
            return Err(MetaError::Field {
                field: "bitmap page",
                value: page.into(),
            });
        }
        if bytes.len() < self.page_bytes as usize {
            return Err(MetaError::Short {
                have: bytes.len() as u64,
                needed: self.page_bytes.into(),
            });
        }
        let mut loaded = Loaded::default();
        let sector_bytes = SECTOR_BYTES as usize;
        for (sector, bytes) in self.sectors_of(page).zip(bytes.chunks_exact(sector_bytes)) {
            let first = sector * SECTOR_BITS;
            if first >= self.blocks {
                break;
            }
            let words = page::get_sector(bytes, owner, sector).unwrap_or_else(|| {
                loaded.damaged_sectors += 1;
                [u64::MAX; SECTOR_WORDS]
            });
            let range = BlockRange::new(first, SECTOR_BITS.min(self.blocks - first));
            for ((word, mask), value) in word_masks(range).zip(words) {
                self.put_word(word, value & mask);
            }
        }
        self.saving.remove(&page);
        self.unsaved_set.remove(&page);
        self.unsaved_clear.remove(&page);
        if loaded.damaged_sectors > 0 {
            self.mark(page, Unsaved::Set);
        }
        Ok(loaded)
    }

    // ---- inside

    fn sectors_of(&self, page: u32) -> std::ops::Range<u64> {
        let per_page = u64::from(self.page_bytes / SECTOR_BYTES);
        let first = u64::from(page) * per_page;
        first..first + per_page
    }

    fn clip(&self, range: BlockRange) -> Option<BlockRange> {
        let end = range.end().min(self.blocks);
        (range.first < end).then(|| BlockRange::new(range.first, end - range.first))
    }

    fn mark(&mut self, page: u32, unsaved: Unsaved) {
        match unsaved {
            Unsaved::Set => {
                self.unsaved_clear.remove(&page);
                self.unsaved_set.insert(page);
            }
            Unsaved::Clear => {
                if !self.unsaved_set.contains(&page) {
                    self.unsaved_clear.insert(page);
                }
            }
        }
    }

    fn change(&mut self, range: BlockRange, to: bool) -> u64 {
        let Some(range) = self.clip(range) else {
            return 0;
        };
        let bits = page::page_bits(self.page_bytes);
        let mut changed_all = 0;
        for page in range.first / bits..=(range.end() - 1) / bits {
            let first = range.first.max(page * bits);
            let part = BlockRange::new(first, range.end().min((page + 1) * bits) - first);
            let mut changed = 0;
            for (word, mask) in word_masks(part) {
                let word = &mut self.words[word];
                let new = if to { *word | mask } else { *word & !mask };
                changed += (*word ^ new).count_ones();
                *word = new;
            }
            if changed == 0 {
                continue;
            }
            let count = &mut self.page_counts[page as usize];
            *count = if to {
                *count + changed
            } else {
                *count - changed
            };
            self.mark(page as u32, if to { Unsaved::Set } else { Unsaved::Clear });
            changed_all += u64::from(changed);
        }
        self.count = if to {
            self.count + changed_all
        } else {
            self.count - changed_all
        };
        changed_all
    }

    fn each_word(&mut self, other: &Self, new: impl Fn(u64, u64) -> u64) {
        assert_eq!(self.blocks, other.blocks, "bitmaps of different volumes");
        for word in 0..self.words.len() {
            let old = self.words[word];
            let value = new(old, other.words[word]);
            if old == value {
                continue;
            }
            let page = self.put_word(word, value);
            self.mark(
                page,
                if value & !old != 0 {
                    Unsaved::Set
                } else {
                    Unsaved::Clear
                },
            );
        }
    }

    /// Stores a word and the counts; returns its page.
    fn put_word(&mut self, word: usize, value: u64) -> u32 {
        let page = self.page_of(word as u64 * 64);
        let old = std::mem::replace(&mut self.words[word], value);
        let count = &mut self.page_counts[page as usize];
        *count = *count + value.count_ones() - old.count_ones();
        self.count = self.count + u64::from(value.count_ones()) - u64::from(old.count_ones());
        page
    }

    /// The first set block at or after `from`; empty pages are stepped over by their count.
    fn next_set(&self, from: u64) -> Option<u64> {
        if from >= self.blocks {
            return None;
        }
        let page_words = (page::page_bits(self.page_bytes) / 64) as usize;
        let mut word = (from / 64) as usize;
        let mut bits = self.words[word] & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            while word.is_multiple_of(page_words)
                && self.page_counts.get(word / page_words) == Some(&0)
            {
                word += page_words;
            }
            bits = *self.words.get(word)?;
        }
        Some(word as u64 * 64 + u64::from(bits.trailing_zeros()))
    }

    /// The first block not in the set from `from`, at most `limit`.
    fn next_clear(&self, from: u64, limit: u64) -> u64 {
        let mut word = (from / 64) as usize;
        let mut bits = !self.words[word] & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            if word as u64 * 64 >= limit {
                return limit;
            }
            bits = !self.words[word];
        }
        (word as u64 * 64 + u64::from(bits.trailing_zeros())).min(limit)
    }
}

impl PartialEq for Bitmap {
    /// The same blocks; what is saved does not matter.
    fn eq(&self, other: &Self) -> bool {
        self.blocks == other.blocks && self.words == other.words
    }
}

impl Eq for Bitmap {}

impl fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Runs shown at the most.
        const SHOWN: usize = 16;
        write!(f, "{} of {} blocks [", self.count, self.blocks)?;
        for (i, run) in self.runs(u64::MAX).take(SHOWN + 1).enumerate() {
            match i {
                0 => write!(f, "{}+{}", run.first, run.count)?,
                SHOWN => write!(f, " ...")?,
                _ => write!(f, " {}+{}", run.first, run.count)?,
            }
        }
        write!(f, "]")
    }
}

/// The words a range touches, each with the mask of its bits in the range.
fn word_masks(range: BlockRange) -> impl Iterator<Item = (usize, u64)> {
    let last = range.end() - 1;
    (range.first / 64..=last / 64).map(move |word| {
        let low = if word == range.first / 64 {
            u64::MAX << (range.first % 64)
        } else {
            u64::MAX
        };
        let high = if word == last / 64 {
            u64::MAX >> (63 - last % 64)
        } else {
            u64::MAX
        };
        (word as usize, low & high)
    })
}
