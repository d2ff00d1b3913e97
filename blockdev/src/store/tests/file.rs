//! Files and block devices: claims, sizes, what the filesystem does not have.

use std::fs;
use std::path::Path;
use std::thread;

use holdfast_uring::{Done, token};

use super::*;
use crate::frontend::loopdev::LoopDevice;

#[test]
fn a_new_file_is_sparse_zero_and_never_overwrites() {
    let (dir, path) = backing();
    let meta = fs::metadata(&path).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        (meta.len(), meta.blocks(), meta.mode() & 0o777),
        (SIZE, 0, 0o600)
    );
    assert!(matches!(
        create_file(&path, SIZE),
        Err(OpenError::Exists { .. })
    ));
    for size in [0, 4095, SIZE + 1] {
        let other = dir.path().join("other");
        assert!(matches!(
            create_file(&other, size),
            Err(OpenError::Size { .. })
        ));
        assert!(!other.exists());
    }
    let error = create_file(&dir.path().join("no/such"), SIZE).unwrap_err();
    assert!(error.to_string().contains("no/such"), "{error}");
    // Larger than any file: nothing is left behind.
    let huge = dir.path().join("huge");
    assert!(matches!(
        create_file(&huge, u64::MAX - 4095),
        Err(OpenError::Os { .. })
    ));
    assert!(!huge.exists());
}

#[test]
fn what_cannot_be_a_store_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str| open(&dir.path().join(name), &options()).unwrap_err();
    assert!(matches!(
        refused("absent"),
        OpenError::Os { what: "open", .. }
    ));
    assert!(refused("absent").to_string().contains("absent"));
    assert!(matches!(refused("."), OpenError::Kind { .. }));
    fs::write(dir.path().join("small"), [0; 4095]).unwrap();
    assert!(matches!(
        refused("small"),
        OpenError::TooSmall { bytes: 4095, .. }
    ));
    assert!(matches!(
        open(Path::new("/dev/null"), &options()),
        Err(OpenError::Kind { .. })
    ));
    // A size that is no whole number of blocks is rounded down.
    fs::write(dir.path().join("odd"), [0; 9000]).unwrap();
    assert_eq!(
        open(&dir.path().join("odd"), &options())
            .unwrap()
            .size_bytes(),
        8192
    );
}

#[test]
fn a_store_is_for_one_at_a_time() {
    let (_dir, path) = backing();
    let first = open(&path, &options()).unwrap();
    let error = open(&path, &impatient()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }));
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    // Whoever waits gets it when the other has ended.
    let patient = OpenOptions {
        claim_wait: Duration::from_secs(600),
        ..options()
    };
    let waiting = {
        let path = path.clone();
        thread::spawn(move || open(&path, &patient).map(|store| store.size_bytes()))
    };
    thread::sleep(Duration::from_millis(20));
    drop(first);
    assert_eq!(waiting.join().unwrap().unwrap(), SIZE);
}

#[test]
fn a_store_dropped_with_operations_on_their_way_keeps_its_claim() {
    let (dir, path) = backing();
    let mut rig = Rig::new(open(&path, &options()).unwrap());
    // Not entered: the kernel has not seen it, only the number of the descriptor.
    rig.submit(write(0, 1, 1, false));
    let Rig { ring, store, .. } = rig;
    drop(store);
    // Would get the number, and the write, of a store that was closed.
    let bystander = dir.path().join("bystander");
    let file = fs::File::create_new(&bystander).unwrap();
    drop(ring);
    drop(file);
    assert_eq!(fs::metadata(&bystander).unwrap().len(), 0);
    assert!(matches!(
        open(&path, &impatient()),
        Err(OpenError::InUse { .. })
    ));
}

#[test]
fn on_a_real_filesystem_the_page_cache_is_left_out() {
    use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};
    let (_dir, path) = backing();
    let store = FileStore::open(&path, &options()).unwrap();
    if [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC]
        .contains(&statfs(&path).unwrap().filesystem_type())
    {
        assert!(store.is_direct());
        assert_eq!(store.note(), None);
    } else {
        assert!(store.is_direct() || store.note().is_some());
    }
}

#[test]
fn on_tmpfs_the_store_works_and_says_so() {
    let (_dir, path) = backing_in(Path::new("/dev/shm"));
    let mut rig = Rig::new(open(&path, &options()).unwrap());
    assert!(rig.store.note().unwrap().contains("tmpfs"));
    rig.run(write(3, 2, 8, true)).unwrap();
    rig.run(zero(4, 1, true)).unwrap();
    rig.run(StoreOp::Flush).unwrap();
    assert!(filled(&rig.block(3), 8) && filled(&rig.block(4), 0));
}

#[test]
fn holes_give_their_space_back() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, path) = backing();
    let mut rig = Rig::new(open(&path, &options()).unwrap());
    rig.run(write(0, BLOCKS as usize, 1, true)).unwrap();
    let full = fs::metadata(&path).unwrap().blocks();
    rig.run(zero(0, BLOCKS, true)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert!(full >= SIZE / 512 && meta.blocks() < full && meta.len() == SIZE);
    assert!(filled(&rig.run(read(0, BLOCKS as u32)).unwrap(), 0));
}

#[test]
fn nothing_to_do_ends_at_once() {
    let (_dir, path) = backing();
    let mut rig = Rig::new(open(&path, &options()).unwrap());
    for op in [read(1, 0), write(1, 0, 0, true), zero(1, 0, true)] {
        let token = rig.submit(op);
        assert_eq!(rig.ended.remove(&token), Some(Ok(Bytes::new())));
    }
}

#[test]
fn a_file_that_was_cut_short_is_an_error_not_zeroes() {
    let (_dir, path) = backing();
    let mut rig = Rig::new(open(&path, &options()).unwrap());
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(BLOCK_BYTES)
        .unwrap();
    assert_eq!(rig.run(read(0, 2)), Err(StoreError::Io));
    assert!(rig.run(read(0, 1)).is_ok());
    assert!(rig.store.read_region(0, 2 * BLOCK).is_err());
}

#[test]
fn more_operations_than_the_ring_takes_wait_their_turn() {
    let (_dir, path) = backing();
    let mut rig = Rig::new(open(&path, &options()).unwrap());
    rig.ring = Ring::new(RingConfig {
        entries: 2,
        in_flight_max: 3,
        plain: false,
    })
    .unwrap();
    let tokens: Vec<u64> = (0..BLOCKS)
        .map(|block| rig.submit(write(block, 1, block as u8, false)))
        .collect();
    for token in tokens {
        rig.end_of(token).unwrap();
    }
    for block in 0..BLOCKS {
        assert!(filled(&rig.block(block), block as u8));
    }
}

#[test]
fn large_operations_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large");
    create_file(&path, 64 << 20).unwrap();
    let mut rig = Rig::new(open(&path, &options()).unwrap());
    let data: Vec<u8> = (0..(32 << 20) / 8u64).flat_map(u64::to_le_bytes).collect();
    let data = Bytes::from(data);
    rig.run(StoreOp::Write {
        offset: 4096,
        data: data.clone(),
        durable: false,
    })
    .unwrap();
    let got = rig
        .run(StoreOp::Read {
            offset: 4096,
            len: 32 << 20,
        })
        .unwrap();
    assert!(got == data);
    assert_eq!(got.as_ptr() as usize % 4096, 0);
    assert_eq!(
        rig.run(StoreOp::Read {
            offset: 0,
            len: 64 << 20
        }),
        Err(StoreError::Range)
    );
    rig.run(StoreOp::Zero {
        offset: 0,
        len: 64 << 20,
        durable: true,
    })
    .unwrap();
    assert!(filled(
        &rig.run(StoreOp::Read {
            offset: 0,
            len: 32 << 20
        })
        .unwrap(),
        0
    ));
}

#[test]
fn a_block_device_is_a_store() {
    let (_dir, backing) = backing();
    let device = match LoopDevice::attach(&backing) {
        Ok(device) => device,
        Err(error) => {
            println!("SKIP a_block_device_is_a_store: no-root: {error}");
            return;
        }
    };
    let path = device.path().to_path_buf();
    let mut rig = Rig::new(open(&path, &options()).unwrap());
    assert_eq!(rig.store.size_bytes(), SIZE);
    assert!(matches!(
        open(&path, &impatient()),
        Err(OpenError::InUse { .. })
    ));
    rig.run(write(0, 8, 7, true)).unwrap();
    rig.run(zero(2, 3, true)).unwrap();
    rig.run(StoreOp::Flush).unwrap();
    let got = rig.run(read(0, 8)).unwrap();
    for (block, data) in got.chunks(BLOCK).enumerate() {
        assert!(filled(data, if (2..5).contains(&block) { 0 } else { 7 }));
    }
    rig.finish();
    assert!(open(&path, &options()).is_ok());
    device.detach().unwrap();
}

#[test]
fn a_full_filesystem_is_no_space_and_not_the_end() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    // A mount namespace of this thread's own, gone with it.
    let ran = thread::spawn(|| {
        let dir = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        let mounted = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| {
                mount(
                    Some("none"),
                    dir.path(),
                    Some("tmpfs"),
                    MsFlags::empty(),
                    Some("size=65536"),
                )
            });
        if let Err(error) = mounted {
            println!(
                "SKIP a_full_filesystem_is_no_space_and_not_the_end: no-root: no mount namespace: {error}"
            );
            return;
        }
        let path = dir.path().join("replica");
        create_file(&path, SIZE).unwrap();
        let mut rig = Rig::new(open(&path, &options()).unwrap());
        rig.run(write(0, 8, 1, true)).unwrap();
        assert_eq!(rig.run(write(8, 32, 2, false)), Err(StoreError::NoSpace));
        assert_eq!(rig.run(write(8, 32, 2, true)), Err(StoreError::NoSpace));
        assert!(filled(&rig.run(read(0, 8)).unwrap(), 1));
        rig.run(zero(0, BLOCKS, true)).unwrap();
        rig.run(write(8, 1, 2, true)).unwrap();
        rig.finish();
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
    ran.join().unwrap();
}

/// A store whose ring never runs, and another ring on which to answer for the kernel.
struct Kernel {
    store: FileStore,
    asked: Ring,
    answers: Ring,
    _dir: tempfile::TempDir,
}

impl Kernel {
    fn new() -> Self {
        let (dir, path) = backing();
        let ring = || Ring::new(RingConfig::default()).unwrap();
        Self {
            store: FileStore::open(&path, &options()).unwrap(),
            asked: ring(),
            answers: ring(),
            _dir: dir,
        }
    }

    fn submit(&mut self, op: StoreOp) {
        self.store.submit(&mut self.asked, op, 77);
    }

    /// The kernel's answer to the one operation on its way.
    fn answer(&mut self, result: Result<u32, i32>, done: Done) -> Option<StoreResult> {
        let result = result.map_err(std::io::Error::from_raw_os_error);
        let completion = Completion {
            token: token(STORE_TAG_DEFAULT, 0),
            result,
            done,
            more: false,
        };
        let ended = self.store.on_completion(&mut self.answers, completion);
        ended.map(|(token, result)| {
            assert_eq!(token, 77);
            result
        })
    }

    /// What the store asked for next, done for real.
    fn real(&mut self) -> Option<StoreResult> {
        while self.answers.wait(1, None).unwrap() == 0 {}
        let completion = self.answers.pop().unwrap();
        self.store
            .on_completion(&mut self.answers, completion)
            .map(|(_, result)| result)
    }

    fn alive(&mut self) -> bool {
        self.submit(StoreOp::Flush);
        match self.store.take_ready() {
            Some((77, result)) => {
                assert_eq!(result, Err(StoreError::Io));
                false
            }
            None => {
                assert_eq!(self.answer(Ok(0), Done::None), Some(Ok(Bytes::new())));
                true
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn failures_of_flushes_are_final_and_others_are_not() {
    let io = Some(Err(StoreError::Io));
    for (op, errno, want, alive) in [
        (StoreOp::Flush, libc::EIO, io.clone(), false),
        (StoreOp::Flush, libc::ENOSPC, io.clone(), false),
        (StoreOp::Flush, libc::EINTR, io.clone(), false),
        (write(0, 1, 1, true), libc::EIO, io.clone(), false),
        (
            write(0, 1, 1, true),
            libc::ENOSPC,
            Some(Err(StoreError::NoSpace)),
            true,
        ),
        (write(0, 1, 1, false), libc::EIO, io.clone(), true),
        (
            write(0, 1, 1, false),
            libc::EDQUOT,
            Some(Err(StoreError::NoSpace)),
            true,
        ),
        (read(0, 1), libc::EIO, io.clone(), true),
        (zero(0, 1, false), libc::EIO, io.clone(), true),
    ] {
        let mut kernel = Kernel::new();
        kernel.submit(op.clone());
        assert_eq!(
            kernel.answer(Err(errno), Done::None),
            want,
            "{op:?} {errno}"
        );
        assert_eq!(kernel.alive(), alive, "{op:?} {errno}");
    }
}

#[test]
fn interrupted_and_short_operations_go_on() {
    let mut kernel = Kernel::new();
    for block in 0..2 {
        kernel.submit(write(0, 2, 5 + block, true));
        let data = Done::None;
        // Nothing written, then all; or a block and a bit, then the rest from the block on.
        let first = if block == 0 {
            Err(libc::EINTR)
        } else {
            Ok(4100)
        };
        assert_eq!(kernel.answer(first, data), None);
        assert_eq!(kernel.real(), Some(Ok(Bytes::new())));
    }
    let got = kernel.store.read_region(0, 2 * BLOCK).unwrap();
    assert!(filled(&got[..BLOCK], 5) && filled(&got[BLOCK..], 6));

    kernel.submit(read(0, 2));
    let mut buf = BufPool::default().get_zeroed(2 * BLOCK).unwrap();
    buf[..BLOCK].fill(9);
    assert_eq!(kernel.answer(Ok(5000), Done::Buf(buf)), None);
    let got = kernel.real().unwrap().unwrap();
    assert!(filled(&got[..BLOCK], 9) && filled(&got[BLOCK..], 6));
}

#[test]
fn a_kernel_that_never_gets_on_is_a_failure() {
    let mut kernel = Kernel::new();
    kernel.submit(write(0, 1, 1, false));
    let mut answers = 0;
    let result = loop {
        answers += 1;
        if let Some(result) = kernel.answer(Err(libc::EAGAIN), Done::None) {
            break result;
        }
    };
    assert_eq!(result, Err(StoreError::Io));
    assert!(answers > 10);
}

#[test]
fn what_the_filesystem_lacks_is_done_another_way() {
    let mut kernel = Kernel::new();
    kernel.store.write_region(0, &[1; 4 * BLOCK]).unwrap();
    // No durable writes: written, then flushed.
    kernel.submit(write(0, 1, 2, true));
    assert_eq!(kernel.answer(Err(libc::EOPNOTSUPP), Done::None), None);
    assert_eq!(kernel.real(), None, "the flush is missing");
    assert_eq!(kernel.real(), Some(Ok(Bytes::new())));
    // No holes and no zeroing: zeroes are written.
    kernel.submit(zero(1, 2, true));
    assert_eq!(kernel.answer(Err(libc::EOPNOTSUPP), Done::None), None);
    assert_eq!(kernel.answer(Err(libc::EOPNOTSUPP), Done::None), None);
    while kernel.real().is_none() {}
    let got = kernel.store.read_region(0, 4 * BLOCK).unwrap();
    let first: Vec<u8> = got.chunks(BLOCK).map(|block| block[0]).collect();
    assert_eq!(first, [2, 0, 0, 1]);
}
