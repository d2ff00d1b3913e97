//! Tests of the server session: transcripts, limits, and bytes nobody in his right mind sends.

mod commands;
mod handshake;
mod robust;

use super::proto::{
    NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, cflag, cmd, opt, tflag,
};
use super::{Close, Export, ExportTable, HeapAlloc, NbdError, Request, Session};
use crate::frontend::Op;
use bytes::{BufMut, Bytes};
use std::sync::Arc;

/// Size of the first export of the tests in bytes.
const SIZE: u64 = 1 << 20;

fn exports() -> Arc<ExportTable> {
    let mut first = Export::new("db/data", SIZE);
    first.description = "the first".to_owned();
    let mut second = Export::new("ro", 12_345);
    second.read_only = true;
    let huge = Export::new("huge", 1 << 40);
    Arc::new(ExportTable::new(vec![first, second, huge]).expect("distinct names"))
}

/// A session with a memory of what it has sent.
struct Wire {
    session: Session,
    sent: Vec<u8>,
}

impl Wire {
    /// Greeting read, client flags sent.
    fn new() -> Self {
        let mut wire = Self::raw();
        assert_eq!(wire.take(), greeting());
        assert_eq!(wire.feed(&3u32.to_be_bytes()), Ok(vec![]));
        wire
    }

    fn raw() -> Self {
        Self {
            session: Session::new(exports(), HeapAlloc),
            sent: Vec::new(),
        }
    }

    /// In the transmission phase of `export`.
    fn ready(export: &str, structured: bool, context: bool) -> Self {
        let mut wire = Self::new();
        if structured {
            wire.option(opt::STRUCTURED_REPLY, &[]);
        }
        if context {
            wire.option(
                opt::SET_META_CONTEXT,
                &queries(export, &[b"base:allocation"]),
            );
        }
        wire.option(opt::GO, &go(export, &[]));
        wire.take();
        assert!(wire.session.export().is_some());
        wire
    }

    /// Feed all of `bytes`; the requests that came of it. Stops early under back-pressure.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<Vec<Request>, Close> {
        let mut requests = Vec::new();
        loop {
            let n = self.session.receive(bytes);
            let n = if bytes.is_empty() { 0 } else { n? };
            bytes = &bytes[n..];
            while let Some(request) = self.session.next_request()? {
                requests.push(request);
            }
            if n == 0 {
                return Ok(requests);
            }
        }
    }

    /// Everything sent since the last call.
    fn take(&mut self) -> Vec<u8> {
        let mut chunks = Vec::new();
        self.session.take_output(&mut chunks);
        for chunk in chunks {
            self.sent.extend_from_slice(&chunk);
        }
        std::mem::take(&mut self.sent)
    }

    /// Send an option and take the replies to it: type and data of each.
    fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        assert_eq!(self.feed(&option_bytes(option, data)), Ok(vec![]));
        let sent = self.take();
        option_replies(&sent, option)
    }

    /// Send a request, expect it to be answered at once by these bytes.
    fn refused(&mut self, bytes: &[u8]) -> Vec<u8> {
        assert_eq!(self.feed(bytes), Ok(vec![]));
        self.take()
    }

    /// Send a request, expect it to be handed on, answer it so, and return what was sent.
    fn served(&mut self, bytes: &[u8], op: Op, result: Result<&[u8], NbdError>) -> Vec<u8> {
        let requests = self.feed(bytes).expect("well-formed");
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].op, op);
        self.session
            .reply(requests[0].cookie, result.map(Bytes::copy_from_slice));
        self.take()
    }
}

fn greeting() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u64(NBD_MAGIC);
    bytes.put_u64(OPTION_MAGIC);
    bytes.put_u16(3);
    bytes
}

fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u64(OPTION_MAGIC);
    bytes.put_u32(option);
    bytes.put_u32(data.len() as u32);
    bytes.put_slice(data);
    bytes
}

fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32(name.len() as u32);
    bytes.put_slice(name.as_bytes());
    bytes.put_u16(infos.len() as u16);
    for info in infos {
        bytes.put_u16(*info);
    }
    bytes
}

fn queries(name: &str, queries: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32(name.len() as u32);
    bytes.put_slice(name.as_bytes());
    bytes.put_u32(queries.len() as u32);
    for query in queries {
        bytes.put_u32(query.len() as u32);
        bytes.put_slice(query);
    }
    bytes
}

fn option_replies(mut sent: &[u8], option: u32) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !sent.is_empty() {
        let (head, rest) = sent
            .split_first_chunk::<20>()
            .expect("a whole reply header");
        assert_eq!(head[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        assert_eq!(head[8..12], option.to_be_bytes());
        let kind = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
        let len = u32::from_be_bytes([head[16], head[17], head[18], head[19]]) as usize;
        replies.push((kind, rest[..len].to_vec()));
        sent = &rest[len..];
    }
    replies
}

/// A request without payload.
fn request(flags: u16, command: u16, handle: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32(REQUEST_MAGIC);
    bytes.put_u16(flags);
    bytes.put_u16(command);
    bytes.put_u64(handle);
    bytes.put_u64(offset);
    bytes.put_u32(len);
    bytes
}

fn write(flags: u16, handle: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = request(flags, cmd::WRITE, handle, offset, data.len() as u32);
    bytes.extend_from_slice(data);
    bytes
}

fn simple(error: u32, handle: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x67, 0x44, 0x66, 0x98];
    bytes.put_u32(error);
    bytes.put_u64(handle);
    bytes.put_slice(data);
    bytes
}

fn chunk(kind: u16, handle: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x66, 0x8e, 0x33, 0xef, 0, 1];
    bytes.put_u16(kind);
    bytes.put_u64(handle);
    bytes.put_u32(data.len() as u32);
    bytes.put_slice(data);
    bytes
}

fn error_chunk(error: NbdError, handle: u64) -> Vec<u8> {
    let text = error.to_string();
    let mut data = Vec::new();
    data.put_u32(error.code());
    data.put_u16(text.len() as u16);
    data.put_slice(text.as_bytes());
    chunk(0x8001, handle, &data)
}
