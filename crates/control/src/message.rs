//! What nodes say to one another about the control plane, and its bytes.
//!
//! Invariants
//! - decoding never panics, never allocates more than [`MESSAGE_BYTES_MAX`], refuses trailing bytes;
//! - a message may be lost, repeated or late: every reply names what it answers.

use crate::api::{AdminReply, AdminRequest, DiskTrouble, PhaseWord, ResourceIx};
use crate::state::{ClusterState, Command};
use holdfast_types::{DiskState, Epoch, Gen};
use serde::{Deserialize, Serialize};

/// Largest encoded message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// A message between two nodes; opaque to interpreters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message(pub(crate) Body);

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// They do not parse.
    #[error("control message does not parse: {0}")]
    Malformed(String),
    /// Something follows.
    #[error("control message has {0} bytes too many")]
    Trailing(usize),
    /// Too large to be sent.
    #[error("control message is above {MESSAGE_BYTES_MAX} bytes")]
    TooLarge,
}

const CODEC: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MESSAGE_BYTES_MAX>,
> = bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>();

impl Message {
    /// Its bytes.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let bytes = bincode::serde::encode_to_vec(self, CODEC)
            .map_err(|e| MessageError::Malformed(e.to_string()))?;
        if bytes.len() > MESSAGE_BYTES_MAX {
            Err(MessageError::TooLarge)
        } else {
            Ok(bytes)
        }
    }

    /// The message of these bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (msg, used) = bincode::serde::decode_from_slice(bytes, CODEC)
            .map_err(|e| MessageError::Malformed(e.to_string()))?;
        if used != bytes.len() {
            return Err(MessageError::Trailing(bytes.len() - used));
        }
        Ok(msg)
    }

    /// A word for it, for logs.
    pub fn word(&self) -> &'static str {
        match &self.0 {
            Body::Hello(_) => "hello",
            Body::Raft { .. } => "raft",
            Body::Snapshot { .. } => "snapshot",
            Body::PreVote { .. } => "pre-vote",
            Body::PreVoteReply { .. } => "pre-vote reply",
            Body::Propose(_) => "propose",
            Body::LeaseRequest { .. } => "lease request",
            Body::LeaseReply { .. } => "lease reply",
            Body::Release { .. } => "release",
            Body::Poll { .. } => "poll",
            Body::PollReply { .. } => "poll reply",
            Body::Fence { .. } => "fence",
            Body::FenceReply { .. } => "fence reply",
            Body::HandOver { .. } => "hand-over",
            Body::Admin { .. } => "admin",
            Body::AdminReply { .. } => "admin reply",
        }
    }
}

/// Identity of a voter's state: the node's number and what was drawn when the state began (rule 37).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub(crate) struct RaftId(pub(crate) u64);

impl RaftId {
    pub(crate) fn new(node: holdfast_types::NodeId, random: u64) -> Self {
        Self((random << 8) | u64::from(node.0))
    }
    pub(crate) const fn node(self) -> holdfast_types::NodeId {
        holdfast_types::NodeId((self.0 & 0xff) as u8)
    }
}

/// Term and index of a log entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireConfig {
    pub(crate) voters: Vec<RaftId>,
    pub(crate) new_voters: Vec<RaftId>,
    pub(crate) non_voters: Vec<RaftId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Entry {
    Term(u64),
    Config(WireConfig),
    Command(Command),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RaftMessage {
    Vote {
        term: u64,
        last: Position,
    },
    VoteReply {
        term: u64,
        granted: bool,
    },
    Append {
        term: u64,
        commit: u64,
        prev: Position,
        entries: Vec<Entry>,
    },
    AppendReply {
        term: u64,
        last: Position,
    },
}

/// What a node tells all others at every heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Its voter identity.
    pub(crate) id: RaftId,
    /// It belongs to no cluster yet.
    pub(crate) blank: bool,
    /// The receiver's identity as the sender knows it: proof that this hello is not older.
    pub(crate) echo: Option<RaftId>,
    /// What it does for its resources.
    pub(crate) resources: Vec<ResourceHello>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResourceHello {
    pub(crate) resource: ResourceIx,
    pub(crate) phase: PhaseWord,
    pub(crate) epoch: Epoch,
    /// Per volume; `None`: not started.
    pub(crate) disks: Vec<Option<DiskState>>,
    /// Per volume: why its disk is not used.
    pub(crate) troubles: Vec<Option<DiskTrouble>>,
}

/// A voter's answer to a lease request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    Granted,
    /// A takeover made for this generation was let in.
    Fenced(Gen),
    /// A newer epoch exists.
    Stale(Epoch),
    /// It cannot grant (its identity does not count yet, or the lease was released).
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    Hello(Hello),
    Raft {
        from: RaftId,
        to: RaftId,
        msg: RaftMessage,
    },
    Snapshot {
        from: RaftId,
        to: RaftId,
        term: u64,
        last: Position,
        config: WireConfig,
        state: Box<ClusterState>,
    },
    PreVote {
        from: RaftId,
        to: RaftId,
        round: u64,
        last: Position,
    },
    PreVoteReply {
        from: RaftId,
        to: RaftId,
        round: u64,
    },
    Propose(Command),
    LeaseRequest {
        nonce: u64,
        /// What the holder counts on.
        lease_ms: u64,
        entries: Vec<(ResourceIx, Epoch)>,
    },
    LeaseReply {
        nonce: u64,
        verdicts: Vec<(ResourceIx, Verdict)>,
    },
    Release {
        resource: ResourceIx,
        epoch: Epoch,
    },
    Poll {
        nonce: u64,
        resource: ResourceIx,
        epoch: Epoch,
        generation: Gen,
    },
    PollReply {
        nonce: u64,
        resource: ResourceIx,
        /// Nanoseconds until it would fence; `None`: it would not.
        free_in: Option<u64>,
    },
    Fence {
        resource: ResourceIx,
        epoch: Epoch,
        generation: Gen,
    },
    FenceReply {
        resource: ResourceIx,
        epoch: Epoch,
        generation: Gen,
    },
    HandOver {
        resource: ResourceIx,
        epoch: Epoch,
    },
    Admin {
        id: u64,
        request: AdminRequest,
    },
    AdminReply {
        id: u64,
        reply: Box<AdminReply>,
    },
}
