//! What goes in comes out, in order, however the bytes arrive.

use super::*;

proptest! {
    #[test]
    fn every_frame(frame in frame(), checksums in any::<bool>()) {
        let bytes = bytes_of(&frame, checksums);
        prop_assert_eq!(frame_of(&bytes, frame.lane()), Ok(Some(frame)));
    }

    #[test]
    fn a_stream_in_any_pieces(
        frames in prop::collection::vec(write_lane(), 1..12),
        pieces in prop::collection::vec(1..300usize, 1..20),
    ) {
        let mut encoder = Encoder::new(VOLUME);
        let mut bytes = Vec::new();
        for frame in &frames {
            if let Some(data) = encoder.encode_into(frame, &mut bytes).unwrap() {
                bytes.extend_from_slice(&data);
            }
        }
        let mut decoder = Decoder::new(VOLUME, GEOMETRY, Lane::Write);
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        let mut pieces = pieces.into_iter().cycle();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(pieces.next().unwrap().min(rest.len()));
            rest = after;
            buffer.extend_from_slice(piece);
            while let Some(frame) = decoder.next_frame(&mut buffer).unwrap() {
                got.push(frame);
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(got, frames);
    }
}

#[test]
fn blocks_are_not_copied() {
    let range = BlockRange::new(7, 3);
    let data = with_data(range, 1);
    let stamp = Stamp {
        epoch: Epoch(1),
        session: SessionId(2),
    };
    let frame = Frame::Write {
        stamp,
        seq: Seq(3),
        range,
        fua: false,
        data: data.clone(),
    };
    let encoded = Encoder::new(VOLUME).encode(&frame).unwrap();
    assert_eq!(encoded.head.len(), HEADER_BYTES);
    assert_eq!(encoded.data.as_ref().unwrap().as_ptr(), data.as_ptr());

    let mut decoder = Decoder::new(VOLUME, GEOMETRY, Lane::Write);
    assert_eq!(decoder.wanted(), HEADER_BYTES);
    let pending = decoder.header(encoded.head.first_chunk().unwrap()).unwrap();
    assert!(pending.blocks);
    assert_eq!(
        (pending.payload_len, decoder.wanted()),
        (data.len(), data.len())
    );
    let Frame::Write { data: received, .. } = decoder.finish(data.clone()).unwrap() else {
        panic!("not a write")
    };
    assert_eq!(received.as_ptr(), data.as_ptr());
    assert_eq!(decoder.wanted(), HEADER_BYTES);
}

#[test]
fn an_error_leaves_encoder_and_buffer_as_they_were() {
    let mut encoder = Encoder::new(VOLUME);
    let mut out = b"before".to_vec();
    let stamp = Stamp {
        epoch: Epoch(1),
        session: SessionId(2),
    };
    let whole = BlockRange::new(0, u64::from(u32::MAX) + 1);
    let too_long = Frame::Zero {
        stamp,
        seq: Seq(1),
        range: whole,
        fua: false,
    };
    assert!(matches!(
        encoder.encode_into(&too_long, &mut out),
        Err(WireError::Range { .. })
    ));
    let data = Bytes::from(vec![0; super::super::DATA_BYTES_MAX as usize + 1]);
    let too_big = Frame::Write {
        stamp,
        seq: Seq(1),
        range: BlockRange::new(0, 1),
        fua: false,
        data,
    };
    assert!(matches!(
        encoder.encode_into(&too_big, &mut out),
        Err(WireError::Length { .. })
    ));
    assert_eq!(out, b"before");
    // The next frame is still the connection's first.
    let encoded = encoder.encode(&Frame::Ping { token: 1 }).unwrap();
    assert_eq!(
        frame_of(&encoded.head, Lane::Write),
        Ok(Some(Frame::Ping { token: 1 }))
    );
}
