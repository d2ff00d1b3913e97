//! Inputs from which mutation starts: one of each shape, small. The generated ones are committed as
//! files, so that libFuzzer can read them; a test holds that files and generators agree.

use crate::wire::{BULK, DRESS};
use crate::{meta, nbd, text};
use holdfast_meta::Owner;
use holdfast_types::{BlockRange, DiskState, NodeId};
use std::path::PathBuf;

type Seeds = Vec<(String, Vec<u8>)>;

/// The repository's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Named seeds, each with its first byte of switches.
fn named<const N: usize>(seeds: [(&str, u8, Vec<u8>); N]) -> Seeds {
    seeds
        .into_iter()
        .map(|(name, switches, bytes)| (name.to_owned(), [vec![switches], bytes].concat()))
        .collect()
}

/// The files of a folder of fixtures, in order of their names.
///
/// # Panics
/// If it cannot be read: the repository is not whole then.
fn fixtures(folder: &str) -> Vec<(String, String)> {
    let folder = root().join("fixtures").join(folder);
    let list = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = list
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_stem()?.to_str()?.to_owned();
            Some((name, std::fs::read_to_string(&path).ok()?))
        })
        .collect();
    files.sort_unstable();
    files
}

/// Bytes of a fixture in hexadecimal.
fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter_map(|c| char::from(c).to_digit(16).map(|d| d as u8))
        .collect();
    digits.chunks_exact(2).map(|d| d[0] << 4 | d[1]).collect()
}

/// The golden bytes of every kind of frame, and a stream of several.
pub(crate) fn wire_frames() -> Seeds {
    let mut seeds = Seeds::new();
    let mut stream = vec![DRESS];
    for (name, text) in fixtures("wire") {
        if name == "preamble" {
            continue;
        }
        let bytes = unhex(&text);
        let bulk = name.starts_with("resync") || name.starts_with("hash");
        if !bulk {
            stream.extend_from_slice(&bytes);
        }
        let lane = if bulk { BULK } else { 0 };
        seeds.push((name, [vec![DRESS | lane], bytes].concat()));
    }
    seeds.push(("stream".to_owned(), stream));
    seeds
}

/// The golden preamble.
pub(crate) fn preamble() -> Seeds {
    let files = fixtures("wire");
    let golden = files.iter().find(|(name, _)| name == "preamble");
    let bytes = golden.map(|(_, text)| unhex(text)).unwrap_or_default();
    named([("golden", 0, bytes.clone()), ("dressed", DRESS, bytes)])
}

/// Both sides' messages as a stranger would send them.
pub(crate) fn handshake() -> Seeds {
    let message = |kind: u8, refusal: u8, body: &[u8]| {
        let mut bytes = b"HFPEER\r\n\x01\0".to_vec();
        bytes.extend_from_slice(&[kind, refusal]);
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(body);
        bytes
    };
    let mut ask = holdfast_node::net::handshake::ClusterId::of_name("fuzz")
        .0
        .to_vec();
    ask.extend_from_slice(&[1, 2, 1, 0, 0, 0, 0, 0]);
    ask.resize(80, 7);
    named([
        (
            "ask",
            1,
            [message(1, 0, &ask), message(3, 0, &[9; 32])].concat(),
        ),
        ("answer", 0, message(2, 0, &[8; 64])),
        ("refusal", 0, message(2, 3, &[])),
        ("judged", 5, message(1, 0, &ask)),
        ("short", 9, message(1, 0, &ask)),
    ])
}

/// Slots: one, both, another shape.
pub(crate) fn superblock() -> Seeds {
    let one = meta::base();
    let mut other = one.clone();
    other.update += 1;
    other.disk = DiskState::Syncing;
    other.clean = true;
    let both = [one.encode(), other.encode()].concat();
    let mut real = one.clone();
    real.geometry = holdfast_types::Geometry::of_bytes(8 << 20);
    real.page_bytes = 4096;
    named([
        ("one", 0, one.encode().to_vec()),
        ("both", meta::DRESS, both),
        ("real", meta::DRESS | 9 << 3, real.encode()[..512].to_vec()),
        ("blank", 0, vec![]),
    ])
}

/// Rings: empty, some, gone round.
pub(crate) fn activity_log() -> Seeds {
    let ring = |numbers: std::ops::Range<u64>| {
        let mut ring = vec![0; 8 * 512];
        for number in numbers {
            let page = meta::transaction(number, (0..number as u32 % 9).collect());
            let at = (number % 8) as usize * 512;
            ring[at..at + 512].copy_from_slice(&page.encode(512).expect("few extents"));
        }
        ring
    };
    named([
        ("some", 0, ring(1..4)),
        ("round", meta::DRESS, ring(1..14)),
        ("floor", 5 << 3, ring(1..6)),
    ])
}

/// Bitmaps: empty, some, all.
pub(crate) fn bitmap() -> Seeds {
    let some = [BlockRange::new(3, 2), BlockRange::new(4000, 100)];
    named([
        ("empty", 0, meta::page(&[])),
        ("some", meta::DRESS, meta::page(&some)),
        ("damaged", meta::DRESS | 1 << 4 | 1 << 5, meta::page(&some)),
        ("all", 2, meta::page(&[BlockRange::new(0, 9_001)])),
    ])
}

/// Patches on a whole region.
pub(crate) fn region() -> Seeds {
    let layout = meta::layout();
    let mut log = Vec::new();
    for number in 1..3 {
        let (at, page) = meta::transaction(number, vec![1, 2, 63])
            .write(&layout)
            .expect("few");
        meta::patch(&mut log, at, &page[..64]);
    }
    let mut torn = Vec::new();
    let mut next = meta::base();
    next.update += 1;
    let (at, bytes) = next.write(&layout);
    meta::patch(&mut torn, at, &bytes[..256]);
    let mut newer = Vec::new();
    meta::patch(&mut newer, at, &bytes);
    let mut slots = Vec::new();
    let superblock_at = layout.superblock_slot_offset(1);
    meta::patch(&mut slots, superblock_at + 52, &4_u32.to_le_bytes());
    meta::patch(&mut slots, superblock_at + 128, &[1, 2, 3]);
    // What was found once: fewer log slots than a replica needs, a peer with two bitmaps, a last run.
    let mut few = Vec::new();
    meta::patch(&mut few, superblock_at + 52, &3_u32.to_le_bytes());
    let mut twice = Vec::new();
    meta::patch(&mut twice, superblock_at + 128, &[1, 2, 1]);
    let mut last = Vec::new();
    meta::patch(&mut last, superblock_at + 64, &u64::MAX.to_le_bytes());
    let mut bits = Vec::new();
    let owner = Owner {
        incarnation: meta::base().incarnation,
        node: NodeId(1),
    };
    let mut bitmap = holdfast_meta::Bitmap::new(&layout);
    bitmap.set(BlockRange::new(9, 200));
    meta::patch(
        &mut bits,
        layout.bitmap_page_offset(0, 0),
        &bitmap.page(0, owner),
    );
    named([
        ("blank", 0, vec![]),
        ("log", 0, log),
        ("torn", 0, torn),
        ("newer", meta::DRESS | 2, newer),
        ("slots", meta::DRESS | 2, slots),
        ("bits", meta::DRESS | 8, bits),
        ("few-log-slots", meta::DRESS | 2, few),
        ("peer-twice", meta::DRESS | 2, twice),
        ("last-run", meta::DRESS | 2, last),
    ])
}

/// Handshakes and commands.
pub(crate) fn nbd() -> Seeds {
    let request = |flags: u16, command: u16, offset: u64, len: u32, payload: &[u8]| {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&77_u64.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    };
    let mut handshake = 3_u32.to_be_bytes().to_vec();
    handshake.extend(nbd::option(3, &[]));
    handshake.extend(nbd::option(6, b"\0\0\0\x01x\0\x02\0\0\0\x03"));
    handshake.extend(nbd::option(99, b"what"));
    handshake.extend(nbd::option(7, b"\0\0\0\x01y\0\0"));
    handshake.extend(nbd::option(2, &[]));
    let old = [3_u32.to_be_bytes().to_vec(), nbd::option(1, b"x")].concat();
    let mut all = Vec::new();
    for command in 3..8 {
        all.extend(request(0, command, 4096, 8192, &[]));
    }
    all.extend(request(1, 1, 512, 5, b"hello"));
    all.extend(request(4, 0, 512, 5, &[]));
    all.extend(request(0, 2, 0, 0, &[]));
    let end = request(0, 0, nbd::SIZE - 1, 2, &[]);
    let big = request(0, 1, 0, 70_000, &[1; 300]);
    let piece = 0xf0;
    named([
        ("handshake", piece, handshake),
        ("old", piece, old),
        ("all", piece | nbd::READY, all.clone()),
        ("structured", nbd::READY | nbd::STRUCTURED, all.clone()),
        ("late", piece | nbd::READY | nbd::LATE, all.clone()),
        ("read-only", piece | nbd::READY | nbd::READ_ONLY, all),
        ("end", piece | nbd::READY, end),
        ("big", piece | nbd::READY, big),
    ])
}

/// The good and the bad configurations of the fixtures.
pub(crate) fn config() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, text) in ["config/good", "config/bad"].into_iter().flat_map(fixtures) {
        seeds.push((name, text.into_bytes()));
    }
    let secret = format!(
        "[cluster]\nname = \"x\"\nsecret = \"{}\"\n[[node]]\nname = 1\n",
        text::SECRET
    );
    seeds.push(("secret".to_owned(), secret.into_bytes()));
    seeds
}

/// Requests, and replies that go with the recorded statuses.
pub(crate) fn api() -> Seeds {
    let mut seeds: Seeds = [
        ("status", r#"{"request":"status"}"#),
        (
            "promote",
            r#"{"request":"promote","resource":"db","force":"yes"}"#,
        ),
        (
            "verify",
            r#"{"request":"verify","resource":"db","volume":null}"#,
        ),
        ("progress", r#"{"progress":{"what":"x"}}"#),
        (
            "error",
            r#"{"error":{"code":"bad_request","message":"m","fix":null}}"#,
        ),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .collect();
    for (name, text) in fixtures("status") {
        if text.starts_with('{') {
            let line = format!("{{\"ok\":{{\"status\":{text}}}}}");
            seeds.push((format!("answer-{name}"), line.into_bytes()));
        }
    }
    seeds
}

/// Control messages as bincode has them: the number of the variant, then its fields.
pub(crate) fn control() -> Seeds {
    named([
        ("hello", 1, vec![0, 9, 0, 1, 9, 1, 0, 0, 4, 1, 1, 4, 1, 0]),
        ("vote", 1, vec![1, 9, 8, 0, 3, 2, 7]),
        (
            "append",
            1,
            vec![1, 9, 8, 2, 3, 1, 2, 1, 2, 0, 3, 1, 1, 9, 0, 0],
        ),
        ("release", 1, vec![8, 0, 5]),
        ("poll", 1, vec![9, 1, 0, 5, 6]),
        ("status", 1, vec![14, 1, 0]),
        ("promote", 1, vec![14, 1, 1, 2, b'd', b'b', 0, 0]),
        ("framed", 1, vec![0, 8, 0, 5]),
        ("long", 1, vec![0, 9, 0, 0, 252, 0xff, 0xff, 0xff, 0xff]),
    ])
}
