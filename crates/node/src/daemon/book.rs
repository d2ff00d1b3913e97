//! Which replicas this node has made: `replicas.json` in the state directory.
//!
//! It says what to open at the next start, before the cluster can be heard. The superblock on the
//! backing has the last word: what does not fit it is not opened.

use crate::claim::write_durably;
use holdfast_types::VolumeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its volume, in hex.
    volume: String,
    /// Where it is.
    pub backing: PathBuf,
    /// Where its metadata ends there, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<u64>,
}

impl Entry {
    /// Its volume.
    pub fn volume(&self) -> Option<VolumeId> {
        u64::from_str_radix(&self.volume, 16).ok().map(VolumeId)
    }
}

/// The book.
#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Book {
    /// Reads it; a missing one is empty.
    pub fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let path = state_dir.join("replicas.json");
        let entries = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                anyhow::anyhow!("{} is damaged ({e}): restore it, or remove it and create this node's replicas anew", path.display())
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => anyhow::bail!("cannot read {}: {e}", path.display()),
        };
        Ok(Self {
            path,
            entries: Mutex::new(entries),
        })
    }

    /// The replica of a volume.
    pub fn get(&self, resource: &str, volume: &str) -> Option<Entry> {
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key(resource, volume))
            .cloned()
    }

    /// Notes where a replica's metadata ends, durably.
    pub fn put_end(&self, resource: &str, volume: &str, end: u64) -> std::io::Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = entries.clone();
        match new.get_mut(&key(resource, volume)) {
            Some(entry) if entry.end != Some(end) => entry.end = Some(end),
            _ => return Ok(()),
        }
        let bytes = serde_json::to_vec_pretty(&new).map_err(std::io::Error::other)?;
        write_durably(&self.path, &bytes)?;
        *entries = new;
        Ok(())
    }

    /// The resource and volume whose replica is at this place.
    pub fn user_of(&self, backing: &Path) -> Option<(String, String)> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, _) = entries.iter().find(|(_, e)| e.backing == backing)?;
        let (resource, volume) = key.split_once('/')?;
        Some((resource.to_owned(), volume.to_owned()))
    }

    /// Strikes a replica out, durably.
    pub fn remove(&self, resource: &str, volume: &str) -> std::io::Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = entries.clone();
        if new.remove(&key(resource, volume)).is_none() {
            return Ok(());
        }
        let bytes = serde_json::to_vec_pretty(&new).map_err(std::io::Error::other)?;
        write_durably(&self.path, &bytes)?;
        *entries = new;
        Ok(())
    }

    /// Notes a replica, durably.
    pub fn put(
        &self,
        resource: &str,
        volume: &str,
        id: VolumeId,
        backing: &Path,
    ) -> std::io::Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry {
            volume: id.to_string(),
            backing: backing.to_owned(),
            end: None,
        };
        let mut new = entries.clone();
        new.insert(key(resource, volume), entry);
        let bytes = serde_json::to_vec_pretty(&new).map_err(std::io::Error::other)?;
        write_durably(&self.path, &bytes)?;
        *entries = new;
        Ok(())
    }
}

fn key(resource: &str, volume: &str) -> String {
    format!("{resource}/{volume}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        assert_eq!(book.get("r", "v"), None);
        book.put("r", "v", VolumeId(0xabc), Path::new("/b"))
            .unwrap();
        let entry = Book::open(dir.path()).unwrap().get("r", "v").unwrap();
        assert_eq!(
            (entry.volume(), entry.backing.as_path()),
            (Some(VolumeId(0xabc)), Path::new("/b"))
        );
        book.put_end("r", "v", 4096).unwrap();
        let end = Book::open(dir.path()).unwrap().get("r", "v").unwrap().end;
        assert_eq!(end, Some(4096));
        let user = ("r".to_owned(), "v".to_owned());
        assert_eq!(book.user_of(Path::new("/b")), Some(user));
        book.remove("r", "v").unwrap();
        assert_eq!(Book::open(dir.path()).unwrap().get("r", "v"), None);
        std::fs::write(dir.path().join("replicas.json"), "{").unwrap();
        assert!(
            Book::open(dir.path())
                .unwrap_err()
                .to_string()
                .contains("damaged")
        );
    }
}
