//! What a peer can send: frames of a lane, the preamble of a connection, the handshake.

use crate::switches;
use bytes::BytesMut;
use holdfast_node::net::handshake::{
    Ask, ClusterId, Handshake, Key, NONCE_BYTES, Purpose, Refused, Step,
};
use holdfast_types::{Geometry, NodeId, VolumeId};
use holdfast_wire::codec::{
    DATA_BYTES_MAX, HEADER_BYTES, LIST_BYTES_MAX, PREAMBLE_BYTES, PROTOCOL_VERSION,
};
use holdfast_wire::{Decoder, Encoder, Lane, Preamble};

/// The volume of every input, the one of the golden bytes in `fixtures/wire`.
pub(crate) const VOLUME: VolumeId = VolumeId(0x1112_1314_1516_1718);
/// Its geometry.
pub(crate) const GEOMETRY: Geometry = Geometry {
    block_bytes: 64,
    blocks: 1000,
    extent_blocks: 16,
};
/// Switch: the bulk lane.
pub(crate) const BULK: u8 = 1;
/// Switch: checksums, numbers and the like are made right first.
pub(crate) const DRESS: u8 = 2;
/// Header flag: the payload's checksum is absent.
const CRC_ABSENT: u8 = 8;

/// A stream of frames, received in pieces.
pub(crate) fn frames(input: &[u8]) {
    let (switches, rest) = switches(input);
    let mut bytes = rest.to_vec();
    if switches & DRESS != 0 {
        dress(&mut bytes);
    }
    let lane = if switches & BULK != 0 {
        Lane::Bulk
    } else {
        Lane::Write
    };
    let piece = usize::from(switches >> 2) * 7 + 1;
    let mut decoder = Decoder::new(VOLUME, GEOMETRY, lane);
    // Two, because each frame says by itself whether its payload has a checksum.
    let mut with = Encoder::new(VOLUME);
    let mut without = Encoder::new(VOLUME).checksums(false);
    let mut buffer = BytesMut::new();
    let mut at = 0;
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next_frame(&mut buffer) {
                Ok(Some(frame)) => {
                    assert_eq!(frame.lane(), lane);
                    let absent = bytes[at + 6] & CRC_ABSENT != 0;
                    let encode = |encoder: &mut Encoder| {
                        let encoded = encoder.encode(&frame).expect("what was decoded encodes");
                        let mut all = encoded.head.to_vec();
                        all.extend_from_slice(encoded.data.as_deref().unwrap_or_default());
                        all
                    };
                    let (checked, unchecked) = (encode(&mut with), encode(&mut without));
                    let again = if absent { unchecked } else { checked };
                    assert_eq!(
                        again,
                        bytes[at..at + again.len()],
                        "one encoding: {frame:?}"
                    );
                    at += again.len();
                }
                Ok(None) => break,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    assert!(
                        decoder.next_frame(&mut buffer).is_err(),
                        "nothing after an error"
                    );
                    return;
                }
            }
        }
        // Whatever was claimed, no more than this is ever waited for.
        assert!(decoder.wanted() <= LIST_BYTES_MAX.max(DATA_BYTES_MAX) as usize);
    }
}

/// Makes everything right that needs no thought: magic, version, number, volume, checksums.
fn dress(bytes: &mut [u8]) {
    let mut rest = bytes;
    let mut number = 0_u32;
    while rest.len() >= HEADER_BYTES {
        let (header, after) = rest.split_at_mut(HEADER_BYTES);
        header[..4].copy_from_slice(b"HFDF");
        header[4] = PROTOCOL_VERSION;
        header[8..12].copy_from_slice(&number.to_le_bytes());
        let fold = (VOLUME.0 ^ (VOLUME.0 >> 32)) as u32;
        header[12..16].copy_from_slice(&fold.to_le_bytes());
        let len = u32::from_le_bytes([header[52], header[53], header[54], header[55]]) as usize;
        let len = len.min(after.len());
        let (payload, after) = after.split_at_mut(len);
        let crc = if header[6] & CRC_ABSENT == 0 {
            crc32fast::hash(payload)
        } else {
            0
        };
        header[56..60].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32fast::hash(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        rest = after;
        number = number.wrapping_add(1);
    }
}

/// The first bytes of a lane.
pub(crate) fn preamble(input: &[u8]) {
    let (switches, rest) = switches(input);
    let mut bytes = [0; PREAMBLE_BYTES];
    for (to, from) in bytes.iter_mut().zip(rest) {
        *to = *from;
    }
    if switches & DRESS != 0 {
        bytes[..4].copy_from_slice(b"HFDC");
        bytes[4] = PROTOCOL_VERSION;
        let crc = crc32fast::hash(&bytes[..PREAMBLE_BYTES - 4]);
        bytes[PREAMBLE_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    match Preamble::decode(&bytes) {
        Ok(preamble) => {
            assert_eq!(preamble.encode(), bytes, "one encoding");
            let transcript = preamble.transcript(&preamble);
            assert_eq!(transcript[..PREAMBLE_BYTES], transcript[PREAMBLE_BYTES..]);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Largest body a handshake may wait for, in bytes.
const HANDSHAKE_BYTES_MAX: usize = 256;

/// Either side of a handshake, against bytes of somebody who does not know the secret.
pub(crate) fn handshake(input: &[u8]) {
    let (switches, mut rest) = switches(input);
    let cluster = ClusterId::of_name("fuzz");
    let key = Key::new(b"a secret nobody outside knows", cluster);
    let ask = Ask {
        from: NodeId(1),
        to: NodeId(2),
        purpose: Purpose::WriteLane(VOLUME),
        connection: 3,
        boot: 4,
    };
    let listening = switches & 1 != 0;
    let mut side = if listening {
        Handshake::listen(key, cluster, NodeId(2), [5; NONCE_BYTES])
    } else {
        Handshake::dial(key, cluster, ask, [6; NONCE_BYTES]).0
    };
    let judge = |ask: &Ask| {
        if switches & 4 != 0 && ask.from == ask.to {
            Err(Refused::WrongNode)
        } else {
            Ok(())
        }
    };
    loop {
        let want = side.want();
        assert!(want <= HANDSHAKE_BYTES_MAX);
        // Now and then the wrong number of bytes, as a driver with a mistake would hand in.
        let want = if switches & 8 != 0 {
            want.saturating_sub(1)
        } else {
            want
        };
        let Some((bytes, after)) = rest.split_at_checked(want) else {
            return;
        };
        rest = after;
        match side.feed(bytes, judge) {
            Step::Continue(answer) => assert!(answer.len() <= HANDSHAKE_BYTES_MAX),
            Step::Refuse(answer, why) => {
                assert!(answer.len() <= HANDSHAKE_BYTES_MAX && !why.to_string().is_empty());
                assert_eq!(side.want(), 0, "over");
                return;
            }
            Step::Done(..) => panic!("let in without the secret"),
        }
    }
}
