//! What an NBD client can send: options, requests, payloads, in any pieces.

use crate::switches;
use bytes::Bytes;
use holdfast_blockdev::frontend::nbd::{
    Export, ExportTable, HeapAlloc, NbdError, REQUESTS_PER_CONNECTION_MAX, Request, Session,
};
use holdfast_blockdev::frontend::{Op, REQUEST_BYTES_MAX};
use std::sync::Arc;

/// Size of the export in bytes: small, so that its end is often met.
pub(crate) const SIZE: u64 = 1 << 20;
/// Switch: the handshake was ordinary and is over.
pub(crate) const READY: u8 = 1;
/// Switch: with structured replies.
pub(crate) const STRUCTURED: u8 = 2;
/// Switch: requests are answered late, in reverse, with errors among them.
pub(crate) const LATE: u8 = 4;
/// Switch: the export is read-only.
pub(crate) const READ_ONLY: u8 = 8;

/// The bytes of an option.
pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// One connection.
pub(crate) fn session(input: &[u8]) {
    let (switches, rest) = switches(input);
    let mut export = Export::new("x", SIZE);
    export.read_only = switches & READ_ONLY != 0;
    let table = ExportTable::new(vec![export]).expect("one name");
    let mut session = Session::new(Arc::new(table), HeapAlloc);
    let mut bytes = Vec::new();
    if switches & READY != 0 {
        bytes.extend_from_slice(&3_u32.to_be_bytes());
        if switches & STRUCTURED != 0 {
            bytes.extend(option(8, &[]));
            // SET_META_CONTEXT of export "x": one query.
            let mut query = 1_u32.to_be_bytes().to_vec();
            query.extend_from_slice(b"x\0\0\0\x01\0\0\0\x0fbase:allocation");
            bytes.extend(option(10, &query));
        }
        bytes.extend(option(7, b"\0\0\0\x01x\0\0"));
    }
    bytes.extend_from_slice(rest);
    let piece = usize::from(switches >> 4) * 97 + 1;
    let mut open: Vec<Request> = Vec::new();
    let mut sent = Vec::new();
    let mut left = &bytes[..];
    loop {
        let n = if left.is_empty() {
            0
        } else {
            let Ok(n) = session.receive(&left[..piece.min(left.len())]) else {
                return;
            };
            n
        };
        left = &left[n..];
        loop {
            match session.next_request() {
                Ok(Some(request)) => {
                    check(&request.op, switches);
                    open.push(request);
                }
                Ok(None) => break,
                Err(why) => {
                    assert!(!why.to_string().is_empty());
                    return;
                }
            }
        }
        assert_eq!(session.outstanding(), open.len());
        assert!(open.len() <= REQUESTS_PER_CONNECTION_MAX);
        // Late answers only when nothing else moves.
        let stuck = n == 0;
        if switches & LATE == 0 || stuck {
            while let Some(request) = open.pop() {
                let refuse = switches & LATE != 0 && open.len() % 3 == 1;
                session.reply(request.cookie, answer(&request.op, refuse));
            }
        }
        let moved = session.take_output(&mut sent);
        sent.clear();
        if session.finished() || (stuck && !moved) {
            return;
        }
    }
}

/// A request that is handed on lies inside the export and is of a size that is served.
fn check(op: &Op, switches: u8) {
    let (offset, len) = match op {
        Op::Read { offset, len } => {
            assert!(*len <= REQUEST_BYTES_MAX);
            (*offset, u64::from(*len))
        }
        Op::Write { offset, data, .. } => {
            assert!(data.len() <= REQUEST_BYTES_MAX as usize);
            (*offset, data.len() as u64)
        }
        Op::Zero { offset, len, .. } => (*offset, *len),
        Op::Flush => return,
    };
    let writes = matches!(op, Op::Write { .. } | Op::Zero { .. });
    assert!(!writes || switches & READ_ONLY == 0, "{op:?} on read-only");
    assert!(len > 0, "{op:?} of nothing");
    assert!(
        offset.checked_add(len).is_some_and(|end| end <= SIZE),
        "{op:?}"
    );
}

fn answer(op: &Op, refuse: bool) -> Result<Bytes, NbdError> {
    match op {
        _ if refuse => Err(NbdError::Io),
        Op::Read { len, .. } => Ok(Bytes::from(vec![7; *len as usize])),
        Op::Write { .. } | Op::Zero { .. } | Op::Flush => Ok(Bytes::new()),
    }
}
