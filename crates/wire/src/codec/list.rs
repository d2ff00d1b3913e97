//! Payloads that are not blocks: Hello, ranges, bitmaps, hashes.

use super::header::{u32_at, u64_at};
use super::{LIST_RANGES_MAX, WireError};
use crate::Hello;
use holdfast_types::{
    BlockRange, DiskState, Epoch, Geometry, Incarnation, NODES_MAX, NodeId, RUNS_KEPT, Run, Seen,
    VolumeId,
};
use std::borrow::Cow;

/// Bytes of a range: first block, number of blocks.
pub(super) const RANGE_BYTES: usize = 16;
/// Bytes of a hash.
pub(super) const HASH_BYTES: usize = 16;
/// Bytes before the ranges of one bitmap: node, number of ranges.
pub(super) const BITMAP_HEAD_BYTES: usize = 5;
/// Ranges of one bitmap of a cut at the most, so that all of them fit into one frame.
pub(super) const BITMAP_RANGES_MAX: usize = LIST_RANGES_MAX / NODES_MAX as usize;
/// Bytes of Hello.
pub(super) const HELLO_BYTES: usize = 64 + 8 * RUNS_KEPT;
/// Bytes of one entry of Seen: node, incarnation, run, log number.
pub(super) const SEEN_BYTES: usize = 25;

/// At most `max` ranges that together cover at least the blocks of `ranges`, sorted and disjoint: overlapping and
/// touching ones become one, then those with the smallest gaps between them. Right
/// wherever naming too many blocks is safe (reports, dirty bits), wrong everywhere else.
///
/// # Panics
/// If `max` is zero.
pub fn coarsen(ranges: &[BlockRange], max: usize) -> Vec<BlockRange> {
    assert!(max > 0);
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut merged = join(&sorted, |_| false);
    if merged.len() > max {
        let mut gaps: Vec<u64> = merged.windows(2).map(|w| w[1].first - w[0].end()).collect();
        // So many gaps must go; of those as wide as the widest that goes, only as many as are needed.
        let go = merged.len() - max;
        let (narrower, &mut widest, _) = gaps.select_nth_unstable(go - 1);
        let mut of_widest = go - narrower.iter().filter(|&&g| g < widest).count();
        merged = join(&merged, |gap| {
            gap < widest
                || gap == widest && of_widest > 0 && {
                    of_widest -= 1;
                    true
                }
        });
    }
    merged
}

/// Sorted ranges with those joined that overlap, touch, or have a gap between them that `bridge` says goes.
fn join(sorted: &[BlockRange], mut bridge: impl FnMut(u64) -> bool) -> Vec<BlockRange> {
    let mut out: Vec<BlockRange> = Vec::new();
    for &range in sorted {
        match out.last_mut() {
            Some(last) if range.first <= last.end() || bridge(range.first - last.end()) => {
                *last = BlockRange::new(last.first, range.end().max(last.end()) - last.first);
            }
            _ => out.push(range),
        }
    }
    out
}

/// The ranges themselves if there are no more than `max`.
pub(super) fn capped(ranges: &[BlockRange], max: usize) -> Cow<'_, [BlockRange]> {
    if ranges.len() <= max {
        Cow::Borrowed(ranges)
    } else {
        Cow::Owned(coarsen(ranges, max))
    }
}

pub(super) fn put_ranges(out: &mut Vec<u8>, ranges: &[BlockRange]) {
    out.reserve(ranges.len() * RANGE_BYTES);
    for range in ranges {
        out.extend_from_slice(&range.first.to_le_bytes());
        out.extend_from_slice(&range.count.to_le_bytes());
    }
}

/// All of `bytes` as ranges inside the volume; the caller has checked the length.
pub(super) fn get_ranges(
    kind: &'static str,
    bytes: &[u8],
    blocks: u64,
) -> Result<Vec<BlockRange>, WireError> {
    bytes
        .as_chunks::<RANGE_BYTES>()
        .0
        .iter()
        .map(|b| {
            let (first, count) = (u64_at(b, 0), u64_at(b, 8));
            BlockRange::checked(first, count, blocks).ok_or(WireError::Range {
                kind,
                first,
                count,
                blocks,
            })
        })
        .collect()
}

pub(super) fn put_bitmap(out: &mut Vec<u8>, node: NodeId, ranges: &[BlockRange]) {
    out.push(node.0);
    out.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
    put_ranges(out, ranges);
}

/// `count` bitmaps that take up all of `bytes`.
pub(super) fn get_bitmaps(
    kind: &'static str,
    mut bytes: &[u8],
    count: u32,
    blocks: u64,
) -> Result<Vec<(NodeId, Vec<BlockRange>)>, WireError> {
    if count > u32::from(NODES_MAX) {
        return Err(WireError::List {
            kind,
            entries: count.into(),
            max: NODES_MAX.into(),
        });
    }
    let short = |have: usize, needed: usize| WireError::Length {
        kind,
        bytes: have as u64,
        allowed: needed as u64,
    };
    let mut bitmaps: Vec<(NodeId, Vec<BlockRange>)> = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (head, rest) = bytes
            .split_at_checked(BITMAP_HEAD_BYTES)
            .ok_or_else(|| short(bytes.len(), BITMAP_HEAD_BYTES))?;
        let node = get_node(kind, head[0])?;
        if bitmaps.iter().any(|(n, _)| *n == node) {
            return Err(WireError::Field {
                kind,
                field: "node, named twice",
            });
        }
        let entries = u32_at(head, 1) as usize;
        if entries > BITMAP_RANGES_MAX {
            return Err(WireError::List {
                kind,
                entries: entries as u64,
                max: BITMAP_RANGES_MAX as u64,
            });
        }
        let len = entries * RANGE_BYTES;
        let (ranges, rest) = rest
            .split_at_checked(len)
            .ok_or_else(|| short(rest.len(), len))?;
        bitmaps.push((node, get_ranges(kind, ranges, blocks)?));
        bytes = rest;
    }
    if !bytes.is_empty() {
        return Err(short(bytes.len(), 0));
    }
    Ok(bitmaps)
}

pub(super) fn put_hashes(out: &mut Vec<u8>, hashes: &[u128]) {
    out.reserve(hashes.len() * HASH_BYTES);
    for hash in hashes {
        out.extend_from_slice(&hash.to_le_bytes());
    }
}

pub(super) fn get_hashes(bytes: &[u8]) -> Vec<u128> {
    bytes
        .as_chunks::<HASH_BYTES>()
        .0
        .iter()
        .map(|&b| u128::from_le_bytes(b))
        .collect()
}

pub(super) fn put_seen(out: &mut Vec<u8>, seen: &[(NodeId, Seen)]) {
    for (node, s) in seen {
        out.push(node.0);
        out.extend_from_slice(&s.incarnation.0.to_le_bytes());
        out.extend_from_slice(&s.run.0.to_le_bytes());
        out.extend_from_slice(&s.log.to_le_bytes());
    }
}

/// The caller has checked the length.
pub(super) fn get_seen(kind: &'static str, bytes: &[u8]) -> Result<Vec<(NodeId, Seen)>, WireError> {
    let mut all: Vec<(NodeId, Seen)> = Vec::new();
    for b in bytes.as_chunks::<SEEN_BYTES>().0 {
        let node = get_node(kind, b[0])?;
        if all.iter().any(|(n, _)| *n == node) {
            return Err(WireError::Field {
                kind,
                field: "node, named twice",
            });
        }
        let seen = Seen {
            incarnation: Incarnation(u64_at(b, 1)),
            run: Run(u64_at(b, 9)),
            log: u64_at(b, 17),
        };
        all.push((node, seen));
    }
    Ok(all)
}

pub(super) fn put_hello(out: &mut Vec<u8>, hello: &Hello) {
    out.push(hello.node.0);
    out.push(match hello.disk {
        DiskState::Diskless => 0,
        DiskState::Failed => 1,
        DiskState::Syncing => 2,
        DiskState::Outdated => 3,
        DiskState::UpToDate => 4,
    });
    out.push(hello.unclean.into());
    out.push(0);
    out.extend_from_slice(&hello.log_slots.to_le_bytes());
    out.extend_from_slice(&hello.volume.0.to_le_bytes());
    out.extend_from_slice(&hello.geometry.block_bytes.to_le_bytes());
    out.extend_from_slice(&hello.geometry.extent_blocks.to_le_bytes());
    out.extend_from_slice(&hello.geometry.blocks.to_le_bytes());
    out.extend_from_slice(&hello.incarnation.0.to_le_bytes());
    out.extend_from_slice(&hello.run.0.to_le_bytes());
    out.extend_from_slice(&hello.promised.0.to_le_bytes());
    out.extend_from_slice(&hello.lineage.to_le_bytes());
    for found in hello.found {
        out.extend_from_slice(&found.to_le_bytes());
    }
}

/// The caller has checked the length.
pub(super) fn get_hello(kind: &'static str, b: &[u8]) -> Result<Hello, WireError> {
    let wrong = |field| WireError::Field { kind, field };
    Ok(Hello {
        node: get_node(kind, b[0])?,
        disk: match b[1] {
            0 => DiskState::Diskless,
            1 => DiskState::Failed,
            2 => DiskState::Syncing,
            3 => DiskState::Outdated,
            4 => DiskState::UpToDate,
            _ => return Err(wrong("disk state")),
        },
        unclean: match (b[2], b[3]) {
            (0, 0) => false,
            (1, 0) => true,
            _ => return Err(wrong("flag")),
        },
        log_slots: u32_at(b, 4),
        volume: VolumeId(u64_at(b, 8)),
        geometry: Geometry {
            block_bytes: u32_at(b, 16),
            extent_blocks: u32_at(b, 20),
            blocks: u64_at(b, 24),
        },
        incarnation: Incarnation(u64_at(b, 32)),
        run: Run(u64_at(b, 40)),
        promised: Epoch(u64_at(b, 48)),
        lineage: u64_at(b, 56),
        found: std::array::from_fn(|run| u64_at(b, 64 + 8 * run)),
    })
}

pub(super) fn get_node(kind: &'static str, node: u8) -> Result<NodeId, WireError> {
    if node < NODES_MAX {
        Ok(NodeId(node))
    } else {
        Err(WireError::Field {
            kind,
            field: "node",
        })
    }
}
