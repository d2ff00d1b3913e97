//! Each word of a fault plan does what it says, and nothing else.

use std::time::Instant;

use super::*;

#[test]
fn plans_are_read_and_written() {
    let plan: FaultPlan = "lost-cache,eio-write=0.01,delay-ms=5,seed=7"
        .parse()
        .unwrap();
    let want = FaultPlan {
        lost_cache: true,
        eio_write: 10_000,
        delay_ms: 5,
        seed: 7,
        ..FaultPlan::default()
    };
    assert_eq!(plan, want);
    for text in [
        "",
        "lost-cache,keep=0.250000,torn=1.000000,seed=9",
        "eio-read=0.000001,eio-flush=1.000000,eio-range=4096+8192,eio-after=3,hang-after=0,jitter-ms=2",
        "torn=0.500000,eio-write=0.100000,nospace-write=0.200000",
    ] {
        let plan: FaultPlan = text.parse().unwrap();
        assert_eq!(plan.to_string().parse::<FaultPlan>().unwrap(), plan);
        let words = |text: &str| {
            text.split(',')
                .map(str::to_owned)
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(words(&plan.to_string()), words(text));
    }
    for text in [
        "lostcache",
        "lost-cache=1",
        "eio-write",
        "eio-write=1.1",
        "eio-write=-1",
        "eio-write=.5",
        "eio-write=0.1234567",
        "eio-write=99999999999",
        "delay-ms=3600001",
        "seed=x",
        "eio-range=5,eio-read=1",
        "eio-range=0+0,eio-read=1",
        "eio-range=18446744073709551615+1,eio-read=1",
        "eio-range=0+4096",
        "eio-range=0+4096,eio-flush=1",
        "eio-after=5",
        "keep=0.5",
        "torn=0.5",
        "lost-cache,torn=0.5,eio-write=0.5",
    ] {
        assert!(text.parse::<FaultPlan>().is_err(), "{text}");
    }
}

#[test]
fn errors_strike_in_their_range_and_after_their_count() {
    let mut rig = Rig::new(faulty(
        memory(),
        "eio-read=1,eio-range=8192+4096,eio-after=2",
    ));
    assert!(rig.run(read(2, 1)).is_ok());
    assert!(rig.run(read(2, 1)).is_ok());
    assert_eq!(rig.run(read(2, 1)), Err(StoreError::Io));
    assert_eq!(rig.run(read(0, 3)), Err(StoreError::Io));
    assert!(rig.run(read(0, 2)).is_ok() && rig.run(read(3, 1)).is_ok());
    assert!(
        rig.run(write(2, 1, 5, true)).is_ok(),
        "only reads were to fail"
    );

    let mut rig = Rig::new(faulty(memory(), "nospace-write=1"));
    assert_eq!(rig.run(write(0, 1, 1, false)), Err(StoreError::NoSpace));
    assert_eq!(rig.run(zero(0, 1, true)), Err(StoreError::NoSpace));
    assert!(filled(&rig.block(0), 0));
}

#[test]
fn chances_come_from_the_seed() {
    let run = |plan: &str| {
        let mut rig = Rig::new(faulty(memory(), plan));
        (0..1000)
            .map(|i| rig.run(write(i % BLOCKS, 1, 1, false)).is_err())
            .collect::<Vec<_>>()
    };
    let first = run("eio-write=0.1,seed=1");
    let failed = first.iter().filter(|failed| **failed).count();
    assert!((50..200).contains(&failed), "{failed} of 1000 failed");
    assert_eq!(first, run("eio-write=0.1,seed=1"));
    assert_ne!(first, run("eio-write=0.1,seed=2"));
    assert!(!run("eio-write=0").contains(&true));
}

#[test]
fn a_failed_write_can_be_torn() {
    let mut rig = Rig::new(faulty(memory(), "eio-write=1,torn=1,seed=3"));
    assert_eq!(rig.run(write(0, 8, 1, false)), Err(StoreError::Io));
    let got = rig.run(read(0, 8)).unwrap();
    assert!(got.contains(&0) && got.contains(&1), "nothing is torn");
    assert!(got.chunks(512).all(|sector| filled(sector, sector[0])));
    // Not torn: nothing of it is there.
    let mut rig = Rig::new(faulty(memory(), "eio-write=1"));
    assert_eq!(rig.run(write(0, 8, 1, false)), Err(StoreError::Io));
    assert!(filled(&rig.run(read(0, 8)).unwrap(), 0));
}

#[test]
fn a_failed_flush_is_the_end() {
    for plan in ["eio-flush=1", "lost-cache,eio-flush=1"] {
        let mut rig = Rig::new(faulty(memory(), plan));
        rig.run(write(0, 1, 1, false)).unwrap();
        assert_eq!(rig.run(StoreOp::Flush), Err(StoreError::Io));
        assert_eq!(rig.run(read(0, 1)), Err(StoreError::Io));
        assert_eq!(rig.run(write(0, 1, 1, false)), Err(StoreError::Io));
        assert_eq!(rig.run(StoreOp::Flush), Err(StoreError::Io));
    }
    let mut rig = Rig::new(faulty(memory(), "eio-write=1"));
    assert_eq!(rig.run(write(0, 1, 1, true)), Err(StoreError::Io));
    assert_eq!(
        rig.run(read(0, 1)),
        Err(StoreError::Io),
        "a durable write is a flush too"
    );
}

#[test]
fn flushes_and_durable_writes_pass_a_lost_cache_through() {
    let (_dir, path) = backing();
    let faults = OpenOptions {
        fault: Some("lost-cache".parse().unwrap()),
        ..options()
    };
    let mut rig = Rig::new(open(&path, &faults).unwrap());
    let disk = std::fs::File::open(&path).unwrap();
    let on_disk = |block: u64| {
        let mut data = vec![0; BLOCK];
        std::os::unix::fs::FileExt::read_exact_at(&disk, &mut data, block * BLOCK_BYTES).unwrap();
        data[0]
    };
    rig.run(write(0, 2, 1, false)).unwrap();
    assert_eq!((on_disk(0), rig.block(0)[0]), (0, 1));
    // The older cached content must not come back over the durable one.
    rig.run(write(0, 1, 2, true)).unwrap();
    assert_eq!((on_disk(0), on_disk(1)), (2, 0));
    rig.run(StoreOp::Flush).unwrap();
    assert_eq!((on_disk(0), on_disk(1), rig.block(0)[0]), (2, 1, 2));
    rig.run(zero(0, 2, false)).unwrap();
    assert_eq!((on_disk(0), rig.block(0)[0]), (2, 0));
    rig.run(zero(1, 1, true)).unwrap();
    assert_eq!((on_disk(0), on_disk(1)), (2, 0));
}

#[test]
fn several_flushes_and_writes_at_once_all_end() {
    let (_dir, path) = backing();
    let faults = OpenOptions {
        fault: Some("lost-cache,keep=0.3,torn=0.3".parse().unwrap()),
        ..options()
    };
    let mut rig = Rig::new(open(&path, &faults).unwrap());
    let mut tokens = Vec::new();
    for round in 1..=20u8 {
        tokens.push(rig.submit(write(0, 4, round, false)));
        tokens.push(rig.submit(StoreOp::Flush));
        tokens.push(rig.submit(write(4, 4, round, round % 2 == 0)));
        let last = tokens.len() - 1;
        rig.end_of(tokens.remove(last)).unwrap();
    }
    for token in tokens {
        rig.end_of(token).unwrap();
    }
    rig.run(StoreOp::Flush).unwrap();
    rig.finish();
    let disk = open(&path, &options())
        .unwrap()
        .read_region(0, 8 * BLOCK)
        .unwrap();
    assert!(filled(&disk, 20));
}

#[test]
fn late_means_not_before() {
    let mut rig = Rig::new(faulty(memory(), "delay-ms=15"));
    for op in [write(0, 1, 1, false), read(0, 1), StoreOp::Flush] {
        let start = Instant::now();
        rig.run(op).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(15));
    }
}

#[test]
fn what_hangs_does_not_end() {
    let mut rig = Rig::new(faulty(memory(), "hang-after=1"));
    rig.run(write(0, 1, 1, false)).unwrap();
    rig.submit(read(0, 1));
    rig.submit(StoreOp::Flush);
    rig.ring.wait(1, Some(Duration::from_millis(5))).unwrap();
    rig.drain();
    assert!(rig.ended.is_empty());
}

#[test]
fn a_plan_shows_in_the_note() {
    let store = faulty(memory(), "lost-cache");
    let note = store.note().unwrap();
    assert!(
        note.contains("lost-cache") && note.contains("memory"),
        "{note}"
    );
}

#[test]
fn a_full_cache_writes_back() {
    let (_dir, path) = backing();
    let file = open(&path, &options()).unwrap();
    let store = FaultyStore::new(file, "lost-cache".parse().unwrap(), STORE_TAG_DEFAULT)
        .with_cache_of(8 * BLOCK);
    let mut rig = Rig::new(Box::new(store));
    rig.run(write(0, 8, 1, false)).unwrap();
    assert!(filled(&std::fs::read(&path).unwrap(), 0));
    rig.run(write(8, 1, 1, false)).unwrap();
    assert!(filled(&std::fs::read(&path).unwrap()[..9 * BLOCK], 1));
    rig.run(write(0, 8, 2, false)).unwrap();
    assert!(
        filled(&std::fs::read(&path).unwrap()[..9 * BLOCK], 1),
        "there is room again"
    );
    assert!(filled(&rig.run(read(0, 8)).unwrap(), 2));
}
