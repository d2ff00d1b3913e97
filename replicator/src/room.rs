//! Room for a volume that grows, made while it is in use, in steps that each leave a whole replica behind:
//!
//! 1. the interpreter makes the store large enough ([`Action::MakeRoom`]);
//! 2. when no metadata write is under way, a second region is written at the store's new end, complete: bitmaps,
//!    activity log; meanwhile metadata writes wait, so that the old region stays true;
//! 3. a superblock in the new place makes it the one that counts, by its number;
//! 4. what lies between the volume's end and its new end (the old region among it) is zeroed; until that is noted
//!    in the superblock, a restart does it again;
//! 5. the control plane is told; it commits the new size when every member has the room.
//!
//! Invariants
//! - blocks past the committed size hold nothing on any replica: they may be zeroed, and no bit speaks of them;
//! - the new region begins behind the old one's end, so neither is ever written over while it counts.

use crate::ctx::{After, Ctx, Purpose};
use crate::{Action, DiskOp, Note, Now, ToControl, VolumeSize};
use bytes::Bytes;
use holdfast_meta::{LOG_TRANSACTIONS, Layout, Transaction};
use holdfast_types::{BlockRange, Geometry};
use std::collections::VecDeque;

/// Metadata pages written at once.
const PAGES_AT_ONCE: u32 = 64;
/// Bytes zeroed by one operation: short enough not to look like a disk that hangs.
const ZERO_BYTES_MAX: u64 = 64 << 20;
/// How long to wait before a store that had no room is asked again, in milliseconds.
const RETRY_MS: u64 = 5_000;

/// What a disk operation was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoomIo {
    /// A page of the new region.
    Page,
    /// The superblock that makes it count.
    Switch,
    /// Zeroes, up to this byte.
    Zero(u64),
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    /// The interpreter makes the store larger.
    Asked {
        blocks: u64,
    },
    /// It is large enough; metadata writes end.
    Settling {
        layout: Layout,
    },
    Writing {
        layout: Layout,
        queue: VecDeque<(u64, Bytes)>,
        under_way: u32,
    },
    Switching {
        layout: Layout,
    },
    Zeroing,
    /// That the tail is zero is being noted.
    Noting,
}

/// How far it is.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// The committed size in blocks; none: not told in this run.
    size: Option<u64>,
    /// Blocks there shall be room for.
    wanted: u64,
    stage: Stage,
    retry_at: Now,
    /// A size was told, and not answered with the room there is.
    unanswered: bool,
    /// [`VolumeSize::shrunk`] as told last.
    shrunk: u32,
    /// Some of the volume was given up, and its zeroing has not begun since.
    given_up: bool,
}

impl Ctx {
    /// Blocks the application may use.
    pub(crate) fn served(&self) -> u64 {
        self.superblock.geometry.blocks
    }

    /// Blocks that a primary may send: what there is room for, once it is known for good that all past the volume's
    /// end is zero. Before that, what was taken in might be zeroed again.
    pub(crate) fn takes(&self) -> u64 {
        if self.superblock.tail_unknown || matches!(self.room.stage, Stage::Zeroing | Stage::Noting)
        {
            self.served()
        } else {
            self.layout.geometry.blocks
        }
    }

    /// Metadata may not be written now: it is being moved.
    pub(crate) fn is_moving(&self) -> bool {
        !self.disk_failed()
            && matches!(
                self.room.stage,
                Stage::Writing { .. } | Stage::Switching { .. }
            )
    }

    /// The control plane says how large the volume is, and shall be. True if what is served changed.
    pub(crate) fn sized(&mut self, size: VolumeSize) -> bool {
        let block = u64::from(self.layout.geometry.block_bytes);
        let blocks = size.size_bytes / block;
        self.room.size = Some(blocks);
        self.room.wanted = blocks.max(size.room_bytes / block);
        self.room.unanswered = true;
        let before = self.served();
        let shrank = size.shrunk != 0 && size.shrunk != self.room.shrunk;
        self.room.shrunk = size.shrunk;
        let changed = self.serve();
        if shrank && self.served() >= before && !self.disk_failed() {
            self.give_up();
            self.store(After::Nothing);
        }
        changed || shrank
    }

    /// Whatever is past the volume's end now is given up.
    fn give_up(&mut self) {
        self.superblock.tail_unknown = true;
        self.room.given_up = true;
        self.bits.clip(self.served());
    }

    /// Some of the volume was given up, and what was on its way to it may still be.
    pub(crate) fn gives_up(&self) -> bool {
        self.room.given_up
    }

    /// Serves as much of the committed size as there is room for.
    fn serve(&mut self) -> bool {
        let Some(size) = self.room.size else {
            return false;
        };
        let served = size.min(self.layout.geometry.blocks);
        let before = self.served();
        if served == before || self.disk_failed() {
            return false;
        }
        self.superblock.geometry.blocks = served;
        if served < before {
            self.give_up();
        }
        self.store(After::Nothing);
        self.note(Note::Resized {
            size_bytes: self.superblock.geometry.bytes(),
        });
        true
    }

    /// Does the next step, if there is one. `begin`: a role that lasts may begin to make room.
    pub(crate) fn pump_room(&mut self, begin: bool) {
        if self.disk_failed() {
            return;
        }
        match &mut self.room.stage {
            Stage::Idle if !begin => {}
            // What was on its way to the disk for it ends first, or it would be there behind the zeroes (rule 18).
            Stage::Idle if self.room.given_up && self.writes_in_flight > 0 => {}
            Stage::Idle if self.superblock.tail_unknown => self.zero_tail(),
            Stage::Idle
                if self.room.wanted > self.layout.geometry.blocks
                    && self.now >= self.room.retry_at =>
            {
                let blocks = self.room.wanted;
                let bytes = self.layout.bytes_to_grow(blocks);
                self.room.stage = Stage::Asked { blocks };
                self.out.push(Action::MakeRoom { bytes });
            }
            Stage::Idle => self.tell_room(),
            Stage::Settling { layout } if begin => {
                let layout = *layout;
                if self.is_still() {
                    self.begin_move(layout);
                }
            }
            Stage::Asked { .. }
            | Stage::Settling { .. }
            | Stage::Writing { .. }
            | Stage::Switching { .. }
            | Stage::Zeroing
            | Stage::Noting => {}
        }
    }

    fn tell_room(&mut self) {
        if !std::mem::take(&mut self.room.unanswered) {
            return;
        }
        let block = u64::from(self.layout.geometry.block_bytes);
        self.control(ToControl::Room {
            size_bytes: self.room.size.unwrap_or(0) * block,
            shrunk: self.room.shrunk,
            room_bytes: self.layout.geometry.bytes(),
            store_bytes: self.layout.region_end,
        });
    }

    /// The interpreter has made the store this large, or could not.
    pub(crate) fn room_made(&mut self, store_bytes: Option<u64>) {
        let Stage::Asked { blocks } = self.room.stage else {
            return;
        };
        let old = self.layout;
        let geometry = Geometry {
            blocks,
            ..old.geometry
        };
        let layout = store_bytes.and_then(|bytes| {
            Layout::with_page(
                geometry,
                bytes,
                old.peers_max,
                old.log_slots,
                old.page_bytes,
            )
            .ok()
            .filter(|new| new.region_offset >= old.region_end)
        });
        match layout {
            Some(layout) => self.room.stage = Stage::Settling { layout },
            None => {
                self.room.stage = Stage::Idle;
                self.room.retry_at = self.now.plus_ms(RETRY_MS);
                self.control(ToControl::NoRoom {
                    store_bytes: old.bytes_to_grow(blocks),
                });
            }
        }
    }

    fn begin_move(&mut self, layout: Layout) {
        self.bits.grow(layout.geometry.blocks);
        let zero = Bytes::from(vec![0; layout.page_bytes as usize]);
        let mut queue = VecDeque::new();
        for (node, page, data) in self.bits.begin_save_all(self.superblock.incarnation) {
            let slot = self
                .superblock
                .slot_of(node)
                .expect("every data node has one");
            queue.push_back((layout.bitmap_page_offset(slot, page), data));
        }
        let number = self.log.number();
        let active = Transaction {
            number,
            incarnation: self.superblock.incarnation,
            run: self.superblock.run,
            active: self.log.active(),
        };
        let last = active
            .write(&layout)
            .expect("the log has no more slots than a page");
        for n in 0..u64::from(LOG_TRANSACTIONS) {
            let offset = layout.transaction_offset(n);
            if offset != last.0 {
                queue.push_back((offset, zero.clone()));
            }
        }
        queue.push_back(last);
        // Slots that something else may have left there.
        let blank = Bytes::from(vec![0; self.superblock.encode().len()]);
        for update in 0..2 {
            queue.push_back((layout.superblock_slot_offset(update), blank.clone()));
        }
        self.room.stage = Stage::Writing {
            layout,
            queue,
            under_way: 0,
        };
        self.write_pages();
    }

    fn write_pages(&mut self) {
        let mut ops = Vec::new();
        let Stage::Writing {
            queue,
            under_way,
            layout,
        } = &mut self.room.stage
        else {
            return;
        };
        while *under_way < PAGES_AT_ONCE
            && let Some((offset, data)) = queue.pop_front()
        {
            *under_way += 1;
            ops.push(DiskOp::Write {
                offset,
                data,
                durable: true,
            });
        }
        if *under_way > 0 {
            for op in ops {
                self.disk(Purpose::Room(RoomIo::Page), op);
            }
            return;
        }
        let layout = *layout;
        self.room.stage = Stage::Switching { layout };
        self.superblock.capacity = layout.geometry.blocks;
        self.superblock.tail_unknown = true;
        let (offset, data) = self.next_superblock().write(&layout);
        let op = DiskOp::Write {
            offset,
            data,
            durable: true,
        };
        self.disk(Purpose::Room(RoomIo::Switch), op);
    }

    /// A disk operation for room ended well.
    pub(crate) fn room_io(&mut self, io: RoomIo) {
        match io {
            RoomIo::Page => {
                if let Stage::Writing { under_way, .. } = &mut self.room.stage {
                    *under_way -= 1;
                }
                self.write_pages();
            }
            RoomIo::Switch => {
                if let Stage::Switching { layout } = self.room.stage {
                    self.layout = layout;
                    self.room.stage = Stage::Idle;
                    self.bits.end_save_all();
                    // Of replicas that came meanwhile.
                    self.bits.grow(layout.geometry.blocks);
                    self.resume_metadata();
                }
            }
            RoomIo::Zero(upto) => self.zero_from(upto),
        }
    }

    /// Everything past the volume's end shall be zero.
    fn zero_tail(&mut self) {
        self.room.stage = Stage::Zeroing;
        self.room.given_up = false;
        let from = self.superblock.geometry.bytes();
        self.zero_from(from);
    }

    fn zero_from(&mut self, from: u64) {
        if self.room.given_up {
            // More of it meanwhile: from the start.
            self.room.stage = Stage::Idle;
            return;
        }
        let end = self.layout.geometry.bytes();
        if from < end {
            let len = ZERO_BYTES_MAX.min(end - from);
            let op = DiskOp::Zero {
                offset: from,
                len,
                durable: true,
            };
            self.disk(Purpose::Room(RoomIo::Zero(from + len)), op);
            return;
        }
        self.superblock.tail_unknown = false;
        self.room.stage = Stage::Noting;
        self.store(After::Room);
    }

    /// It is noted that the tail is zero.
    pub(crate) fn tail_noted(&mut self) {
        self.room.stage = Stage::Idle;
        self.room.unanswered = true;
        self.serve();
    }
}

/// The blocks of `range` that are served.
pub(crate) fn served_part(ctx: &Ctx, range: BlockRange) -> Option<BlockRange> {
    let end = range.end().min(ctx.served());
    (range.first < end).then(|| BlockRange::new(range.first, end - range.first))
}
