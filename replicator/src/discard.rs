//! A replica gives up its line of history, because the operator keeps another one.
//!
//! The order: no write of this line is in flight; what is open becomes dirty bits; the blocks that may differ (its own
//! bits for the asking primary and that primary's for it) are saved to a file; only then the superblock says that this
//! replica belongs to the kept line and is Syncing. Anything that comes between, or a save that fails, leaves
//! everything as it was. After that it is resynced by those same bits, as after any absence.

use crate::Save;
use crate::ctx::{After, Ctx};
use holdfast_types::{BlockRange, DiskState, NodeId, NodeSet};
use holdfast_wire::{Frame, Stamp};

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Local writes end first.
    Draining,
    Saving,
    /// The superblock is being written.
    Storing,
}

/// A discard under way.
#[derive(Clone, Debug)]
pub(crate) struct Discard {
    peer: NodeId,
    stamp: Stamp,
    keep: u64,
    ranges: Vec<BlockRange>,
    save: u64,
    stage: Stage,
    text: String,
}

impl Discard {
    /// Begins, or says why not.
    pub(crate) fn begin(
        ctx: &mut Ctx,
        peer: NodeId,
        stamp: Stamp,
        (keep, lost): (u64, u64),
        ranges: Vec<BlockRange>,
    ) -> Option<Self> {
        let ours = ctx.superblock.lineage;
        let why = if ours == keep {
            "it belongs to the kept line of history already"
        } else if ours != lost {
            "its line of history is another one than the one to be given up"
        } else if stamp.epoch < ctx.superblock.promised {
            "it knows of a newer epoch than the asking primary's"
        } else if ctx.disk_failed() {
            "its disk failed"
        } else {
            return Some(Self {
                peer,
                stamp,
                keep,
                ranges,
                save: ctx.barrier_number(),
                stage: Stage::Draining,
                text: String::new(),
            });
        };
        refuse(ctx, peer, stamp, why);
        None
    }

    /// No local write is in flight, and what was open is bits.
    pub(crate) fn drained(&mut self, ctx: &mut Ctx) {
        if self.stage != Stage::Draining {
            return;
        }
        self.stage = Stage::Saving;
        for &range in &self.ranges {
            ctx.bits.suspect(NodeSet::only(self.peer), range);
        }
        ctx.save_file(Save {
            save: self.save,
            ranges: ctx.bits.dirty(self.peer).to_ranges(),
            lost: ctx.superblock.lineage,
            keep: self.keep,
            epoch: ctx.superblock.epoch,
        });
    }

    pub(crate) fn peer(&self) -> NodeId {
        self.peer
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.stage == Stage::Draining
    }

    /// The file is there, or not. False: it is over.
    pub(crate) fn saved(
        &mut self,
        ctx: &mut Ctx,
        save: u64,
        result: Result<String, String>,
    ) -> bool {
        if self.save != save || self.stage != Stage::Saving {
            return true;
        }
        match result {
            Ok(text) => {
                self.text = text;
                self.stage = Stage::Storing;
                ctx.superblock.lineage = self.keep;
                ctx.superblock.disk = DiskState::Syncing;
                ctx.store(After::Discard(save));
                true
            }
            Err(why) => {
                refuse(ctx, self.peer, self.stamp, &why);
                false
            }
        }
    }

    /// The superblock says so. True: it is over.
    pub(crate) fn stored(&self, ctx: &mut Ctx, save: u64) -> bool {
        let over = self.save == save && self.stage == Stage::Storing;
        if over {
            let (stamp, text) = (self.stamp, self.text.clone());
            let done = true;
            ctx.send(self.peer, Frame::Discarded { stamp, done, text });
        }
        over
    }
}

/// Nothing was done.
pub(crate) fn refuse(ctx: &mut Ctx, peer: NodeId, stamp: Stamp, why: &str) {
    let text = why.chars().take(1000).collect();
    let done = false;
    ctx.send(peer, Frame::Discarded { stamp, done, text });
}
