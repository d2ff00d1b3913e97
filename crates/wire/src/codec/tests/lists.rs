//! Coarsened lists: never a block less, never an entry more, and no gap closed that could have stayed open.

use super::*;
use crate::codec::list::BITMAP_RANGES_MAX;
use crate::codec::{LIST_RANGES_MAX, coarsen};
use std::collections::BTreeSet;

fn blocks(ranges: &[BlockRange]) -> BTreeSet<u64> {
    ranges.iter().flat_map(|r| r.first..r.end()).collect()
}

proptest! {
    #[test]
    fn coarsened(ranges in prop::collection::vec(range(), 0..40), max in 1..20usize) {
        let coarse = coarsen(&ranges, max);
        prop_assert!(coarse.len() <= max);
        prop_assert!(coarse.windows(2).all(|w| w[0].end() < w[1].first), "sorted, with gaps");
        let (before, after) = (blocks(&ranges), blocks(&coarse));
        prop_assert!(after.is_superset(&before));
        // Of all ways to close so many gaps this adds the fewest blocks.
        let exact = coarsen(&ranges, usize::MAX);
        prop_assert_eq!(blocks(&exact), before.clone());
        let mut gaps: Vec<u64> = exact.windows(2).map(|w| w[1].first - w[0].end()).collect();
        gaps.sort_unstable();
        let least: u64 = gaps.iter().take(exact.len().saturating_sub(max)).sum();
        prop_assert_eq!((after.len() - before.len()) as u64, least);
        prop_assert_eq!(coarse.len(), exact.len().min(max));
    }
}

/// A list longer than a frame takes: a report and a bitmap may name too much, a reconciliation may not.
#[test]
fn over_long_lists() {
    let geometry = Geometry {
        blocks: 1 << 32,
        ..GEOMETRY
    };
    let stamp = Stamp {
        epoch: Epoch(1),
        session: SessionId(2),
    };
    let every_other = |n: usize| {
        (0..n as u64)
            .map(|i| BlockRange::new(2 * i, 1))
            .collect::<Vec<_>>()
    };
    let decode = |frame: &Frame| {
        let head = Encoder::new(VOLUME)
            .checksums(false)
            .encode(frame)
            .unwrap()
            .head;
        let mut buffer = BytesMut::from(&head[..]);
        Decoder::new(VOLUME, geometry, Lane::Write)
            .next_frame(&mut buffer)
            .unwrap()
            .unwrap()
    };
    let covers = |long: &[BlockRange], short: &[BlockRange]| {
        let mut short = short.iter();
        let mut cover = short.next().copied();
        long.iter().all(|r| {
            while cover.is_some_and(|c| c.end() <= r.first) {
                cover = short.next().copied();
            }
            cover.is_some_and(|c| c.contains(*r))
        })
    };

    let long = every_other(LIST_RANGES_MAX + 3);
    let Frame::Attached { report, .. } = decode(&Frame::Attached {
        stamp,
        report: long.clone(),
        log: 0,
    }) else {
        panic!("another frame")
    };
    assert_eq!(report.len(), LIST_RANGES_MAX);
    assert!(covers(&long, &report));

    let reconciled = Frame::Reconciled {
        stamp,
        ranges: long,
        set: NodeSet::EMPTY,
    };
    let max = LIST_RANGES_MAX as u64;
    let refused = Err(WireError::List {
        kind: "Reconciled",
        entries: max + 3,
        max,
    });
    assert_eq!(Encoder::new(VOLUME).encode(&reconciled), refused);

    let long = every_other(BITMAP_RANGES_MAX + 1);
    let cut = Frame::Cut {
        stamp,
        token: 1,
        bitmaps: vec![(NodeId(1), long.clone()), (NodeId(2), vec![])],
    };
    let Frame::Cut { bitmaps, .. } = decode(&cut) else {
        panic!("another frame")
    };
    assert_eq!(bitmaps[0].1.len(), BITMAP_RANGES_MAX);
    assert!(covers(&long, &bitmaps[0].1));
    assert_eq!(bitmaps[1], (NodeId(2), vec![]));
}
