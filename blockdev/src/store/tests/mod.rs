//! A rig that drives any store as the volume loop does, and what all stores have in common.

mod crash;
mod faults;
mod file;
mod model;

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use holdfast_uring::{Ring, RingConfig};

use super::*;

/// Blocks of the stores in these tests.
const BLOCKS: u64 = 64;
const SIZE: u64 = BLOCKS * BLOCK_BYTES;
const BLOCK: usize = BLOCK_BYTES as usize;

/// A store on a ring.
struct Rig {
    ring: Ring,
    store: Box<dyn Store>,
    ended: BTreeMap<u64, StoreResult>,
    tokens: u64,
}

impl Rig {
    fn new(store: Box<dyn Store>) -> Self {
        let ring = Ring::new(RingConfig::default()).unwrap();
        Self {
            ring,
            store,
            ended: BTreeMap::new(),
            tokens: 0,
        }
    }

    fn submit(&mut self, op: StoreOp) -> u64 {
        // High bits set: callers' tokens are their own.
        self.tokens += 1;
        let token = u64::MAX - self.tokens;
        self.store.submit(&mut self.ring, op, token);
        self.drain();
        token
    }

    fn note_end(&mut self, (token, result): Ended) {
        assert!(
            self.ended.insert(token, result).is_none(),
            "operation {token} ended twice"
        );
    }

    fn drain(&mut self) {
        while let Some(ended) = self.store.take_ready() {
            self.note_end(ended);
        }
    }

    /// One turn of the loop.
    fn turn(&mut self) {
        self.ring.wait(1, None).unwrap();
        while let Some(completion) = self.ring.pop() {
            assert!(self.store.owns(completion.token));
            if let Some(ended) = self.store.on_completion(&mut self.ring, completion) {
                self.note_end(ended);
            }
            self.drain();
        }
    }

    fn end_of(&mut self, token: u64) -> StoreResult {
        loop {
            if let Some(result) = self.ended.remove(&token) {
                return result;
            }
            self.turn();
        }
    }

    fn run(&mut self, op: StoreOp) -> StoreResult {
        let token = self.submit(op);
        self.end_of(token)
    }

    /// Waits until nothing is on its way, and lets go of the store.
    fn finish(mut self) {
        while self.ring.in_flight() > 0 {
            self.turn();
        }
    }

    fn block(&mut self, block: u64) -> Bytes {
        self.run(read(block, 1)).unwrap()
    }
}

fn read(block: u64, blocks: u32) -> StoreOp {
    StoreOp::Read {
        offset: block * BLOCK_BYTES,
        len: blocks * BLOCK_BYTES as u32,
    }
}

fn write(block: u64, blocks: usize, fill: u8, durable: bool) -> StoreOp {
    StoreOp::Write {
        offset: block * BLOCK_BYTES,
        data: vec![fill; blocks * BLOCK].into(),
        durable,
    }
}

fn zero(block: u64, blocks: u64, durable: bool) -> StoreOp {
    StoreOp::Zero {
        offset: block * BLOCK_BYTES,
        len: blocks * BLOCK_BYTES,
        durable,
    }
}

fn filled(bytes: &[u8], with: u8) -> bool {
    bytes.iter().all(|b| *b == with)
}

/// Waits for an earlier claim: the kernel may let go of a file a moment after its last operation
/// has answered, and a process just forked by another test holds it until it has become another.
fn options() -> OpenOptions {
    OpenOptions::default()
}

fn impatient() -> OpenOptions {
    OpenOptions {
        claim_wait: Duration::ZERO,
        ..options()
    }
}

/// A new file in a directory of its own.
fn backing() -> (tempfile::TempDir, PathBuf) {
    backing_in(&std::env::temp_dir())
}

fn backing_in(dir: &std::path::Path) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let path = dir.path().join("replica");
    assert_eq!(
        create_file(&path, SIZE).unwrap(),
        Created {
            bytes: SIZE,
            all_zero: true
        }
    );
    (dir, path)
}

fn faulty(inner: Box<dyn Store>, plan: &str) -> Box<dyn Store> {
    Box::new(FaultyStore::new(
        inner,
        plan.parse().unwrap(),
        STORE_TAG_DEFAULT,
    ))
}

fn memory() -> Box<dyn Store> {
    Box::new(MemoryStore::new(SIZE))
}

#[test]
fn what_is_outside_is_refused_by_every_store() {
    let (_dir, path) = backing();
    let file = open(&path, &options()).unwrap();
    for store in [memory(), file, faulty(memory(), "lost-cache")] {
        let mut rig = Rig::new(store);
        assert_eq!(rig.store.size_bytes(), SIZE);
        for op in [
            read(BLOCKS, 1),
            read(BLOCKS - 1, 2),
            write(BLOCKS - 1, 2, 1, false),
            zero(BLOCKS, 1, true),
            StoreOp::Read {
                offset: 512,
                len: 4096,
            },
            StoreOp::Read {
                offset: 0,
                len: 512,
            },
            StoreOp::Write {
                offset: 0,
                data: Bytes::from_static(b"short"),
                durable: false,
            },
            StoreOp::Zero {
                offset: u64::MAX - 4095,
                len: 4096,
                durable: false,
            },
            StoreOp::Zero {
                offset: 0,
                len: u64::MAX - 4095,
                durable: false,
            },
        ] {
            assert_eq!(rig.run(op.clone()), Err(StoreError::Range), "{op:?}");
        }
        for (offset, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1)] {
            assert!(rig.store.read_region(offset, len).is_err());
            assert!(rig.store.write_region(offset, &vec![0; len]).is_err());
        }
        assert_eq!(rig.run(write(BLOCKS - 1, 1, 9, true)), Ok(Bytes::new()));
        assert!(filled(&rig.block(BLOCKS - 1), 9));
    }
}

#[test]
fn regions_are_read_and_written_at_once() {
    let (_dir, path) = backing();
    let file = open(&path, &options()).unwrap();
    for mut store in [memory(), file, faulty(memory(), "lost-cache")] {
        assert!(filled(&store.read_region(0, SIZE as usize).unwrap(), 0));
        store.write_region(4090, &[1; 12]).unwrap();
        store.write_region(SIZE - 4096, &[2; 4096]).unwrap();
        let got = store.read_region(4089, 14).unwrap();
        assert_eq!(got[..], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        assert!(filled(&store.read_region(SIZE - 4096, 4096).unwrap(), 2));
        assert!(store.read_region(0, 0).unwrap().is_empty());
    }
}

#[test]
fn regions_include_what_is_in_the_lost_cache() {
    let mut rig = Rig::new(faulty(memory(), "lost-cache"));
    rig.run(write(1, 1, 7, false)).unwrap();
    let got = rig.store.read_region(4095, 4098).unwrap();
    assert_eq!((got[0], got[1], got[4096], got[4097]), (0, 7, 7, 0));
    assert!(rig.store.write_region(8191, b"xy").is_err());
    rig.run(StoreOp::Flush).unwrap();
    rig.store.write_region(8191, b"xy").unwrap();
    assert_eq!(rig.block(1)[4095], b'x');
}
