use super::*;
use holdfast_meta::{BitmapStart, Layout, PEERS_MAX, Superblock, Transaction};
use holdfast_types::{BlockRange, DiskState, Incarnation, Run, VolumeId};

const GEOMETRY: Geometry = Geometry {
    block_bytes: 64,
    blocks: 32,
    extent_blocks: 4,
};

struct Made {
    node: NodeId,
    cached: Vec<u8>,
    stable: Vec<u8>,
    layout: Layout,
    superblock: Superblock,
}

fn make(node: u8) -> Made {
    let bytes = Layout::bytes_needed_with_page(GEOMETRY, PEERS_MAX, 512);
    let layout = Layout::with_page(GEOMETRY, bytes, PEERS_MAX, 4, 512).unwrap();
    let mut superblock = Superblock {
        version: holdfast_meta::FORMAT_VERSION,
        cluster: 1,
        volume: VolumeId(2),
        node: NodeId(node),
        geometry: GEOMETRY,
        capacity: GEOMETRY.blocks,
        tail_unknown: false,
        page_bytes: 512,
        incarnation: Incarnation(u64::from(node) + 10),
        run: Run(1),
        boot_id: 1,
        clean: false,
        promised: Default::default(),
        epoch: Default::default(),
        disk: DiskState::UpToDate,
        lineage: 0,
        log_slots: 4,
        log_floor: 0,
        peer_slots: Default::default(),
        seen: Default::default(),
        found: Default::default(),
        update: 1,
    };
    superblock.give_slot(NodeId(1 - node)).unwrap();
    let mut image = vec![0; bytes as usize];
    for (at, data) in holdfast_meta::initialise(&layout, &superblock, BitmapStart::Clean).unwrap() {
        image[at as usize..at as usize + data.len()].copy_from_slice(&data);
    }
    Made {
        node: NodeId(node),
        cached: image.clone(),
        stable: image,
        layout,
        superblock,
    }
}

impl Made {
    fn put(&mut self, at: u64, data: &[u8]) {
        for image in [&mut self.cached, &mut self.stable] {
            image[at as usize..at as usize + data.len()].copy_from_slice(data);
        }
    }
    fn log(&mut self, active: Vec<u32>) {
        let t = Transaction {
            number: 1,
            incarnation: self.superblock.incarnation,
            run: Run(1),
            active,
        };
        let (at, data) = t.write(&self.layout).unwrap();
        self.put(at, &data);
    }
    fn bit(&mut self, peer: NodeId, block: u64) {
        let mut bits = holdfast_meta::Bitmap::new(&self.layout);
        bits.set(BlockRange::new(block, 1));
        let owner = holdfast_meta::Owner {
            incarnation: self.superblock.incarnation,
            node: peer,
        };
        let slot = self.superblock.slot_of(peer).unwrap();
        self.put(
            self.layout.bitmap_page_offset(slot, 0),
            &bits.page(0, owner),
        );
    }
    fn replica(&self) -> Replica<'_> {
        Replica {
            node: self.node,
            cached: &self.cached,
            stable: &self.stable,
            meta: decode(&self.stable).unwrap(),
        }
    }
}

fn check(a: &Made, b: &Made) -> Result<(), String> {
    compare(&GEOMETRY, &a.replica(), &b.replica())
}

#[test]
fn equal_replicas_need_no_trace() {
    check(&make(0), &make(1)).unwrap();
}

#[test]
fn a_difference_needs_a_log_extent_or_a_bit_on_either() {
    let (mut a, b) = (make(0), make(1));
    a.put(64 * 9, &[7]);
    assert!(check(&a, &b).unwrap_err().contains("block 9"));
    for (on_a, good, bad) in [(true, 2, 3), (false, 2, 1)] {
        let (mut a, mut b) = (make(0), make(1));
        a.put(64 * 9, &[7]);
        (if on_a { &mut a } else { &mut b }).log(vec![bad]);
        assert!(check(&a, &b).is_err());
        (if on_a { &mut a } else { &mut b }).log(vec![bad, good]);
        check(&a, &b).unwrap();
    }
    for on_a in [true, false] {
        let (mut a, mut b) = (make(0), make(1));
        a.put(64 * 9, &[7]);
        if on_a {
            a.bit(NodeId(1), 9)
        } else {
            b.bit(NodeId(0), 9)
        }
        check(&a, &b).unwrap();
        check(&b, &a).unwrap();
        a.put(64 * 10, &[7]);
        assert!(check(&a, &b).is_err(), "the bit is for another block");
    }
}

#[test]
fn a_cache_that_may_be_lost_is_a_difference() {
    let (mut a, mut b) = (make(0), make(1));
    a.put(0, &[7]);
    b.put(0, &[7]);
    check(&a, &b).unwrap();
    b.stable[0] = 0;
    assert!(check(&a, &b).is_err());
    b.log(vec![0]);
    check(&a, &b).unwrap();
}
