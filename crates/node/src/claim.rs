//! The state directory belongs to one daemon, and to one node of one cluster.
//!
//! Invariants
//! - while a [`Claim`] lives, no other daemon gets one for the same directory (an exclusive lock
//!   that the kernel drops when the process ends, however it ends);
//! - the identity in `identity.json` never changes: a directory of another node or cluster is refused.

use holdfast_host::claim::Claim as Lock;
use holdfast_types::NodeId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a start waits for an earlier daemon that ends, and for the fencer that cleans up after it.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another daemon has it, or the system says no.
    #[error(transparent)]
    Lock(#[from] holdfast_host::Error),
    /// It belongs to someone else.
    #[error(
        "state directory {dir} belongs to node {found_name} (number {found_id}) of cluster {found_cluster}, not to node {name} (number {id}) of cluster {cluster}: give this node its own directory with --state-dir, or remove that one if the node is gone for good"
    )]
    Foreign {
        /// Which.
        dir: PathBuf,
        /// Name in the directory.
        found_name: String,
        /// Number in the directory.
        found_id: u8,
        /// Cluster in the directory.
        found_cluster: String,
        /// This node's name.
        name: String,
        /// This node's number.
        id: u8,
        /// This node's cluster.
        cluster: String,
    },
    /// The identity file cannot be understood.
    #[error(
        "{path} is damaged ({what}): restore it, or remove the whole state directory and let the node join anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The operating system said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Who a state directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    cluster: String,
    node: String,
    id: u8,
}

/// The right to use a state directory.
#[derive(Debug)]
pub struct Claim {
    lock: Lock,
    fresh: bool,
}

impl Claim {
    /// Takes the directory for this node, making it if it is missing.
    pub fn take(
        dir: &Path,
        cluster: &str,
        name: &str,
        id: NodeId,
        patience: Duration,
    ) -> Result<Self, ClaimError> {
        let io = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: std::io::Error| ClaimError::Io { what, path, source }
        };
        fs::create_dir_all(dir).map_err(io("create state directory", dir))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(io("protect state directory", dir))?;
        let lock = Lock::take_within(dir, patience)?;
        let mine = Identity {
            cluster: cluster.to_owned(),
            node: name.to_owned(),
            id: id.0,
        };
        let fresh = identity(dir, &mine)?;
        Ok(Self { lock, fresh })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.lock.dir()
    }
    /// The directory was new: this node never ran from it.
    pub fn fresh(&self) -> bool {
        self.fresh
    }
    /// The lock, to be shared with the fencer: the next daemon waits for both.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }
    /// Where the API listens.
    pub fn api_socket(&self) -> PathBuf {
        self.dir().join(crate::api_types::API_SOCKET)
    }
    /// Where the control plane's state is.
    pub fn control_state(&self) -> PathBuf {
        self.dir().join("control.state")
    }
}

/// Checks the identity file, or writes it. True if it was missing.
fn identity(dir: &Path, mine: &Identity) -> Result<bool, ClaimError> {
    let path = dir.join("identity.json");
    let io = |what, path: &Path, source| ClaimError::Io {
        what,
        path: path.to_owned(),
        source,
    };
    match fs::read(&path) {
        Ok(bytes) => {
            let found: Identity =
                serde_json::from_slice(&bytes).map_err(|e| ClaimError::Damaged {
                    path: path.clone(),
                    what: e.to_string(),
                })?;
            if found == *mine {
                return Ok(false);
            }
            Err(ClaimError::Foreign {
                dir: dir.to_owned(),
                found_name: found.node,
                found_id: found.id,
                found_cluster: found.cluster,
                name: mine.node.clone(),
                id: mine.id,
                cluster: mine.cluster.clone(),
            })
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let bytes = serde_json::to_vec_pretty(mine).expect("three plain fields");
            write_durably(&path, &bytes).map_err(|e| io("write", &path, e))?;
            Ok(true)
        }
        Err(e) => Err(io("read", &path, e)),
    }
}

/// Writes a small file so that after a crash it is there whole or not at all.
pub fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Claim::take(dir.path(), "demo", "a", NodeId(0), Duration::ZERO).unwrap();
        assert!(first.fresh());
        let e = Claim::take(dir.path(), "demo", "a", NodeId(0), Duration::ZERO).unwrap_err();
        assert!(matches!(e, ClaimError::Lock(_)), "{e}");
        let text = e.to_string();
        assert!(
            text.contains(&std::process::id().to_string()) && text.contains("state_dir"),
            "{text}"
        );
        drop(first);
        assert!(
            !Claim::take(dir.path(), "demo", "a", NodeId(0), Duration::ZERO)
                .unwrap()
                .fresh()
        );
    }

    #[test]
    fn a_directory_of_another_node_or_cluster_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Claim::take(dir.path(), "demo", "a", NodeId(0), Duration::ZERO).unwrap());
        for (cluster, name, id) in [("prod", "a", 0), ("demo", "b", 0), ("demo", "a", 1)] {
            let e = Claim::take(dir.path(), cluster, name, NodeId(id), Duration::ZERO).unwrap_err();
            assert!(matches!(e, ClaimError::Foreign { .. }), "{e}");
        }
        // A refusal changes nothing.
        Claim::take(dir.path(), "demo", "a", NodeId(0), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_damaged_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("identity.json"), b"{\"cluster\":\"demo\"").unwrap();
        let e = Claim::take(dir.path(), "demo", "a", NodeId(0), Duration::ZERO).unwrap_err();
        assert!(matches!(e, ClaimError::Damaged { .. }), "{e}");
    }
}
