//! What the daemons of a cluster say to each other on the control mesh.

use holdfast_types::{Incarnation, NodeId, NodeSet, VolumeId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use crate::backing::{Found, NewReplica};
use holdfast_control::{ResourceIx, VolumeIx};
use holdfast_replicator::Status as ReplicaStatus;

/// A message.
#[derive(Debug, Serialize, Deserialize)]
pub enum MeshMessage {
    /// Between the control planes.
    Control(holdfast_control::Message),
    /// A question; answered once, or never.
    Question {
        /// For the answer.
        id: u64,
        /// What.
        question: Question,
    },
    /// An answer.
    Answer {
        /// The question's.
        id: u64,
        /// What, or why not.
        result: Result<Answer, String>,
    },
}

/// A volume of a resource, by its places in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeKey {
    /// The resource.
    pub resource: ResourceIx,
    /// Its volume.
    pub volume: VolumeIx,
}

/// What a daemon may ask another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Does the other go by the same configuration of this resource? Its fingerprint, as the asker has it.
    Inspect {
        /// Which volume.
        key: VolumeKey,
        /// Its size by the asker's configuration: both must agree.
        size_bytes: u64,
        /// Volumes the cluster knows.
        recorded: Vec<VolumeId>,
    },
    /// Make the replica of a new volume.
    Initialise {
        /// Which volume.
        key: VolumeKey,
        /// Its identity.
        volume: VolumeId,
        /// Identity of this node's replica.
        incarnation: Incarnation,
        /// All its data nodes.
        data_nodes: NodeSet,
        /// All replicas are equal.
        equal: bool,
        /// This one is in the first in-sync set.
        member: bool,
        /// Volumes the cluster knows.
        recorded: Vec<VolumeId>,
    },
    /// Make a replica of a volume that exists.
    Add {
        /// Which volume.
        key: VolumeKey,
        /// Its size as recorded.
        size_bytes: u64,
        /// What the new replica is.
        replica: NewReplica,
        /// Other volumes the cluster knows.
        recorded: Vec<VolumeId>,
        /// Where; none: where the node's configuration says.
        backing: Option<PathBuf>,
    },
    /// How large is the backing of your replica?
    Backing {
        /// Of which volume.
        key: VolumeKey,
    },
    /// Open the replica that was made.
    Open {
        /// Which volume.
        key: VolumeKey,
    },
    /// How are your replicas?
    Replicas,
    /// A client's request that only you can do, as on the API socket.
    Api {
        /// The request, one line of JSON.
        line: String,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Question::Inspect`].
    Found {
        /// What is there.
        found: Found,
        /// Every byte of the volume will be zero.
        all_zero: bool,
    },
    /// To [`Question::Backing`]: bytes.
    Backing(u64),
    /// Done.
    Done,
    /// To [`Question::Replicas`].
    Replicas(Vec<(VolumeKey, ReplicaStatus)>),
    /// To [`Question::Api`]: the last line.
    Api {
        /// One line of JSON.
        line: String,
    },
}

/// Who asks whom, for log lines.
pub fn describe(from: NodeId, question: &Question) -> String {
    let what = match question {
        Question::Inspect { .. } => "inspect a backing",
        Question::Initialise { .. } => "initialise a replica",
        Question::Add { .. } => "make a replica of a volume that exists",
        Question::Backing { .. } => "the size of a backing",
        Question::Open { .. } => "open a replica",
        Question::Replicas => "status",
        Question::Api { .. } => "a client's request",
    };
    format!("{from} asks: {what}")
}
