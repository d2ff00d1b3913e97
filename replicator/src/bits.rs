//! What each other data node may lack: a dirty bitmap per peer, and beside it which of those bits
//! are only *suspect* (from crash extents and reports) and are compared by hash before anything is copied.
//!
//! Invariants
//! - suspect is a subset of dirty;
//! - bits are set before the write they stand for can leave the activity log (rule 4);
//! - bits are cleared only by a block-level answer or by equal hashes, or replaced at a cut (G4).

use holdfast_meta::{Bitmap, Layout, Owner, Unsaved};
use holdfast_types::{BlockRange, Incarnation, NodeId, NodeSet};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
struct PeerBits {
    dirty: Bitmap,
    suspect: Bitmap,
}

/// The bitmaps of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Bits {
    peers: BTreeMap<NodeId, PeerBits>,
}

impl Bits {
    /// Takes over what the disk held; a peer without a bitmap there counts as lacking everything.
    pub(crate) fn new(layout: &Layout, held: Vec<(NodeId, Bitmap)>, others: NodeSet) -> Self {
        let mut held: BTreeMap<NodeId, Bitmap> = held.into_iter().collect();
        let peers = others
            .iter()
            .map(|node| {
                let (dirty, known) = match held.remove(&node) {
                    Some(bitmap) => (bitmap, true),
                    None => {
                        let mut all = Bitmap::new(layout);
                        all.set_all();
                        (all, false)
                    }
                };
                let mut suspect = Bitmap::new(layout);
                // Where a whole bitmap is set (blank replica, unknown peer) nothing is known of the blocks: compare first.
                if !known || dirty.count() == dirty.blocks() {
                    suspect.set_all();
                }
                (node, PeerBits { dirty, suspect })
            })
            .collect();
        Self { peers }
    }

    /// A new replica, of which nothing is known. Every page is to be saved: the disk may hold bits about an earlier
    /// replica of that node.
    pub(crate) fn add(&mut self, node: NodeId, layout: &Layout) {
        let mut all = Bitmap::new(layout);
        all.set_all();
        let suspect = all.clone();
        self.peers.insert(
            node,
            PeerBits {
                dirty: all,
                suspect,
            },
        );
    }

    /// A replica that is not any more.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.peers.remove(&node);
    }

    fn of(&mut self, node: NodeId) -> &mut PeerBits {
        self.peers
            .get_mut(&node)
            .expect("a data node of this volume")
    }

    /// What `node` may lack.
    pub(crate) fn dirty(&self, node: NodeId) -> &Bitmap {
        &self.peers[&node].dirty
    }

    /// `nodes` were not given a write of `range`.
    pub(crate) fn mark(&mut self, nodes: NodeSet, range: BlockRange) {
        for node in nodes.iter() {
            let bits = self.of(node);
            bits.dirty.set(range);
            bits.suspect.clear(range);
        }
    }

    /// `nodes` may differ on `range`; bits that are set already keep what is known of them.
    pub(crate) fn suspect(&mut self, nodes: NodeSet, range: BlockRange) {
        for node in nodes.iter() {
            let bits = self.of(node);
            if bits.dirty.is_empty() {
                bits.dirty.set(range);
                bits.suspect.set(range);
                continue;
            }
            for block in range.first..range.end() {
                if !bits.dirty.get(block) {
                    let one = BlockRange::new(block, 1);
                    bits.dirty.set(one);
                    bits.suspect.set(one);
                }
            }
        }
    }

    /// Nothing is known of `node`'s blocks: compare all.
    pub(crate) fn suspect_all(&mut self, node: NodeId) {
        let bits = self.of(node);
        bits.dirty.set_all();
        bits.suspect.set_all();
    }

    /// `node` is known to have `range`.
    pub(crate) fn clear(&mut self, node: NodeId, range: BlockRange) {
        let bits = self.of(node);
        bits.dirty.clear(range);
        bits.suspect.clear(range);
    }

    /// All bits of `node` are replaced, at a cut of the write stream (rule 15).
    pub(crate) fn replace(&mut self, node: NodeId, ranges: &[BlockRange]) {
        let bits = self.of(node);
        bits.dirty.replace(ranges);
        bits.suspect.clear_all();
    }

    /// Is any bit of `range` only suspect?
    pub(crate) fn any_suspect(&self, node: NodeId, range: BlockRange) -> bool {
        self.peers[&node].suspect.any(range)
    }

    /// Does any of `nodes` possibly lack a block of `range`?
    pub(crate) fn any(&self, nodes: NodeSet, range: BlockRange) -> bool {
        nodes
            .iter()
            .any(|n| self.peers.get(&n).is_some_and(|b| b.dirty.any(range)))
    }

    /// The next page to save: its peer, number and bytes. `None`: nothing to save, or a save of it is under way.
    pub(crate) fn begin_save(
        &mut self,
        least: Unsaved,
        incarnation: Incarnation,
    ) -> Option<(NodeId, u32, bytes::Bytes)> {
        for (&node, bits) in &mut self.peers {
            for page in bits.dirty.pages_unsaved(least) {
                if let Some(bytes) = bits.dirty.begin_save(page, Owner { incarnation, node }) {
                    return Some((node, page, bytes));
                }
            }
        }
        None
    }

    /// Room for more blocks; of the new ones nobody lacks any. Nothing of it is on disk.
    pub(crate) fn grow(&mut self, blocks: u64) {
        let short = |b: &&mut PeerBits| b.dirty.blocks() < blocks;
        for bits in self.peers.values_mut().filter(short) {
            bits.dirty.grow(blocks);
            bits.suspect.grow(blocks);
        }
    }

    /// Blocks past the volume's end are nobody's.
    pub(crate) fn clip(&mut self, blocks: u64) {
        for bits in self.peers.values_mut() {
            if bits.dirty.blocks() > blocks {
                let tail = BlockRange::new(blocks, bits.dirty.blocks() - blocks);
                bits.dirty.clear(tail);
                bits.suspect.clear(tail);
            }
        }
    }

    /// All pages, to be saved together.
    pub(crate) fn begin_save_all(
        &mut self,
        incarnation: Incarnation,
    ) -> Vec<(NodeId, u32, bytes::Bytes)> {
        let mut all = Vec::new();
        for (&node, bits) in &mut self.peers {
            for page in 0..bits.dirty.pages() {
                if let Some(bytes) = bits.dirty.begin_save(page, Owner { incarnation, node }) {
                    all.push((node, page, bytes));
                }
            }
        }
        all
    }

    /// They are saved.
    pub(crate) fn end_save_all(&mut self) {
        for bits in self.peers.values_mut() {
            for page in 0..bits.dirty.pages() {
                bits.dirty.saved(page);
            }
        }
    }

    /// A page is on disk, or not.
    pub(crate) fn end_save(&mut self, node: NodeId, page: u32, ok: bool) {
        let Some(bits) = self.peers.get_mut(&node) else {
            return; // forgotten meanwhile
        };
        if ok {
            bits.dirty.saved(page)
        } else {
            bits.dirty.save_failed(page)
        }
    }

    #[cfg(debug_assertions)]
    pub(crate) fn check(&self) {
        for bits in self.peers.values() {
            assert!(bits.suspect.count() <= bits.dirty.count());
        }
    }
}
