//! What a power cut leaves: of the lost cache, nothing; of what was flushed, everything.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::model::{Step, batches};
use super::*;

/// Per block: what is flushed, and what was written since, oldest first.
struct Model {
    flushed: Vec<u8>,
    since: Vec<Vec<u8>>,
}

impl Model {
    fn new() -> Self {
        Self {
            flushed: vec![0; BLOCKS as usize],
            since: vec![Vec::new(); BLOCKS as usize],
        }
    }

    fn flush(&mut self) {
        for (flushed, since) in self.flushed.iter_mut().zip(&mut self.since) {
            if let Some(last) = since.drain(..).next_back() {
                *flushed = last;
            }
        }
    }

    fn write(&mut self, step: &Step) {
        let (fill, durable) = match step {
            Step::Write(_, _, fill, durable) => (*fill, *durable),
            Step::Zero(_, _, durable) => (0, *durable),
            Step::Read(..) | Step::Flush => return,
        };
        for block in step.range() {
            let since = &mut self.since[block as usize];
            if durable {
                since.clear();
                self.flushed[block as usize] = fill;
            } else {
                since.push(fill);
            }
        }
    }
}

/// Runs the steps with a flush only when nothing else is in flight, so that it is certain what it covers.
fn run(rig: &mut Rig, batches: &[Vec<Step>]) -> Model {
    let mut model = Model::new();
    for batch in batches {
        let tokens: Vec<u64> = batch
            .iter()
            .filter(|step| !matches!(step, Step::Flush))
            .map(|step| rig.submit(step.op()))
            .collect();
        for token in tokens {
            rig.end_of(token).unwrap();
        }
        batch.iter().for_each(|step| model.write(step));
        if batch.iter().any(|step| matches!(step, Step::Flush)) {
            rig.run(StoreOp::Flush).unwrap();
            model.flush();
        }
    }
    model
}

/// Runs steps on a file with this plan, cuts the power, and gives what the disk has.
fn cut(plan: &str, batches: &[Vec<Step>]) -> (Model, Bytes) {
    let (_dir, path) = backing();
    let faults = OpenOptions {
        fault: Some(plan.parse().unwrap()),
        ..options()
    };
    let mut rig = Rig::new(open(&path, &faults).unwrap());
    let model = run(&mut rig, batches);
    rig.finish();
    let disk = open(&path, &options())
        .unwrap()
        .read_region(0, SIZE as usize)
        .unwrap();
    (model, disk)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exactly_the_unflushed_is_lost(batches in batches()) {
        let (model, disk) = cut("lost-cache", &batches);
        for (block, data) in disk.chunks(BLOCK).enumerate() {
            prop_assert!(filled(data, model.flushed[block]), "block {} is not as flushed", block);
        }
    }

    #[test]
    fn what_is_kept_was_written(batches in batches(), seed: u64) {
        let (model, disk) = cut(&format!("lost-cache,keep=0.5,seed={seed}"), &batches);
        for (block, data) in disk.chunks(BLOCK).enumerate() {
            let legal = data[0] == model.flushed[block] || model.since[block].contains(&data[0]);
            prop_assert!(legal && filled(data, data[0]), "block {} was never so", block);
        }
    }

    #[test]
    fn what_is_torn_is_whole_in_its_sectors(batches in batches(), seed: u64) {
        let (model, disk) = cut(&format!("lost-cache,keep=0.7,torn=0.7,seed={seed}"), &batches);
        for (sector, data) in disk.chunks(512).enumerate() {
            let block = sector / 8;
            let legal = data[0] == model.flushed[block] || model.since[block].contains(&data[0]);
            prop_assert!(legal && filled(data, data[0]), "sector {} was never so", sector);
        }
    }
}

#[test]
fn certain_chances_are_certain() {
    let steps = [
        vec![Step::Write(0, 8, 1, true), Step::Write(8, 8, 1, true)],
        vec![Step::Write(0, 16, 2, false)],
    ];
    let (_, disk) = cut("lost-cache,keep=1", &steps);
    assert!(filled(&disk[..16 * BLOCK], 2));
    let torn = |seed: u64| cut(&format!("lost-cache,keep=1,torn=1,seed={seed}"), &steps).1;
    let disk = torn(1);
    let mixed = disk[..16 * BLOCK]
        .chunks(BLOCK)
        .filter(|block| block.contains(&1) && block.contains(&2))
        .count();
    assert!(mixed > 0, "nothing is torn");
    assert_eq!(disk, torn(1), "the same seed is not the same run");
    assert_ne!(disk, torn(2));
}

/// In the child: the file to write. The test below starts itself again with it.
const CHILD: &str = "HOLDFAST_TEST_KILLED_STORE";

#[test]
fn kill_minus_nine_loses_exactly_the_unflushed_writes() {
    if let Some(path) = std::env::var_os(CHILD) {
        let faults = OpenOptions {
            fault: Some("lost-cache".parse().unwrap()),
            ..options()
        };
        let mut rig = Rig::new(open(path.as_ref(), &faults).unwrap());
        rig.run(write(0, 8, 1, false)).unwrap();
        rig.run(StoreOp::Flush).unwrap();
        rig.run(write(4, 8, 2, false)).unwrap();
        rig.run(write(6, 1, 3, true)).unwrap();
        rig.run(zero(1, 1, false)).unwrap();
        assert!(filled(&rig.block(11), 2));
        println!("\nwritten");
        loop {
            std::thread::park();
        }
    }
    let (_dir, path) = backing();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "store::tests::crash::kill_minus_nine_loses_exactly_the_unflushed_writes",
        ])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told = lines.any(|line| line.unwrap() == "written");
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(told, "the child ended early: {status}");
    let disk = open(&path, &options())
        .unwrap()
        .read_region(0, SIZE as usize)
        .unwrap();
    for (block, data) in disk.chunks(BLOCK).enumerate() {
        let want = match block {
            6 => 3,
            0..8 => 1,
            _ => 0,
        };
        assert!(filled(data, want), "block {block} is not {want}");
    }
}

#[test]
fn a_flush_that_waits_owes_what_is_overwritten_meanwhile() {
    let (_dir, path) = backing();
    let faults = OpenOptions {
        fault: Some("lost-cache".parse().unwrap()),
        ..options()
    };
    let mut rig = Rig::new(open(&path, &faults).unwrap());
    rig.run(write(0, 1, 1, false)).unwrap();
    let first = rig.submit(StoreOp::Flush);
    rig.run(write(1, 1, 1, false)).unwrap();
    let second = rig.submit(StoreOp::Flush);
    assert!(
        !rig.ended.contains_key(&first),
        "the second did not have to wait"
    );
    rig.run(write(1, 1, 2, false)).unwrap();
    rig.end_of(second).unwrap();
    rig.finish();
    let disk = open(&path, &options())
        .unwrap()
        .read_region(0, 2 * BLOCK)
        .unwrap();
    assert!(filled(&disk[..BLOCK], 1));
    assert!(
        [1, 2].contains(&disk[BLOCK]),
        "acknowledged by a flush, and gone"
    );
}
