//! Activity-log transactions: each names the whole active set, so the newest whole one is all that counts.
//!
//! Transactions go round a ring by their number. A torn newest one falls back to its predecessor,
//! which is safe: a write starts only after the transaction that activates its extent is
//! durable, and a transaction that only drops extents has a predecessor that names more.

use crate::layout::LOG_TRANSACTIONS;
use crate::superblock::{COUNTER_MAX, u32_at, u64_at};
use crate::{Layout, MetaError};
use bytes::Bytes;
use holdfast_types::{Incarnation, Run};

const MAGIC: [u8; 4] = *b"HFAL";
/// Bytes before the extents: magic, checksum, number, incarnation, run, count, nothing.
pub(crate) const HEADER_BYTES: u32 = 40;
const HEADER: usize = HEADER_BYTES as usize;
/// The checksum covers what follows it.
const BODY_AT: usize = 8;

/// One state of the activity log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Grows by one with each; never used twice on one incarnation.
    pub number: u64,
    /// Of the disk it is on.
    pub incarnation: Incarnation,
    /// Of the daemon that wrote it.
    pub run: Run,
    /// All extents that may have writes in flight.
    pub active: Vec<u32>,
}

impl Transaction {
    /// Its page.
    pub fn encode(&self, page_bytes: u32) -> Result<Bytes, MetaError> {
        let max = Layout::log_slots_max(page_bytes);
        if self.active.len() > max as usize {
            return Err(MetaError::TooManyExtents {
                count: self.active.len(),
                max,
            });
        }
        let mut b = Vec::with_capacity(page_bytes as usize);
        b.extend_from_slice(&MAGIC);
        b.extend_from_slice(&[0; 4]);
        b.extend_from_slice(&self.number.to_le_bytes());
        b.extend_from_slice(&self.incarnation.0.to_le_bytes());
        b.extend_from_slice(&self.run.0.to_le_bytes());
        b.extend_from_slice(&(self.active.len() as u32).to_le_bytes());
        b.extend_from_slice(&[0; 4]);
        for extent in &self.active {
            b.extend_from_slice(&extent.to_le_bytes());
        }
        let crc = crc32fast::hash(&b[BODY_AT..]);
        b[4..BODY_AT].copy_from_slice(&crc.to_le_bytes());
        // What follows the extents is not checked: whatever a torn write leaves there means nothing.
        b.resize(page_bytes as usize, 0);
        Ok(b.into())
    }

    /// The transaction in a page, or `None` if there is no whole one.
    pub fn decode(page: &[u8]) -> Option<Self> {
        let header = page.get(..HEADER)?;
        if header[0..4] != MAGIC {
            return None;
        }
        let count = u32_at(header, 32) as usize;
        let end = count.checked_mul(4)?.checked_add(HEADER)?;
        let body = page.get(BODY_AT..end)?;
        if crc32fast::hash(body) != u32_at(header, 4) || u64_at(header, 8) > COUNTER_MAX {
            return None;
        }
        Some(Self {
            number: u64_at(header, 8),
            incarnation: Incarnation(u64_at(header, 16)),
            run: Run(u64_at(header, 24)),
            active: page[HEADER..end]
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&c| u32::from_le_bytes(c))
                .collect(),
        })
    }

    /// Offset and bytes of this transaction's write.
    pub fn write(&self, layout: &Layout) -> Result<(u64, Bytes), MetaError> {
        Ok((
            layout.transaction_offset(self.number),
            self.encode(layout.page_bytes)?,
        ))
    }
}

/// What the ring says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Number of the newest transaction that counts; the floor if there is none.
    pub number: u64,
    /// Run that wrote it.
    pub run: Option<Run>,
    /// Extents that may have had writes in flight.
    pub active: Vec<u32>,
}

/// The newest whole transaction of this incarnation above `floor`, from the ring's bytes.
pub fn recover_log(ring: &[u8], layout: &Layout, incarnation: Incarnation, floor: u64) -> LogState {
    ring.chunks(layout.page_bytes as usize)
        .take(LOG_TRANSACTIONS as usize)
        .enumerate()
        .filter_map(|(slot, page)| Some((slot as u64, Transaction::decode(page)?)))
        .filter(|(slot, t)| t.number % u64::from(LOG_TRANSACTIONS) == *slot)
        .filter(|(_, t)| t.incarnation == incarnation && t.number > floor)
        .max_by_key(|(_, t)| t.number)
        .map_or(
            LogState {
                number: floor,
                ..LogState::default()
            },
            |(_, t)| LogState {
                number: t.number,
                run: Some(t.run),
                active: t.active,
            },
        )
}
