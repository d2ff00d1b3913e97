//! Bytes cut anywhere, mutated, or random: same result, no panic, no memory by a client's claim.

use super::*;
use crate::frontend::REQUEST_BYTES_MAX;
use crate::frontend::nbd::{
    BYTES_PER_CONNECTION_MAX, HEADS_BYTES_MAX, REQUESTS_PER_CONNECTION_MAX, RecvAlloc, STREAM_BYTES,
};
use bytes::BytesMut;
use proptest::prelude::*;

/// A memory of a few hundred bytes repeated over the export: enough to tell answers apart.
fn answer(op: &Op) -> Result<Bytes, NbdError> {
    match op {
        Op::Read { offset, len } => Ok((*offset..offset + u64::from(*len))
            .map(|at| (at * 7 % 251) as u8)
            .collect()),
        Op::Zero { fua: true, .. } => Err(NbdError::Io),
        Op::Write { .. } | Op::Zero { .. } | Op::Flush => Ok(Bytes::new()),
    }
}

/// A conversation with a bit of everything.
fn conversation() -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(option_bytes(opt::LIST, &[]));
    bytes.extend(option_bytes(11, &[]));
    bytes.extend(option_bytes(5, b"IHAVEOPTxxxxxxxxxxxxxxxxxxx"));
    bytes.extend(option_bytes(opt::STRUCTURED_REPLY, &[]));
    bytes.extend(option_bytes(
        opt::SET_META_CONTEXT,
        &queries("db/data", &[b"base:allocation"]),
    ));
    bytes.extend(option_bytes(opt::INFO, &go("db/data", &[3])));
    bytes.extend(option_bytes(opt::GO, &go("", &[3, 1])));
    bytes.extend(request(0, cmd::READ, 1, 3, 40));
    bytes.extend(write(cflag::FUA, 2, 4096, &[0x25; 600]));
    bytes.extend(write(0, 3, SIZE, b"refused"));
    bytes.extend(request(0, cmd::BLOCK_STATUS, 4, 0, 4096));
    bytes.extend(request(cflag::FUA, cmd::TRIM, 5, 0, 4096));
    bytes.extend(request(0, cmd::FLUSH, 6, 0, 0));
    bytes.extend(request(0, 42, 7, 0, 0));
    bytes.extend(request(0, cmd::READ, 8, 0, 0));
    bytes.extend(request(0, cmd::DISC, 9, 0, 0));
    bytes
}

/// Play `bytes` in pieces, answering at once; all that was sent, all that was asked, how it ended.
fn play(bytes: &[u8], mut piece: impl FnMut() -> usize) -> (Vec<u8>, Vec<Op>, Result<(), Close>) {
    let mut wire = Wire::raw();
    let mut sent = Vec::new();
    let mut ops = Vec::new();
    let mut rest = bytes;
    let mut end = Ok(());
    'all: while !rest.is_empty() {
        let n = piece().clamp(1, rest.len());
        let n = match wire.session.receive(&rest[..n]) {
            Ok(n) => n,
            Err(close) => {
                end = Err(close);
                break;
            }
        };
        rest = &rest[n..];
        loop {
            match wire.session.next_request() {
                Ok(Some(request)) => {
                    wire.session.reply(request.cookie, answer(&request.op));
                    ops.push(request.op);
                }
                Ok(None) => break,
                Err(close) => {
                    end = Err(close);
                    break 'all;
                }
            }
        }
        sent.extend(wire.take());
        if n == 0 {
            assert!(
                wire.session.finished(),
                "stuck with {} bytes left",
                rest.len()
            );
            break;
        }
    }
    sent.extend(wire.take());
    (sent, ops, end)
}

#[test]
fn every_split_gives_the_same() {
    let bytes = conversation();
    let whole = play(&bytes, || usize::MAX);
    assert_eq!(whole.1.len(), 4);
    assert_eq!(whole.2, Ok(()));
    assert_eq!(play(&bytes, || 1), whole);
    for cut in 1..bytes.len() {
        let mut pieces = [cut, usize::MAX].into_iter();
        assert_eq!(
            play(&bytes, || pieces.next().unwrap_or(1)),
            whole,
            "cut at {cut}"
        );
    }
}

#[test]
fn large_writes_give_the_same_in_any_pieces() {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(option_bytes(opt::GO, &go("", &[])));
    for (handle, len) in [
        (1, 300_000),
        (2, 65_536),
        (3, 10),
        (4, 65_535),
        (5, 600_000),
    ] {
        let data: Vec<u8> = (0..len).map(|i: u32| (i * 31 + handle) as u8).collect();
        bytes.extend(write(0, u64::from(handle), 0, &data));
    }
    let whole = play(&bytes, || usize::MAX);
    assert_eq!(whole.1.len(), 5);
    for piece in [1000, 4096, 65_536, 262_144] {
        assert_eq!(play(&bytes, || piece), whole);
    }
}

/// Counts the bytes of buffers it gives away.
#[derive(Default)]
struct Counting {
    largest: usize,
}

impl RecvAlloc for &mut Counting {
    type Buf = BytesMut;
    fn alloc(&mut self, len: usize) -> BytesMut {
        self.largest = self.largest.max(len);
        BytesMut::zeroed(len)
    }
}

/// Feed bytes to a session that answers some requests late or never, and check its limits at each step.
fn torment(bytes: &[u8], pieces: &[usize], answered: &[bool]) {
    let mut counting = Counting::default();
    let mut session = Session::new(exports(), &mut counting);
    let mut pieces = pieces.iter().cycle();
    let mut answered = answered.iter().cycle();
    let mut rest = bytes;
    let mut open_bytes = 0u64;
    let mut output = Vec::new();
    while !rest.is_empty() {
        let n = pieces.next().map_or(1, |n| *n).clamp(1, rest.len());
        let Ok(n) = session.receive(&rest[..n]) else {
            return;
        };
        rest = &rest[n..];
        loop {
            match session.next_request() {
                Ok(Some(request)) => {
                    let bytes = match &request.op {
                        Op::Read { offset, len } => {
                            assert!(offset + u64::from(*len) <= 1 << 40);
                            u64::from(*len)
                        }
                        Op::Write { data, .. } => data.len() as u64,
                        Op::Zero { offset, len, .. } => {
                            assert!(offset + len <= 1 << 40);
                            0
                        }
                        Op::Flush => 0,
                    };
                    assert!(bytes <= u64::from(REQUEST_BYTES_MAX));
                    if answered.next() == Some(&true) {
                        session.reply(request.cookie, Err(NbdError::Io));
                    } else {
                        open_bytes += bytes;
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        let limit = BYTES_PER_CONNECTION_MAX + u64::from(REQUEST_BYTES_MAX);
        assert!(open_bytes <= limit, "{open_bytes} bytes under way");
        assert!(session.outstanding() <= REQUESTS_PER_CONNECTION_MAX);
        output.clear();
        session.take_output(&mut output);
        let sent: usize = output.iter().map(Bytes::len).sum();
        assert!(
            sent <= HEADS_BYTES_MAX + STREAM_BYTES,
            "{sent} bytes of replies"
        );
        if n == 0 {
            break;
        }
    }
    drop(session);
    assert!(counting.largest <= REQUEST_BYTES_MAX as usize);
}

/// A conversation with a few bytes changed, put in or taken out.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let len = conversation().len();
    prop::collection::vec((0..len, any::<u8>(), 0..4u8), 0..12).prop_map(|changes| {
        let mut bytes = conversation();
        for (at, value, how) in changes {
            let at = at % bytes.len();
            match how {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => drop(bytes.remove(at)),
            }
        }
        bytes
    })
}

/// Well-formed headers with arbitrary fields, after a valid handshake.
fn random_commands() -> impl Strategy<Value = Vec<u8>> {
    let header = (any::<u16>(), 0..12u16, any::<u64>(), any::<u32>(), 0..6u8);
    prop::collection::vec(header, 0..600).prop_map(|headers| {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(option_bytes(opt::STRUCTURED_REPLY, &[]));
        bytes.extend(option_bytes(opt::GO, &go("huge", &[])));
        for (flags, command, offset, len, shape) in headers {
            // Mostly plausible, sometimes wild.
            let flags = if shape < 4 { flags & 1 } else { flags };
            let offset = if shape < 5 { offset >> 25 } else { offset };
            let len = if shape < 3 { len >> 16 } else { len };
            bytes.extend(request(flags, command, offset, offset, len));
            if command == cmd::WRITE && len < 1 << 16 {
                bytes.extend(vec![0; len as usize]);
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_do_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..4096),
        valid_start in any::<bool>(),
        piece in 1..5000usize,
    ) {
        let mut all = if valid_start { 3u32.to_be_bytes().to_vec() } else { Vec::new() };
        all.extend(bytes);
        torment(&all, &[piece], &[true, false]);
    }

    #[test]
    fn mutated_conversations_do_no_harm(
        bytes in mutated(),
        pieces in prop::collection::vec(1..700usize, 1..8),
        answered in prop::collection::vec(any::<bool>(), 1..8),
    ) {
        torment(&bytes, &pieces, &answered);
    }

    #[test]
    fn random_commands_stay_within_the_limits(
        bytes in random_commands(),
        piece in 1..300_000usize,
        answered in prop::collection::vec(any::<bool>(), 1..8),
    ) {
        torment(&bytes, &[piece], &answered);
    }

    #[test]
    fn random_splits_give_the_same(seed in prop::collection::vec(1..90usize, 1..40)) {
        let bytes = conversation();
        let whole = play(&bytes, || usize::MAX);
        let mut pieces = seed.iter().cycle();
        prop_assert_eq!(play(&bytes, || pieces.next().map_or(1, |n| *n)), whole);
    }
}
