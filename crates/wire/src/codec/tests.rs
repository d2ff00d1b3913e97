//! Tests of the codec: golden bytes, round trips, hostile bytes.

mod golden;
mod hostile;
mod lists;
mod round_trip;

use super::header::Kind;
use super::{Decoder, Encoder, HEADER_BYTES, WireError};
use crate::{Attach, Frame, Hello, Lane, Refusal, Stamp};
use bytes::{Bytes, BytesMut};
use holdfast_types::{
    BlockRange, DiskState, Epoch, Gen, Geometry, Incarnation, Level, NodeId, NodeSet, Run, Seen,
    Seq, SessionId, VolumeId,
};
use proptest::prelude::*;

const VOLUME: VolumeId = VolumeId(0x1112_1314_1516_1718);
const GEOMETRY: Geometry = Geometry {
    block_bytes: 64,
    blocks: 1000,
    extent_blocks: 16,
};

/// All bytes of one frame on a new connection.
fn bytes_of(frame: &Frame, checksums: bool) -> Vec<u8> {
    let encoded = Encoder::new(VOLUME)
        .checksums(checksums)
        .encode(frame)
        .unwrap();
    let mut bytes = encoded.head.to_vec();
    bytes.extend_from_slice(encoded.data.as_deref().unwrap_or_default());
    bytes
}

/// The one frame in `bytes`, which must be all of them.
fn frame_of(bytes: &[u8], lane: Lane) -> Result<Option<Frame>, WireError> {
    let mut buffer = BytesMut::from(bytes);
    let frame = Decoder::new(VOLUME, GEOMETRY, lane).next_frame(&mut buffer)?;
    assert!(frame.is_none() || buffer.is_empty(), "bytes left over");
    Ok(frame)
}

/// Makes the checksums of a frame's bytes right again.
fn remake(bytes: &mut [u8]) {
    let (header, payload) = bytes.split_at_mut(HEADER_BYTES);
    if header[6] & super::header::CRC_ABSENT == 0 {
        header[56..60].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    }
    let crc = crc32fast::hash(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (any::<u64>(), any::<u64>()).prop_map(|(e, s)| Stamp {
        epoch: Epoch(e),
        session: SessionId(s),
    })
}

fn range() -> impl Strategy<Value = BlockRange> {
    (0..GEOMETRY.blocks).prop_flat_map(|first| {
        (1..=(GEOMETRY.blocks - first).min(20)).prop_map(move |count| BlockRange::new(first, count))
    })
}

fn ranges() -> impl Strategy<Value = Vec<BlockRange>> {
    prop::collection::vec(range(), 0..10)
}

fn node() -> impl Strategy<Value = NodeId> {
    (0..8u8).prop_map(NodeId)
}

fn set() -> impl Strategy<Value = NodeSet> {
    any::<u8>().prop_map(NodeSet)
}

fn seq() -> impl Strategy<Value = Seq> {
    any::<u64>().prop_map(Seq)
}

/// As many blocks as the range has.
fn with_data(range: BlockRange, fill: u8) -> Bytes {
    (0..range.count as usize * GEOMETRY.block_bytes as usize)
        .map(|i| fill.wrapping_add(i as u8))
        .collect()
}

fn seen(incarnation: u64, run: u64, log: u64) -> Seen {
    Seen {
        incarnation: Incarnation(incarnation),
        run: Run(run),
        log,
    }
}

fn hello() -> impl Strategy<Value = Frame> {
    let disk = prop_oneof![
        Just(DiskState::Diskless),
        Just(DiskState::Failed),
        Just(DiskState::Syncing),
        Just(DiskState::Outdated),
        Just(DiskState::UpToDate)
    ];
    let sizes = (any::<u32>(), any::<u64>(), any::<u32>(), any::<u32>());
    (node(), disk, any::<bool>(), sizes, any::<[u64; 6]>()).prop_map(
        |(node, disk, unclean, sizes, n)| {
            Frame::Hello(Hello {
                node,
                volume: VolumeId(n[0]),
                geometry: Geometry {
                    block_bytes: sizes.0,
                    blocks: sizes.1,
                    extent_blocks: sizes.2,
                },
                incarnation: Incarnation(n[1]),
                run: Run(n[2]),
                unclean,
                promised: Epoch(n[3]),
                disk,
                log_slots: sizes.3,
                found: [n[4]; 8],
                lineage: n[5],
            })
        },
    )
}

/// Any frame of the write lane.
fn write_lane() -> impl Strategy<Value = Frame> {
    let refusal = prop_oneof![
        any::<u64>().prop_map(|e| Refusal::Promised(Epoch(e))),
        Just(Refusal::Gap),
        Just(Refusal::NoDisk),
        Just(Refusal::DiskFailed),
        any::<u64>().prop_map(Refusal::Lineage)
    ];
    let bitmaps = prop::collection::btree_map(0..8u8, ranges(), 0..8).prop_map(|map| {
        map.into_iter()
            .map(|(n, ranges)| (NodeId(n), ranges))
            .collect::<Vec<_>>()
    });
    prop_oneof![
        hello(),
        refusal.prop_map(|why| Frame::Refuse { why }),
        any::<u64>().prop_map(|token| Frame::Ping { token }),
        any::<u64>().prop_map(|token| Frame::Pong { token }),
        (
            stamp(),
            any::<[u64; 2]>(),
            any::<bool>(),
            prop_oneof![Just(Level::A), Just(Level::B), Just(Level::C)]
        )
            .prop_map(
                |(stamp, [g, lineage], member, level)| Frame::Attach(Attach {
                    stamp,
                    generation: Gen(g),
                    member,
                    lineage,
                    level
                })
            ),
        (stamp(), seq(), range(), any::<bool>(), any::<u8>()).prop_map(
            |(stamp, seq, range, fua, fill)| {
                Frame::Write {
                    stamp,
                    seq,
                    range,
                    fua,
                    data: with_data(range, fill),
                }
            }
        ),
        (stamp(), seq(), range(), any::<bool>()).prop_map(|(stamp, seq, range, fua)| Frame::Zero {
            stamp,
            seq,
            range,
            fua
        }),
        (stamp(), seq(), set()).prop_map(|(stamp, upto, set)| Frame::Close { stamp, upto, set }),
        (stamp(), ranges(), set()).prop_map(|(stamp, ranges, set)| Frame::Reconciled {
            stamp,
            ranges,
            set
        }),
        (stamp(), any::<u64>()).prop_map(|(stamp, token)| Frame::Flush { stamp, token }),
        (stamp(), any::<u64>(), bitmaps).prop_map(|(stamp, token, bitmaps)| Frame::Cut {
            stamp,
            token,
            bitmaps
        }),
        (stamp(), node()).prop_map(|(stamp, node)| Frame::Grown { stamp, node }),
        (stamp(), node(), ranges()).prop_map(|(stamp, node, ranges)| Frame::Synced {
            stamp,
            node,
            ranges
        }),
        (stamp(), ranges(), any::<u64>()).prop_map(|(stamp, report, log)| Frame::Attached {
            stamp,
            report,
            log
        }),
        (stamp(), seq(), any::<u64>()).prop_map(|(stamp, seq, log)| Frame::Ack { stamp, seq, log }),
        (stamp(), any::<[u64; 2]>()).prop_map(|(stamp, [token, log])| Frame::Flushed {
            stamp,
            token,
            log
        }),
        (stamp(), any::<[u64; 2]>()).prop_map(|(stamp, [token, log])| Frame::CutDone {
            stamp,
            token,
            log
        }),
        (
            stamp(),
            prop::collection::btree_map(0..8u8, any::<[u64; 3]>(), 0..8)
        )
            .prop_map(|(stamp, map)| Frame::Seen {
                stamp,
                seen: map
                    .into_iter()
                    .map(|(n, [i, r, log])| (NodeId(n), seen(i, r, log)))
                    .collect(),
            }),
        (stamp(), any::<[u64; 2]>(), ranges()).prop_map(|(stamp, [keep, lost], ranges)| {
            Frame::Discard {
                stamp,
                keep,
                lost,
                ranges,
            }
        }),
        (stamp(), any::<bool>(), ".{0,40}").prop_map(|(stamp, done, text)| Frame::Discarded {
            stamp,
            done,
            text
        }),
        stamp().prop_map(|stamp| Frame::NeedClose { stamp }),
        (stamp(), any::<u64>(), range()).prop_map(|(stamp, token, range)| Frame::Read {
            stamp,
            token,
            range
        }),
        (stamp(), any::<u64>(), range(), any::<Option<u8>>()).prop_map(
            |(stamp, token, range, fill)| {
                Frame::ReadDone {
                    stamp,
                    token,
                    range,
                    data: fill.map(|fill| with_data(range, fill)),
                }
            }
        ),
    ]
}

/// Any frame of the bulk lane.
fn bulk_lane() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (stamp(), any::<u64>(), range(), any::<Option<u8>>()).prop_map(
            |(stamp, token, range, fill)| {
                Frame::Resync {
                    stamp,
                    token,
                    range,
                    data: fill.map(|fill| with_data(range, fill)),
                }
            }
        ),
        (stamp(), any::<[u64; 2]>()).prop_map(|(stamp, [token, log])| Frame::Resynced {
            stamp,
            token,
            log
        }),
        (stamp(), any::<u64>(), range()).prop_map(|(stamp, token, range)| Frame::Hash {
            stamp,
            token,
            range
        }),
        (
            stamp(),
            any::<u64>(),
            prop::collection::vec(any::<u128>(), 0..10)
        )
            .prop_map(|(stamp, token, hashes)| Frame::Hashes {
                stamp,
                token,
                hashes
            }),
        (stamp(), any::<u64>(), range()).prop_map(|(stamp, token, range)| Frame::Fetch {
            stamp,
            token,
            range
        }),
        (stamp(), any::<u64>(), range(), any::<u8>()).prop_map(|(stamp, token, range, fill)| {
            Frame::Fetched {
                stamp,
                token,
                range,
                data: with_data(range, fill),
            }
        }),
    ]
}

/// Any frame.
fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![3 => write_lane(), 1 => bulk_lane()]
}

/// One frame of each kind, two where a kind has two shapes; with names for the golden files.
fn samples() -> Vec<(&'static str, Frame)> {
    let stamp = Stamp {
        epoch: Epoch(0x0102_0304_0506_0708),
        session: SessionId(0x2122_2324_2526_2728),
    };
    let seq = Seq(0x3132_3334_3536_3738);
    let token = 0x4142_4344_4546_4748;
    let range = BlockRange::new(0x0102, 2);
    let set = NodeSet(0b1010_0101);
    let ranges = vec![BlockRange::new(3, 4), BlockRange::new(0x0203, 1)];
    let data = with_data(range, 0x80);
    vec![
        (
            "hello",
            Frame::Hello(Hello {
                node: NodeId(3),
                volume: VOLUME,
                geometry: GEOMETRY,
                incarnation: Incarnation(0x5152_5354_5556_5758),
                run: Run(0x6162),
                unclean: true,
                promised: Epoch(0x7172),
                disk: DiskState::Outdated,
                log_slots: 127,
                found: [0xa8, 0xa7, 0xa6, 0xa5, 0xa4, 0xa3, 0xa2, 0xa1],
                lineage: 0x9192,
            }),
        ),
        (
            "refuse-promised",
            Frame::Refuse {
                why: Refusal::Promised(Epoch(0x0102)),
            },
        ),
        ("refuse-gap", Frame::Refuse { why: Refusal::Gap }),
        (
            "refuse-no-disk",
            Frame::Refuse {
                why: Refusal::NoDisk,
            },
        ),
        (
            "refuse-disk-failed",
            Frame::Refuse {
                why: Refusal::DiskFailed,
            },
        ),
        ("ping", Frame::Ping { token }),
        ("pong", Frame::Pong { token }),
        (
            "attach-member",
            Frame::Attach(Attach {
                stamp,
                generation: Gen(9),
                member: true,
                lineage: 0x9192,
                level: Level::C,
            }),
        ),
        (
            "attach-syncing",
            Frame::Attach(Attach {
                stamp,
                generation: Gen(9),
                member: false,
                lineage: 0x9192,
                level: Level::B,
            }),
        ),
        (
            "write",
            Frame::Write {
                stamp,
                seq,
                range,
                fua: false,
                data: data.clone(),
            },
        ),
        (
            "write-fua",
            Frame::Write {
                stamp,
                seq,
                range,
                fua: true,
                data: data.clone(),
            },
        ),
        (
            "zero",
            Frame::Zero {
                stamp,
                seq,
                range,
                fua: true,
            },
        ),
        (
            "close",
            Frame::Close {
                stamp,
                upto: seq,
                set,
            },
        ),
        (
            "reconciled",
            Frame::Reconciled {
                stamp,
                ranges: ranges.clone(),
                set,
            },
        ),
        ("flush", Frame::Flush { stamp, token }),
        (
            "cut",
            Frame::Cut {
                stamp,
                token,
                bitmaps: vec![(NodeId(2), ranges.clone()), (NodeId(5), vec![range])],
            },
        ),
        (
            "grown",
            Frame::Grown {
                stamp,
                node: NodeId(6),
            },
        ),
        (
            "attached",
            Frame::Attached {
                stamp,
                report: ranges.clone(),
                log: 0x8182,
            },
        ),
        (
            "ack",
            Frame::Ack {
                stamp,
                seq,
                log: 0x8182,
            },
        ),
        (
            "flushed",
            Frame::Flushed {
                stamp,
                token,
                log: 0x8182,
            },
        ),
        (
            "cut-done",
            Frame::CutDone {
                stamp,
                token,
                log: 0x8182,
            },
        ),
        (
            "seen",
            Frame::Seen {
                stamp,
                seen: vec![
                    (NodeId(0), seen(0x51, 0x52, 0x53)),
                    (NodeId(4), seen(0x61, 0x62, 0x63)),
                ],
            },
        ),
        (
            "discard",
            Frame::Discard {
                stamp,
                keep: 0x9192,
                lost: 0xa1a2,
                ranges: ranges.clone(),
            },
        ),
        (
            "discarded",
            Frame::Discarded {
                stamp,
                done: true,
                text: "saved".into(),
            },
        ),
        (
            "refuse-lineage",
            Frame::Refuse {
                why: Refusal::Lineage(0xa1a2),
            },
        ),
        (
            "synced",
            Frame::Synced {
                stamp,
                node: NodeId(5),
                ranges,
            },
        ),
        ("need-close", Frame::NeedClose { stamp }),
        (
            "resync",
            Frame::Resync {
                stamp,
                token,
                range,
                data: Some(data.clone()),
            },
        ),
        (
            "read",
            Frame::Read {
                stamp,
                token,
                range,
            },
        ),
        (
            "read-done",
            Frame::ReadDone {
                stamp,
                token,
                range,
                data: Some(data.clone()),
            },
        ),
        (
            "read-failed",
            Frame::ReadDone {
                stamp,
                token,
                range,
                data: None,
            },
        ),
        (
            "resync-zeroes",
            Frame::Resync {
                stamp,
                token,
                range,
                data: None,
            },
        ),
        (
            "resynced",
            Frame::Resynced {
                stamp,
                token,
                log: 0x8182,
            },
        ),
        (
            "hash",
            Frame::Hash {
                stamp,
                token,
                range,
            },
        ),
        (
            "hashes",
            Frame::Hashes {
                stamp,
                token,
                hashes: vec![1, u128::MAX - 2],
            },
        ),
        (
            "fetch",
            Frame::Fetch {
                stamp,
                token,
                range,
            },
        ),
        (
            "fetched",
            Frame::Fetched {
                stamp,
                token,
                range,
                data,
            },
        ),
    ]
}

#[test]
fn there_is_a_sample_of_every_kind() {
    let samples = samples();
    for kind in Kind::ALL {
        assert!(
            samples.iter().any(|(_, f)| Kind::of(f) == *kind),
            "no sample of {}",
            kind.name()
        );
        assert_eq!(Kind::of_code(*kind as u8), Some(*kind));
    }
}
