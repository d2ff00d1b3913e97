//! The log: finds its end, appends batches, remembers what each client did last.

use super::layout::{CLIENTS_MAX, Last, RECORD_BYTES, Record};
use super::medium::Medium;
use anyhow::{bail, ensure};

/// Records written at once at the most; so much may be torn by a crash.
pub(super) const BATCH_MAX: usize = 64;
/// Records read at once by a scan.
const SCAN_RECORDS: u64 = 256;

/// An append that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Append {
    pub(super) client: u64,
    pub(super) sequence: u64,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Appended {
    /// It is durable as this record.
    Number(u64),
    /// It does not follow the client's last sequence, which is this.
    Gap(u64),
    /// The medium is full.
    Full,
}

/// The log on its medium.
#[derive(Debug)]
pub(super) struct Log {
    medium: Box<dyn Medium>,
    count: u64,
    /// Newest first, at most [`CLIENTS_MAX`].
    clients: Vec<Last>,
}

impl Log {
    /// Finds the end, drops what a crash tore behind it, makes the rest durable.
    pub(super) fn open(mut medium: Box<dyn Medium>) -> anyhow::Result<Self> {
        // A killed server's last batch may be in the page cache only: what is read must be durable
        // before a retry of it is answered.
        medium.sync()?;
        let mut log = Self {
            medium,
            count: 0,
            clients: Vec::new(),
        };
        log.count = log.find_end()?;
        log.drop_torn()?;
        if log.count > 0 {
            log.clients = log.record(log.count)?.clients;
        }
        Ok(log)
    }

    /// How many records there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The record with this number, read and checked.
    pub(super) fn get(&mut self, number: u64) -> anyhow::Result<Option<Record>> {
        if number == 0 || number > self.count {
            return Ok(None);
        }
        self.read(number)
    }

    /// Reads and checks every record; the number of the first bad one, if there is one.
    pub(super) fn check(&mut self) -> anyhow::Result<Option<u64>> {
        let mut first = 1;
        while first <= self.count {
            let records = SCAN_RECORDS.min(self.count - first + 1);
            let bytes = self
                .medium
                .read(offset(first), records as usize * RECORD_BYTES)?;
            for (number, bytes) in (first..).zip(bytes.chunks(RECORD_BYTES)) {
                if Record::decode(bytes, number).is_none() {
                    return Ok(Some(number));
                }
            }
            first += records;
        }
        Ok(None)
    }

    /// Appends what is new among `batch`, durably, and says what became of each, in order.
    pub(super) fn append(&mut self, batch: &[Append]) -> anyhow::Result<Vec<Appended>> {
        ensure!(
            batch.len() <= BATCH_MAX,
            "a batch of {} records, at most {BATCH_MAX}",
            batch.len()
        );
        let room = self.medium.capacity() / RECORD_BYTES as u64;
        let (mut count, mut clients) = (self.count, self.clients.clone());
        let mut bytes = Vec::new();
        let mut results = Vec::with_capacity(batch.len());
        for append in batch {
            let last = clients.iter().find(|c| c.client == append.client).copied();
            let sequence = last.map_or(0, |l| l.sequence);
            let result = match last {
                Some(last) if last.sequence == append.sequence => Appended::Number(last.number),
                _ if Some(append.sequence) != sequence.checked_add(1) => Appended::Gap(sequence),
                _ if count >= room => Appended::Full,
                _ => {
                    count += 1;
                    clients.retain(|c| c.client != append.client);
                    clients.insert(
                        0,
                        Last {
                            client: append.client,
                            sequence: append.sequence,
                            number: count,
                        },
                    );
                    clients.truncate(CLIENTS_MAX);
                    let Append { client, sequence } = *append;
                    let record = Record {
                        number: count,
                        client,
                        sequence,
                        clients: clients.clone(),
                    };
                    bytes.extend_from_slice(&record.encode());
                    Appended::Number(count)
                }
            };
            results.push(result);
        }
        if !bytes.is_empty() {
            self.medium.write(offset(self.count + 1), &bytes)?;
            (self.count, self.clients) = (count, clients);
        }
        Ok(results)
    }

    /// The last number of the prefix of good records. Records are written in order, so a good one
    /// means that those before it were good when it was written: halving finds an end, and a tear
    /// can only be among the last batch before it.
    fn find_end(&mut self) -> anyhow::Result<u64> {
        let (mut good, mut bad) = (0, 1);
        let room = self.medium.capacity() / RECORD_BYTES as u64;
        while bad <= room && self.read(bad)?.is_some() {
            (good, bad) = (bad, bad * 2);
        }
        bad = bad.min(room + 1);
        while good + 1 < bad {
            let middle = good + (bad - good) / 2;
            if self.read(middle)?.is_some() {
                good = middle;
            } else {
                bad = middle;
            }
        }
        let first = good.saturating_sub(BATCH_MAX as u64).max(1);
        for number in first..=good {
            if self.read(number)?.is_none() {
                return Ok(number - 1);
            }
        }
        Ok(good)
    }

    /// A crash may leave records of the last batch behind one that is torn. None was acknowledged;
    /// they are wiped, so that they cannot come back to life behind a later append. Good records
    /// further behind mean a hole in what was acknowledged: that is refused.
    fn drop_torn(&mut self) -> anyhow::Result<()> {
        let end = self.count;
        let room = self.medium.capacity() / RECORD_BYTES as u64;
        let window = (2 * BATCH_MAX as u64).min(room - end);
        let bytes = self
            .medium
            .read(offset(end + 1), window as usize * RECORD_BYTES)?;
        let good = |i: &usize| {
            Record::decode(
                &bytes[i * RECORD_BYTES..(i + 1) * RECORD_BYTES],
                end + 1 + *i as u64,
            )
            .is_some()
        };
        let last_good = (0..window as usize).rev().find(good);
        if let Some(i) = last_good {
            if i >= BATCH_MAX {
                bail!(
                    "record {} is bad, but record {} behind it is good: the log has a hole",
                    end + 1,
                    end + 1 + i as u64
                );
            }
            self.medium
                .write(offset(end + 1), &vec![0; (i + 1) * RECORD_BYTES])?;
        }
        Ok(())
    }

    fn read(&mut self, number: u64) -> anyhow::Result<Option<Record>> {
        Ok(Record::decode(
            &self.medium.read(offset(number), RECORD_BYTES)?,
            number,
        ))
    }

    fn record(&mut self, number: u64) -> anyhow::Result<Record> {
        match self.read(number)? {
            Some(record) => Ok(record),
            None => bail!("record {number} was good a moment ago and is bad now"),
        }
    }
}

fn offset(number: u64) -> u64 {
    (number - 1) * RECORD_BYTES as u64
}
