//! What a server offers: named exports of fixed size.

use super::proto::{STRING_BYTES_MAX, tflag};

/// One export: a volume under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Name clients ask for, `resource/volume`.
    pub name: String,
    /// A text for people, shown by `nbdinfo`.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Refuse writes.
    pub read_only: bool,
}

impl Export {
    /// A writable export without description.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            size,
            read_only: false,
        }
    }

    /// The transmission flags announced for it.
    pub fn transmission_flags(&self) -> u16 {
        let common = tflag::HAS_FLAGS
            | tflag::SEND_FLUSH
            | tflag::SEND_FUA
            | tflag::SEND_DF
            | tflag::SEND_CACHE
            | tflag::CAN_MULTI_CONN;
        if self.read_only {
            common | tflag::READ_ONLY
        } else {
            common | tflag::SEND_TRIM | tflag::SEND_WRITE_ZEROES | tflag::SEND_FAST_ZERO
        }
    }
}

/// Why an export cannot be offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Two of the same name.
    #[error("two NBD exports are named {0:?}; give each volume its own name")]
    Duplicate(String),
    /// Name or description too long.
    #[error("NBD export name or description of {0} bytes; the protocol allows {STRING_BYTES_MAX}")]
    TooLong(usize),
    /// None at all.
    #[error("an NBD server needs at least one export")]
    Empty,
}

/// The exports of a server; the empty name means the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportTable(Vec<Export>);

impl ExportTable {
    /// A table of `exports`.
    pub fn new(exports: Vec<Export>) -> Result<Self, ExportError> {
        if exports.is_empty() {
            return Err(ExportError::Empty);
        }
        for (index, export) in exports.iter().enumerate() {
            let longest = export.name.len().max(export.description.len());
            if longest > STRING_BYTES_MAX {
                return Err(ExportError::TooLong(longest));
            }
            if exports[..index]
                .iter()
                .any(|other| other.name == export.name)
            {
                return Err(ExportError::Duplicate(export.name.clone()));
            }
        }
        Ok(Self(exports))
    }

    /// Index of the export a client calls `name`.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        if let Some(index) = self
            .0
            .iter()
            .position(|export| export.name.as_bytes() == name)
        {
            return Some(index);
        }
        name.is_empty().then_some(0)
    }

    /// Export number `index`.
    pub fn get(&self, index: usize) -> Option<&Export> {
        self.0.get(index)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Export> {
        self.0.iter()
    }
}
