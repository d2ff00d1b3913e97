//! Sync direction: a resync never overwrites with something older than what is acknowledged, and a disk never goes back.
//!
//! - What the committed primary sends as resync is read under the block's lock, so every write acknowledged by then is in it.
//!   (A primary that has been deposed and does not know it may send what it likes: nobody takes it.)
//! - Within one incarnation of a disk, run, epoch and update number on stable storage never fall.

use super::history::{CELL_BYTES, History};
use super::order::Stored;
use bytes::Bytes;
use holdfast_types::{BlockRange, Epoch, Geometry, Incarnation, NodeId, Run};

/// What the stable storage of one disk said last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direction {
    last: Option<(Incarnation, Run, Epoch, u64)>,
}

impl Direction {
    /// A superblock is on stable storage.
    pub fn stored(&mut self, stored: &Stored) -> Result<(), String> {
        let s = &stored.superblock;
        let new = (s.incarnation, s.run, s.epoch, s.update);
        let Some(old) = self.last.replace(new) else {
            return Ok(());
        };
        if old.0 == new.0 && (new.1 < old.1 || new.2 < old.2 || new.3 < old.3) {
            return Err(format!(
                "direction: the superblock went back from run {}, epoch {}, update {} to {}, {}, {}",
                old.1, old.2, old.3, new.1, new.2, new.3
            ));
        }
        Ok(())
    }

    /// The disk was exchanged by hand: what it says is no news of the old one.
    pub fn exchanged(&mut self) {
        self.last = None;
    }
}

/// The committed primary sends a resync block.
pub fn sends(
    history: &History,
    g: &Geometry,
    from: NodeId,
    to: NodeId,
    range: BlockRange,
    data: Option<&Bytes>,
) -> Result<(), String> {
    let block = u64::from(g.block_bytes);
    let zeroes;
    let bytes: &[u8] = match data {
        Some(data) => data,
        None => {
            zeroes = vec![0; (range.count * block) as usize];
            &zeroes
        }
    };
    history
        .holds_acknowledged(range.first * block / CELL_BYTES, bytes)
        .map_err(|e| format!("direction: {from} resyncs {to}, but {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::history::stamp;
    use holdfast_types::Geometry;

    const G: Geometry = Geometry {
        block_bytes: 64,
        blocks: 4,
        extent_blocks: 2,
    };

    fn cells(ids: [u32; 4]) -> Bytes {
        let cells = (4u64..).zip(ids);
        let bytes = cells.flat_map(|(at, id)| if id == 0 { [0; 16] } else { stamp(id, at) });
        bytes.collect::<Vec<u8>>().into()
    }

    #[test]
    fn a_source_holds_what_is_acknowledged() {
        let mut h = History::new(16);
        let a = h.begin(10, 1, 4, 1, false);
        h.ack(11, a).unwrap();
        let b = h.begin(20, 1, 5, 1, false);
        let send = |h: &History, ids| {
            let data = cells(ids);
            sends(
                h,
                &G,
                NodeId(0),
                NodeId(1),
                BlockRange::new(1, 1),
                Some(&data),
            )
        };
        send(&h, [a, 0, 0, 0]).unwrap();
        send(&h, [a, b, 0, 0]).unwrap();
        assert!(send(&h, [0, 0, 0, 0]).is_err(), "a is acknowledged");
        assert!(sends(&h, &G, NodeId(0), NodeId(1), BlockRange::new(1, 1), None).is_err());
        sends(&h, &G, NodeId(0), NodeId(1), BlockRange::new(0, 1), None).unwrap();
        h.ack(21, b).unwrap();
        assert!(send(&h, [a, 0, 0, 0]).is_err(), "and now b");
    }

    #[test]
    fn a_disk_never_goes_back() {
        let stored = |run, epoch, update, incarnation| {
            let mut s = crate::check::order::tests::stored(&[]);
            s.superblock.run = Run(run);
            s.superblock.epoch = Epoch(epoch);
            s.superblock.update = update;
            s.superblock.incarnation = Incarnation(incarnation);
            s
        };
        let mut d = Direction::default();
        d.stored(&stored(2, 3, 10, 1)).unwrap();
        d.stored(&stored(3, 3, 11, 1)).unwrap();
        assert!(d.clone().stored(&stored(2, 3, 12, 1)).is_err());
        assert!(d.clone().stored(&stored(3, 2, 12, 1)).is_err());
        assert!(d.clone().stored(&stored(3, 3, 10, 1)).is_err());
        d.stored(&stored(1, 0, 1, 2)).unwrap();
        d.exchanged();
        d.stored(&stored(1, 0, 0, 2)).unwrap();
    }
}
