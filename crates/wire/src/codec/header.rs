//! The header: its fields, its bytes, and which field of a frame is in which of them.
//!
//! [`Fields::of`] is the one place that says so for both directions: the decoder builds a frame and accepts
//! it only if `Fields::of` gives back the header it came from.

use super::{HEADER_BYTES, PROTOCOL_VERSION, WireError};
use crate::{Frame, Refusal, Stamp};
use holdfast_types::{BlockRange, Epoch, Level, SessionId, VolumeId};

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"HFDF");
/// Stable before the answer.
pub(super) const FUA: u8 = 1;
/// The replica is a member.
pub(super) const MEMBER: u8 = 2;
/// Blocks follow; without it the range is zeroes.
pub(super) const DATA: u8 = 4;
/// The payload's checksum was not computed.
pub(super) const CRC_ABSENT: u8 = 8;

const CRC_AT: usize = HEADER_BYTES - 4;
// Magic; version, kind, flags, nodes; number, volume; four u64; four u32.
const _: () = assert!(4 + 1 + 1 + 1 + 1 + 4 + 4 + 4 * 8 + 4 * 4 == HEADER_BYTES);

macro_rules! kinds {
    ($($name:ident = $code:literal),* $(,)?) => {
        /// Kinds of frames, with their codes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Kind { $($name = $code),* }
        impl Kind {
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$name),*];
            pub(super) const fn of_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }
            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

kinds! {
    Hello = 1, Refuse = 2, Ping = 3, Pong = 4,
    Attach = 5, Write = 6, Zero = 7, Close = 8, Reconciled = 9, Flush = 10, Cut = 11, Grown = 12,
    Attached = 13, Ack = 14, Flushed = 15, CutDone = 16, NeedClose = 17,
    Resync = 18, Resynced = 19, Hash = 20, Hashes = 21,
    Synced = 0x50, Fetch = 0x51, Fetched = 0x52,
    Seen = 0x70, Discard = 0x71, Discarded = 0x72,
    Read = 0x40, ReadDone = 0x41,
}

impl Kind {
    pub(super) const fn of(frame: &Frame) -> Self {
        match frame {
            Frame::Hello(_) => Self::Hello,
            Frame::Refuse { .. } => Self::Refuse,
            Frame::Ping { .. } => Self::Ping,
            Frame::Pong { .. } => Self::Pong,
            Frame::Attach(_) => Self::Attach,
            Frame::Write { .. } => Self::Write,
            Frame::Zero { .. } => Self::Zero,
            Frame::Close { .. } => Self::Close,
            Frame::Reconciled { .. } => Self::Reconciled,
            Frame::Flush { .. } => Self::Flush,
            Frame::Cut { .. } => Self::Cut,
            Frame::Grown { .. } => Self::Grown,
            Frame::Attached { .. } => Self::Attached,
            Frame::Ack { .. } => Self::Ack,
            Frame::Flushed { .. } => Self::Flushed,
            Frame::CutDone { .. } => Self::CutDone,
            Frame::NeedClose { .. } => Self::NeedClose,
            Frame::Resync { .. } => Self::Resync,
            Frame::Resynced { .. } => Self::Resynced,
            Frame::Hash { .. } => Self::Hash,
            Frame::Hashes { .. } => Self::Hashes,
            Frame::Synced { .. } => Self::Synced,
            Frame::Fetch { .. } => Self::Fetch,
            Frame::Fetched { .. } => Self::Fetched,
            Frame::Seen { .. } => Self::Seen,
            Frame::Discard { .. } => Self::Discard,
            Frame::Discarded { .. } => Self::Discarded,
            Frame::Read { .. } => Self::Read,
            Frame::ReadDone { .. } => Self::ReadDone,
        }
    }
}

/// The fields that carry a frame's content; zero where a kind has no use for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) flags: u8,
    pub(super) nodes: u8,
    pub(super) epoch: u64,
    pub(super) session: u64,
    pub(super) token: u64,
    pub(super) first: u64,
    pub(super) count: u32,
}

impl Fields {
    /// The fields of a frame. Counts that do not fit are refused by name.
    pub(super) fn of(frame: &Frame) -> Result<Self, WireError> {
        let kind = Kind::of(frame).name();
        let none = Self::default();
        let stamped = |s: &Stamp| Self {
            epoch: s.epoch.0,
            session: s.session.0,
            ..none
        };
        let token = |s: &Stamp, token: u64| Self {
            token,
            ..stamped(s)
        };
        let blocks = |s: &Stamp, t: u64, range: &BlockRange, flags: u8| {
            let Ok(count) = u32::try_from(range.count) else {
                let (first, count) = (range.first, range.count);
                return Err(WireError::Range {
                    kind,
                    first,
                    count,
                    blocks: u32::MAX.into(),
                });
            };
            Ok(Self {
                first: range.first,
                count,
                flags,
                ..token(s, t)
            })
        };
        let entries = |n: usize| {
            u32::try_from(n).map_err(|_| WireError::List {
                kind,
                entries: n as u64,
                max: u32::MAX.into(),
            })
        };
        let fua = |fua: bool| if fua { FUA } else { 0 };
        Ok(match frame {
            Frame::Hello(_) => none,
            Frame::Refuse { why } => match *why {
                Refusal::Promised(epoch) => Self {
                    count: 1,
                    epoch: epoch.0,
                    ..none
                },
                Refusal::Gap => Self { count: 2, ..none },
                Refusal::NoDisk => Self { count: 3, ..none },
                Refusal::DiskFailed => Self { count: 4, ..none },
                Refusal::Lineage(lineage) => Self {
                    count: 5,
                    first: lineage,
                    ..none
                },
            },
            Frame::Ping { token } | Frame::Pong { token } => Self {
                token: *token,
                ..none
            },
            Frame::Attach(a) => Self {
                flags: if a.member { MEMBER } else { 0 },
                first: a.lineage,
                count: level_code(a.level),
                ..token(&a.stamp, a.generation.0)
            },
            Frame::Write {
                stamp,
                seq,
                range,
                fua: f,
                ..
            } => blocks(stamp, seq.0, range, fua(*f) | DATA)?,
            Frame::Zero {
                stamp,
                seq,
                range,
                fua: f,
            } => blocks(stamp, seq.0, range, fua(*f))?,
            Frame::Close { stamp, upto, set } => Self {
                nodes: set.0,
                ..token(stamp, upto.0)
            },
            Frame::Reconciled { stamp, ranges, set } => Self {
                nodes: set.0,
                count: entries(ranges.len())?,
                ..stamped(stamp)
            },
            Frame::Cut {
                stamp,
                token: t,
                bitmaps,
            } => Self {
                count: entries(bitmaps.len())?,
                ..token(stamp, *t)
            },
            Frame::Grown { stamp, node } => Self {
                nodes: node.0,
                ..stamped(stamp)
            },
            Frame::Attached { stamp, report, log } => Self {
                count: entries(report.len())?,
                first: *log,
                ..stamped(stamp)
            },
            Frame::Ack { stamp, seq, log } => Self {
                first: *log,
                ..token(stamp, seq.0)
            },
            Frame::Flush { stamp, token: t } => token(stamp, *t),
            Frame::Flushed {
                stamp,
                token: t,
                log,
            }
            | Frame::CutDone {
                stamp,
                token: t,
                log,
            }
            | Frame::Resynced {
                stamp,
                token: t,
                log,
            } => Self {
                first: *log,
                ..token(stamp, *t)
            },
            Frame::Seen { stamp, seen } => Self {
                count: entries(seen.len())?,
                ..stamped(stamp)
            },
            Frame::Discard {
                stamp,
                keep,
                lost,
                ranges,
            } => Self {
                first: *lost,
                count: entries(ranges.len())?,
                ..token(stamp, *keep)
            },
            Frame::Discarded { stamp, done, text } => Self {
                nodes: u8::from(*done),
                count: entries(text.len())?,
                ..stamped(stamp)
            },
            Frame::NeedClose { stamp } => stamped(stamp),
            Frame::Resync {
                stamp,
                token,
                range,
                data,
            }
            | Frame::ReadDone {
                stamp,
                token,
                range,
                data,
            } => blocks(stamp, *token, range, if data.is_some() { DATA } else { 0 })?,
            Frame::Hash {
                stamp,
                token,
                range,
            }
            | Frame::Fetch {
                stamp,
                token,
                range,
            }
            | Frame::Read {
                stamp,
                token,
                range,
            } => blocks(stamp, *token, range, 0)?,
            Frame::Fetched {
                stamp,
                token,
                range,
                ..
            } => blocks(stamp, *token, range, DATA)?,
            Frame::Synced {
                stamp,
                node,
                ranges,
            } => Self {
                nodes: node.0,
                count: entries(ranges.len())?,
                ..stamped(stamp)
            },
            Frame::Hashes {
                stamp,
                token: t,
                hashes,
            } => Self {
                count: entries(hashes.len())?,
                ..token(stamp, *t)
            },
        })
    }

    pub(super) const fn stamp(&self) -> Stamp {
        Stamp {
            epoch: Epoch(self.epoch),
            session: SessionId(self.session),
        }
    }

    pub(super) const fn refusal(&self) -> Option<Refusal> {
        Some(match self.count {
            1 => Refusal::Promised(Epoch(self.epoch)),
            2 => Refusal::Gap,
            3 => Refusal::NoDisk,
            4 => Refusal::DiskFailed,
            5 => Refusal::Lineage(self.first),
            _ => return None,
        })
    }
}

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) number: u32,
    pub(super) volume: u32,
    pub(super) fields: Fields,
    pub(super) payload_len: u32,
    pub(super) payload_crc: Option<u32>,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let f = &self.fields;
        let mut b = [0; HEADER_BYTES];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4] = PROTOCOL_VERSION;
        b[5] = self.kind as u8;
        b[6] = f.flags
            | if self.payload_crc.is_none() {
                CRC_ABSENT
            } else {
                0
            };
        b[7] = f.nodes;
        b[8..12].copy_from_slice(&self.number.to_le_bytes());
        b[12..16].copy_from_slice(&self.volume.to_le_bytes());
        b[16..24].copy_from_slice(&f.epoch.to_le_bytes());
        b[24..32].copy_from_slice(&f.session.to_le_bytes());
        b[32..40].copy_from_slice(&f.token.to_le_bytes());
        b[40..48].copy_from_slice(&f.first.to_le_bytes());
        b[48..52].copy_from_slice(&f.count.to_le_bytes());
        b[52..56].copy_from_slice(&self.payload_len.to_le_bytes());
        b[56..60].copy_from_slice(&self.payload_crc.unwrap_or(0).to_le_bytes());
        let crc = crc32fast::hash(&b[..CRC_AT]);
        b[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Checks magic, version, checksum and kind, in this order: a version that differs is named as such
    /// whatever else has changed with it.
    pub(super) fn decode(b: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let found = u32_at(b, 0);
        if found != MAGIC {
            return Err(WireError::Magic { found });
        }
        if b[4] != PROTOCOL_VERSION {
            return Err(WireError::Version {
                theirs: b[4],
                ours: PROTOCOL_VERSION,
            });
        }
        let (found, computed) = (u32_at(b, CRC_AT), crc32fast::hash(&b[..CRC_AT]));
        if found != computed {
            return Err(WireError::HeaderCrc { found, computed });
        }
        let kind = Kind::of_code(b[5]).ok_or(WireError::Kind { found: b[5] })?;
        let payload_crc = u32_at(b, 56);
        let absent = b[6] & CRC_ABSENT != 0;
        if absent && payload_crc != 0 {
            return Err(WireError::Field {
                kind: kind.name(),
                field: "payload checksum",
            });
        }
        Ok(Self {
            kind,
            number: u32_at(b, 8),
            volume: u32_at(b, 12),
            fields: Fields {
                flags: b[6] & !CRC_ABSENT,
                nodes: b[7],
                epoch: u64_at(b, 16),
                session: u64_at(b, 24),
                token: u64_at(b, 32),
                first: u64_at(b, 40),
                count: u32_at(b, 48),
            },
            payload_len: u32_at(b, 52),
            payload_crc: (!absent).then_some(payload_crc),
        })
    }
}

pub(super) const fn level_code(level: Level) -> u32 {
    match level {
        Level::C => 0,
        Level::B => 1,
        Level::A => 2,
    }
}

pub(super) const fn level_of(code: u32) -> Option<Level> {
    Some(match code {
        0 => Level::C,
        1 => Level::B,
        2 => Level::A,
        _ => return None,
    })
}

/// A volume's id in four bytes.
pub(super) const fn fold(volume: VolumeId) -> u32 {
    (volume.0 ^ (volume.0 >> 32)) as u32
}

/// A number at a place that is inside: callers have checked the length.
pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The same for eight bytes.
pub(super) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}
