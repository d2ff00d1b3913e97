//! Blocks that a secondary cannot read.
//!
//! Invariants
//! - a read error never fails the disk: the primary is told which blocks cannot be read, and takes them for different;
//! - a read that failed as a whole is tried once more block by block, so that only the bad ones count.

use super::{Follower, What};
use crate::Note;
use crate::ctx::{Ctx, RecvId, RoleIo};
use crate::hash::hash_blocks;
use holdfast_types::BlockRange;
use holdfast_wire::{Frame, UNREADABLE};

/// A run of blocks being hashed one by one.
#[derive(Debug)]
pub(super) struct Reread {
    hashes: Vec<u128>,
    left: u32,
}

impl Follower {
    /// A read failed.
    pub(crate) fn read_failed(&mut self, ctx: &mut Ctx, io: RoleIo) {
        match io {
            RoleIo::RecvRead(id) => self.run_failed(ctx, id),
            RoleIo::RecvReread(id, block) => self.reread(ctx, id, block, None),
            _ => {}
        }
    }

    fn run_failed(&mut self, ctx: &mut Ctx, id: RecvId) {
        let Some(recv) = self.recv.get(&id) else {
            return;
        };
        let (stamp, range) = (recv.stamp, recv.range);
        match recv.what {
            What::Read { token } => {
                ctx.note(Note::Unreadable { range });
                let data = None;
                let answer = Frame::ReadDone {
                    stamp,
                    token,
                    range,
                    data,
                };
                self.done(ctx, id, answer);
            }
            What::Fetch { token } => {
                // Zeroes: either they are what was there, or their hashes say that they are not (repair gives up).
                ctx.note(Note::Unreadable { range });
                let answer = Frame::Fetched {
                    stamp,
                    token,
                    range,
                    data: vec![0; ctx.byte_range(range).1 as usize].into(),
                };
                self.done(ctx, id, answer);
            }
            What::Hash { .. } => {
                let count = range.count as u32;
                let reread = Reread {
                    hashes: vec![UNREADABLE; range.count as usize],
                    left: count,
                };
                self.rereads.insert(id, reread);
                for block in 0..count {
                    let one = BlockRange::new(range.first + u64::from(block), 1);
                    ctx.role_io(RoleIo::RecvReread(id, block), ctx.read_op(one));
                }
            }
            What::Write { .. } | What::Resync { .. } => {}
        }
    }

    /// One block was read, or not.
    pub(super) fn reread(&mut self, ctx: &mut Ctx, id: RecvId, block: u32, bytes: Option<&[u8]>) {
        let (Some(reread), Some(recv)) = (self.rereads.get_mut(&id), self.recv.get(&id)) else {
            return;
        };
        let (stamp, range) = (recv.stamp, recv.range);
        match bytes {
            Some(bytes) => {
                let hash = hash_blocks(bytes, ctx.layout.geometry.block_bytes);
                reread.hashes[block as usize] = hash[0];
            }
            None => ctx.note(Note::Unreadable {
                range: BlockRange::new(range.first + u64::from(block), 1),
            }),
        }
        reread.left -= 1;
        if reread.left > 0 {
            return;
        }
        let hashes = self.rereads.remove(&id).map_or_else(Vec::new, |r| r.hashes);
        if let What::Hash { token } = recv.what {
            let answer = Frame::Hashes {
                stamp,
                token,
                hashes,
            };
            self.done(ctx, id, answer);
        }
    }
}
