//! The bitmap against a set of numbers.

use holdfast_meta::{Bitmap, Owner, Unsaved};
use holdfast_types::{BlockRange, Incarnation, NodeId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const PAGE_BYTES: u32 = 512;
/// Bits of a page of one sector.
const PAGE_BITS: u64 = 63 * 64;
const OWNER: Owner = Owner {
    incarnation: Incarnation(77),
    node: NodeId(2),
};

#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64),
    Clear(u64, u64),
    Union(Vec<(u64, u64)>),
    Replace(Vec<(u64, u64)>),
    Begin(u32),
    Saved(u32),
    Failed(u32),
    Reload,
}

fn ranges() -> impl Strategy<Value = (u64, u64)> {
    // Short runs, and runs across words and pages; some reach past the end.
    (
        0..4 * PAGE_BITS,
        prop_oneof![1..4u64, 60..70u64, 1..3 * PAGE_BITS],
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => ranges().prop_map(|(f, c)| Op::Set(f, c)),
        4 => ranges().prop_map(|(f, c)| Op::Clear(f, c)),
        1 => prop::collection::vec(ranges(), 0..4).prop_map(Op::Union),
        1 => prop::collection::vec(ranges(), 0..4).prop_map(Op::Replace),
        3 => (0..4u32).prop_map(Op::Begin),
        3 => (0..4u32).prop_map(Op::Saved),
        1 => (0..4u32).prop_map(Op::Failed),
        1 => Just(Op::Reload),
    ]
}

fn in_volume(blocks: u64, list: &[(u64, u64)]) -> BTreeSet<u64> {
    list.iter()
        .flat_map(|&(f, c)| f..(f + c).min(blocks))
        .collect()
}

fn block_ranges(list: &[(u64, u64)]) -> Vec<BlockRange> {
    list.iter().map(|&(f, c)| BlockRange::new(f, c)).collect()
}

/// The runs of a set, by counting.
fn runs(set: &BTreeSet<u64>, from: u64, max: u64) -> Vec<BlockRange> {
    let mut out: Vec<BlockRange> = Vec::new();
    for &block in set.range(from..) {
        match out.last_mut() {
            Some(last) if last.end() == block && last.count < max => {
                *last = BlockRange::new(last.first, last.count + 1)
            }
            _ => out.push(BlockRange::new(block, 1)),
        }
    }
    out
}

fn check_same(bitmap: &Bitmap, model: &BTreeSet<u64>, probe: u64, max: u64) {
    assert_eq!(bitmap.count(), model.len() as u64);
    assert_eq!(bitmap.is_empty(), model.is_empty());
    assert_eq!(bitmap.to_ranges(), runs(model, 0, u64::MAX));
    assert_eq!(bitmap.runs(max).collect::<Vec<_>>(), runs(model, 0, max));
    assert_eq!(
        bitmap.next_set_run(probe),
        runs(model, probe, u64::MAX).first().copied()
    );
    assert_eq!(
        bitmap.next_run(probe, max),
        runs(model, probe, max).first().copied()
    );
    assert_eq!(bitmap.get(probe), model.contains(&probe));
    let range = BlockRange::new(probe, max);
    let inside = model.range(probe..probe + max).count() as u64;
    assert_eq!(bitmap.count_in(range), inside);
    assert_eq!(bitmap.any(range), inside > 0);
    assert_eq!(bitmap.all(range), inside == max);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The set itself, and what the disk may lack: `disk` is what a disk would hold, page by page.
    #[test]
    fn like_a_set(
        blocks in 1..3 * PAGE_BITS + 100,
        ops in prop::collection::vec(op(), 1..40),
        probe in 0..3 * PAGE_BITS,
        max in 1..200u64,
    ) {
        let mut bitmap = Bitmap::with_blocks(blocks, PAGE_BYTES);
        let mut model = BTreeSet::new();
        let mut disk: BTreeSet<u64> = BTreeSet::new();
        let mut saving: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        let of_page = |set: &BTreeSet<u64>, p: u32| -> BTreeSet<u64> {
            set.range(u64::from(p) * PAGE_BITS..u64::from(p + 1) * PAGE_BITS).copied().collect()
        };
        for op in ops {
            match op {
                Op::Set(f, c) => {
                    let new = in_volume(blocks, &[(f, c)]);
                    let fresh = new.difference(&model).count() as u64;
                    prop_assert_eq!(bitmap.set(BlockRange::new(f, c)), fresh);
                    model.extend(new);
                }
                Op::Clear(f, c) => {
                    let before = model.len();
                    model.retain(|b| !(f..f + c).contains(b));
                    prop_assert_eq!(bitmap.clear(BlockRange::new(f, c)), (before - model.len()) as u64);
                }
                Op::Union(list) => {
                    let mut other = Bitmap::with_blocks(blocks, PAGE_BYTES);
                    other.set_ranges(&block_ranges(&list));
                    bitmap.union(&other);
                    model.extend(in_volume(blocks, &list));
                }
                Op::Replace(list) => {
                    bitmap.replace(&block_ranges(&list));
                    model = in_volume(blocks, &list);
                }
                Op::Begin(p) if p < bitmap.pages() => {
                    let due = bitmap.pages_unsaved(Unsaved::Clear).contains(&p) && !saving.contains_key(&p);
                    match bitmap.begin_save(p, OWNER) {
                        Some(bytes) => {
                            prop_assert!(due);
                            prop_assert_eq!(bytes, bitmap.page(p, OWNER));
                            saving.insert(p, of_page(&model, p));
                        }
                        None => prop_assert!(!due),
                    }
                }
                Op::Saved(p) => {
                    if let Some(content) = saving.remove(&p) {
                        let old = of_page(&disk, p);
                        disk.retain(|b| !old.contains(b));
                        disk.extend(content);
                        bitmap.saved(p);
                    }
                }
                Op::Failed(p) => {
                    saving.remove(&p);
                    bitmap.save_failed(p);
                }
                Op::Begin(_) => {}
                Op::Reload => {
                    let mut loaded = Bitmap::with_blocks(blocks, PAGE_BYTES);
                    for p in 0..bitmap.pages() {
                        prop_assert_eq!(loaded.load_page(p, OWNER, &bitmap.page(p, OWNER)).unwrap().damaged_sectors, 0);
                    }
                    prop_assert_eq!(&loaded, &bitmap);
                    prop_assert!(loaded.is_saved());
                }
            }
            check_same(&bitmap, &model, probe, max);

            // A page that is not named, and not being saved, is on disk as it is in memory, or (bits cleared only) more.
            let set = bitmap.pages_unsaved(Unsaved::Set);
            let any = bitmap.pages_unsaved(Unsaved::Clear);
            for p in 0..bitmap.pages() {
                let (on_disk, in_memory) = (of_page(&disk, p), of_page(&model, p));
                if !any.contains(&p) && !saving.contains_key(&p) {
                    prop_assert_eq!(&on_disk, &in_memory);
                }
                let page = BlockRange::new(u64::from(p) * PAGE_BITS, PAGE_BITS.min(blocks - u64::from(p) * PAGE_BITS));
                if bitmap.is_durable_in(page) {
                    prop_assert!(on_disk.is_superset(&in_memory));
                    prop_assert!(!set.contains(&p));
                }
            }
            if bitmap.is_durable() {
                prop_assert!(disk.is_superset(&model));
            }
            prop_assert_eq!(bitmap.is_saved(), any.is_empty() && saving.is_empty());
        }
    }

    /// Whatever a page's bytes are, each sector is taken as it is or as all dirty.
    #[test]
    fn rotten_sector_is_all_dirty(
        runs in prop::collection::vec(ranges(), 0..5),
        sector in 0..8usize,
        at in 0..512usize,
        flip in 1..=255u8,
    ) {
        let blocks = 8 * PAGE_BITS - 10;
        let mut bitmap = Bitmap::with_blocks(blocks, 4096);
        bitmap.set_ranges(&block_ranges(&runs));
        let mut bytes = bitmap.page(0, OWNER).to_vec();
        bytes[sector * 512 + at] ^= flip;
        let mut loaded = Bitmap::with_blocks(blocks, 4096);
        prop_assert_eq!(loaded.load_page(0, OWNER, &bytes).unwrap().damaged_sectors, 1);
        prop_assert_eq!(loaded.pages_unsaved(Unsaved::Set), vec![0]);
        let first = sector as u64 * PAGE_BITS;
        bitmap.set(BlockRange::new(first, PAGE_BITS));
        prop_assert_eq!(loaded, bitmap);
    }
}

#[test]
fn another_owners_page_is_all_dirty() {
    let empty = Bitmap::with_blocks(1000, PAGE_BYTES);
    let page = empty.page(0, OWNER);
    for owner in [
        Owner {
            node: NodeId(3),
            ..OWNER
        },
        Owner {
            incarnation: Incarnation(78),
            ..OWNER
        },
    ] {
        let mut loaded = Bitmap::with_blocks(1000, PAGE_BYTES);
        assert_eq!(
            loaded.load_page(0, owner, &page).unwrap().damaged_sectors,
            1
        );
        assert_eq!(loaded.count(), 1000);
    }
    // A page that was never written, too.
    let mut loaded = Bitmap::with_blocks(1000, PAGE_BYTES);
    loaded.load_page(0, OWNER, &[0; 512]).unwrap();
    assert_eq!(loaded.count(), 1000);
}

#[test]
fn a_bit_set_while_its_page_is_saved_stays_unsaved() {
    let mut bitmap = Bitmap::with_blocks(1000, PAGE_BYTES);
    bitmap.set(BlockRange::new(5, 1));
    assert!(bitmap.begin_save(0, OWNER).is_some());
    assert!(!bitmap.is_durable());
    bitmap.set(BlockRange::new(6, 1));
    assert!(
        bitmap.begin_save(0, OWNER).is_none(),
        "two saves of one page at once"
    );
    bitmap.saved(0);
    assert_eq!(bitmap.pages_unsaved(Unsaved::Set), vec![0]);
    assert!(bitmap.begin_save(0, OWNER).is_some());
    bitmap.saved(0);
    assert!(bitmap.is_saved());
    bitmap.clear(BlockRange::new(6, 1));
    assert!(bitmap.is_durable() && !bitmap.is_saved());
    assert_eq!(bitmap.pages_unsaved(Unsaved::Set), Vec::<u32>::new());
    assert_eq!(bitmap.pages_unsaved(Unsaved::Clear), vec![0]);
}
