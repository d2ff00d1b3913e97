//! Bytes of a record.
//!
//! ```text
//!    0  magic "HFRECORD"
//!    8  number            from 1
//!   16  client
//!   24  sequence          of that client, from 1
//!   32  clients known     count, as u64
//!   40  clients           64 x { client, sequence, number }: the last record of each, newest first
//! 1576  filler            a function of number, client and sequence
//! 4092  CRC-32 of all before
//! ```
//! All numbers little-endian.

/// Bytes of a record: one block.
pub(super) const RECORD_BYTES: usize = 4096;
/// Clients a record carries; beyond that the one silent for longest is forgotten.
pub(super) const CLIENTS_MAX: usize = 64;

const MAGIC: u64 = u64::from_le_bytes(*b"HFRECORD");
const CLIENT_BYTES: usize = 24;
const CLIENTS_AT: usize = 40;
const FILLER_AT: usize = CLIENTS_AT + CLIENTS_MAX * CLIENT_BYTES;
const CRC_AT: usize = RECORD_BYTES - 4;
const _: () = assert!(FILLER_AT == 1576 && FILLER_AT < CRC_AT);

/// What a client did last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) client: u64,
    pub(super) sequence: u64,
    /// Number of the record.
    pub(super) number: u64,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) client: u64,
    pub(super) sequence: u64,
    /// The last record of each client, this one first.
    pub(super) clients: Vec<Last>,
}

impl Record {
    /// Its bytes.
    pub(super) fn encode(&self) -> [u8; RECORD_BYTES] {
        assert!(self.clients.len() <= CLIENTS_MAX);
        let mut out = [0; RECORD_BYTES];
        let head = [
            MAGIC,
            self.number,
            self.client,
            self.sequence,
            self.clients.len() as u64,
        ];
        for (i, word) in head.into_iter().enumerate() {
            put(&mut out, i * 8, word);
        }
        for (i, last) in self.clients.iter().enumerate() {
            let at = CLIENTS_AT + i * CLIENT_BYTES;
            put(&mut out, at, last.client);
            put(&mut out, at + 8, last.sequence);
            put(&mut out, at + 16, last.number);
        }
        fill(
            &mut out[FILLER_AT..CRC_AT],
            self.number ^ self.client.rotate_left(32) ^ self.sequence.rotate_left(16),
        );
        let crc = crc32fast::hash(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The record with this number, if these are its bytes: `None` if any bit is not as it was written.
    pub(super) fn decode(bytes: &[u8], number: u64) -> Option<Self> {
        if bytes.len() != RECORD_BYTES || get(bytes, 0) != MAGIC || get(bytes, 8) != number {
            return None;
        }
        let crc = u32::from_le_bytes(bytes[CRC_AT..].try_into().ok()?);
        let known = usize::try_from(get(bytes, 32))
            .ok()
            .filter(|n| *n <= CLIENTS_MAX)?;
        if crc32fast::hash(&bytes[..CRC_AT]) != crc {
            return None;
        }
        let last = |i| {
            let at = CLIENTS_AT + i * CLIENT_BYTES;
            Last {
                client: get(bytes, at),
                sequence: get(bytes, at + 8),
                number: get(bytes, at + 16),
            }
        };
        let clients = (0..known).map(last).collect();
        Some(Self {
            number,
            client: get(bytes, 16),
            sequence: get(bytes, 24),
            clients,
        })
    }
}

fn put(out: &mut [u8], at: usize, word: u64) {
    out[at..at + 8].copy_from_slice(&word.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Incompressible, and different in every record, so that a block in the wrong place shows.
fn fill(out: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for chunk in out.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let clients = vec![
            Last {
                client: 7,
                sequence: 3,
                number: 9,
            },
            Last {
                client: 8,
                sequence: 6,
                number: 8,
            },
        ];
        Record {
            number: 9,
            client: 7,
            sequence: 3,
            clients,
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Record::decode(&record().encode(), 9), Some(record()));
        assert_eq!(Record::decode(&record().encode(), 8), None);
        assert_eq!(Record::decode(&[0; RECORD_BYTES], 0), None);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let good = record().encode();
        for bit in 0..RECORD_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&bad, 9), None, "bit {bit}");
        }
    }
}
