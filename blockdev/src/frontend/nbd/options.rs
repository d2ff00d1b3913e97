//! The handshake: client flags and options. Option data is looked at inside the stream buffer and
//! never copied; what is malformed gets an error reply and the next option still parses.

use super::export::ExportTable;
use super::proto::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, OPTION_HEADER_BYTES,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, STRING_BYTES_MAX, info, opt, rep,
};
use super::session::{Close, Phase, Session};
use super::stream::{Fields, RecvAlloc};
use super::{OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, OPTIONS_PER_SESSION_MAX};
use crate::frontend::{PREFERRED_BLOCK_BYTES, REQUEST_BYTES_MAX};
use bytes::{BufMut, BytesMut};
use std::sync::Arc;

/// Zero bytes after EXPORT_NAME for clients that did not decline them.
const EXPORT_NAME_ZEROES: usize = 124;
/// Smallest request a client may send: any byte may be addressed.
const MIN_BLOCK_BYTES: u32 = 1;

/// What an option does to the session once its replies are written.
enum After {
    Stay,
    Structured,
    Context(Option<usize>),
    Start(usize),
    End,
}

impl<A: RecvAlloc> Session<A> {
    /// One step of the handshake; false if more bytes are needed.
    pub(super) fn handshake_step(&mut self) -> Result<bool, Close> {
        match self.phase {
            Phase::ClientFlags => self.client_flags(),
            Phase::SkipOption {
                left,
                option,
                reply,
                text,
            } => Ok(self.skip_option(left, option, reply, text)),
            _ => self.option(),
        }
    }

    fn client_flags(&mut self) -> Result<bool, Close> {
        let Some(bytes) = self.stream.peek::<4>() else {
            return Ok(false);
        };
        let flags = u32::from_be_bytes(*bytes);
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(Close::ClientFlags(flags));
        }
        self.stream.consume(4);
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        self.phase = Phase::Options;
        Ok(true)
    }

    fn skip_option(&mut self, left: u32, option: u32, reply: u32, text: &'static str) -> bool {
        let have = self.stream.data().len();
        let n = have.min(left as usize);
        self.stream.consume(n);
        let left = left - n as u32;
        if left > 0 {
            self.phase = Phase::SkipOption {
                left,
                option,
                reply,
                text,
            };
            return false;
        }
        put_reply(&mut self.heads, option, reply, text.as_bytes());
        self.phase = Phase::Options;
        true
    }

    fn option(&mut self) -> Result<bool, Close> {
        let Some(header) = self.stream.peek::<OPTION_HEADER_BYTES>() else {
            return Ok(false);
        };
        let mut fields = Fields(header);
        let (Some(magic), Some(option), Some(len)) = (fields.u64(), fields.u32(), fields.u32())
        else {
            return Ok(false);
        };
        if magic != OPTION_MAGIC {
            return Err(Close::BadMagic {
                found: magic,
                place: "IHAVEOPT of an option",
            });
        }
        if len > OPTION_SKIP_BYTES_MAX {
            return Err(Close::OptionTooLong { option, len });
        }
        let known = matches!(
            option,
            opt::EXPORT_NAME
                | opt::ABORT
                | opt::LIST
                | opt::INFO
                | opt::GO
                | opt::STRUCTURED_REPLY
                | opt::LIST_META_CONTEXT
                | opt::SET_META_CONTEXT
        );
        let total = OPTION_HEADER_BYTES + len as usize;
        if known && len <= OPTION_BYTES_MAX && self.stream.data().len() < total {
            return Ok(false);
        }
        self.options_seen += 1;
        if self.options_seen > OPTIONS_PER_SESSION_MAX {
            return Err(Close::TooManyOptions);
        }
        if !known || len > OPTION_BYTES_MAX {
            if option == opt::EXPORT_NAME {
                return Err(Close::UnknownExport(format!("(a name of {len} bytes)")));
            }
            let (reply, text) = if known {
                (rep::ERR_TOO_BIG, "option data too long")
            } else {
                (rep::ERR_UNSUP, "option not supported")
            };
            self.stream.consume(OPTION_HEADER_BYTES);
            self.phase = Phase::SkipOption {
                left: len,
                option,
                reply,
                text,
            };
            return Ok(true);
        }
        let exports = Arc::clone(&self.exports);
        let data = &self.stream.data()[OPTION_HEADER_BYTES..total];
        let out = &mut self.heads;
        let after = match option {
            opt::EXPORT_NAME => match exports.find(data) {
                Some(index) => After::Start(index),
                None => {
                    return Err(Close::UnknownExport(
                        String::from_utf8_lossy(data).into_owned(),
                    ));
                }
            },
            opt::ABORT => {
                put_reply(out, option, rep::ACK, &[]);
                After::End
            }
            opt::LIST => {
                list(out, &exports, data);
                After::Stay
            }
            opt::STRUCTURED_REPLY if data.is_empty() => {
                put_reply(out, option, rep::ACK, &[]);
                After::Structured
            }
            opt::STRUCTURED_REPLY => {
                put_reply(
                    out,
                    option,
                    rep::ERR_INVALID,
                    b"STRUCTURED_REPLY takes no data",
                );
                After::Stay
            }
            opt::INFO | opt::GO => match describe(out, &exports, option, data) {
                Some(index) if option == opt::GO => After::Start(index),
                _ => After::Stay,
            },
            _ => {
                let selected = meta_context(out, &exports, option, data, self.structured);
                if option == opt::SET_META_CONTEXT {
                    After::Context(selected)
                } else {
                    After::Stay
                }
            }
        };
        self.stream.consume(total);
        match after {
            After::Stay => {}
            After::Structured => self.structured = true,
            After::Context(selected) => self.context_of = selected,
            After::End => self.phase = Phase::Ending,
            After::Start(index) => self.start(index, option),
        }
        Ok(true)
    }

    /// The handshake is over.
    fn start(&mut self, index: usize, option: u32) {
        let Some(export) = self.exports.get(index).cloned() else {
            return;
        };
        if option == opt::EXPORT_NAME {
            self.heads.put_u64(export.size);
            self.heads.put_u16(export.transmission_flags());
            if !self.no_zeroes {
                self.heads.put_bytes(0, EXPORT_NAME_ZEROES);
            }
        }
        // A context selected for another export does not hold for this one.
        self.context_of = self.context_of.filter(|&of| of == index);
        self.export = Some((index, export));
        self.phase = Phase::Commands;
    }
}

fn put_reply(out: &mut BytesMut, option: u32, reply: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(reply);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
}

fn list(out: &mut BytesMut, exports: &ExportTable, data: &[u8]) {
    if !data.is_empty() {
        put_reply(out, opt::LIST, rep::ERR_INVALID, b"LIST takes no data");
        return;
    }
    for export in exports.iter() {
        let mut entry = BytesMut::new();
        entry.put_u32(export.name.len() as u32);
        entry.put_slice(export.name.as_bytes());
        entry.put_slice(export.description.as_bytes());
        put_reply(out, opt::LIST, rep::SERVER, &entry);
    }
    put_reply(out, opt::LIST, rep::ACK, &[]);
}

/// INFO and GO; the export's index if it was described.
fn describe(out: &mut BytesMut, exports: &ExportTable, option: u32, data: &[u8]) -> Option<usize> {
    let Some((name, wanted)) = parse_info(data) else {
        put_reply(out, option, rep::ERR_INVALID, b"malformed INFO or GO data");
        return None;
    };
    let found = exports
        .find(name)
        .and_then(|index| Some((index, exports.get(index)?)));
    let Some((index, export)) = found else {
        put_reply(out, option, rep::ERR_UNKNOWN, b"no such export");
        return None;
    };
    put_info(out, option, info::EXPORT, |reply| {
        reply.put_u64(export.size);
        reply.put_u16(export.transmission_flags());
    });
    let asked = |kind: u16| {
        wanted
            .chunks_exact(2)
            .any(|pair| pair == kind.to_be_bytes())
    };
    if asked(info::NAME) {
        put_info(out, option, info::NAME, |reply| {
            reply.put_slice(export.name.as_bytes())
        });
    }
    if asked(info::DESCRIPTION) && !export.description.is_empty() {
        put_info(out, option, info::DESCRIPTION, |reply| {
            reply.put_slice(export.description.as_bytes());
        });
    }
    if asked(info::BLOCK_SIZE) {
        put_info(out, option, info::BLOCK_SIZE, |reply| {
            reply.put_u32(MIN_BLOCK_BYTES);
            reply.put_u32(PREFERRED_BLOCK_BYTES);
            reply.put_u32(REQUEST_BYTES_MAX);
        });
    }
    put_reply(out, option, rep::ACK, &[]);
    Some(index)
}

fn put_info(out: &mut BytesMut, option: u32, kind: u16, fill: impl FnOnce(&mut BytesMut)) {
    let mut reply = BytesMut::new();
    reply.put_u16(kind);
    fill(&mut reply);
    put_reply(out, option, rep::INFO, &reply);
}

/// Name and the raw list of wanted kinds.
fn parse_info(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = Fields(data);
    let name = fields
        .string()
        .filter(|name| name.len() <= STRING_BYTES_MAX)?;
    let count = fields.u16()?;
    let wanted = fields.slice(usize::from(count) * 2)?;
    fields.is_empty().then_some((name, wanted))
}

/// LIST_META_CONTEXT and SET_META_CONTEXT; the export for which `base:allocation` is now selected.
fn meta_context(
    out: &mut BytesMut,
    exports: &ExportTable,
    option: u32,
    data: &[u8],
    structured: bool,
) -> Option<usize> {
    if !structured {
        put_reply(
            out,
            option,
            rep::ERR_INVALID,
            b"negotiate STRUCTURED_REPLY first",
        );
        return None;
    }
    let Some((name, queries)) = parse_queries(data) else {
        put_reply(
            out,
            option,
            rep::ERR_INVALID,
            b"malformed metadata context data",
        );
        return None;
    };
    let Some(index) = exports.find(name) else {
        put_reply(out, option, rep::ERR_UNKNOWN, b"no such export");
        return None;
    };
    let listing = option == opt::LIST_META_CONTEXT;
    // `base:` asks for everything in the namespace, which only LIST may do; no query at all too.
    let chosen = queries
        .clone()
        .any(|q| q == BASE_ALLOCATION || (listing && q == b"base:"))
        || (listing && queries.clone().next().is_none());
    if chosen {
        let id = if listing { 0 } else { BASE_ALLOCATION_ID };
        let mut reply = BytesMut::new();
        reply.put_u32(id);
        reply.put_slice(BASE_ALLOCATION);
        put_reply(out, option, rep::META_CONTEXT, &reply);
    }
    put_reply(out, option, rep::ACK, &[]);
    (chosen && !listing).then_some(index)
}

/// The export's name and its queries, checked to be well-formed to the last byte.
fn parse_queries(data: &[u8]) -> Option<(&[u8], impl Iterator<Item = &[u8]> + Clone)> {
    let mut fields = Fields(data);
    let name = fields
        .string()
        .filter(|name| name.len() <= STRING_BYTES_MAX)?;
    let count = fields.u32()?;
    let start = fields;
    for _ in 0..count {
        // Each query takes at least four bytes, so a wrong count ends here soon.
        fields
            .string()
            .filter(|query| query.len() <= STRING_BYTES_MAX)?;
    }
    let mut walk = start;
    fields
        .is_empty()
        .then(move || (name, std::iter::from_fn(move || walk.string())))
}
