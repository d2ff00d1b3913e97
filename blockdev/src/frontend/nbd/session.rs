//! One NBD connection seen from the server, as a state machine without I/O.
//!
//! The loop that owns the socket drives it, always in this order:
//! 1. [`Session::take_target`], receive into it, and give it back by [`Session::received`] with the
//!    number of bytes that came. Large write payloads are targets themselves, so they are never
//!    copied. No target: back-pressure, do not read.
//! 2. call [`Session::next_request`] until it returns `None`; also after each batch of
//!    [`Session::reply`] and after [`Session::take_output`], since both lift back-pressure.
//! 3. when no send is under way: [`Session::take_output`] and send it, in order; when it is sent,
//!    look again, for more may have come meanwhile.
//! 4. when [`Session::finished`]: send what is left and close.
//!
//! Invariants
//! - nothing a client sends makes the session panic or hold more than [`STREAM_BYTES`], one payload
//!   being received, [`super::BYTES_PER_CONNECTION_MAX`] plus one request under way, and [`HEADS_BYTES_MAX`]
//!   of short replies plus those of one option;
//! - each [`Request`] lies inside its export; all others are answered here;
//! - a write whose payload did not arrive completely never becomes a [`Request`].

use super::export::{Export, ExportTable};
use super::proto::{FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, NBD_MAGIC, NbdError, OPTION_MAGIC};
use super::stream::{HeapAlloc, RecvAlloc, StreamBuf, Target};
use super::{
    BYTES_PER_CONNECTION_MAX, DIRECT_BYTES_MIN, HEADS_BYTES_MAX, REQUESTS_PER_CONNECTION_MAX,
    STREAM_BYTES,
};
use crate::frontend::Op;
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;
use std::sync::Arc;

/// Room asked of the stream after a large payload: enough for the next header, so that the next
/// large payload goes straight to its own buffer.
const HEADER_WINDOW_BYTES: usize = 4096;

/// Names a request of a session until its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u32);

/// A request to be done and answered by [`Session::reply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// For the reply.
    pub cookie: Cookie,
    /// What to do.
    pub op: Op,
}

/// Why a connection must be closed at once, without sending anything more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Close {
    /// The client closed its end.
    #[error("the NBD client closed the connection without a disconnect")]
    PeerClosed,
    /// The client does not speak fixed newstyle NBD, or lost its place in the stream.
    #[error("bad NBD magic {found:#x} where {place} was expected")]
    BadMagic {
        /// What came.
        found: u64,
        /// What should have come.
        place: &'static str,
    },
    /// A handshake flag nobody announced.
    #[error("unknown NBD client flags {0:#x}")]
    ClientFlags(u32),
    /// An option longer than anything real.
    #[error("NBD option {option} announces {len} bytes of data, at most {max} are skipped", max = super::OPTION_SKIP_BYTES_MAX)]
    OptionTooLong {
        /// Which.
        option: u32,
        /// Announced.
        len: u32,
    },
    /// A handshake without end.
    #[error("more than {max} NBD options in one handshake", max = super::OPTIONS_PER_SESSION_MAX)]
    TooManyOptions,
    /// EXPORT_NAME has no error reply.
    #[error("NBD export {0:?} does not exist (asked by EXPORT_NAME, which has no error reply)")]
    UnknownExport(String),
}

/// Where a session is.
pub(super) enum Phase<B> {
    /// Greeting sent, client flags not yet here.
    ClientFlags,
    /// Between options.
    Options,
    /// Skipping the data of an option, then this error reply.
    SkipOption {
        left: u32,
        option: u32,
        reply: u32,
        text: &'static str,
    },
    /// Between requests.
    Commands,
    /// Receiving the payload of a write.
    Payload {
        buf: Option<B>,
        filled: usize,
        len: usize,
        offset: u64,
        fua: bool,
        handle: u64,
    },
    /// Skipping the payload of a refused write, then this error.
    SkipPayload {
        left: u64,
        handle: u64,
        error: NbdError,
    },
    /// ABORT or DISC was heard: nothing more is read, replies still leave.
    Ending,
}

impl<B> Phase<B> {
    const fn name(&self) -> &'static str {
        match self {
            Self::ClientFlags => "client flags",
            Self::Options => "options",
            Self::SkipOption { .. } => "skipping an option",
            Self::Commands => "commands",
            Self::Payload { .. } => "receiving a payload",
            Self::SkipPayload { .. } => "skipping a payload",
            Self::Ending => "ending",
        }
    }
}

/// What has to be remembered of a request until its reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) handle: u64,
    /// Offset and length of a read.
    pub(super) read: Option<(u64, u32)>,
    /// Payload bytes it accounts for.
    pub(super) charge: u64,
}

/// One connection. See the head of the module for how to drive it.
pub struct Session<A: RecvAlloc = HeapAlloc> {
    pub(super) exports: Arc<ExportTable>,
    pub(super) alloc: A,
    pub(super) stream: StreamBuf<A::Buf>,
    pub(super) phase: Phase<A::Buf>,
    pub(super) no_zeroes: bool,
    pub(super) structured: bool,
    /// The export for which `base:allocation` was selected.
    pub(super) context_of: Option<usize>,
    pub(super) options_seen: u32,
    /// The export in use, set once by GO or EXPORT_NAME.
    pub(super) export: Option<(usize, Export)>,
    /// The last write was large: expect another.
    pub(super) bulk: bool,
    slots: Vec<Option<Pending>>,
    free: Vec<u32>,
    /// Payload bytes of requests not yet answered.
    charged: u64,
    /// Complete output chunks, then `heads`.
    output: Vec<Bytes>,
    pub(super) heads: BytesMut,
    heads_bytes: usize,
    payload_bytes: u64,
}

impl<A: RecvAlloc> fmt::Debug for Session<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("phase", &self.phase.name())
            .field(
                "export",
                &self.export.as_ref().map(|(_, export)| &export.name),
            )
            .field("structured", &self.structured)
            .field("outstanding", &self.outstanding())
            .field("charged", &self.charged)
            .finish_non_exhaustive()
    }
}

impl<A: RecvAlloc> Session<A> {
    /// A new connection; the greeting is ready to be sent.
    pub fn new(exports: Arc<ExportTable>, mut alloc: A) -> Self {
        let stream = StreamBuf::new(alloc.alloc(STREAM_BYTES));
        let mut session = Self {
            exports,
            alloc,
            stream,
            phase: Phase::ClientFlags,
            no_zeroes: false,
            structured: false,
            context_of: None,
            options_seen: 0,
            export: None,
            bulk: false,
            slots: Vec::new(),
            free: Vec::new(),
            charged: 0,
            output: Vec::new(),
            heads: BytesMut::new(),
            heads_bytes: 0,
            payload_bytes: 0,
        };
        session.heads.put_u64(NBD_MAGIC);
        session.heads.put_u64(OPTION_MAGIC);
        session.heads.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        session
    }

    /// Index of the export in use, once the handshake is over.
    pub fn export(&self) -> Option<usize> {
        self.export.as_ref().map(|(index, _)| *index)
    }

    /// Requests handed out and not answered.
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The client said goodbye and everything it asked for is answered: send the rest and close.
    pub fn finished(&self) -> bool {
        matches!(self.phase, Phase::Ending) && self.outstanding() == 0
    }

    /// Where to receive the next bytes; `None` means do not read now (one is out already,
    /// back-pressure, or ending): ask again after replies and after output was taken.
    pub fn take_target(&mut self) -> Option<Target<A::Buf>> {
        let congested = self.congested();
        let idle = self.stream.data().is_empty();
        match &mut self.phase {
            Phase::Ending => None,
            // All of a large payload, its end too: the next header comes by itself.
            Phase::Payload {
                buf, filled, len, ..
            } if *len >= DIRECT_BYTES_MIN && idle => {
                let buf = buf.take()?;
                Some(Target {
                    buf,
                    range: *filled..*len,
                    whole: true,
                })
            }
            Phase::Payload { .. } | Phase::SkipPayload { .. } => self.stream.take(STREAM_BYTES),
            _ if congested => None,
            _ => self.stream.take(if self.bulk {
                HEADER_WINDOW_BYTES
            } else {
                STREAM_BYTES
            }),
        }
    }

    /// `n` bytes came into the target that was taken; zero means the client closed its end.
    pub fn received(&mut self, target: Target<A::Buf>, n: usize) -> Result<(), Close> {
        assert!(
            n <= target.range.len(),
            "received more than the target holds"
        );
        match &mut self.phase {
            Phase::Payload { buf, filled, .. } if buf.is_none() => {
                *buf = Some(target.buf);
                *filled += n;
            }
            _ => self.stream.put_back(target.buf, n),
        }
        if n == 0 {
            Err(Close::PeerClosed)
        } else {
            Ok(())
        }
    }

    /// For callers that have the bytes already: copy as many as fit now; how many that were.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<usize, Close> {
        let Some(mut target) = self.take_target() else {
            return Ok(0);
        };
        let n = bytes.len().min(target.range.len());
        target.room()[..n].copy_from_slice(&bytes[..n]);
        self.received(target, n)?;
        Ok(n)
    }

    /// The next complete request, if there is one and the limits allow it.
    pub fn next_request(&mut self) -> Result<Option<Request>, Close> {
        loop {
            let waiting = matches!(
                self.phase,
                Phase::ClientFlags | Phase::Options | Phase::SkipOption { .. } | Phase::Commands
            );
            if waiting && self.congested() {
                return Ok(None);
            }
            let progress = match &self.phase {
                Phase::Ending => return Ok(None),
                Phase::ClientFlags | Phase::Options | Phase::SkipOption { .. } => {
                    self.handshake_step()?
                }
                Phase::Commands | Phase::Payload { .. } | Phase::SkipPayload { .. } => {
                    match self.command_step()? {
                        Step::Request(request) => return Ok(Some(request)),
                        Step::Progress => true,
                        Step::Starved => false,
                    }
                }
            };
            if !progress {
                return Ok(None);
            }
        }
    }

    /// Answer a request: the bytes of a read, empty otherwise.
    pub fn reply(&mut self, cookie: Cookie, result: Result<Bytes, NbdError>) {
        let slot = self.slots.get_mut(cookie.0 as usize).and_then(Option::take);
        debug_assert!(slot.is_some(), "reply to a request that is not open");
        let Some(pending) = slot else { return };
        self.free.push(cookie.0);
        self.charged -= pending.charge;
        self.put_reply(pending, result);
    }

    /// Move everything that is ready to be sent to the end of `out`; true if there was any. Call it
    /// only when what was taken before is sent: what waits here is what back-pressure counts.
    pub fn take_output(&mut self, out: &mut Vec<Bytes>) -> bool {
        self.close_heads();
        let any = !self.output.is_empty();
        out.append(&mut self.output);
        self.heads_bytes = 0;
        self.payload_bytes = 0;
        any
    }

    /// Something waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty() || !self.heads.is_empty()
    }

    /// Too much under way to take more.
    fn congested(&self) -> bool {
        self.outstanding() >= REQUESTS_PER_CONNECTION_MAX
            || self.charged + self.payload_bytes >= BYTES_PER_CONNECTION_MAX
            || self.heads_bytes + self.heads.len() >= HEADS_BYTES_MAX
    }

    /// Remember a request and name it.
    pub(super) fn open(&mut self, pending: Pending) -> Cookie {
        self.charged += pending.charge;
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(pending);
            return Cookie(slot);
        }
        self.slots.push(Some(pending));
        Cookie((self.slots.len() - 1) as u32)
    }

    /// A payload to be sent right after the heads written so far.
    pub(super) fn put_payload(&mut self, payload: Bytes) {
        self.close_heads();
        self.payload_bytes += payload.len() as u64;
        self.output.push(payload);
    }

    fn close_heads(&mut self) {
        if !self.heads.is_empty() {
            self.heads_bytes += self.heads.len();
            self.output.push(self.heads.split().freeze());
        }
    }
}

/// What one step through the commands did.
#[derive(Debug)]
pub(super) enum Step {
    /// A request for the loop.
    Request(Request),
    /// Something was consumed; go on.
    Progress,
    /// More bytes are needed.
    Starved,
}
