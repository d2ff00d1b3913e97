//! The client's half of the handshake: greeting, structured replies if wanted, GO.

use super::{Client, ClientError, ClientOptions, REPLY_BYTES_MAX, Socket};
use crate::frontend::nbd::proto::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, info, opt,
    rep,
};
use crate::frontend::nbd::stream::Fields;
use bytes::{BufMut, BytesMut};
use std::collections::BTreeMap;

/// Replies to one option, at the most.
const REPLIES_MAX: usize = 1024;

impl Client {
    pub(super) fn handshake(socket: Socket, options: &ClientOptions) -> Result<Self, ClientError> {
        let mut client = Self {
            socket,
            size: 0,
            flags: 0,
            structured: false,
            next_handle: 1,
            open: BTreeMap::new(),
        };
        if u64::from_be_bytes(client.read_array()?) != NBD_MAGIC
            || u64::from_be_bytes(client.read_array()?) != OPTION_MAGIC
        {
            return Err(ClientError::Protocol("the peer is no newstyle NBD server"));
        }
        let flags = u16::from_be_bytes(client.read_array()?);
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(ClientError::Protocol(
                "the server does not know fixed newstyle",
            ));
        }
        let echo = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        client.write_all(&echo.to_be_bytes(), &[])?;
        if options.structured {
            client.send_option(opt::STRUCTURED_REPLY, &[])?;
            // Refused: simple replies then.
            client.structured = client.option_reply(opt::STRUCTURED_REPLY)?.0 == rep::ACK;
        }
        client.go(&options.export)?;
        Ok(client)
    }

    fn go(&mut self, export: &str) -> Result<(), ClientError> {
        let mut data = BytesMut::new();
        data.put_u32(export.len() as u32);
        data.put_slice(export.as_bytes());
        data.put_u16(0);
        self.send_option(opt::GO, &data)?;
        let mut described = false;
        for _ in 0..REPLIES_MAX {
            let (reply, data) = self.option_reply(opt::GO)?;
            match reply {
                rep::INFO => {
                    let mut fields = Fields(&data);
                    if fields.u16() == Some(info::EXPORT) {
                        let (Some(size), Some(flags)) = (fields.u64(), fields.u16()) else {
                            return Err(ClientError::Protocol("short description of the export"));
                        };
                        (self.size, self.flags) = (size, flags);
                        described = true;
                    }
                }
                rep::ACK if described => return Ok(()),
                rep::ACK => return Err(ClientError::Protocol("GO without a description")),
                _ => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Err(ClientError::Export {
                        name: export.to_owned(),
                        reply,
                        text,
                    });
                }
            }
        }
        Err(ClientError::Protocol("endless replies to GO"))
    }

    fn send_option(&mut self, option: u32, data: &[u8]) -> Result<(), ClientError> {
        let mut head = BytesMut::new();
        head.put_u64(OPTION_MAGIC);
        head.put_u32(option);
        head.put_u32(data.len() as u32);
        self.write_all(&head, data)
    }

    /// Type and data of the next reply to `option`.
    fn option_reply(&mut self, option: u32) -> Result<(u32, Vec<u8>), ClientError> {
        if u64::from_be_bytes(self.read_array()?) != OPTION_REPLY_MAGIC {
            return Err(ClientError::Protocol("bad magic of an option reply"));
        }
        let answered = u32::from_be_bytes(self.read_array()?);
        let reply = u32::from_be_bytes(self.read_array()?);
        let len = u32::from_be_bytes(self.read_array()?);
        if answered != option || len > REPLY_BYTES_MAX {
            return Err(ClientError::Protocol(
                "option reply to another option, or too long",
            ));
        }
        Ok((reply, self.read_vec(len)?))
    }
}
