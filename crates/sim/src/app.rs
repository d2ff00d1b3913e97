//! The application: what it asks of the volume, on whichever node is open.

use crate::check::history::{CELL_BYTES, History, WriteId, stamp};
use crate::rng::Rng;
use crate::scenario::Mix;
use bytes::Bytes;
use holdfast_replicator::{ReqId, Request};
use std::collections::BTreeMap;

/// What was asked and not answered yet.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A write or zero.
    Write {
        /// As the history knows it.
        id: WriteId,
        /// Stable before the answer.
        fua: bool,
    },
    /// A read.
    Read {
        /// When.
        begun: u64,
        /// First cell.
        first: u64,
        /// Bytes.
        len: u32,
    },
    /// A flush.
    Flush {
        /// What it covers, from [`History::flush_begins`].
        covered: Vec<u64>,
    },
}

/// One life of the application on one node.
#[derive(Clone, Debug, Default)]
pub struct App {
    /// It runs and asks.
    pub running: bool,
    /// Raised at each start, so that an old life's timers mean nothing.
    pub life: u64,
    /// Requests without an answer, with the epoch they were asked in.
    pub asked: BTreeMap<ReqId, (u64, Asked)>,
    /// Until when an orderly stop waits for answers.
    pub patience: u64,
}

impl App {
    /// It is gone; nobody hears the answers any more.
    pub fn tear_down(&mut self, now: u64, history: &mut History) {
        self.running = false;
        self.life += 1;
        for (_, (_, asked)) in std::mem::take(&mut self.asked) {
            if let Asked::Write { id, .. } = asked {
                history.forget(now, id);
            }
        }
    }
}

/// One drawn request and what is to be remembered of it.
pub fn draw(
    rng: &mut Rng,
    mix: &Mix,
    block_bytes: u64,
    blocks: u64,
    now: u64,
    epoch: u64,
    history: &mut History,
) -> (Request, Asked) {
    let percent = |rng: &mut Rng, share| rng.below(100) < share;
    if percent(rng, mix.flushes) {
        return (
            Request::Flush,
            Asked::Flush {
                covered: history.flush_begins(),
            },
        );
    }
    let cells_per_block = block_bytes / CELL_BYTES;
    let count = rng.between(1, mix.blocks_max.min(blocks));
    // The hot spot is the first eighth.
    let room = if percent(rng, mix.hot) {
        (blocks / 8).max(count)
    } else {
        blocks
    };
    let block = rng.below(room - count + 1);
    let (mut first, mut cells) = (block * cells_per_block, count * cells_per_block);
    if percent(rng, mix.ragged) {
        let (head, tail) = (rng.below(cells_per_block), rng.below(cells_per_block));
        if head + tail < cells {
            first += head;
            cells -= head + tail;
        }
    }
    let (offset, len) = (first * CELL_BYTES, cells * CELL_BYTES);
    if percent(rng, mix.reads) {
        let len = len as u32;
        return (
            Request::Read { offset, len },
            Asked::Read {
                begun: now,
                first,
                len,
            },
        );
    }
    let zero = percent(rng, mix.zeroes);
    let fua = percent(rng, mix.fua);
    let id = history.begin(now, epoch, first, cells, zero);
    let request = if zero {
        Request::Zero { offset, len, fua }
    } else {
        let data: Vec<u8> = (first..first + cells)
            .flat_map(|cell| stamp(id, cell))
            .collect();
        Request::Write {
            offset,
            data: Bytes::from(data),
            fua,
        }
    };
    (request, Asked::Write { id, fua })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    #[test]
    fn requests_stay_inside_the_volume_and_say_what_they_wrote() {
        for seed in 0..50 {
            let scenario = Scenario::draw(seed, true);
            let g = scenario.geometry;
            let mut history = History::new(g.bytes() / CELL_BYTES);
            let mut rng = Rng::stream(seed, "workload");
            for now in 1..200 {
                let (request, asked) = draw(
                    &mut rng,
                    &scenario.mix,
                    g.block_bytes.into(),
                    g.blocks,
                    now,
                    1,
                    &mut history,
                );
                let (offset, len) = match &request {
                    Request::Read { offset, len } => (*offset, u64::from(*len)),
                    Request::Write { offset, data, .. } => (*offset, data.len() as u64),
                    Request::Zero { offset, len, .. } => (*offset, *len),
                    Request::Flush => continue,
                };
                assert!(len > 0);
                assert!(offset + len <= g.bytes());
                if let Asked::Write { id, .. } = asked {
                    let (first, cells) = history.extent(id);
                    assert_eq!((first * CELL_BYTES, cells * CELL_BYTES), (offset, len));
                }
            }
        }
    }
}
