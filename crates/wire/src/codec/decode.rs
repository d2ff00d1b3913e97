//! Bytes to frames. Everything a peer claims is checked before it is believed.

use super::header::{DATA, FUA, Fields, Header, Kind, MEMBER, fold, level_of};
use super::list::{self, BITMAP_HEAD_BYTES, HASH_BYTES, HELLO_BYTES, RANGE_BYTES, SEEN_BYTES};
use super::{
    DATA_BYTES_MAX, HASHES_MAX, HEADER_BYTES, LIST_BYTES_MAX, LIST_RANGES_MAX, TEXT_BYTES_MAX,
    WireError,
};
use crate::{Attach, Frame, Lane};
use bytes::{Bytes, BytesMut};
use holdfast_types::{BlockRange, Gen, Geometry, NODES_MAX, NodeSet, Seq, VolumeId};

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Bytes of payload.
    pub payload_len: usize,
    /// They are blocks for the store, so a buffer fit for it is best.
    pub blocks: bool,
}

#[derive(Debug)]
enum State {
    Header,
    Payload(Header),
    Failed,
}

/// Decodes the frames of one connection, one after the other. After an error it yields only errors.
#[derive(Debug)]
pub struct Decoder {
    volume: VolumeId,
    geometry: Geometry,
    lane: Lane,
    number: u32,
    state: State,
}

impl Decoder {
    /// For a new connection: the lane `lane` of a volume.
    pub fn new(volume: VolumeId, geometry: Geometry, lane: Lane) -> Self {
        Self {
            volume,
            geometry,
            lane,
            number: 0,
            state: State::Header,
        }
    }

    /// The volume has another size: ranges in frames must lie in it from the next frame on.
    pub fn set_geometry(&mut self, geometry: Geometry) {
        self.geometry = geometry;
    }

    /// Bytes wanted next: a header's for [`Decoder::header`], or a payload's for [`Decoder::finish`].
    /// A frame without payload wants zero bytes of it.
    pub fn wanted(&self) -> usize {
        match &self.state {
            State::Header | State::Failed => HEADER_BYTES,
            State::Payload(header) => header.payload_len as usize,
        }
    }

    /// Takes a header; tells what follows it.
    pub fn header(&mut self, bytes: &[u8; HEADER_BYTES]) -> Result<Pending, WireError> {
        let State::Header = std::mem::replace(&mut self.state, State::Failed) else {
            return Err(WireError::State);
        };
        let header = Header::decode(bytes)?;
        if header.volume != fold(self.volume) {
            return Err(WireError::Volume {
                found: header.volume,
                ours: self.volume,
            });
        }
        if header.number != self.number {
            return Err(WireError::Gap {
                expected: self.number,
                found: header.number,
            });
        }
        self.check_length(&header)?;
        self.number = self.number.wrapping_add(1);
        let blocks = header.fields.flags & DATA != 0;
        let pending = Pending {
            payload_len: header.payload_len as usize,
            blocks,
        };
        self.state = State::Payload(header);
        Ok(pending)
    }

    /// Takes the payload (empty if there is none); the frame is whole.
    pub fn finish(&mut self, payload: Bytes) -> Result<Frame, WireError> {
        let State::Payload(header) = std::mem::replace(&mut self.state, State::Failed) else {
            return Err(WireError::State);
        };
        let kind = header.kind.name();
        if payload.len() != header.payload_len as usize {
            let (bytes, allowed) = (payload.len() as u64, header.payload_len.into());
            return Err(WireError::Length {
                kind,
                bytes,
                allowed,
            });
        }
        if let Some(found) = header.payload_crc {
            let computed = crc32fast::hash(&payload);
            if found != computed {
                return Err(WireError::PayloadCrc {
                    kind,
                    found,
                    computed,
                });
            }
        }
        let frame = self.frame(&header, payload)?;
        if Fields::of(&frame)? != header.fields {
            return Err(WireError::Field {
                kind,
                field: "header field that should be zero",
            });
        }
        if frame.lane() != self.lane {
            return Err(WireError::Lane { kind });
        }
        self.state = State::Header;
        Ok(frame)
    }

    /// The next frame from the front of `buffer`, or `None` until more bytes are there. For readers that
    /// do not mind the payload sharing the buffer's memory.
    pub fn next_frame(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, WireError> {
        if matches!(self.state, State::Failed) {
            return Err(WireError::State);
        }
        if matches!(self.state, State::Header) {
            let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            self.header(header)?;
            let _ = buffer.split_to(HEADER_BYTES);
        }
        let wanted = self.wanted();
        if buffer.len() < wanted {
            return Ok(None);
        }
        self.finish(buffer.split_to(wanted).freeze()).map(Some)
    }

    /// The payload's length is what the rest of the header says it must be: before a byte of it is received.
    fn check_length(&self, header: &Header) -> Result<(), WireError> {
        let kind = header.kind.name();
        let count = u64::from(header.fields.count);
        let list = |max: usize| {
            if count <= max as u64 {
                return Ok(());
            }
            Err(WireError::List {
                kind,
                entries: count,
                max: max as u64,
            })
        };
        let bytes = u64::from(header.payload_len);
        let has_blocks = header.fields.flags & DATA != 0;
        let exact = match header.kind {
            Kind::Write | Kind::Resync | Kind::Fetched | Kind::ReadDone if has_blocks => {
                let needed = count * u64::from(self.geometry.block_bytes);
                if needed > DATA_BYTES_MAX.into() {
                    return Err(WireError::Length {
                        kind,
                        bytes: needed,
                        allowed: DATA_BYTES_MAX.into(),
                    });
                }
                needed
            }
            _ if has_blocks => {
                return Err(WireError::Field {
                    kind,
                    field: "flag: it has no blocks",
                });
            }
            Kind::Write | Kind::Fetched => {
                return Err(WireError::Field {
                    kind,
                    field: "flag: it must have blocks",
                });
            }
            Kind::Hello => HELLO_BYTES as u64,
            Kind::Seen => {
                list(NODES_MAX.into())?;
                count * SEEN_BYTES as u64
            }
            Kind::Discarded => {
                list(TEXT_BYTES_MAX)?;
                count
            }
            Kind::Reconciled | Kind::Attached | Kind::Synced | Kind::Discard => {
                list(LIST_RANGES_MAX)?;
                count * RANGE_BYTES as u64
            }
            Kind::Hashes => {
                list(HASHES_MAX)?;
                count * HASH_BYTES as u64
            }
            Kind::Hash | Kind::Fetch => {
                list(HASHES_MAX)?;
                0
            }
            Kind::Read => {
                let bytes = count * u64::from(self.geometry.block_bytes);
                if bytes > DATA_BYTES_MAX.into() {
                    return Err(WireError::Length {
                        kind,
                        bytes,
                        allowed: DATA_BYTES_MAX.into(),
                    });
                }
                0
            }
            Kind::Cut => {
                list(NODES_MAX.into())?;
                let least = count * BITMAP_HEAD_BYTES as u64;
                if bytes < least || bytes > LIST_BYTES_MAX.into() {
                    let allowed = if bytes < least {
                        least
                    } else {
                        LIST_BYTES_MAX.into()
                    };
                    return Err(WireError::Length {
                        kind,
                        bytes,
                        allowed,
                    });
                }
                bytes
            }
            _ => 0,
        };
        if bytes != exact {
            return Err(WireError::Length {
                kind,
                bytes,
                allowed: exact,
            });
        }
        Ok(())
    }

    fn frame(&self, header: &Header, payload: Bytes) -> Result<Frame, WireError> {
        let (kind, f) = (header.kind.name(), &header.fields);
        let blocks = self.geometry.blocks;
        let stamp = f.stamp();
        let token = f.token;
        let seq = Seq(token);
        let set = NodeSet(f.nodes);
        let fua = f.flags & FUA != 0;
        let range = || {
            let (first, count) = (f.first, u64::from(f.count));
            BlockRange::checked(first, count, blocks).ok_or(WireError::Range {
                kind,
                first,
                count,
                blocks,
            })
        };
        Ok(match header.kind {
            Kind::Hello => Frame::Hello(list::get_hello(kind, &payload)?),
            Kind::Refuse => Frame::Refuse {
                why: f.refusal().ok_or(WireError::Field {
                    kind,
                    field: "reason",
                })?,
            },
            Kind::Ping => Frame::Ping { token },
            Kind::Pong => Frame::Pong { token },
            Kind::Attach => Frame::Attach(Attach {
                stamp,
                generation: Gen(token),
                member: f.flags & MEMBER != 0,
                lineage: f.first,
                level: level_of(f.count).ok_or(WireError::Field {
                    kind,
                    field: "level",
                })?,
            }),
            Kind::Write => Frame::Write {
                stamp,
                seq,
                range: range()?,
                fua,
                data: payload,
            },
            Kind::Zero => Frame::Zero {
                stamp,
                seq,
                range: range()?,
                fua,
            },
            Kind::Close => Frame::Close {
                stamp,
                upto: seq,
                set,
            },
            Kind::Reconciled => Frame::Reconciled {
                stamp,
                ranges: list::get_ranges(kind, &payload, blocks)?,
                set,
            },
            Kind::Flush => Frame::Flush { stamp, token },
            Kind::Cut => Frame::Cut {
                stamp,
                token,
                bitmaps: list::get_bitmaps(kind, &payload, f.count, blocks)?,
            },
            Kind::Grown => Frame::Grown {
                stamp,
                node: list::get_node(kind, f.nodes)?,
            },
            Kind::Attached => Frame::Attached {
                stamp,
                report: list::get_ranges(kind, &payload, blocks)?,
                log: f.first,
            },
            Kind::Ack => Frame::Ack {
                stamp,
                seq,
                log: f.first,
            },
            Kind::Flushed => Frame::Flushed {
                stamp,
                token,
                log: f.first,
            },
            Kind::CutDone => Frame::CutDone {
                stamp,
                token,
                log: f.first,
            },
            Kind::Seen => Frame::Seen {
                stamp,
                seen: list::get_seen(kind, &payload)?,
            },
            Kind::Discard => Frame::Discard {
                stamp,
                keep: token,
                lost: f.first,
                ranges: list::get_ranges(kind, &payload, blocks)?,
            },
            Kind::Discarded => Frame::Discarded {
                stamp,
                done: f.nodes == 1,
                text: String::from_utf8(payload.to_vec()).map_err(|_| WireError::Field {
                    kind,
                    field: "text",
                })?,
            },
            Kind::NeedClose => Frame::NeedClose { stamp },
            Kind::Resync => {
                let data = (f.flags & DATA != 0).then_some(payload);
                Frame::Resync {
                    stamp,
                    token,
                    range: range()?,
                    data,
                }
            }
            Kind::Resynced => Frame::Resynced {
                stamp,
                token,
                log: f.first,
            },
            Kind::Hash => Frame::Hash {
                stamp,
                token,
                range: range()?,
            },
            Kind::Hashes => Frame::Hashes {
                stamp,
                token,
                hashes: list::get_hashes(&payload),
            },
            Kind::Synced => Frame::Synced {
                stamp,
                node: list::get_node(kind, f.nodes)?,
                ranges: list::get_ranges(kind, &payload, blocks)?,
            },
            Kind::Read => Frame::Read {
                stamp,
                token,
                range: range()?,
            },
            Kind::Fetch => Frame::Fetch {
                stamp,
                token,
                range: range()?,
            },
            Kind::Fetched => Frame::Fetched {
                stamp,
                token,
                range: range()?,
                data: payload,
            },
            Kind::ReadDone => {
                let data = (f.flags & DATA != 0).then_some(payload);
                Frame::ReadDone {
                    stamp,
                    token,
                    range: range()?,
                    data,
                }
            }
        })
    }
}
