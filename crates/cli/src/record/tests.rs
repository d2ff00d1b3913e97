//! The log over media that fail as crashes make them fail.

use super::layout::{CLIENTS_MAX, RECORD_BYTES, Record};
use super::log::{Append, Appended, BATCH_MAX, Log};
use super::medium::{FileMedium, Medium};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

/// Bytes in memory that outlive the log, with a limit and an error switch.
#[derive(Clone, Debug)]
struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    capacity: u64,
    broken: Arc<Mutex<bool>>,
}

impl Memory {
    fn new(records: u64) -> Self {
        let capacity = records * RECORD_BYTES as u64;
        Self {
            bytes: Arc::new(Mutex::new(vec![0; capacity as usize])),
            capacity,
            broken: Arc::default(),
        }
    }
    fn log(&self) -> anyhow::Result<Log> {
        Log::open(Box::new(self.clone()))
    }
    /// The bytes of one record.
    fn with(&self, number: u64, change: impl FnOnce(&mut [u8])) {
        let at = (number as usize - 1) * RECORD_BYTES;
        change(&mut self.bytes.lock().expect("lock")[at..at + RECORD_BYTES]);
    }
}

impl Medium for Memory {
    fn capacity(&self) -> u64 {
        self.capacity
    }
    fn read(&mut self, offset: u64, len: usize) -> anyhow::Result<Vec<u8>> {
        let bytes = self.bytes.lock().expect("lock");
        let from = (offset as usize).min(bytes.len());
        let to = (from + len).min(bytes.len());
        let mut out = bytes[from..to].to_vec();
        out.resize(len, 0);
        Ok(out)
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        anyhow::ensure!(!*self.broken.lock().expect("lock"), "broken");
        self.bytes.lock().expect("lock")[offset as usize..offset as usize + data.len()]
            .copy_from_slice(data);
        Ok(())
    }
    fn sync(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

fn append(client: u64, sequence: u64) -> Append {
    Append { client, sequence }
}

/// Appends one record for `client`.
fn add(log: &mut Log, client: u64, sequence: u64) -> Appended {
    log.append(&[append(client, sequence)]).expect("append")[0]
}

#[test]
fn the_end_is_found_at_every_length() {
    let memory = Memory::new(300);
    for n in 0..300 {
        let mut log = memory.log().expect("open");
        assert_eq!(log.count(), n);
        assert_eq!(log.check().expect("check"), None);
        assert_eq!(add(&mut log, 1, n + 1), Appended::Number(n + 1));
    }
    assert_eq!(
        add(&mut memory.log().expect("open"), 1, 301),
        Appended::Full
    );
}

#[test]
fn a_retry_gets_the_old_number_also_after_a_restart() {
    let memory = Memory::new(100);
    let mut log = memory.log().expect("open");
    assert_eq!(add(&mut log, 1, 1), Appended::Number(1));
    assert_eq!(add(&mut log, 2, 1), Appended::Number(2));
    assert_eq!(add(&mut log, 1, 1), Appended::Number(1));
    let mut log = memory.log().expect("open");
    assert_eq!(add(&mut log, 1, 1), Appended::Number(1));
    assert_eq!(add(&mut log, 2, 1), Appended::Number(2));
    assert_eq!(log.count(), 2);
}

#[test]
fn a_retry_in_the_same_batch_is_one_record() {
    let mut log = Memory::new(100).log().expect("open");
    let results = log
        .append(&[append(1, 1), append(1, 1), append(2, 1)])
        .expect("append");
    assert_eq!(
        results,
        [
            Appended::Number(1),
            Appended::Number(1),
            Appended::Number(2)
        ]
    );
    assert_eq!(log.count(), 2);
}

/// A client whose acknowledged record is not there is told so, and nothing is appended.
#[test]
fn sequences_must_follow() {
    let mut log = Memory::new(100).log().expect("open");
    assert_eq!(add(&mut log, 1, 2), Appended::Gap(0));
    assert_eq!(add(&mut log, 1, 1), Appended::Number(1));
    assert_eq!(add(&mut log, 1, 3), Appended::Gap(1));
    assert_eq!(add(&mut log, 1, 0), Appended::Gap(1));
    assert_eq!(log.count(), 1);
}

#[test]
fn the_client_silent_for_longest_is_forgotten() {
    let mut log = Memory::new(200).log().expect("open");
    for client in 0..=CLIENTS_MAX as u64 {
        add(&mut log, client, 1);
    }
    assert_eq!(
        add(&mut log, 0, 1),
        Appended::Number(CLIENTS_MAX as u64 + 2)
    );
    assert_eq!(
        add(&mut log, CLIENTS_MAX as u64, 1),
        Appended::Number(CLIENTS_MAX as u64 + 1)
    );
}

/// Whatever part of the last batch a crash tears, what was acknowledged before is there, and
/// records behind the tear never come back.
#[test]
fn a_torn_batch_is_dropped() {
    for torn in 0..8u64 {
        let memory = Memory::new(300);
        let mut log = memory.log().expect("open");
        for n in 1..=10 {
            add(&mut log, 1, n);
        }
        let batch: Vec<Append> = (0..8).map(|i| append(100 + i, 1)).collect();
        log.append(&batch).expect("append");
        memory.with(11 + torn, |bytes| bytes[2000..].fill(0));
        let mut log = memory.log().expect("open");
        assert_eq!(log.count(), 10 + torn);
        assert_eq!(log.check().expect("check"), None);
        // The next record fills the torn place; those behind it must not become part of the log.
        assert_eq!(add(&mut log, 1, 11), Appended::Number(11 + torn));
        assert_eq!(memory.log().expect("open").count(), 11 + torn);
    }
}

#[test]
fn a_hole_in_what_was_acknowledged_is_refused() {
    let memory = Memory::new(300);
    let mut log = memory.log().expect("open");
    for n in 1..=BATCH_MAX as u64 + 20 {
        add(&mut log, 1, n);
    }
    memory.with(2, |bytes| bytes[100] ^= 1);
    assert_eq!(log.check().expect("check"), Some(2));
    assert_eq!(log.get(2).expect("get"), None);
    let error = memory.log().expect_err("a hole");
    assert!(error.to_string().contains("the log has a hole"), "{error}");
}

#[test]
fn an_error_of_the_medium_is_an_error_and_changes_nothing() {
    let memory = Memory::new(10);
    let mut log = memory.log().expect("open");
    add(&mut log, 1, 1);
    *memory.broken.lock().expect("lock") = true;
    assert!(log.append(&[append(1, 2)]).is_err());
    assert_eq!(log.count(), 1);
}

#[test]
fn a_file_keeps_records_and_drops_a_torn_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("log");
    let open = || Log::open(Box::new(FileMedium::open(&path).expect("open"))).expect("open");
    let mut log = open();
    for n in 1..=5 {
        assert_eq!(add(&mut log, 9, n), Appended::Number(n));
    }
    drop(log);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("open");
    // Half of a sixth record reached the disk.
    let clients = Vec::new();
    let sixth = Record {
        number: 6,
        client: 9,
        sequence: 6,
        clients,
    }
    .encode();
    file.write_all_at(&sixth[..2048], 5 * RECORD_BYTES as u64)
        .expect("write");
    let mut log = open();
    assert_eq!(log.count(), 5);
    assert_eq!(
        log.get(5).expect("get").map(|r| (r.client, r.sequence)),
        Some((9, 5))
    );
    assert_eq!(add(&mut log, 9, 6), Appended::Number(6));
    assert_eq!(open().count(), 6);
}
