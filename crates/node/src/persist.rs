//! The control plane's state file: two slots of fixed size, written in turn, each made durable before it is answered.
//!
//! Writing happens on a thread of its own, so that a slow disk delays only what depends on it. A write
//! that fails ends the daemon: a voter that cannot remember must not vote.

use holdfast_control::Ticket;
use holdfast_control::durable::{
    DurableError, SLOT_HEADER_BYTES, SLOT_PAYLOAD_BYTES_MAX, Slots, choose,
};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// Distance of the two slots in the file, in bytes.
const SLOT_BYTES: u64 = (SLOT_HEADER_BYTES + SLOT_PAYLOAD_BYTES_MAX).next_multiple_of(4096) as u64;

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// The system says no.
    #[error("cannot {what} the control state {}: {source}{}", path.display(), fix(source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: std::io::Error,
    },
    /// It is damaged.
    #[error("{}: {source}", path.display())]
    Durable {
        /// What.
        path: PathBuf,
        /// Why.
        source: DurableError,
    },
}

fn fix(e: &std::io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            ": make room there and start the daemon again; nothing is lost, this node just cannot vote meanwhile"
        }
        Some(libc::EROFS) => {
            ": the filesystem is read-only, look at the kernel's log for the reason"
        }
        _ => "",
    }
}

/// The open state file.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    file: File,
    slots: Slots,
}

impl StateFile {
    /// Opens it, or makes it with all the room it will ever need; the state it holds, if any.
    pub fn open(path: &Path) -> Result<(Self, Option<Vec<u8>>), PersistError> {
        let io = |what, source| PersistError::Io {
            what,
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| io("open", e))?;
        let len = file.metadata().map_err(|e| io("look at", e))?.len();
        let mut bytes = vec![0; 2 * SLOT_BYTES as usize];
        let there = len.min(2 * SLOT_BYTES) as usize;
        file.read_exact_at(&mut bytes[..there], 0)
            .map_err(|e| io("read", e))?;
        let (a, b) = bytes.split_at(SLOT_BYTES as usize);
        let (state, slots) = choose([a, b]).map_err(|source| PersistError::Durable {
            path: path.to_owned(),
            source,
        })?;
        if len < 2 * SLOT_BYTES {
            // Written, not just stretched: a disk that is full later must not stop a node that serves.
            file.write_all_at(&bytes[there..], len.min(2 * SLOT_BYTES))
                .map_err(|e| io("make room for", e))?;
            file.sync_all().map_err(|e| io("make room for", e))?;
            if let Some(dir) = path.parent() {
                File::open(dir)
                    .and_then(|d| d.sync_all())
                    .map_err(|e| io("make durable the name of", e))?;
            }
        }
        Ok((
            Self {
                path: path.to_owned(),
                file,
                slots,
            },
            state,
        ))
    }

    /// Replaces the older state.
    pub fn write(&mut self, payload: &[u8]) -> Result<(), PersistError> {
        let (slot, bytes) = self.slots.next(payload);
        assert!(
            bytes.len() as u64 <= SLOT_BYTES,
            "a state never reaches into the other slot"
        );
        self.file
            .write_all_at(&bytes, slot as u64 * SLOT_BYTES)
            .and_then(|()| self.file.sync_data())
            .map_err(|source| PersistError::Io {
                what: "write",
                path: self.path.clone(),
                source,
            })
    }

    /// Writes on a thread of its own, in order; `done` is called there for each, or once with the error that ends it.
    pub fn writer(
        mut self,
        done: impl Fn(Result<Ticket, PersistError>) + Send + 'static,
    ) -> std::io::Result<mpsc::Sender<(Ticket, Vec<u8>)>> {
        let (tx, rx) = mpsc::channel::<(Ticket, Vec<u8>)>();
        crate::vital::spawn("control state", move || {
            while let Ok((ticket, bytes)) = rx.recv() {
                match self.write(&bytes) {
                    Ok(()) => done(Ok(ticket)),
                    Err(e) => {
                        done(Err(e));
                        return;
                    }
                }
            }
        })?;
        Ok(tx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_state_is_found_again_and_a_torn_write_costs_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.state");
        let (mut f, state) = StateFile::open(&path).unwrap();
        assert_eq!(state, None);
        for n in 1..=5_u8 {
            f.write(&[n; 100]).unwrap();
        }
        drop(f);
        let (f, state) = StateFile::open(&path).unwrap();
        assert_eq!(state, Some(vec![5; 100]));
        // The fifth write went to slot 1.
        f.file.write_all_at(&[0xee; 40], SLOT_BYTES + 10).unwrap();
        let (_, state) = StateFile::open(&path).unwrap();
        assert_eq!(state, Some(vec![4; 100]));
        f.file.write_all_at(&[0xee; 40], 10).unwrap();
        let e = StateFile::open(&path).unwrap_err();
        assert!(e.to_string().contains("damaged"), "{e}");
    }

    #[test]
    fn a_full_disk_is_said_with_the_fix() {
        // Writes to this device fail as on a full disk.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut f = StateFile {
            path: "/dev/full".into(),
            file,
            slots: Slots::default(),
        };
        let text = f.write(b"x").unwrap_err().to_string();
        assert!(text.contains("make room"), "{text}");
    }

    #[test]
    fn the_writer_answers_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (f, _) = StateFile::open(&dir.path().join("s")).unwrap();
        let (tx, rx) = mpsc::channel();
        let writer = f.writer(move |r| tx.send(r.unwrap()).unwrap()).unwrap();
        for n in 1..=3 {
            writer.send((Ticket(n), vec![n as u8])).unwrap();
        }
        assert_eq!(
            (0..3).map(|_| rx.recv().unwrap().0).collect::<Vec<_>>(),
            [1, 2, 3]
        );
    }
}
