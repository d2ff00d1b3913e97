//! The transmission phase: requests in, replies out. What can be refused or answered without the
//! volume is answered here; a refused write's payload is skipped so that the stream stays in sync.

use super::DIRECT_BYTES_MIN;
use super::proto::{
    BASE_ALLOCATION_ID, NbdError, REQUEST_HEADER_BYTES, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, cflag, chunk, cmd,
};
use super::session::{Close, Pending, Phase, Request, Session, Step};
use super::stream::{Fields, RecvAlloc, RecvBuf};
use crate::frontend::{Op, REQUEST_BYTES_MAX};
use bytes::{BufMut, Bytes};

/// A request header.
#[derive(Clone, Copy, Debug)]
struct Header {
    flags: u16,
    command: u16,
    handle: u64,
    offset: u64,
    len: u32,
}

impl Header {
    fn fua(&self) -> bool {
        self.flags & cflag::FUA != 0
    }
}

impl<A: RecvAlloc> Session<A> {
    /// One step through the commands.
    pub(super) fn command_step(&mut self) -> Result<Step, Close> {
        match &mut self.phase {
            Phase::Payload {
                buf, filled, len, ..
            } => {
                // Away to be filled: nothing to do until it is back.
                let Some(room) = buf else {
                    return Ok(Step::Starved);
                };
                let data = self.stream.data();
                let n = data.len().min(*len - *filled);
                room.bytes_mut()[*filled..*filled + n].copy_from_slice(&data[..n]);
                *filled += n;
                let complete = *filled == *len;
                self.stream.consume(n);
                Ok(if complete {
                    self.finish_write()
                } else {
                    Step::Starved
                })
            }
            Phase::SkipPayload {
                left,
                handle,
                error,
            } => {
                let n = (self.stream.data().len() as u64).min(*left);
                *left -= n;
                let done = (*left == 0).then_some((*handle, *error));
                self.stream.consume(n as usize);
                let Some((handle, error)) = done else {
                    return Ok(Step::Starved);
                };
                self.phase = Phase::Commands;
                self.put_simple(handle, Err(error));
                Ok(Step::Progress)
            }
            _ => {
                let Some(header) = self.header()? else {
                    return Ok(Step::Starved);
                };
                Ok(self.command(header))
            }
        }
    }

    fn header(&mut self) -> Result<Option<Header>, Close> {
        let Some(bytes) = self.stream.peek::<REQUEST_HEADER_BYTES>() else {
            return Ok(None);
        };
        let mut fields = Fields(bytes);
        let magic = fields.u32();
        let parsed = (
            fields.u16(),
            fields.u16(),
            fields.u64(),
            fields.u64(),
            fields.u32(),
        );
        let (Some(flags), Some(command), Some(handle), Some(offset), Some(len)) = parsed else {
            return Ok(None);
        };
        if magic != Some(REQUEST_MAGIC) {
            let found = u64::from(magic.unwrap_or(0));
            return Err(Close::BadMagic {
                found,
                place: "the magic of a request",
            });
        }
        self.stream.consume(REQUEST_HEADER_BYTES);
        Ok(Some(Header {
            flags,
            command,
            handle,
            offset,
            len,
        }))
    }

    fn command(&mut self, header: Header) -> Step {
        if header.command == cmd::DISC {
            self.phase = Phase::Ending;
            return Step::Progress;
        }
        if header.command != cmd::WRITE {
            self.bulk = false;
        }
        if let Err(error) = self.check(&header) {
            return self.refuse(&header, error);
        }
        let Header {
            offset,
            len,
            handle,
            ..
        } = header;
        let fua = header.fua();
        let zero_len = len == 0 && header.command != cmd::FLUSH;
        match header.command {
            cmd::READ if zero_len => {
                let nothing = Pending {
                    handle,
                    read: Some((offset, 0)),
                    charge: 0,
                };
                self.put_reply(nothing, Ok(Bytes::new()));
                Step::Progress
            }
            cmd::BLOCK_STATUS => {
                self.put_all_data(handle, len);
                Step::Progress
            }
            cmd::READ => {
                let charge = u64::from(len);
                self.request(
                    Pending {
                        handle,
                        read: Some((offset, len)),
                        charge,
                    },
                    Op::Read { offset, len },
                )
            }
            // Without effect: prefetching is left to the page cache below, empty ranges to nobody.
            _ if header.command == cmd::CACHE || zero_len => {
                self.put_simple(handle, Ok(()));
                Step::Progress
            }
            cmd::WRITE => {
                let len = len as usize;
                self.bulk = len >= DIRECT_BYTES_MIN;
                let buf = Some(self.alloc.alloc(len));
                self.phase = Phase::Payload {
                    buf,
                    filled: 0,
                    len,
                    offset,
                    fua,
                    handle,
                };
                Step::Progress
            }
            cmd::FLUSH => self.request(
                Pending {
                    handle,
                    read: None,
                    charge: 0,
                },
                Op::Flush,
            ),
            // TRIM has zero semantics, so that replicas stay identical.
            command => {
                let keep = command == cmd::WRITE_ZEROES && header.flags & cflag::NO_HOLE != 0;
                let len = u64::from(len);
                let op = Op::Zero {
                    offset,
                    len,
                    fua,
                    may_punch: !keep,
                };
                self.request(
                    Pending {
                        handle,
                        read: None,
                        charge: 0,
                    },
                    op,
                )
            }
        }
    }

    /// Is the request one that can be done?
    fn check(&self, header: &Header) -> Result<(), NbdError> {
        let Some((index, export)) = &self.export else {
            return Err(NbdError::Invalid);
        };
        let allowed = match header.command {
            cmd::READ if self.structured => cflag::FUA | cflag::DF,
            cmd::READ | cmd::WRITE | cmd::FLUSH | cmd::TRIM | cmd::CACHE => cflag::FUA,
            cmd::WRITE_ZEROES => cflag::FUA | cflag::NO_HOLE | cflag::FAST_ZERO,
            cmd::BLOCK_STATUS => cflag::FUA | cflag::REQ_ONE,
            _ => return Err(NbdError::Invalid),
        };
        let changes = matches!(header.command, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES);
        if header.flags & !allowed != 0 {
            return Err(NbdError::Invalid);
        }
        if changes && export.read_only {
            return Err(NbdError::Perm);
        }
        if header.command == cmd::FLUSH {
            let plain = header.offset == 0 && header.len == 0;
            return if plain {
                Ok(())
            } else {
                Err(NbdError::Invalid)
            };
        }
        let end = header.offset.checked_add(u64::from(header.len));
        if end.is_none_or(|end| end > export.size) {
            let grows = matches!(header.command, cmd::WRITE | cmd::WRITE_ZEROES);
            return Err(if grows {
                NbdError::NoSpace
            } else {
                NbdError::Invalid
            });
        }
        match header.command {
            cmd::READ | cmd::WRITE if header.len > REQUEST_BYTES_MAX => Err(NbdError::Invalid),
            // Zeroing is not known to be faster than writing, and refusing is quick.
            cmd::WRITE_ZEROES if header.flags & cflag::FAST_ZERO != 0 => {
                Err(NbdError::NotSupported)
            }
            cmd::BLOCK_STATUS if self.context_of != Some(*index) || header.len == 0 => {
                Err(NbdError::Invalid)
            }
            _ => Ok(()),
        }
    }

    fn refuse(&mut self, header: &Header, error: NbdError) -> Step {
        let handle = header.handle;
        match header.command {
            cmd::WRITE => {
                let left = u64::from(header.len);
                self.phase = Phase::SkipPayload {
                    left,
                    handle,
                    error,
                };
            }
            cmd::READ | cmd::BLOCK_STATUS if self.structured => {
                self.put_error_chunk(handle, error);
            }
            _ => self.put_simple(handle, Err(error)),
        }
        Step::Progress
    }

    fn request(&mut self, pending: Pending, op: Op) -> Step {
        Step::Request(Request {
            cookie: self.open(pending),
            op,
        })
    }

    /// The payload is complete.
    fn finish_write(&mut self) -> Step {
        let phase = std::mem::replace(&mut self.phase, Phase::Commands);
        let Phase::Payload {
            buf: Some(buf),
            len,
            offset,
            fua,
            handle,
            ..
        } = phase
        else {
            return Step::Progress;
        };
        let data = buf.freeze();
        debug_assert_eq!(data.len(), len);
        self.request(
            Pending {
                handle,
                read: None,
                charge: len as u64,
            },
            Op::Write { offset, data, fua },
        )
    }

    /// The reply of an answered request.
    pub(super) fn put_reply(&mut self, pending: Pending, result: Result<Bytes, NbdError>) {
        let handle = pending.handle;
        let Some((offset, len)) = pending.read else {
            self.put_simple(handle, result.map(|_| ()));
            return;
        };
        // A read answered with another length would shift every later reply: an error instead.
        let result = result.and_then(|data| {
            if data.len() == len as usize {
                Ok(data)
            } else {
                Err(NbdError::Io)
            }
        });
        match result {
            Ok(data) if !self.structured => {
                self.put_simple(handle, Ok(()));
                if len > 0 {
                    self.put_payload(data);
                }
            }
            Err(error) if !self.structured => self.put_simple(handle, Err(error)),
            Ok(_) if len == 0 => self.put_chunk(chunk::NONE, handle, 0),
            Ok(data) => {
                // The offset counts as part of the chunk's payload.
                self.put_chunk(chunk::OFFSET_DATA, handle, 8 + len);
                self.heads.put_u64(offset);
                self.put_payload(data);
            }
            Err(error) => self.put_error_chunk(handle, error),
        }
    }

    fn put_simple(&mut self, handle: u64, result: Result<(), NbdError>) {
        self.heads.put_u32(SIMPLE_REPLY_MAGIC);
        self.heads.put_u32(result.err().map_or(0, NbdError::code));
        self.heads.put_u64(handle);
    }

    /// A chunk's header; every reply of ours is one chunk, so it is always the last.
    fn put_chunk(&mut self, kind: u16, handle: u64, len: u32) {
        self.heads.put_u32(STRUCTURED_REPLY_MAGIC);
        self.heads.put_u16(chunk::FLAG_DONE);
        self.heads.put_u16(kind);
        self.heads.put_u64(handle);
        self.heads.put_u32(len);
    }

    fn put_error_chunk(&mut self, handle: u64, error: NbdError) {
        let text = error.to_string();
        self.put_chunk(chunk::ERROR, handle, 6 + text.len() as u32);
        self.heads.put_u32(error.code());
        self.heads.put_u16(text.len() as u16);
        self.heads.put_slice(text.as_bytes());
    }

    /// One extent of `len` bytes, allocated and not known to be zero: always true.
    fn put_all_data(&mut self, handle: u64, len: u32) {
        self.put_chunk(chunk::BLOCK_STATUS, handle, 12);
        self.heads.put_u32(BASE_ALLOCATION_ID);
        self.heads.put_u32(len);
        self.heads.put_u32(0);
    }
}
