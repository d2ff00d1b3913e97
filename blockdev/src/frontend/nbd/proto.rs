//! Numbers of the NBD protocol (fixed newstyle), as its specification names them, and our limits.

/// First eight bytes of a server: "NBDMAGIC".
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Newstyle marker and start of each option: "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of each option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of each simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of each structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag of server and client: options get replies.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of server and client: no 124 zero bytes after EXPORT_NAME.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Options a client may send.
pub mod opt {
    /// Choose an export, old way: no error reply.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// Name the exports.
    pub const LIST: u32 = 3;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and start.
    pub const GO: u32 = 7;
    /// Structured replies, please.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which metadata contexts are there?
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of option replies.
pub mod rep {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export.
    pub const SERVER: u32 = 2;
    /// A piece of information.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Option not known.
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    /// Option data malformed.
    pub const ERR_INVALID: u32 = 0x8000_0003;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    /// Option data too long.
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// Kinds of information in INFO and GO.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The export's name.
    pub const NAME: u16 = 1;
    /// A text about it.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod tflag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is known.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is known.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is known.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is known.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF is known.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush or FUA on one connection covers the answered writes of all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is known.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// FAST_ZERO is known.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub mod cmd {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// End the session; no reply.
    pub const DISC: u16 = 2;
    /// Make answered writes stable.
    pub const FLUSH: u16 = 3;
    /// The content is not needed any more.
    pub const TRIM: u16 = 4;
    /// Prefetch.
    pub const CACHE: u16 = 5;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask for metadata of a range.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags.
pub mod cflag {
    /// Stable before it is answered.
    pub const FUA: u16 = 1;
    /// Zeroes must be allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One chunk, please.
    pub const DF: u16 = 1 << 2;
    /// One extent, please.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Only if it is faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Structured reply chunks.
pub mod chunk {
    /// Flag: last chunk of the reply.
    pub const FLAG_DONE: u16 = 1;
    /// No content.
    pub const NONE: u16 = 0;
    /// Data of a read.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes of a read.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of a metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error with a text.
    pub const ERROR: u16 = (1 << 15) + 1;
    /// An error with a text and an offset.
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
}

/// The one metadata context there is.
pub const BASE_ALLOCATION: &[u8] = b"base:allocation";
/// Our number for it.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Bytes of a request header.
pub const REQUEST_HEADER_BYTES: usize = 28;
/// Bytes of an option header.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of a simple reply header.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a structured chunk header.
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Longest string of the protocol (export names, descriptions, queries) in bytes.
pub const STRING_BYTES_MAX: usize = 4096;

/// An error as NBD carries it; no other numbers ever leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NbdError {
    /// EPERM: the export is read-only.
    #[error("operation not permitted: the export is read-only")]
    Perm,
    /// EIO.
    #[error("input/output error")]
    Io,
    /// ENOMEM.
    #[error("out of memory on the server")]
    NoMemory,
    /// EINVAL: bad command, flag or range.
    #[error("invalid request")]
    Invalid,
    /// ENOSPC: a write past the end.
    #[error("no space: the request goes past the end of the export")]
    NoSpace,
    /// EOVERFLOW: too large for one chunk.
    #[error("value too large")]
    Overflow,
    /// ENOTSUP: zeroing would not be faster than writing.
    #[error("not supported: fast zeroing is not available")]
    NotSupported,
    /// ESHUTDOWN: the server is going away or is not the primary.
    #[error("the server is shutting down or is not the primary")]
    Shutdown,
}

impl NbdError {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }
    /// From the number on the wire; an unknown one counts as EINVAL, as the specification says.
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            _ => Self::Invalid,
        }
    }
}
