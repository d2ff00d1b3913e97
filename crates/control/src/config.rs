//! What a node is told about its cluster, and the arithmetic of its times.
//!
//! Invariant: a [`Config`] that passed [`Config::validate`] has an odd number of voters, data nodes that
//! exist, and times for which the lease rules leave room.

use holdfast_replicator::Rule;
use holdfast_types::{NODES_MAX, NodeId, NodeSet};
use serde::{Deserialize, Serialize};

/// A cluster as one node knows it. The same on every node but for `me`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub me: NodeId,
    /// All nodes.
    pub nodes: Vec<NodeConfig>,
    /// All resources; new ones are appended, so that positions keep their meaning.
    pub resources: Vec<ResourceConfig>,
    /// Times.
    pub timing: Timing,
    /// Test only: a rule that is switched off so that a test can see what it is for.
    pub off: Option<Rule>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its number.
    pub id: NodeId,
    /// Its name, for sentences.
    pub name: String,
    /// Votes in the control plane.
    pub voter: bool,
}

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceConfig {
    /// Its name.
    pub name: String,
    /// Its volumes.
    pub volumes: Vec<VolumeConfig>,
    /// The nodes with replicas, the preferred primary first.
    pub data_nodes: Vec<NodeId>,
    /// What to do when every reachable member stopped uncleanly.
    pub unclean_promotion: UncleanPromotion,
    /// Promote without being asked when there is no primary.
    pub auto_promote: bool,
}

impl ResourceConfig {
    /// The nodes with replicas.
    pub fn data_set(&self) -> NodeSet {
        self.data_nodes.iter().copied().collect()
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeConfig {
    /// Its name.
    pub name: String,
    /// Bytes the application sees.
    pub size_bytes: u64,
}

/// May a member be promoted that stopped uncleanly, while another member's stop is not known?
/// (When *every* member is known to have stopped uncleanly, one is promoted in either case.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UncleanPromotion {
    /// No: wait for the others.
    #[default]
    Wait,
    /// Yes, after [`Timing::unclean_wait_ms`].
    Allow,
}

/// Times, in milliseconds unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between heartbeats and lease renewals.
    pub heartbeat_ms: u64,
    /// Length of a lease, from the sending of the request, on the holder's clock.
    pub lease_ms: u64,
    /// Taken off the lease for what still travels when it ends (completions, the fencer's work).
    pub margin_ms: u64,
    /// Two clocks differ in speed by less than twice this, in parts per million.
    pub drift_ppm: u64,
    /// Fixed part added to a grantor's wait.
    pub guard_ms: u64,
    /// Shortest silence of a leader before an election.
    pub election_min_ms: u64,
    /// Longest.
    pub election_max_ms: u64,
    /// A node that was silent for so long is offline.
    pub peer_timeout_ms: u64,
    /// A less preferred candidate waits so long per connected better one.
    pub rank_delay_ms: u64,
    /// A handed-over resource that nobody took is taken back.
    pub handover_ms: u64,
    /// With [`UncleanPromotion::Allow`]: wait for a clean member so long.
    pub unclean_wait_ms: u64,
    /// A failed host step is tried again after this.
    pub step_retry_ms: u64,
    /// An operator's request is answered after this at the latest.
    pub admin_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 150,
            lease_ms: 2000,
            margin_ms: 300,
            drift_ppm: 2000,
            guard_ms: 100,
            election_min_ms: 600,
            election_max_ms: 1000,
            peer_timeout_ms: 1500,
            rank_delay_ms: 200,
            handover_ms: 5000,
            unclean_wait_ms: 60_000,
            step_retry_ms: 1000,
            admin_ms: 60_000,
        }
    }
}

impl Timing {
    /// How long a grantor keeps its promise, on its own clock from the receipt of the request.
    pub const fn promise_ms(&self) -> u64 {
        self.promise_for(self.lease_ms)
    }

    /// The same for a holder that counts on a lease of `lease_ms`.
    pub(crate) const fn promise_for(&self, lease_ms: u64) -> u64 {
        lease_ms + (lease_ms * 2 * self.drift_ppm).div_ceil(1_000_000) + self.guard_ms
    }
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Counting.
    #[error("a cluster needs 3, 5 or 7 voters, this one has {0}: add or remove a witness")]
    Voters(usize),
    /// Naming.
    #[error("{what} {name:?} appears twice: give each its own")]
    Twice {
        /// Of what kind.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// A number above the limit.
    #[error("node number {0} is too high: numbers go from 0 to {max}", max = NODES_MAX - 1)]
    NodeNumber(u8),
    /// A node that is not in the list.
    #[error("{place} names {node}, which is not among the cluster's nodes")]
    UnknownNode {
        /// Where.
        place: String,
        /// Which.
        node: NodeId,
    },
    /// A resource without substance.
    #[error("resource {0:?} needs at least one volume and one data node")]
    EmptyResource(String),
    /// Times that contradict one another.
    #[error("timing: {0}")]
    Timing(&'static str),
}

impl Config {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The first thing found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut seen = NodeSet::EMPTY;
        let mut names = std::collections::BTreeSet::new();
        for node in &self.nodes {
            if node.id.0 >= NODES_MAX {
                return Err(ConfigError::NodeNumber(node.id.0));
            }
            if seen.has(node.id) {
                return Err(ConfigError::Twice {
                    what: "node number",
                    name: node.id.0.to_string(),
                });
            }
            if !names.insert(node.name.as_str()) {
                return Err(ConfigError::Twice {
                    what: "node",
                    name: node.name.clone(),
                });
            }
            seen = seen.with(node.id);
        }
        if !seen.has(self.me) {
            return Err(ConfigError::UnknownNode {
                place: "me".into(),
                node: self.me,
            });
        }
        let voters = self.voters().len() as usize;
        if voters.is_multiple_of(2) || voters < 3 {
            return Err(ConfigError::Voters(voters));
        }
        let mut names = std::collections::BTreeSet::new();
        for resource in &self.resources {
            if !names.insert(resource.name.as_str()) {
                return Err(ConfigError::Twice {
                    what: "resource",
                    name: resource.name.clone(),
                });
            }
            if resource.volumes.is_empty() || resource.data_nodes.is_empty() {
                return Err(ConfigError::EmptyResource(resource.name.clone()));
            }
            let mut data = NodeSet::EMPTY;
            for &node in &resource.data_nodes {
                if !seen.has(node) {
                    let place = format!("resource {:?}", resource.name);
                    return Err(ConfigError::UnknownNode { place, node });
                }
                if data.has(node) {
                    return Err(ConfigError::Twice {
                        what: "data node",
                        name: node.0.to_string(),
                    });
                }
                data = data.with(node);
            }
        }
        self.timing.validate()
    }

    /// The voters by configuration.
    pub fn voters(&self) -> NodeSet {
        self.nodes
            .iter()
            .filter(|n| n.voter)
            .map(|n| n.id)
            .collect()
    }

    /// How many voters decide.
    pub fn majority(&self) -> u32 {
        self.voters().len() / 2 + 1
    }

    /// The name of a node, for sentences.
    pub fn name_of(&self, node: NodeId) -> String {
        self.nodes
            .iter()
            .find(|n| n.id == node)
            .map_or_else(|| node.to_string(), |n| n.name.clone())
    }
}

impl Timing {
    /// Refuses times that contradict one another.
    ///
    /// # Errors
    /// The first rule broken, with what to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rules = [
            (self.heartbeat_ms > 0, "heartbeat must not be 0"),
            (
                self.heartbeat_ms * 3 < self.lease_ms.saturating_sub(self.margin_ms),
                "three heartbeats must fit into the lease less its margin: shorten the heartbeat or lengthen the lease",
            ),
            (
                self.margin_ms > 0,
                "margin must not be 0: the fencer needs time",
            ),
            (
                self.margin_ms * 2 <= self.lease_ms,
                "margin must be at most half the lease: shorten the margin",
            ),
            (
                self.drift_ppm <= 100_000,
                "drift must be at most 100000 ppm",
            ),
            (
                self.election_min_ms >= self.heartbeat_ms * 3,
                "an election must wait for at least three heartbeats: lengthen election_min",
            ),
            (
                self.election_max_ms > self.election_min_ms,
                "election_max must be above election_min: lengthen it",
            ),
            (
                self.peer_timeout_ms >= self.heartbeat_ms * 3,
                "peer_timeout must be at least three heartbeats: lengthen it",
            ),
            (
                self.handover_ms >= self.lease_ms,
                "handover must be at least one lease: lengthen it",
            ),
            (
                [self.rank_delay_ms, self.step_retry_ms, self.admin_ms]
                    .iter()
                    .all(|&t| t > 0),
                "rank_delay, step_retry and admin must not be 0",
            ),
            (
                [
                    self.lease_ms,
                    self.election_max_ms,
                    self.peer_timeout_ms,
                    self.handover_ms,
                    self.unclean_wait_ms,
                    self.admin_ms,
                    self.guard_ms,
                ]
                .iter()
                .all(|&t| t <= 86_400_000),
                "no time may be above one day",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, why)) => Err(ConfigError::Timing(why)),
            None => Ok(()),
        }
    }
}
