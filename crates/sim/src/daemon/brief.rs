//! Operations and events in a word or a line, for hashes and stories.

use super::*;

/// Its kind, for the hash.
pub(super) fn kind_of(op: &rep::DiskOp) -> u64 {
    match op {
        rep::DiskOp::Read { .. } => 0,
        rep::DiskOp::Write { .. } => 1,
        rep::DiskOp::Zero { .. } => 2,
        rep::DiskOp::Flush => 3,
    }
}

/// A disk operation in a few words.
pub(super) fn brief_op(op: &rep::DiskOp) -> String {
    match op {
        rep::DiskOp::Read { offset, len } => format!("read {len} at {offset}"),
        rep::DiskOp::Write {
            offset,
            data,
            durable,
        } => {
            format!(
                "write {} at {offset}{}",
                data.len(),
                if *durable { " durable" } else { "" }
            )
        }
        rep::DiskOp::Zero { offset, len, .. } => format!("zero {len} at {offset}"),
        rep::DiskOp::Flush => "flush".into(),
    }
}

pub(super) fn brief_event(event: &rep::Event) -> String {
    match event {
        rep::Event::Frame { peer, frame } => format!("{peer}: {}", crate::lanes::brief(frame)),
        rep::Event::DiskDone { io, result } => {
            format!(
                "disk {} {}",
                io.0,
                if result.is_ok() { "done" } else { "FAILED" }
            )
        }
        rep::Event::Request { req, request } => match request {
            rep::Request::Write { offset, data, fua } => {
                format!(
                    "request {}: write {} at {offset}{}",
                    req.0,
                    data.len(),
                    if *fua { " fua" } else { "" }
                )
            }
            other => format!("request {}: {other:?}", req.0),
        },
        other => format!("{other:?}"),
    }
}
