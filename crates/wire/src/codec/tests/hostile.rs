//! Bytes from outside: everything that is not exactly right is refused, and nothing panics.

use super::*;
use crate::codec::{DATA_BYTES_MAX, HASHES_MAX, LIST_BYTES_MAX, LIST_RANGES_MAX, PROTOCOL_VERSION};
use proptest::sample::Index;

fn lanes() -> impl Strategy<Value = Lane> {
    prop_oneof![Just(Lane::Write), Just(Lane::Bulk)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A bit error anywhere is seen.
    #[test]
    fn a_flipped_byte_is_refused(frame in frame(), at in any::<Index>(), flip in 1..=255u8) {
        let mut bytes = bytes_of(&frame, true);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(frame_of(&bytes, frame.lane()).is_err(), "byte {} flipped by {:02x}", at, flip);
    }

    /// Whoever makes checksums right can say anything; it is a frame in its one encoding, or refused.
    #[test]
    fn right_checksums_over_anything(
        frame in frame(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
        in_header in any::<bool>(),
        resize in prop_oneof![3 => Just(0isize), 1 => -40..40isize],
    ) {
        let mut bytes = bytes_of(&frame, true);
        let len = bytes.len().saturating_add_signed(resize).max(HEADER_BYTES);
        bytes.resize(len, 0);
        if resize != 0 {
            let payload_len = (len - HEADER_BYTES) as u32;
            bytes[52..56].copy_from_slice(&payload_len.to_le_bytes());
        }
        for (at, byte) in changes {
            let at = at.index(if in_header { HEADER_BYTES } else { len });
            bytes[at] = byte;
        }
        remake(&mut bytes);
        let mut buffer = BytesMut::from(&bytes[..]);
        if let Ok(Some(decoded)) = Decoder::new(VOLUME, GEOMETRY, frame.lane()).next_frame(&mut buffer) {
            let used = bytes.len() - buffer.len();
            let checksums = bytes[6] & super::super::header::CRC_ABSENT == 0;
            prop_assert_eq!(bytes_of(&decoded, checksums), &bytes[..used]);
        }
    }

    /// Noise, with and without the right beginning.
    #[test]
    fn noise(mut bytes in prop::collection::vec(any::<u8>(), 0..400), kind in 0..30u8, dress in any::<bool>(), lane in lanes()) {
        if dress && bytes.len() >= HEADER_BYTES {
            bytes[..8].copy_from_slice(&[b'H', b'F', b'D', b'F', PROTOCOL_VERSION, kind, 0, 0]);
            bytes[8..12].fill(0);
            bytes[12..16].copy_from_slice(&super::super::header::fold(VOLUME).to_le_bytes());
            remake(&mut bytes);
        }
        let mut decoder = Decoder::new(VOLUME, GEOMETRY, lane);
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = decoder.next_frame(&mut buffer) {}
        prop_assert!(decoder.wanted() <= LIST_BYTES_MAX.max(DATA_BYTES_MAX) as usize);
    }
}

fn header_of(frame: &Frame) -> [u8; HEADER_BYTES] {
    *bytes_of(frame, true).first_chunk().unwrap()
}

fn sample(name: &str) -> Frame {
    samples().into_iter().find(|(n, _)| *n == name).unwrap().1
}

/// The header's answer after fields were changed and the checksum made right.
fn claim(name: &str, changes: &[(usize, &[u8])]) -> Result<usize, WireError> {
    let frame = sample(name);
    let mut header = header_of(&frame);
    for (at, bytes) in changes {
        header[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    let crc = crc32fast::hash(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    Decoder::new(VOLUME, GEOMETRY, frame.lane())
        .header(&header)
        .map(|p| p.payload_len)
}

#[test]
fn claims_are_checked_before_anything_is_received() {
    let le = u32::to_le_bytes;
    assert_eq!(claim("write", &[]), Ok(128));
    // Blocks over the limit, and a length that does not fit the blocks.
    let blocks = DATA_BYTES_MAX / GEOMETRY.block_bytes + 1;
    let too_big = claim("write", &[(48, &le(blocks)), (52, &le(blocks * 64))]);
    assert_eq!(
        too_big,
        Err(WireError::Length {
            kind: "Write",
            bytes: u64::from(blocks) * 64,
            allowed: DATA_BYTES_MAX.into()
        })
    );
    assert_eq!(
        claim("write", &[(52, &le(127))]),
        Err(WireError::Length {
            kind: "Write",
            bytes: 127,
            allowed: 128
        })
    );
    assert_eq!(
        claim("resync", &[(52, &le(0))]),
        Err(WireError::Length {
            kind: "Resync",
            bytes: 0,
            allowed: 128
        })
    );
    // Lists over their limit.
    let entries = LIST_RANGES_MAX as u32 + 1;
    for name in ["attached", "reconciled"] {
        assert!(matches!(
            claim(name, &[(48, &le(entries)), (52, &le(entries * 16))]),
            Err(WireError::List { .. })
        ));
    }
    let hashes = HASHES_MAX as u32 + 1;
    assert!(matches!(
        claim("hashes", &[(48, &le(hashes)), (52, &le(hashes * 16))]),
        Err(WireError::List { .. })
    ));
    assert!(matches!(
        claim("hash", &[(48, &le(hashes))]),
        Err(WireError::List { .. })
    ));
    assert!(matches!(
        claim("cut", &[(48, &le(9))]),
        Err(WireError::List { .. })
    ));
    assert!(matches!(
        claim("cut", &[(52, &le(LIST_BYTES_MAX + 1))]),
        Err(WireError::Length { .. })
    ));
    assert!(matches!(
        claim("cut", &[(52, &le(9))]),
        Err(WireError::Length { .. })
    ));
    // Payload where there is none.
    assert_eq!(
        claim("ack", &[(52, &le(1))]),
        Err(WireError::Length {
            kind: "Ack",
            bytes: 1,
            allowed: 0
        })
    );
    assert!(matches!(
        claim("ack", &[(6, &[4])]),
        Err(WireError::Field { .. })
    ));
    assert!(matches!(
        claim("write", &[(6, &[0])]),
        Err(WireError::Field { .. })
    ));
    assert_eq!(
        claim("ack", &[(5, &[0])]),
        Err(WireError::Kind { found: 0 })
    );
}

#[test]
fn blocks_outside_the_volume_are_refused() {
    for (name, first) in [
        ("zero", 999u64),
        ("hash", 1000),
        ("resync-zeroes", u64::MAX),
    ] {
        let frame = sample(name);
        let mut bytes = bytes_of(&frame, true);
        bytes[40..48].copy_from_slice(&first.to_le_bytes());
        remake(&mut bytes);
        let error = frame_of(&bytes, frame.lane()).unwrap_err();
        assert!(
            matches!(error, WireError::Range { blocks: 1000, .. }),
            "{name}: {error}"
        );
    }
    for (name, at) in [
        ("attached", HEADER_BYTES + 8),
        ("cut", HEADER_BYTES + 5),
        ("reconciled", HEADER_BYTES + 16),
    ] {
        let mut bytes = bytes_of(&sample(name), true);
        bytes[at..at + 8].copy_from_slice(&1001u64.to_le_bytes());
        remake(&mut bytes);
        let error = frame_of(&bytes, Lane::Write).unwrap_err();
        assert!(matches!(error, WireError::Range { .. }), "{name}: {error}");
    }
}

#[test]
fn another_version_is_named_with_both() {
    let mut bytes = bytes_of(&Frame::Ping { token: 1 }, true);
    bytes[4] = 9;
    let error = frame_of(&bytes, Lane::Write).unwrap_err();
    assert_eq!(
        error,
        WireError::Version {
            theirs: 9,
            ours: PROTOCOL_VERSION
        }
    );
    assert!(error.to_string().contains("version 9, this node 1"));
}

#[test]
fn another_volume_and_the_wrong_lane_are_refused() {
    let ping = bytes_of(&Frame::Ping { token: 1 }, true);
    let mut decoder = Decoder::new(VolumeId(1), GEOMETRY, Lane::Write);
    assert!(matches!(
        decoder.next_frame(&mut BytesMut::from(&ping[..])),
        Err(WireError::Volume { .. })
    ));
    assert_eq!(
        frame_of(&ping, Lane::Bulk),
        Err(WireError::Lane { kind: "Ping" })
    );
}

/// Rule 27: a frame that is missing, or comes twice, ends the connection.
#[test]
fn a_gap_is_refused() {
    let mut encoder = Encoder::new(VOLUME);
    let frames: Vec<Bytes> = (0..4)
        .map(|token| encoder.encode(&Frame::Ping { token }).unwrap().head)
        .collect();
    let run = |order: &[usize]| {
        let mut decoder = Decoder::new(VOLUME, GEOMETRY, Lane::Write);
        let mut buffer = BytesMut::new();
        let mut last = Ok(None);
        for &i in order {
            buffer.extend_from_slice(&frames[i]);
            last = decoder.next_frame(&mut buffer);
        }
        last
    };
    assert_eq!(run(&[0, 1, 2, 3]), Ok(Some(Frame::Ping { token: 3 })));
    assert_eq!(
        run(&[0, 2]),
        Err(WireError::Gap {
            expected: 1,
            found: 2
        })
    );
    assert_eq!(
        run(&[0, 1, 1]),
        Err(WireError::Gap {
            expected: 2,
            found: 1
        })
    );
    assert_eq!(
        run(&[1]),
        Err(WireError::Gap {
            expected: 0,
            found: 1
        })
    );
    // And nothing is taken after it, not even what would have been right.
    assert_eq!(run(&[0, 2, 1]), Err(WireError::State));
}

#[test]
fn header_and_payload_only_in_turn() {
    let header = header_of(&sample("write"));
    let mut decoder = Decoder::new(VOLUME, GEOMETRY, Lane::Write);
    assert_eq!(decoder.finish(Bytes::new()), Err(WireError::State));
    let mut decoder = Decoder::new(VOLUME, GEOMETRY, Lane::Write);
    decoder.header(&header).unwrap();
    assert_eq!(decoder.header(&header), Err(WireError::State));
    let mut decoder = Decoder::new(VOLUME, GEOMETRY, Lane::Write);
    decoder.header(&header).unwrap();
    let short = decoder.finish(Bytes::from_static(&[0; 127]));
    assert_eq!(
        short,
        Err(WireError::Length {
            kind: "Write",
            bytes: 127,
            allowed: 128
        })
    );
}

#[test]
fn without_checksums_damage_to_blocks_passes_and_to_headers_does_not() {
    let frame = sample("write");
    let mut bytes = bytes_of(&frame, false);
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    assert!(matches!(
        frame_of(&bytes, Lane::Write),
        Ok(Some(Frame::Write { .. }))
    ));
    bytes[40] ^= 1;
    assert!(matches!(
        frame_of(&bytes, Lane::Write),
        Err(WireError::HeaderCrc { .. })
    ));
}

#[test]
fn a_node_named_twice_in_a_cut_is_refused() {
    let mut bytes = bytes_of(&sample("cut"), true);
    // The head of the second bitmap, after two ranges of the first.
    bytes[HEADER_BYTES + 5 + 2 * 16] = 2;
    remake(&mut bytes);
    assert!(matches!(
        frame_of(&bytes, Lane::Write),
        Err(WireError::Field { kind: "Cut", .. })
    ));
}
