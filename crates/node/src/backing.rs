//! What lies under a replica: looked at before anything is touched, initialised at creation, opened at every start.
//!
//! Invariants
//! - looking changes nothing;
//! - nothing is initialised that holds data of somebody else: another cluster's, node's or recorded
//!   volume's replica, a filesystem, or anything that is not zero at its beginning and end;
//! - a replica is opened only if its superblock names this cluster, node and volume.

use bytes::Bytes;
use holdfast_blockdev::store::{FaultPlan, OpenError, OpenOptions, Store, create_file, open};
use holdfast_meta::{
    BitmapStart, Layout, MetaError, PEERS_MAX, Recovered, Superblock, initialise, locate,
    locate_among, superblock_range,
};
use holdfast_types::{DiskState, Epoch, Geometry, Incarnation, NodeId, NodeSet, Run, VolumeId};
use holdfast_uring::BufPool;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Extents of 4 MiB that may have writes in flight: 1 GiB, few enough to compare quickly after a crash.
pub const LOG_SLOTS: u32 = 256;
/// How much of the beginning of a backing must be zero for it to count as blank, in bytes: headers
/// of all usual filesystems, partition tables and volume managers lie within.
const BLANK_BYTES: u64 = 1 << 20;
/// How long opening waits for the disk operations of an earlier life of this daemon.
const CLAIM_WAIT: Duration = Duration::from_secs(10);

/// Why a backing cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// It is not there, in use, or the system refuses it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system refuses to read or write it.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: std::io::Error,
    },
    /// Its metadata is no good, or it is too small.
    #[error("{}: {source}", path.display())]
    Meta {
        /// What.
        path: PathBuf,
        /// Why.
        source: MetaError,
    },
    /// It holds a replica of something else.
    #[error("{} already holds a replica of {what}: choose another backing for this volume, or wipe that one if nobody needs it", path.display())]
    Taken {
        /// What.
        path: PathBuf,
        /// Of what.
        what: String,
    },
    /// It holds something.
    #[error("{} is not blank (byte {at} is not zero): a replica is only made where nothing is lost; wipe it, or choose another backing", path.display())]
    NotBlank {
        /// What.
        path: PathBuf,
        /// Where the first byte is.
        at: u64,
    },
}

/// What an unused backing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// Nothing there: a sparse file will be made, and every byte of it is zero.
    Missing,
    /// Blank where it can be told; what lies between is unknown.
    Blank,
    /// A replica of this node from a creation that was never completed: it has never been started.
    Unfinished,
}

impl Found {
    /// Will every byte of the volume be zero?
    pub fn all_zero(self, path: &Path) -> bool {
        // A file from an unfinished creation is made anew.
        self == Self::Missing || (self == Self::Unfinished && is_file(path))
    }
}

fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file())
}

/// Which replica, where.
#[derive(Clone, Debug)]
pub struct Place {
    /// The cluster's short id.
    pub cluster: u64,
    /// This node.
    pub me: NodeId,
    /// Bytes the application sees.
    pub size_bytes: u64,
    /// Its backing.
    pub path: PathBuf,
    /// Where its metadata was last known to end there: before the backing's own end, if that was made larger.
    pub end: Option<u64>,
}

impl Place {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(self.size_bytes)
    }
    /// Bytes the backing must have.
    pub fn bytes_needed(&self) -> u64 {
        Layout::bytes_needed(self.geometry(), PEERS_MAX)
    }
    fn meta(&self, source: MetaError) -> BackingError {
        BackingError::Meta {
            path: self.path.clone(),
            source,
        }
    }
    fn io(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> BackingError {
        let path = self.path.clone();
        move |source| BackingError::Io { what, path, source }
    }

    fn open_store(
        &self,
        pool: &BufPool,
        fault: Option<FaultPlan>,
    ) -> Result<Box<dyn Store>, BackingError> {
        let options = OpenOptions {
            pool: pool.clone(),
            claim_wait: CLAIM_WAIT,
            fault,
            ..OpenOptions::default()
        };
        Ok(open(&self.path, &options)?)
    }

    /// Looks whether a replica may be made here. `recorded`: volumes the cluster knows.
    pub fn inspect(&self, recorded: &[VolumeId]) -> Result<Found, BackingError> {
        match std::fs::symlink_metadata(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let parent = self.path.parent().unwrap_or(Path::new("/"));
                if !parent.is_dir() {
                    return Err(BackingError::Io {
                        what: "make a file in the directory of",
                        path: self.path.clone(),
                        source: e,
                    });
                }
                return Ok(Found::Missing);
            }
            Err(e) => return Err(self.io("look at")(e)),
            Ok(_) => {}
        }
        let mut store = self.open_store(&BufPool::new(0), None)?;
        let bytes = store.size_bytes();
        if bytes < self.bytes_needed() {
            return Err(self.meta(MetaError::TooSmall {
                have: bytes,
                needed: self.bytes_needed(),
            }));
        }
        let (offset, len) = superblock_range(bytes).map_err(|e| self.meta(e))?;
        let tail = store
            .read_region(offset, len as usize)
            .map_err(self.io("read"))?;
        let found = match (locate(bytes, &tail), self.end.filter(|e| *e < bytes)) {
            (Err(MetaError::Blank | MetaError::Foreign), Some(end)) => {
                let (offset, len) = superblock_range(end).map_err(|e| self.meta(e))?;
                let tail = store
                    .read_region(offset, len as usize)
                    .map_err(self.io("read"))?;
                locate(end, &tail)
            }
            (found, _) => found,
        };
        match found {
            Ok(found) => {
                let s = &found.superblock;
                let what = if s.cluster != self.cluster {
                    format!(
                        "volume {} of another cluster (id {:016x})",
                        s.volume, s.cluster
                    )
                } else if s.node != self.me {
                    format!("volume {} of this cluster's {}", s.volume, s.node)
                } else if recorded.contains(&s.volume) {
                    format!("volume {} of this cluster, which is in use", s.volume)
                } else if s.run != Run(0) || s.promised != Epoch(0) || s.epoch != Epoch(0) {
                    // It has served. That nobody knows of it does not make it worthless: perhaps the state was lost.
                    format!(
                        "volume {} of this cluster, which has been in use but is not recorded any more",
                        s.volume
                    )
                } else {
                    return Ok(Found::Unfinished);
                };
                return Err(BackingError::Taken {
                    path: self.path.clone(),
                    what,
                });
            }
            Err(MetaError::Blank) => {}
            Err(e) => return Err(self.meta(e)),
        }
        let head = store
            .read_region(0, BLANK_BYTES.min(bytes) as usize)
            .map_err(self.io("read"))?;
        match head.iter().position(|&b| b != 0) {
            Some(at) => Err(BackingError::NotBlank {
                path: self.path.clone(),
                at: at as u64,
            }),
            None => Ok(Found::Blank),
        }
    }

    /// Makes a replica of a new volume here, after [`Place::inspect`].
    pub fn initialise(&self, new: &NewReplica, recorded: &[VolumeId]) -> Result<(), BackingError> {
        let found = self.inspect(recorded)?;
        if found.all_zero(&self.path) {
            if found == Found::Unfinished {
                std::fs::remove_file(&self.path).map_err(self.io("remove the unfinished"))?;
            }
            create_file(&self.path, self.bytes_needed())?;
        }
        let mut store = self.open_store(&BufPool::new(0), None)?;
        let layout = Layout::new(self.geometry(), store.size_bytes(), PEERS_MAX, LOG_SLOTS)
            .map_err(|e| self.meta(e))?;
        let mut superblock = Superblock {
            version: holdfast_meta::FORMAT_VERSION,
            cluster: self.cluster,
            volume: new.volume,
            node: self.me,
            geometry: self.geometry(),
            capacity: self.geometry().blocks,
            tail_unknown: false,
            page_bytes: layout.page_bytes,
            incarnation: new.incarnation,
            run: Run(0),
            boot_id: 0,
            clean: true,
            promised: Epoch(0),
            epoch: Epoch(0),
            disk: if new.member {
                DiskState::UpToDate
            } else {
                DiskState::Outdated
            },
            // None of its own: it joins the volume's, which the record names, with its first session.
            lineage: 0,
            log_slots: LOG_SLOTS,
            log_floor: 0,
            peer_slots: [None; PEERS_MAX as usize],
            seen: Default::default(),
            found: Default::default(),
            update: 1,
        };
        for peer in new.data_nodes.without(self.me).iter() {
            superblock.give_slot(peer).map_err(|e| self.meta(e))?;
        }
        let start = if new.equal {
            BitmapStart::Clean
        } else {
            BitmapStart::AllDirty
        };
        for (offset, page) in initialise(&layout, &superblock, start).map_err(|e| self.meta(e))? {
            store
                .write_region(offset, &page)
                .map_err(self.io("write the metadata of"))?;
        }
        Ok(())
    }

    /// Makes the replica of a recorded volume anew where its backing is gone or blank (a replaced disk): it gets a new
    /// identity, says that it is Outdated, and is compared whole. False: something is there.
    pub fn replace(&self, new: &NewReplica) -> Result<bool, BackingError> {
        assert!(!new.member && !new.equal);
        match self.inspect(&[new.volume]) {
            Ok(Found::Missing | Found::Blank) => self.initialise(new, &[new.volume]).map(|()| true),
            Ok(Found::Unfinished) | Err(BackingError::Taken { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Opens the replica of `volume`.
    pub fn open(
        &self,
        volume: VolumeId,
        pool: &BufPool,
        fault: Option<FaultPlan>,
    ) -> Result<Opened, BackingError> {
        let mut store = self.open_store(pool, fault)?;
        let bytes = store.size_bytes();
        let mut tails = Vec::new();
        for end in self.end.into_iter().filter(|e| *e < bytes).chain([bytes]) {
            let (offset, len) = superblock_range(end).map_err(|e| self.meta(e))?;
            let tail = store
                .read_region(offset, len as usize)
                .map_err(self.io("read"))?;
            tails.push((end, tail));
        }
        let ends: Vec<(u64, &[u8])> = tails.iter().map(|(end, tail)| (*end, &tail[..])).collect();
        let located = locate_among(&ends).map_err(|e| self.meta(e))?;
        located
            .superblock
            .check_identity(self.cluster, volume, self.me)
            .map_err(|e| self.meta(e))?;
        let recovered = located.recover_with::<ReadError>(|offset, len| {
            Ok(store
                .read_region(offset, len as usize)
                .map(|b| Bytes::copy_from_slice(&b))?)
        });
        let recovered = recovered.map_err(|e| match e {
            ReadError::Io(source) => self.io("read the metadata of")(source),
            ReadError::Meta(source) => self.meta(source),
        })?;
        Ok(Opened { store, recovered })
    }
}

enum ReadError {
    Io(std::io::Error),
    Meta(MetaError),
}
impl From<std::io::Error> for ReadError {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e)
    }
}
impl From<MetaError> for ReadError {
    fn from(e: MetaError) -> Self {
        Self::Meta(e)
    }
}

/// What a new replica is told of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewReplica {
    /// The new volume.
    pub volume: VolumeId,
    /// Identity of this initialisation.
    pub incarnation: Incarnation,
    /// All nodes that get a replica.
    pub data_nodes: NodeSet,
    /// All replicas are equal from the start: nothing is dirty.
    pub equal: bool,
    /// It is in the first in-sync set.
    pub member: bool,
}

/// A replica's store and metadata.
#[derive(Debug)]
pub struct Opened {
    /// The store, claimed.
    pub store: Box<dyn Store>,
    /// What its metadata says.
    pub recovered: Recovered,
}

#[cfg(test)]
mod tests;
