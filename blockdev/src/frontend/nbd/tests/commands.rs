//! The transmission phase, command by command.

use super::*;
use crate::frontend::nbd::{
    BYTES_PER_CONNECTION_MAX, DIRECT_BYTES_MIN, HEADS_BYTES_MAX, REQUESTS_PER_CONNECTION_MAX,
};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

#[test]
fn reads_are_answered_simply() {
    let mut wire = Wire::ready("db/data", false, false);
    let op = Op::Read { offset: 7, len: 3 };
    let sent = wire.served(&request(0, cmd::READ, 9, 7, 3), op.clone(), Ok(b"abc"));
    assert_eq!(sent, simple(0, 9, b"abc"));
    let error = wire.served(
        &request(0, cmd::READ, 9, 7, 3),
        op.clone(),
        Err(NbdError::Io),
    );
    assert_eq!(error, simple(5, 9, &[]));
    // An answer of the wrong length would shift everything after it.
    let short = wire.served(&request(0, cmd::READ, 9, 7, 3), op, Ok(b"ab"));
    assert_eq!(short, simple(5, 9, &[]));
}

#[test]
fn reads_are_answered_in_structure() {
    let mut wire = Wire::ready("db/data", true, false);
    let op = Op::Read { offset: 7, len: 3 };
    let bytes = request(cflag::DF | cflag::FUA, cmd::READ, 9, 7, 3);
    let sent = wire.served(&bytes, op.clone(), Ok(b"abc"));
    assert_eq!(sent, chunk(1, 9, b"\0\0\0\0\0\0\0\x07abc"));
    let sent = wire.served(&bytes, op, Err(NbdError::Shutdown));
    assert_eq!(sent, error_chunk(NbdError::Shutdown, 9));
    let sent = wire.refused(&request(0, cmd::READ, 10, SIZE, 1));
    assert_eq!(sent, error_chunk(NbdError::Invalid, 10));
    let sent = wire.refused(&request(0, cmd::READ, 11, 5, 0));
    assert_eq!(sent, chunk(0, 11, &[]));
}

#[test]
fn writes_zeroes_trims_and_flushes_are_handed_on() {
    let mut wire = Wire::ready("", true, false);
    let data = Bytes::from_static(b"hello");
    for fua in [false, true] {
        let flags = if fua { cflag::FUA } else { 0 };
        let op = Op::Write {
            offset: SIZE - 5,
            data: data.clone(),
            fua,
        };
        let sent = wire.served(&write(flags, 1, SIZE - 5, b"hello"), op, Ok(&[]));
        assert_eq!(sent, simple(0, 1, &[]));
        for (command, extra, may_punch) in [
            (cmd::TRIM, 0, true),
            (cmd::WRITE_ZEROES, 0, true),
            (cmd::WRITE_ZEROES, cflag::NO_HOLE, false),
        ] {
            let op = Op::Zero {
                offset: 3,
                len: 4,
                fua,
                may_punch,
            };
            let sent = wire.served(&request(flags | extra, command, 2, 3, 4), op, Ok(&[]));
            assert_eq!(sent, simple(0, 2, &[]));
        }
        let sent = wire.served(&request(flags, cmd::FLUSH, 3, 0, 0), Op::Flush, Ok(&[]));
        assert_eq!(sent, simple(0, 3, &[]));
    }
    let error = Err(NbdError::Shutdown);
    let sent = wire.served(&request(0, cmd::FLUSH, 3, 0, 0), Op::Flush, error);
    assert_eq!(sent, simple(ESHUTDOWN, 3, &[]));
}

#[test]
fn zeroes_may_be_longer_than_any_payload() {
    let mut wire = Wire::ready("huge", false, false);
    let op = Op::Zero {
        offset: 1,
        len: u64::from(u32::MAX),
        fua: false,
        may_punch: true,
    };
    let bytes = request(0, cmd::WRITE_ZEROES, 1, 1, u32::MAX);
    assert_eq!(wire.served(&bytes, op, Ok(&[])), simple(0, 1, &[]));
}

#[test]
fn errors_are_the_numbers_of_the_protocol() {
    let mut wire = Wire::ready("db/data", false, false);
    let end = u64::MAX;
    let cases = [
        // Past the end, with and without overflow.
        (request(0, cmd::READ, 1, SIZE - 1, 2), EINVAL),
        (request(0, cmd::READ, 1, end, 1), EINVAL),
        (write(0, 1, SIZE - 1, b"ab"), ENOSPC),
        (write(0, 1, end, b"ab"), ENOSPC),
        (request(0, cmd::WRITE_ZEROES, 1, end - 1, 4), ENOSPC),
        (request(0, cmd::TRIM, 1, SIZE, 1), EINVAL),
        (request(0, cmd::CACHE, 1, SIZE, 1), EINVAL),
        // Flags that do not belong.
        (request(cflag::DF, cmd::READ, 1, 0, 1), EINVAL),
        (request(1 << 9, cmd::READ, 1, 0, 1), EINVAL),
        (write(cflag::NO_HOLE, 1, 0, b"x"), EINVAL),
        (request(cflag::REQ_ONE, cmd::TRIM, 1, 0, 1), EINVAL),
        (
            request(cflag::FAST_ZERO, cmd::WRITE_ZEROES, 1, 0, 1),
            ENOTSUP,
        ),
        // No such command, no such context, no such flush.
        (request(0, 8, 1, 0, 0), EINVAL),
        (request(0, 0xffff, 1, 0, 77), EINVAL),
        (request(0, cmd::BLOCK_STATUS, 1, 0, 1), EINVAL),
        (request(0, cmd::FLUSH, 1, 1, 0), EINVAL),
    ];
    for (bytes, error) in cases {
        assert_eq!(wire.refused(&bytes), simple(error, 1, &[]), "{bytes:x?}");
    }
    // Still in step.
    let op = Op::Read { offset: 0, len: 1 };
    let sent = wire.served(&request(0, cmd::READ, 2, 0, 1), op, Ok(b"x"));
    assert_eq!(sent, simple(0, 2, b"x"));
}

#[test]
fn read_only_exports_refuse_changes() {
    let mut wire = Wire::ready("ro", false, false);
    for bytes in [
        write(0, 1, 0, b"x"),
        request(0, cmd::TRIM, 1, 0, 1),
        request(0, cmd::WRITE_ZEROES, 1, 0, 1),
    ] {
        assert_eq!(wire.refused(&bytes), simple(EPERM, 1, &[]));
    }
    let sent = wire.served(&request(0, cmd::FLUSH, 2, 0, 0), Op::Flush, Ok(&[]));
    assert_eq!(sent, simple(0, 2, &[]));
}

#[test]
fn too_large_requests_are_refused_in_step() {
    let mut wire = Wire::ready("huge", false, false);
    let max = 32u32 << 20;
    let sent = wire.refused(&request(0, cmd::READ, 1, 0, max + 1));
    assert_eq!(sent, simple(EINVAL, 1, &[]));
    let big = write(0, 2, 0, &vec![1; max as usize + 1]);
    assert_eq!(wire.refused(&big), simple(EINVAL, 2, &[]));
    let data = Bytes::from(vec![2; max as usize]);
    let op = Op::Write {
        offset: 0,
        data: data.clone(),
        fua: false,
    };
    assert_eq!(
        wire.served(&write(0, 3, 0, &data), op, Ok(&[])),
        simple(0, 3, &[])
    );
}

#[test]
fn empty_requests_do_nothing() {
    let mut wire = Wire::ready("db/data", false, false);
    for (command, offset) in [
        (cmd::READ, 0),
        (cmd::WRITE, SIZE),
        (cmd::TRIM, 4),
        (cmd::WRITE_ZEROES, 4),
        (cmd::CACHE, 0),
    ] {
        let sent = wire.refused(&request(0, command, 1, offset, 0));
        assert_eq!(sent, simple(0, 1, &[]), "command {command}");
    }
    assert_eq!(
        wire.refused(&request(0, cmd::CACHE, 1, 0, 9)),
        simple(0, 1, &[])
    );
}

#[test]
fn block_status_says_all_is_data() {
    let mut wire = Wire::ready("db/data", true, true);
    for flags in [0, cflag::REQ_ONE] {
        let sent = wire.refused(&request(flags, cmd::BLOCK_STATUS, 4, 100, 5000));
        assert_eq!(
            sent,
            chunk(5, 4, &[0, 0, 0, 1, 0, 0, 0x13, 0x88, 0, 0, 0, 0])
        );
    }
    let sent = wire.refused(&request(0, cmd::BLOCK_STATUS, 4, SIZE, 1));
    assert_eq!(sent, error_chunk(NbdError::Invalid, 4));
    let sent = wire.refused(&request(0, cmd::BLOCK_STATUS, 4, 0, 0));
    assert_eq!(sent, error_chunk(NbdError::Invalid, 4));
}

#[test]
fn a_context_of_another_export_does_not_count() {
    let mut wire = Wire::new();
    wire.option(opt::STRUCTURED_REPLY, &[]);
    let data = queries("ro", &[b"base:allocation"]);
    wire.option(opt::SET_META_CONTEXT, &data);
    wire.option(opt::GO, &go("db/data", &[]));
    let sent = wire.refused(&request(0, cmd::BLOCK_STATUS, 4, 0, 1));
    assert_eq!(sent, error_chunk(NbdError::Invalid, 4));
}

#[test]
fn replies_leave_in_the_order_given_and_handles_may_repeat() {
    let mut wire = Wire::ready("db/data", false, false);
    let mut bytes = request(0, cmd::READ, 5, 0, 2);
    bytes.extend(request(0, cmd::READ, 5, 2, 3));
    let requests = wire.feed(&bytes).expect("well-formed");
    assert_eq!(requests.len(), 2);
    assert_eq!(wire.session.outstanding(), 2);
    wire.session
        .reply(requests[1].cookie, Ok(Bytes::from_static(b"345")));
    wire.session
        .reply(requests[0].cookie, Ok(Bytes::from_static(b"12")));
    let mut expected = simple(0, 5, b"345");
    expected.extend(simple(0, 5, b"12"));
    assert_eq!(wire.take(), expected);
}

#[test]
fn disconnect_waits_for_what_is_under_way() {
    let mut wire = Wire::ready("db/data", false, false);
    let mut bytes = request(0, cmd::FLUSH, 1, 0, 0);
    bytes.extend(request(0, cmd::DISC, 2, 0, 0));
    bytes.extend(request(0, cmd::READ, 3, 0, 1));
    let requests = wire.feed(&bytes).expect("well-formed");
    assert_eq!(requests.len(), 1);
    assert!(!wire.session.finished());
    assert!(wire.session.take_target().is_none());
    wire.session.reply(requests[0].cookie, Ok(Bytes::new()));
    assert!(wire.session.finished());
    assert_eq!(wire.take(), simple(0, 1, &[]));
}

#[test]
fn bad_request_magic_closes() {
    let mut wire = Wire::ready("db/data", false, false);
    let mut bytes = request(0, cmd::READ, 1, 0, 1);
    bytes[0] ^= 1;
    let place = "the magic of a request";
    let found = 0x2460_9513;
    assert_eq!(wire.feed(&bytes), Err(Close::BadMagic { found, place }));
}

#[test]
fn the_end_of_the_stream_drops_a_partial_write() {
    let mut wire = Wire::ready("db/data", false, false);
    let bytes = write(0, 1, 0, &[1; 5000]);
    assert_eq!(wire.feed(&bytes[..bytes.len() - 1]), Ok(vec![]));
    let target = wire.session.take_target().expect("more is wanted");
    assert_eq!(wire.session.received(target, 0), Err(Close::PeerClosed));
    assert_eq!(wire.session.next_request(), Ok(None));
}

#[test]
fn large_payloads_are_received_in_place() {
    let mut wire = Wire::ready("db/data", false, false);
    let data: Vec<u8> = (0..DIRECT_BYTES_MIN).map(|i| i as u8).collect();
    let bytes = write(0, 1, 0, &data);
    // The header and a first piece through the stream, the rest in place.
    assert_eq!(wire.feed(&bytes[..128]), Ok(vec![]));
    let mut target = wire.session.take_target().expect("payload");
    assert!(target.whole);
    assert_eq!(target.range, 100..data.len());
    assert!(wire.session.take_target().is_none(), "one at a time");
    target.room()[..10].copy_from_slice(&data[100..110]);
    let place = target.buf.as_ptr();
    assert_eq!(wire.session.received(target, 10), Ok(()));
    assert_eq!(wire.session.next_request(), Ok(None));
    let mut target = wire.session.take_target().expect("payload");
    assert_eq!(target.range, 110..data.len());
    target.room().copy_from_slice(&data[110..]);
    assert_eq!(wire.session.received(target, data.len() - 110), Ok(()));
    let request = wire
        .session
        .next_request()
        .expect("in step")
        .expect("complete");
    let Op::Write { data: got, .. } = request.op else {
        panic!("a write was sent")
    };
    assert_eq!(got, data);
    assert_eq!(got.as_ptr(), place, "not copied");
    // The next header is asked for in a small window, so that its payload comes in place too.
    let target = wire.session.take_target().expect("stream");
    assert!(target.range.len() < DIRECT_BYTES_MIN);
}

#[test]
fn pool_buffers_are_handed_on_aligned() {
    let mut session = Session::new(exports(), holdfast_uring::BufPool::default());
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(option_bytes(opt::GO, &go("", &[])));
    bytes.extend(write(0, 1, 0, &[3; 100]));
    assert_eq!(session.receive(&bytes), Ok(bytes.len()));
    let request = session.next_request().expect("in step").expect("complete");
    let Op::Write { data, .. } = request.op else {
        panic!("a write was sent")
    };
    assert_eq!(data, vec![3; 100]);
    assert_eq!(data.as_ptr() as usize % 4096, 0);
}

#[test]
fn too_many_requests_are_not_read() {
    let mut wire = Wire::ready("db/data", false, false);
    let mut bytes = Vec::new();
    let sent = REQUESTS_PER_CONNECTION_MAX + 3;
    for handle in 0..sent as u64 {
        bytes.extend(request(0, cmd::READ, handle, 0, 1));
    }
    let requests = wire.feed(&bytes).expect("well-formed");
    assert_eq!(requests.len(), REQUESTS_PER_CONNECTION_MAX);
    assert!(wire.session.take_target().is_none());
    wire.session
        .reply(requests[0].cookie, Ok(Bytes::from_static(b"x")));
    assert!(matches!(wire.session.next_request(), Ok(Some(_))));
    assert_eq!(wire.session.next_request(), Ok(None));
}

#[test]
fn too_many_bytes_are_not_read_until_they_are_sent() {
    let mut wire = Wire::ready("huge", false, false);
    let len = 32u32 << 20;
    let full = BYTES_PER_CONNECTION_MAX / u64::from(len);
    let mut bytes = Vec::new();
    for handle in 0..full + 1 {
        bytes.extend(request(0, cmd::READ, handle, 0, len));
    }
    let requests = wire.feed(&bytes).expect("well-formed");
    assert_eq!(requests.len() as u64, full);
    for request in &requests {
        let data = Bytes::from(vec![0; len as usize]);
        wire.session.reply(request.cookie, Ok(data));
    }
    // Answered, but the client has not taken the answers.
    assert_eq!(wire.session.next_request(), Ok(None));
    assert!(wire.session.take_target().is_none());
    wire.take();
    assert!(matches!(wire.session.next_request(), Ok(Some(_))));
}

#[test]
fn a_client_that_never_reads_is_not_read_either() {
    let mut wire = Wire::ready("db/data", false, false);
    let bad = request(0, 99, 1, 0, 0);
    let many = bad.repeat(HEADS_BYTES_MAX / 16 + 1000);
    assert_eq!(wire.feed(&many), Ok(vec![]));
    assert!(wire.session.take_target().is_none());
    let sent = wire.take();
    assert!(sent.len() >= HEADS_BYTES_MAX && sent.len() <= HEADS_BYTES_MAX + 4096);
    assert_eq!(wire.session.next_request(), Ok(None));
    assert!(wire.session.take_target().is_some());
}
