//! Golden bytes: two versions that claim one protocol version must mean the same bytes.
//! `HOLDFAST_REWRITE_FIXTURES=1` writes the files anew.

use super::*;
use crate::codec::{PROTOCOL_VERSION, Preamble};
use std::path::PathBuf;

const BYTES_PER_LINE: usize = 16;

fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/wire")
        .join(format!("{name}.hex"));
    let hex: String = bytes
        .chunks(BYTES_PER_LINE)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
        .collect();
    if std::env::var_os("HOLDFAST_REWRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &hex).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(
        hex, expected,
        "{name}: the bytes changed; raise PROTOCOL_VERSION"
    );
}

#[test]
fn frames() {
    for (name, frame) in samples() {
        let bytes = bytes_of(&frame, true);
        golden(name, &bytes);
        assert_eq!(frame_of(&bytes, frame.lane()), Ok(Some(frame)), "{name}");
    }
}

#[test]
fn preamble() {
    let preamble = Preamble {
        cluster: 0x0102_0304_0506_0708,
        volume: VOLUME,
        from: NodeId(3),
        to: NodeId(4),
        lane: Lane::Bulk,
        connection: 0x2122_2324_2526_2728,
        nonce: *b"0123456789abcdef",
    };
    let bytes = preamble.encode();
    golden("preamble", &bytes);
    assert_eq!(Preamble::decode(&bytes), Ok(preamble));
    let answer = Preamble {
        from: NodeId(4),
        to: NodeId(3),
        ..preamble
    };
    assert_ne!(preamble.transcript(&answer), answer.transcript(&preamble));

    let mut later = bytes;
    later[4] += 1;
    assert_eq!(
        Preamble::decode(&later),
        Err(WireError::Version {
            theirs: PROTOCOL_VERSION + 1,
            ours: PROTOCOL_VERSION
        })
    );
    assert!(matches!(
        Preamble::decode(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: none\r\nAccept: */*\r\n"
        ),
        Err(WireError::Magic { .. })
    ));
    for at in 0..bytes.len() {
        let mut bad = bytes;
        bad[at] ^= 0x10;
        assert!(Preamble::decode(&bad).is_err(), "byte {at} flipped");
    }
    // Right checksum, wrong fields.
    for (at, value) in [(5, 2), (6, 8), (7, 255), (48, 1), (59, 1)] {
        let mut bad = bytes;
        bad[at] = value;
        let crc = crc32fast::hash(&bad[..60]);
        bad[60..].copy_from_slice(&crc.to_le_bytes());
        assert!(
            matches!(Preamble::decode(&bad), Err(WireError::Field { .. })),
            "byte {at}"
        );
    }
}
