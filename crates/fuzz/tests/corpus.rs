//! Every body over its seeds, over the committed corpus, and over mutations of both.

use holdfast_fuzz::{TARGETS, Target, corpus};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::path::PathBuf;

/// Mutated inputs per target.
const CASES: u32 = 3000;

fn folder(target: &Target) -> PathBuf {
    corpus::root().join("fuzz/corpus").join(target.name)
}

/// The committed inputs of a target; `HOLDFAST_REWRITE_FIXTURES=1` writes the generated ones anew.
fn committed(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = folder(target);
    if std::env::var_os("HOLDFAST_REWRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in (target.seeds)() {
            std::fs::write(folder.join(format!("{name}.bin")), bytes).unwrap();
        }
    }
    let list = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut inputs: Vec<_> = list
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    inputs.sort_unstable();
    inputs
}

#[derive(Clone, Debug)]
enum Change {
    Byte(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Number(prop::sample::Index, u8, u64),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, u8),
    Repeat(prop::sample::Index, u8),
    Switches(u8),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    let number = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::MAX / 2),
        Just(1 << 32),
        Just(u64::from(u32::MAX)),
        any::<u64>(),
        0..300_u64,
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(i, b)| Change::Byte(i, b)),
        (at(), 0..8_u8).prop_map(|(i, b)| Change::Flip(i, b)),
        (at(), 0..4_u8, number).prop_map(|(i, w, n)| Change::Number(i, w, n)),
        at().prop_map(Change::Cut),
        (at(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(i, b)| Change::Insert(i, b)),
        (at(), 1..40_u8).prop_map(|(i, n)| Change::Remove(i, n)),
        (at(), 1..80_u8).prop_map(|(i, n)| Change::Repeat(i, n)),
        any::<u8>().prop_map(Change::Switches),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        bytes.push(0);
    }
    let len = bytes.len();
    match change {
        Change::Byte(i, b) => bytes[i.index(len)] = *b,
        Change::Flip(i, b) => bytes[i.index(len)] ^= 1 << b,
        Change::Number(i, width, n) => {
            let at = i.index(len);
            let number = if width % 2 == 0 {
                n.to_le_bytes()
            } else {
                n.to_be_bytes()
            };
            let width = [1, 2, 4, 8][usize::from(*width)];
            for (to, from) in bytes[at..].iter_mut().take(width).zip(number) {
                *to = from;
            }
        }
        Change::Cut(i) => bytes.truncate(i.index(len)),
        Change::Insert(i, more) => {
            let at = i.index(len);
            bytes.splice(at..at, more.iter().copied());
        }
        Change::Remove(i, n) => {
            let at = i.index(len);
            bytes.drain(at..len.min(at + usize::from(*n)));
        }
        Change::Repeat(i, n) => {
            let at = i.index(len);
            let part = bytes[at..len.min(at + usize::from(*n))].to_vec();
            bytes.splice(at..at, part);
        }
        Change::Switches(b) => bytes[0] = *b,
    }
}

/// The target of this name over everything.
fn exercise(name: &str) {
    let target = TARGETS.iter().find(|t| t.name == name).expect("a target");
    let mut inputs = committed(target);
    let seeds = (target.seeds)();
    for seed in &seeds {
        assert!(
            inputs.contains(seed),
            "{}/{}.bin is not what is generated: run with HOLDFAST_REWRITE_FIXTURES=1",
            target.name,
            seed.0
        );
    }
    inputs.push(("empty".to_owned(), vec![]));
    for (name, bytes) in &inputs {
        println!("{name}"); // shown if the body panics
        (target.body)(bytes);
    }
    let inputs: Vec<Vec<u8>> = inputs.into_iter().map(|(_, bytes)| bytes).collect();
    let strategy = (
        prop::sample::select(inputs),
        prop::collection::vec(change(), 1..8),
    )
        .prop_map(|(mut bytes, changes)| {
            changes.iter().for_each(|c| apply(&mut bytes, c));
            bytes
        });
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&strategy, |bytes| {
        (target.body)(&bytes);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{name}: {error}");
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { exercise(stringify!($name)); })*
        /// Neither a test nor a libFuzzer program is forgotten.
        #[test]
        fn every_target_has_a_test_and_a_program() {
            let tested = [$(stringify!($name)),*];
            let programs = corpus::root().join("fuzz/fuzz_targets");
            let manifest = std::fs::read_to_string(corpus::root().join("fuzz/Cargo.toml")).unwrap();
            for target in TARGETS {
                assert!(tested.contains(&target.name), "{}", target.name);
                let program = programs.join(format!("{}.rs", target.name));
                let text = std::fs::read_to_string(program).unwrap();
                assert!(text.contains(&format!("run(\"{}\"", target.name)), "{}", target.name);
                assert!(manifest.contains(&format!("name = \"{}\"", target.name)));
            }
            assert_eq!(tested.len(), TARGETS.len());
        }
    };
}

targets! {
    wire_frames preamble handshake superblock activity_log bitmap region nbd config api control
}

/// A seed that is refused at its first byte shows nothing.
#[test]
fn the_seeds_of_control_messages_are_messages() {
    for (name, bytes) in (TARGETS.iter().find(|t| t.name == "control").unwrap().seeds)() {
        let message = holdfast_control::Message::decode(&bytes[1..]);
        assert_eq!(
            message.is_ok(),
            !["framed", "long"].contains(&name.as_str()),
            "{name}: {message:?}"
        );
    }
}
