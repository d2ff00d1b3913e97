//! Random operations, several at once, against a plain array.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Read(u64, u64),
    Write(u64, u64, u8, bool),
    Zero(u64, u64, bool),
    Flush,
}

impl Step {
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        match self {
            Self::Read(at, n) | Self::Write(at, n, _, _) | Self::Zero(at, n, _) => *at..at + n,
            Self::Flush => 0..0,
        }
    }

    pub(super) fn op(&self) -> StoreOp {
        match self {
            Self::Read(at, n) => read(*at, *n as u32),
            // An address O_DIRECT does not take, for every other one.
            Self::Write(at, n, fill, durable) if fill % 2 == 0 => {
                let data = Bytes::from(vec![*fill; *n as usize * BLOCK + 1]).slice(1..);
                StoreOp::Write {
                    offset: at * BLOCK_BYTES,
                    data,
                    durable: *durable,
                }
            }
            Self::Write(at, n, fill, durable) => write(*at, *n as usize, *fill, *durable),
            Self::Zero(at, n, durable) => zero(*at, *n, *durable),
            Self::Flush => StoreOp::Flush,
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..BLOCKS, 1..9u64).prop_map(|(at, n)| (at, n.min(BLOCKS - at)));
    prop_oneof![
        4 => range.clone().prop_map(|(at, n)| Step::Read(at, n)),
        6 => (range.clone(), 1..=255u8, proptest::bool::weighted(0.2)).prop_map(|((at, n), fill, d)| Step::Write(at, n, fill, d)),
        2 => (range, any::<bool>()).prop_map(|((at, n), d)| Step::Zero(at, n, d)),
        1 => Just(Step::Flush),
    ]
}

/// Batches of steps that are in flight together: no two overlap.
pub(super) fn batches() -> impl Strategy<Value = Vec<Vec<Step>>> {
    proptest::collection::vec(proptest::collection::vec(step(), 1..8), 1..16).prop_map(
        |mut batches| {
            for batch in &mut batches {
                let mut taken = [false; BLOCKS as usize];
                batch.retain(|step| {
                    let range = step.range();
                    let free = range.clone().all(|block| !taken[block as usize]);
                    if free {
                        range.for_each(|block| taken[block as usize] = true);
                    }
                    free
                });
            }
            batches
        },
    )
}

fn check(rig: &mut Rig, batches: &[Vec<Step>]) {
    let mut model = [0u8; BLOCKS as usize];
    for batch in batches {
        let tokens: Vec<u64> = batch.iter().map(|step| rig.submit(step.op())).collect();
        for (step, token) in batch.iter().zip(tokens) {
            let got = rig.end_of(token).unwrap();
            match step {
                Step::Read(at, n) => {
                    assert_eq!(got.len(), *n as usize * BLOCK);
                    for (block, data) in (*at..).zip(got.chunks(BLOCK)) {
                        assert!(
                            filled(data, model[block as usize]),
                            "block {block} is not {}",
                            model[block as usize]
                        );
                    }
                }
                Step::Write(_, _, fill, _) => {
                    step.range().for_each(|block| model[block as usize] = *fill)
                }
                Step::Zero(..) => step.range().for_each(|block| model[block as usize] = 0),
                Step::Flush => {}
            }
            if !matches!(step, Step::Read(..)) {
                assert!(got.is_empty());
            }
        }
    }
    for block in 0..BLOCKS {
        assert!(filled(&rig.block(block), model[block as usize]));
    }
    assert!(rig.ended.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_an_array(batches in batches()) {
        check(&mut Rig::new(memory()), &batches);
    }

    #[test]
    fn a_file_is_an_array(batches in batches()) {
        let (_dir, path) = backing();
        check(&mut Rig::new(open(&path, &options()).unwrap()), &batches);
    }

    #[test]
    fn a_file_on_a_poor_filesystem_is_an_array(batches in batches()) {
        let (_dir, path) = backing();
        let mut store = FileStore::open(&path, &options()).unwrap();
        store.without_extras();
        check(&mut Rig::new(Box::new(store)), &batches);
    }

    #[test]
    fn a_lost_cache_is_an_array_while_the_power_is_on(batches in batches(), seed: u64) {
        let plan = format!("lost-cache,keep=0.5,torn=0.5,seed={seed}");
        check(&mut Rig::new(faulty(memory(), &plan)), &batches);
        let (_dir, path) = backing();
        let options = OpenOptions { fault: Some(plan.parse().unwrap()), ..options() };
        check(&mut Rig::new(open(&path, &options).unwrap()), &batches);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn late_is_still_an_array(batches in batches(), seed: u64) {
        let plan = format!("lost-cache,delay-ms=1,jitter-ms=3,seed={seed}");
        let (_dir, path) = backing();
        let options = OpenOptions { fault: Some(plan.parse().unwrap()), ..options() };
        check(&mut Rig::new(open(&path, &options).unwrap()), &batches);
    }
}
