//! One lane to one peer: frames out, frames in, on a socket.
//!
//! Outgoing frames gather while a send is under way and leave together. Incoming bytes go through a
//! stream buffer, but for the rest of a large payload, which is received into its own aligned
//! buffer: that is the buffer the disk gets.

use super::READ_TURN_BYTES;
use bytes::Bytes;
use holdfast_types::{Geometry, VolumeId};
use holdfast_uring::{AlignedBuf, BufPool};
use holdfast_wire::codec::{Decoder, Encoder, HEADER_BYTES, Pending, WireError};
use holdfast_wire::{Frame, Lane as Kind};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

/// Bytes of the stream buffer of a lane.
const STREAM_BYTES: usize = 256 << 10;
/// The rest of a payload is received straight into its own buffer if it is at least this long.
const DIRECT_BYTES_MIN: usize = 32 << 10;
/// Longest gathered run of headers before it becomes a piece of its own, in bytes.
const HEADS_BYTES: usize = 64 << 10;

/// Why a lane is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaneError {
    #[error("the peer closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[from] Errno),
    #[error("{0}")]
    Wire(#[from] WireError),
}

/// A payload on its way in.
#[derive(Debug)]
enum Payload {
    /// Blocks, aligned for the disk.
    Blocks(AlignedBuf),
    /// A list.
    List(Vec<u8>),
}

impl Payload {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Blocks(b) => b,
            Self::List(b) => b,
        }
    }
    fn freeze(self) -> Bytes {
        match self {
            Self::Blocks(b) => b.freeze(),
            Self::List(b) => b.into(),
        }
    }
}

#[derive(Debug)]
struct Partial {
    payload: Payload,
    filled: usize,
}

/// One lane.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) socket: OwnedFd,
    /// A poll for incoming bytes is under way.
    pub(super) polling: bool,
    /// A send is under way, of so many bytes.
    pub(super) sending: Option<u64>,
    pool: BufPool,
    encoder: Encoder,
    heads: Vec<u8>,
    pieces: Vec<Bytes>,
    queued: u64,
    decoder: Decoder,
    stream: Box<[u8]>,
    start: usize,
    end: usize,
    partial: Option<Partial>,
}

impl Lane {
    pub(super) fn new(
        socket: OwnedFd,
        volume: VolumeId,
        geometry: Geometry,
        kind: Kind,
        pool: BufPool,
    ) -> Self {
        Self {
            socket,
            polling: false,
            sending: None,
            pool,
            encoder: Encoder::new(volume),
            heads: Vec::new(),
            pieces: Vec::new(),
            queued: 0,
            decoder: Decoder::new(volume, geometry, kind),
            stream: vec![0; STREAM_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            partial: None,
        }
    }

    pub(super) fn set_geometry(&mut self, geometry: Geometry) {
        self.decoder.set_geometry(geometry);
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Bytes not yet handed to the kernel.
    pub(super) fn queued(&self) -> u64 {
        self.queued + self.sending.unwrap_or(0)
    }

    /// Queues a frame.
    pub(super) fn push(&mut self, frame: &Frame) -> Result<(), WireError> {
        let before = self.heads.len();
        let data = self.encoder.encode_into(frame, &mut self.heads)?;
        self.queued += (self.heads.len() - before) as u64;
        if let Some(data) = data {
            self.queued += data.len() as u64;
            self.close_heads();
            self.pieces.push(data);
        } else if self.heads.len() >= HEADS_BYTES {
            self.close_heads();
        }
        Ok(())
    }

    fn close_heads(&mut self) {
        if !self.heads.is_empty() {
            self.pieces.push(std::mem::take(&mut self.heads).into());
        }
    }

    /// All that is queued, if anything is and no send is under way.
    pub(super) fn take_output(&mut self) -> Option<Vec<Bytes>> {
        if self.sending.is_some() || self.queued == 0 {
            return None;
        }
        self.close_heads();
        self.sending = Some(self.queued);
        self.queued = 0;
        Some(std::mem::take(&mut self.pieces))
    }

    /// Forgets what is queued: the lane is muted.
    pub(super) fn drop_output(&mut self) {
        self.heads.clear();
        self.pieces.clear();
        self.queued = 0;
    }

    /// Receives what is there, up to a turn's worth, and adds the whole frames to `frames`. True: more may be there.
    pub(super) fn receive(&mut self, frames: &mut Vec<Frame>) -> Result<bool, LaneError> {
        let mut turn = 0;
        while turn < READ_TURN_BYTES {
            let fd = self.socket.as_raw_fd();
            let (room, direct) = self.room();
            let wanted = room.len();
            let n = match recv(fd, room, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(LaneError::Closed),
                Ok(n) => n,
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            turn += n;
            if direct {
                if let Some(partial) = &mut self.partial {
                    partial.filled += n;
                }
            } else {
                self.end += n;
            }
            self.decode(frames)?;
            if n < wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where the next bytes go, and whether that is a payload's own buffer.
    fn room(&mut self) -> (&mut [u8], bool) {
        if let Some(p) = &mut self.partial {
            let (filled, bytes) = (p.filled, p.payload.bytes());
            if bytes.len() - filled >= DIRECT_BYTES_MIN {
                return (&mut bytes[filled..], true);
            }
        }
        // Everything was consumed but for an incomplete header or payload rest: cheap to move.
        self.stream.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        (&mut self.stream[self.end..], false)
    }

    fn decode(&mut self, frames: &mut Vec<Frame>) -> Result<(), LaneError> {
        loop {
            if let Some(p) = &mut self.partial {
                let (filled, bytes) = (p.filled, p.payload.bytes());
                let n = (bytes.len() - filled).min(self.end - self.start);
                bytes[filled..filled + n].copy_from_slice(&self.stream[self.start..self.start + n]);
                let whole = filled + n == bytes.len();
                p.filled += n;
                self.start += n;
                if !whole {
                    return Ok(());
                }
                let payload = self
                    .partial
                    .take()
                    .map_or_else(Bytes::new, |p| p.payload.freeze());
                frames.push(self.decoder.finish(payload)?);
                continue;
            }
            let Some(header) = self.stream[self.start..self.end].first_chunk::<HEADER_BYTES>()
            else {
                return Ok(());
            };
            let pending = self.decoder.header(header)?;
            self.start += HEADER_BYTES;
            if pending.payload_len == 0 {
                frames.push(self.decoder.finish(Bytes::new())?);
            } else {
                self.partial = Some(Partial {
                    payload: self.buffer(pending),
                    filled: 0,
                });
            }
        }
    }

    fn buffer(&self, pending: Pending) -> Payload {
        if pending.blocks
            && let Ok(buf) = self.pool.get(pending.payload_len)
        {
            return Payload::Blocks(buf);
        }
        Payload::List(vec![0; pending.payload_len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{BlockRange, Epoch, NodeId, Seq, SessionId};
    use holdfast_wire::Stamp;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    fn lane(socket: UnixStream, kind: Kind) -> Lane {
        Lane::new(
            socket.into(),
            VolumeId(7),
            Geometry::of_bytes(1 << 30),
            kind,
            BufPool::default(),
        )
    }

    fn write(seq: u64, blocks: u64) -> Frame {
        let data = vec![seq as u8; (blocks * 4096) as usize];
        Frame::Write {
            stamp: Stamp {
                epoch: Epoch(1),
                session: SessionId(2),
            },
            seq: Seq(seq),
            range: BlockRange::new(seq, blocks),
            fua: false,
            data: data.into(),
        }
    }

    /// Moves all of `from`'s output to `to`, in pieces of `step` bytes; the frames that come out.
    fn carry(from: &mut Lane, mut wire: &UnixStream, to: &mut Lane, step: usize) -> Vec<Frame> {
        let mut frames = Vec::new();
        let bytes: Vec<u8> = from.take_output().unwrap().concat();
        from.sending = None;
        for piece in bytes.chunks(step) {
            wire.write_all(piece).unwrap();
            while to.receive(&mut frames).unwrap() {}
        }
        frames
    }

    #[test]
    fn frames_survive_any_cut_of_the_stream() {
        for step in [1, 63, 64, 65, 4096, 100_000] {
            let (wire, end) = UnixStream::pair().unwrap();
            let (spare, _end2) = UnixStream::pair().unwrap();
            let (mut a, mut b) = (lane(spare, Kind::Write), lane(end, Kind::Write));
            let ack = Frame::Ack {
                log: 0,
                stamp: Stamp {
                    epoch: Epoch(1),
                    session: SessionId(2),
                },
                seq: Seq(9),
            };
            let sizes: &[u64] = if step < 64 { &[1, 2] } else { &[1, 64, 3] };
            let sent: Vec<Frame> = sizes
                .iter()
                .enumerate()
                .flat_map(|(i, &n)| [write(i as u64 + 1, n), ack.clone()])
                .chain([Frame::Reconciled {
                    stamp: Stamp {
                        epoch: Epoch(1),
                        session: SessionId(2),
                    },
                    ranges: vec![BlockRange::new(5, 6)],
                    set: [NodeId(1)].into_iter().collect(),
                }])
                .collect();
            sent.iter().for_each(|f| a.push(f).unwrap());
            assert!(a.queued() > 0);
            assert_eq!(carry(&mut a, &wire, &mut b, step), sent, "step {step}");
            assert_eq!(a.queued(), 0);
        }
    }

    #[test]
    fn blocks_arrive_aligned_for_the_disk() {
        let (wire, end) = UnixStream::pair().unwrap();
        let (spare, _end2) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (lane(spare, Kind::Write), lane(end, Kind::Write));
        a.push(&write(1, 4)).unwrap();
        let frames = carry(&mut a, &wire, &mut b, 1000);
        let [Frame::Write { data, .. }] = &frames[..] else {
            panic!("{frames:?}")
        };
        assert_eq!(data.as_ptr().align_offset(4096), 0);
    }

    #[test]
    fn rubbish_and_an_end_are_errors() {
        let (mut wire, end) = UnixStream::pair().unwrap();
        let mut b = lane(end, Kind::Write);
        wire.write_all(&[0x55; 64]).unwrap();
        assert!(matches!(
            b.receive(&mut Vec::new()),
            Err(LaneError::Wire(_))
        ));
        let (wire, end) = UnixStream::pair().unwrap();
        let mut b = lane(end, Kind::Bulk);
        assert!(!b.receive(&mut Vec::new()).unwrap());
        drop(wire);
        assert!(matches!(b.receive(&mut Vec::new()), Err(LaneError::Closed)));
    }
}
