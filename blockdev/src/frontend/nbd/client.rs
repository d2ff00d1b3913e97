//! A small blocking NBD client over a unix or TCP socket, for the record server, the demo and tests.
//!
//! One request at a time by the plain calls; for depth, [`Client::send`] several and
//! [`Client::receive`] their answers in whatever order the server gives. After any error that is
//! not [`ClientError::Server`] or [`ClientError::Export`] the connection is out of step and of no
//! more use: make a new one. Reconnecting is the caller's business.

use super::proto::{
    CHUNK_HEADER_BYTES, NbdError, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, cflag,
    chunk, cmd,
};
use super::stream::Fields;
use crate::frontend::REQUEST_BYTES_MAX;
use bytes::{BufMut, BytesMut};
use std::collections::BTreeMap;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

mod handshake;

/// Longest option reply or error text accepted from a server, in bytes.
const REPLY_BYTES_MAX: u32 = 64 << 10;

/// Why a request or the connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket failed or timed out.
    #[error("NBD connection: {0}")]
    Io(#[from] io::Error),
    /// The server refused the request; the connection goes on.
    #[error("NBD server: {0}")]
    Server(NbdError),
    /// The server refused the export in the handshake.
    #[error("NBD export {name:?} refused by the server (reply {reply:#x}): {text}")]
    Export {
        /// Asked for.
        name: String,
        /// Type of the option reply.
        reply: u32,
        /// What the server said.
        text: String,
    },
    /// The server broke the protocol.
    #[error("NBD protocol: {0}")]
    Protocol(&'static str),
}

/// A request for [`Client::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientOp<'a> {
    /// Read `len` bytes.
    Read {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write `data`.
    Write {
        /// Byte offset.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
        /// Stable before it is answered.
        fua: bool,
    },
    /// Write zeroes.
    Zero {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Stable before it is answered.
        fua: bool,
        /// The space may be given back.
        may_punch: bool,
    },
    /// Trim.
    Trim {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Make answered writes stable.
    Flush,
}

/// An answer of [`Client::receive`].
#[derive(Debug)]
pub struct Answer {
    /// What [`Client::send`] returned.
    pub handle: u64,
    /// The bytes of a read, empty otherwise, or the server's error.
    pub result: Result<Vec<u8>, NbdError>,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.read(buf),
            Self::Tcp(socket) => socket.read(buf),
        }
    }
}

impl Socket {
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.write_vectored(bufs),
            Self::Tcp(socket) => socket.write_vectored(bufs),
        }
    }
}

/// How to open a connection.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Name of the export; empty for the server's first.
    pub export: String,
    /// Ask for structured replies.
    pub structured: bool,
    /// Longest wait for the connection and for any piece of an answer; `None` waits for ever.
    pub timeout: Option<Duration>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            export: String::new(),
            structured: true,
            timeout: None,
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    size: u64,
    flags: u16,
    structured: bool,
    next_handle: u64,
    /// Offset and number of the bytes each open request will answer with.
    open: BTreeMap<u64, (u64, u32)>,
}

impl Client {
    /// Connect to a unix socket.
    pub fn connect_unix(path: &Path, options: &ClientOptions) -> Result<Self, ClientError> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(options.timeout)?;
        socket.set_write_timeout(options.timeout)?;
        Self::handshake(Socket::Unix(socket), options)
    }

    /// Connect by TCP.
    pub fn connect_tcp(addr: SocketAddr, options: &ClientOptions) -> Result<Self, ClientError> {
        let socket = match options.timeout {
            Some(timeout) => TcpStream::connect_timeout(&addr, timeout)?,
            None => TcpStream::connect(addr)?,
        };
        socket.set_nodelay(true)?;
        socket.set_read_timeout(options.timeout)?;
        socket.set_write_timeout(options.timeout)?;
        Self::handshake(Socket::Tcp(socket), options)
    }

    /// Over a connected unix socket.
    pub fn over_unix(socket: UnixStream, options: &ClientOptions) -> Result<Self, ClientError> {
        socket.set_read_timeout(options.timeout)?;
        socket.set_write_timeout(options.timeout)?;
        Self::handshake(Socket::Unix(socket), options)
    }

    /// Change how long any piece of an answer may take.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(socket) => {
                socket.set_read_timeout(timeout)?;
                socket.set_write_timeout(timeout)
            }
            Socket::Tcp(socket) => {
                socket.set_read_timeout(timeout)?;
                socket.set_write_timeout(timeout)
            }
        }
    }

    /// Size of the export in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Transmission flags of the export (see [`super::proto::tflag`]).
    pub const fn flags(&self) -> u16 {
        self.flags
    }

    /// Requests sent and not yet answered.
    pub fn outstanding(&self) -> usize {
        self.open.len()
    }

    /// Read `len` bytes.
    pub fn read_at(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, ClientError> {
        self.call(ClientOp::Read { offset, len })
    }

    /// Write `data`.
    pub fn write_at(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        self.call(ClientOp::Write { offset, data, fua }).map(|_| ())
    }

    /// Make `len` bytes read as zero.
    pub fn zero(&mut self, offset: u64, len: u32, fua: bool) -> Result<(), ClientError> {
        self.call(ClientOp::Zero {
            offset,
            len,
            fua,
            may_punch: true,
        })
        .map(|_| ())
    }

    /// Trim `len` bytes.
    pub fn trim(&mut self, offset: u64, len: u32) -> Result<(), ClientError> {
        self.call(ClientOp::Trim { offset, len }).map(|_| ())
    }

    /// Make answered writes stable.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.call(ClientOp::Flush).map(|_| ())
    }

    /// Say goodbye. Answers still outstanding are not waited for.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        self.send_header(0, cmd::DISC, 0, 0, 0, &[])
    }

    /// Send a request without waiting; its handle comes back with its [`Answer`]. A sender that never
    /// receives will block when the sockets are full: keep the number outstanding bounded.
    pub fn send(&mut self, op: ClientOp<'_>) -> Result<u64, ClientError> {
        let handle = self.next_handle;
        self.next_handle += 1;
        let fua = |fua: bool| if fua { cflag::FUA } else { 0 };
        let mut expect = (0, 0);
        match op {
            ClientOp::Read { offset, len } => {
                if len > REQUEST_BYTES_MAX {
                    return Err(ClientError::Server(NbdError::Invalid));
                }
                expect = (offset, len);
                self.send_header(0, cmd::READ, handle, offset, len, &[])?;
            }
            ClientOp::Write {
                offset,
                data,
                fua: stable,
            } => {
                let len = u32::try_from(data.len())
                    .ok()
                    .filter(|&len| len <= REQUEST_BYTES_MAX);
                let len = len.ok_or(ClientError::Server(NbdError::Invalid))?;
                self.send_header(fua(stable), cmd::WRITE, handle, offset, len, data)?;
            }
            ClientOp::Zero {
                offset,
                len,
                fua: stable,
                may_punch,
            } => {
                let flags = fua(stable) | if may_punch { 0 } else { cflag::NO_HOLE };
                self.send_header(flags, cmd::WRITE_ZEROES, handle, offset, len, &[])?;
            }
            ClientOp::Trim { offset, len } => {
                self.send_header(0, cmd::TRIM, handle, offset, len, &[])?;
            }
            ClientOp::Flush => self.send_header(0, cmd::FLUSH, handle, 0, 0, &[])?,
        }
        self.open.insert(handle, expect);
        Ok(handle)
    }

    /// Wait for the next answer to anything sent.
    pub fn receive(&mut self) -> Result<Answer, ClientError> {
        let magic = u32::from_be_bytes(self.read_array()?);
        match magic {
            SIMPLE_REPLY_MAGIC => self.simple_reply(),
            STRUCTURED_REPLY_MAGIC if self.structured => self.structured_reply(),
            _ => Err(ClientError::Protocol("bad magic of a reply")),
        }
    }

    fn call(&mut self, op: ClientOp<'_>) -> Result<Vec<u8>, ClientError> {
        let handle = self.send(op)?;
        let answer = self.receive()?;
        if answer.handle != handle {
            return Err(ClientError::Protocol(
                "an answer to another request: receive what was sent before using plain calls",
            ));
        }
        answer.result.map_err(ClientError::Server)
    }

    fn simple_reply(&mut self) -> Result<Answer, ClientError> {
        let error = u32::from_be_bytes(self.read_array()?);
        let handle = u64::from_be_bytes(self.read_array()?);
        let (_, expect) = self.close(handle)?;
        if error != 0 {
            return Ok(Answer {
                handle,
                result: Err(NbdError::from_code(error)),
            });
        }
        let mut data = vec![0; expect as usize];
        self.socket.read_exact(&mut data)?;
        Ok(Answer {
            handle,
            result: Ok(data),
        })
    }

    /// Chunks of one reply up to the last; our own server sends one.
    fn structured_reply(&mut self) -> Result<Answer, ClientError> {
        // The magic is read already.
        let mut head: [u8; CHUNK_HEADER_BYTES - 4] = self.read_array()?;
        let mut data: Option<Vec<u8>> = None;
        let mut filled = 0u64;
        let mut error = None;
        let mut first = None;
        loop {
            let mut fields = Fields(&head);
            let parsed = (fields.u16(), fields.u16(), fields.u64(), fields.u32());
            let (Some(flags), Some(kind), Some(handle), Some(len)) = parsed else {
                return Err(ClientError::Protocol("short chunk header"));
            };
            if *first.get_or_insert(handle) != handle {
                return Err(ClientError::Protocol("chunks of two replies mixed"));
            }
            let Some(&(start, expect)) = self.open.get(&handle) else {
                return Err(ClientError::Protocol("a reply nobody waits for"));
            };
            match kind {
                chunk::NONE if len == 0 => {}
                chunk::OFFSET_DATA | chunk::OFFSET_HOLE => {
                    let data = data.get_or_insert_with(|| vec![0; expect as usize]);
                    filled += self.data_chunk(kind, len, start, data)?;
                }
                _ if kind & (1 << 15) != 0 && len <= REPLY_BYTES_MAX => {
                    let text = self.read_vec(len)?;
                    let code = Fields(&text).u32().unwrap_or(0);
                    error = Some(NbdError::from_code(code));
                }
                _ => return Err(ClientError::Protocol("unexpected chunk")),
            }
            if flags & chunk::FLAG_DONE != 0 {
                self.close(handle)?;
                let data = data.unwrap_or_default();
                if error.is_none() && filled != u64::from(expect) {
                    return Err(ClientError::Protocol("read answered incompletely"));
                }
                return Ok(Answer {
                    handle,
                    result: error.map_or(Ok(data), Err),
                });
            }
            let magic = u32::from_be_bytes(self.read_array()?);
            if magic != STRUCTURED_REPLY_MAGIC {
                return Err(ClientError::Protocol("bad magic of a chunk"));
            }
            head = self.read_array()?;
        }
    }

    /// Data or a hole of a read that began at `start`; how many bytes of it.
    fn data_chunk(
        &mut self,
        kind: u16,
        len: u32,
        start: u64,
        data: &mut [u8],
    ) -> Result<u64, ClientError> {
        let outside = || ClientError::Protocol("chunk outside of what was asked for");
        let offset = u64::from_be_bytes(self.read_array()?);
        let n = if kind == chunk::OFFSET_HOLE {
            u32::from_be_bytes(self.read_array()?)
        } else {
            len.checked_sub(8).ok_or_else(outside)?
        };
        let at = offset
            .checked_sub(start)
            .and_then(|at| usize::try_from(at).ok());
        let target = at
            .and_then(|at| Some(at..at.checked_add(n as usize)?))
            .and_then(|range| data.get_mut(range))
            .ok_or_else(outside)?;
        if kind == chunk::OFFSET_DATA {
            self.socket.read_exact(target)?;
        }
        Ok(u64::from(n))
    }

    fn close(&mut self, handle: u64) -> Result<(u64, u32), ClientError> {
        self.open
            .remove(&handle)
            .ok_or(ClientError::Protocol("a reply nobody waits for"))
    }

    fn send_header(
        &mut self,
        flags: u16,
        command: u16,
        handle: u64,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<(), ClientError> {
        let mut head = BytesMut::with_capacity(super::proto::REQUEST_HEADER_BYTES);
        head.put_u32(REQUEST_MAGIC);
        head.put_u16(flags);
        head.put_u16(command);
        head.put_u64(handle);
        head.put_u64(offset);
        head.put_u32(len);
        self.write_all(&head, data)
    }

    fn write_all(&mut self, mut head: &[u8], mut data: &[u8]) -> Result<(), ClientError> {
        while !head.is_empty() || !data.is_empty() {
            let n = match self
                .socket
                .write_vectored(&[IoSlice::new(head), IoSlice::new(data)])
            {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let of_head = n.min(head.len());
            head = &head[of_head..];
            data = &data[n - of_head..];
        }
        Ok(())
    }

    fn read_array<const N: usize>(&mut self) -> Result<[u8; N], ClientError> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn read_vec(&mut self, len: u32) -> Result<Vec<u8>, ClientError> {
        let mut bytes = vec![0; len as usize];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
