//! Frames to bytes. Blocks are never copied: the header (with its list, if any) and the blocks are two buffers.

use super::header::{Fields, Header, Kind, fold};
use super::list::{self, BITMAP_RANGES_MAX};
use super::{DATA_BYTES_MAX, HASHES_MAX, HEADER_BYTES, LIST_RANGES_MAX, TEXT_BYTES_MAX, WireError};
use crate::Frame;
use bytes::Bytes;
use holdfast_types::{NODES_MAX, VolumeId};

/// A frame in bytes: `head`, then `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The header, and the payload if it is a list.
    pub head: Bytes,
    /// The payload if it is blocks: the frame's own buffer.
    pub data: Option<Bytes>,
}

/// Encodes the frames of one connection, one after the other.
#[derive(Debug)]
pub struct Encoder {
    volume: u32,
    number: u32,
    checksums: bool,
}

impl Encoder {
    /// For a new connection about `volume`.
    pub fn new(volume: VolumeId) -> Self {
        Self {
            volume: fold(volume),
            number: 0,
            checksums: true,
        }
    }

    /// With or without checksums of payloads; headers always have theirs.
    #[must_use]
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// A frame in buffers of its own.
    pub fn encode(&mut self, frame: &Frame) -> Result<Encoded, WireError> {
        let mut head = Vec::with_capacity(HEADER_BYTES);
        let data = self.encode_into(frame, &mut head)?;
        Ok(Encoded {
            head: head.into(),
            data,
        })
    }

    /// The same, with the header and list appended to `out` (which stays as it was on an error), so that a sender can gather many
    /// small frames in one buffer. The blocks, if any, follow them on the wire.
    ///
    /// Reports and cuts with too many ranges are coarsened; any other list that is too long is refused.
    pub fn encode_into(
        &mut self,
        frame: &Frame,
        out: &mut Vec<u8>,
    ) -> Result<Option<Bytes>, WireError> {
        let start = out.len();
        let result = self.append(frame, out, start);
        match result {
            Ok(_) => self.number = self.number.wrapping_add(1),
            Err(_) => out.truncate(start),
        }
        result
    }

    fn append(
        &self,
        frame: &Frame,
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<Option<Bytes>, WireError> {
        let kind = Kind::of(frame);
        let mut fields = Fields::of(frame)?;
        out.resize(start + HEADER_BYTES, 0);
        let limit = |entries: usize, max: usize| {
            if entries <= max {
                return Ok(());
            }
            Err(WireError::List {
                kind: kind.name(),
                entries: entries as u64,
                max: max as u64,
            })
        };
        let mut data = None;
        match frame {
            Frame::Hello(hello) => list::put_hello(out, hello),
            // Never coarsened: a block too many would be one that nobody resyncs.
            Frame::Reconciled { ranges, .. } | Frame::Synced { ranges, .. } => {
                limit(ranges.len(), LIST_RANGES_MAX)?;
                list::put_ranges(out, ranges);
            }
            Frame::Seen { seen, .. } => {
                limit(seen.len(), NODES_MAX.into())?;
                list::put_seen(out, seen);
            }
            Frame::Discarded { text, .. } => {
                limit(text.len(), TEXT_BYTES_MAX)?;
                out.extend_from_slice(text.as_bytes());
            }
            Frame::Discard { ranges, .. } => {
                let ranges = list::capped(ranges, LIST_RANGES_MAX);
                fields.count = ranges.len() as u32;
                list::put_ranges(out, &ranges);
            }
            Frame::Attached { report, .. } => {
                let report = list::capped(report, LIST_RANGES_MAX);
                fields.count = report.len() as u32;
                list::put_ranges(out, &report);
            }
            Frame::Cut { bitmaps, .. } => {
                limit(bitmaps.len(), NODES_MAX.into())?;
                for (node, ranges) in bitmaps {
                    list::put_bitmap(out, *node, &list::capped(ranges, BITMAP_RANGES_MAX));
                }
            }
            Frame::Hashes { hashes, .. } => {
                limit(hashes.len(), HASHES_MAX)?;
                list::put_hashes(out, hashes);
            }
            Frame::Write { data: blocks, .. } | Frame::Fetched { data: blocks, .. } => {
                data = Some(blocks.clone())
            }
            Frame::Resync { data: blocks, .. } | Frame::ReadDone { data: blocks, .. } => {
                data.clone_from(blocks);
            }
            Frame::Refuse { .. }
            | Frame::Ping { .. }
            | Frame::Pong { .. }
            | Frame::Attach(_)
            | Frame::Zero { .. }
            | Frame::Close { .. }
            | Frame::Flush { .. }
            | Frame::Grown { .. }
            | Frame::Ack { .. }
            | Frame::Flushed { .. }
            | Frame::CutDone { .. }
            | Frame::NeedClose { .. }
            | Frame::Resynced { .. }
            | Frame::Hash { .. }
            | Frame::Fetch { .. }
            | Frame::Read { .. } => {}
        }
        if let Some(data) = &data
            && data.len() > DATA_BYTES_MAX as usize
        {
            let (kind, bytes) = (kind.name(), data.len() as u64);
            return Err(WireError::Length {
                kind,
                bytes,
                allowed: DATA_BYTES_MAX.into(),
            });
        }
        let payload = data.as_deref().unwrap_or(&out[start + HEADER_BYTES..]);
        let header = Header {
            kind,
            number: self.number,
            volume: self.volume,
            fields,
            payload_len: payload.len() as u32,
            payload_crc: self.checksums.then(|| crc32fast::hash(payload)),
        };
        out[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
        Ok(data)
    }
}
