//! What is known, put into the words of [`crate::api_types`].

use super::requests::{control_status, error};
use super::sentences;
use super::{Answer, Context, Input, Question, VolumeKey};
use crate::api_types::{
    ApiError, ClusterStatus, ErrorCode, FrontendInfo, Item, LocalStatus, NodeInfo, Phase,
    ReplicaInfo, ResourceInfo, ResourceNode, ResyncInfo, Transfer, TransferKind, VerifiedInfo,
    VolumeInfo,
};
use crate::clock;
use crate::hostops;
use crate::net::{self, lanes, mesh};
use crate::volume::{Commands, VolumeStatus};
use holdfast_control::{
    PhaseWord, ResourceIx, ResourceStatus, Status as ControlStatus, VolumeIx, Wanted,
};
use holdfast_replicator::Now;
use holdfast_types::{NodeId, NodeSet};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a volume loop may take to say how it is: it answers at its next turn, unless it hangs.
pub(super) const LOOP_TIME_MAX: Duration = Duration::from_millis(500);
/// How long the primary of a resource may take to tell of its transfers.
const PRIMARY_TIME_MAX: Duration = Duration::from_millis(500);

/// What the loop knows besides the control plane.
pub(super) struct Facts {
    pub(super) volumes: BTreeMap<VolumeKey, Commands>,
    pub(super) hosts: Vec<hostops::Facts>,
    pub(super) leases: BTreeMap<ResourceIx, Now>,
    pub(super) closed: BTreeMap<VolumeKey, String>,
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Facts").finish_non_exhaustive()
    }
}

/// The whole answer to a status request.
pub(super) async fn cluster(cx: &Context) -> Result<ClusterStatus, ApiError> {
    let control = control_status(cx).await?;
    let facts = cx
        .ask_loop(|reply| Input::Facts { reply })
        .await
        .map_err(|e| error(ErrorCode::Internal, e))?;
    let local = cx.replica_status(facts.volumes.clone()).await;
    let remote = primaries(cx, &control).await;
    let mut why: Vec<String> = control.waiting.iter().cloned().collect();
    for node in cx.config.nodes.iter().filter(|n| n.id != cx.me.id) {
        // One side dials and knows whom; the other knows only from where it was called.
        let dialled = cx.troubles.get(&mesh::trouble_key(&node.name));
        let called = || cx.troubles.get(&net::source_key(node.address));
        if let Some(trouble) = dialled.or_else(called) {
            why.push(format!("{} is not connected: {trouble}", node.name));
        }
    }
    let resources = control.resources.iter().enumerate();
    let resources = resources
        .map(|(at, r)| resource(cx, ResourceIx(at as u16), r, &facts, &local, &remote))
        .collect();
    Ok(ClusterStatus {
        cluster: cx.config.cluster.clone(),
        node: cx.me.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        quorum: control.quorum,
        leader: control.leader.map(|n| cx.name(n)),
        nodes: nodes(cx, &control),
        resources,
        why,
    })
}

fn nodes(cx: &Context, control: &ControlStatus) -> Vec<NodeInfo> {
    let node = |n: &holdfast_config::Node| {
        let known = control.nodes.iter().find(|s| s.id == n.id);
        NodeInfo {
            name: n.name.clone(),
            id: n.id.0,
            address: n.address,
            witness: n.witness,
            online: known.is_some_and(|s| s.online),
            votes: known.is_some_and(|s| s.counts),
        }
    };
    cx.config.nodes.iter().map(node).collect()
}

/// The replicas of other nodes that are primary of something: only they know of transfers.
async fn primaries(
    cx: &Context,
    control: &ControlStatus,
) -> BTreeMap<NodeId, Vec<(VolumeKey, LocalStatus)>> {
    let wanted: NodeSet = control
        .resources
        .iter()
        .filter_map(|r| r.primary)
        .filter(|p| *p != cx.me.id)
        .collect();
    let mut found = BTreeMap::new();
    for node in wanted.iter() {
        let online = control.nodes.iter().any(|n| n.id == node && n.online);
        if online
            && let Ok(Answer::Replicas(replicas)) = cx
                .ask_node(node, Question::Replicas, PRIMARY_TIME_MAX)
                .await
        {
            found.insert(node, replicas);
        }
    }
    found
}

fn resource(
    cx: &Context,
    ix: ResourceIx,
    r: &ResourceStatus,
    facts: &Facts,
    local: &BTreeMap<VolumeKey, VolumeStatus>,
    remote: &BTreeMap<NodeId, Vec<(VolumeKey, LocalStatus)>>,
) -> ResourceInfo {
    let mut why: Vec<String> = r.waiting.iter().cloned().collect();
    let host = facts
        .hosts
        .get(usize::from(ix.0))
        .cloned()
        .unwrap_or_default();
    let here = r
        .nodes
        .iter()
        .find(|n| n.node == cx.me.id)
        .map(|n| phase(n.phase));
    let volumes = (0..r.volumes.len())
        .map(|v| {
            let key = VolumeKey {
                resource: ix,
                volume: VolumeIx(v as u16),
            };
            if let Some(closed) = facts.closed.get(&key) {
                why.push(format!(
                    "volume {} is not open on {}: {closed}",
                    r.volumes[v].name, cx.me.name
                ));
            }
            if let Some(s) = local.get(&key) {
                why.extend(s.replica.held.iter().map(|h| format!("I/O is held: {h}")));
                for peer in &s.replica.peers {
                    if let Some(trouble) = peer.trouble {
                        let said = sentences::trouble(cx, peer.node, trouble);
                        why.push(format!("volume {}: {said}", r.volumes[v].name));
                    }
                }
                for peer in s.replica.peers.iter().filter(|p| !p.connected) {
                    let name = cx.name(peer.node);
                    let who = format!("{}/{}", r.name, r.volumes[v].name);
                    if let Some(trouble) = cx.troubles.get(&lanes::trouble_key(&who, &name)) {
                        why.push(format!(
                            "volume {}: {name} is not connected: {trouble}",
                            r.volumes[v].name
                        ));
                    }
                }
            }
            volume(cx, key, r, &host, local.get(&key), remote)
        })
        .collect();
    why.extend(placement(cx, ix, r));
    why.dedup();
    ResourceInfo {
        name: r.name.clone(),
        created: r.created,
        generation: r.generation,
        epoch: r.epoch,
        primary: r.primary.map(|n| cx.name(n)),
        stopped: r.wanted == Wanted::Stopped,
        here,
        lease_left_ms: facts
            .leases
            .get(&ix)
            .map(|until| until.ms_since(clock::now())),
        nodes: r
            .nodes
            .iter()
            .map(|n| ResourceNode {
                node: cx.name(n.node),
                phase: phase(n.phase),
            })
            .collect(),
        volumes,
        mounts: items(&host.mounts),
        services: items(&host.services),
        vips: items(&host.vips),
        why,
    }
}

/// Where the record and this node's configuration differ about who holds replicas: the record counts.
fn placement(cx: &Context, ix: ResourceIx, r: &ResourceStatus) -> Option<String> {
    let configured = cx.config.resources.get(usize::from(ix.0))?.nodes;
    let differs = r.volumes.iter().find_map(|v| {
        let recorded: NodeSet = v.replicas.iter().map(|r| r.node).collect();
        (recorded != configured).then_some((v, recorded))
    });
    let (volume, recorded) = differs?;
    let names = |set: NodeSet| {
        set.iter()
            .map(|n| cx.name(n))
            .collect::<Vec<_>>()
            .join(", ")
    };
    Some(format!(
        "volume {} has its replicas on {}, cluster.toml says {}: the record counts; write it into cluster.toml on every node",
        volume.name,
        names(recorded),
        names(configured)
    ))
}

fn items(facts: &[hostops::Fact]) -> Vec<Item> {
    facts
        .iter()
        .map(|f| Item {
            name: f.name.clone(),
            up: f.up,
            note: f.note.clone(),
        })
        .collect()
}

fn volume(
    cx: &Context,
    key: VolumeKey,
    r: &ResourceStatus,
    host: &hostops::Facts,
    local: Option<&VolumeStatus>,
    remote: &BTreeMap<NodeId, Vec<(VolumeKey, LocalStatus)>>,
) -> VolumeInfo {
    let v = &r.volumes[usize::from(key.volume.0)];
    let at_primary = match r.primary {
        Some(p) if p == cx.me.id => local.map(|s| &s.replica),
        Some(p) => remote
            .get(&p)
            .and_then(|all| all.iter().find(|(k, _)| *k == key))
            .map(|(_, s)| s),
        None => None,
    };
    let frontends = host.frontends.iter().filter(|(name, ..)| *name == v.name);
    VolumeInfo {
        name: v.name.clone(),
        size_bytes: v.size_bytes,
        in_sync: v.in_sync.iter().map(|n| cx.name(n)).collect(),
        replicas: v
            .replicas
            .iter()
            .map(|p| ReplicaInfo {
                node: cx.name(p.node),
                disk: p.disk,
            })
            .collect(),
        local: local.map(|s| s.replica.clone()),
        transfers: at_primary.map(|s| transfers(cx, s)).unwrap_or_default(),
        resync: at_primary.map(|s| ResyncInfo {
            paused: s.resync.bounds.paused,
            min_bytes_per_second: s.resync.bounds.min,
            max_bytes_per_second: s.resync.bounds.max,
            held_to_bytes_per_second: s.resync.held_to,
        }),
        verified: v.upkeep.verified.map(|last| VerifiedInfo {
            ended_ms: last.ended_ms,
            scrub: last.scrub,
            compared_bytes: last.compared_bytes,
            differing_bytes: last.differing_bytes,
            repaired_bytes: last.repaired_bytes,
        }),
        scrub_due_ms: cx
            .config
            .resources
            .get(usize::from(key.resource.0))
            .and_then(|r| r.volumes.get(usize::from(key.volume.0)))
            .and_then(|named| named.scrub)
            .map(|_| v.upkeep.scrub_due_ms),
        frontends: frontends
            .map(|(_, kind, path)| FrontendInfo {
                kind: (*kind).to_owned(),
                path: path.clone(),
                clients: local.filter(|_| kind.starts_with("nbd")).map(|s| s.clients),
            })
            .collect(),
    }
}

fn transfers(cx: &Context, s: &LocalStatus) -> Vec<Transfer> {
    let mut found = Vec::new();
    for peer in s.peers.iter().filter(|p| p.attached) {
        let name = cx.name(peer.node);
        if peer.out_of_sync_bytes > 0 {
            let done = peer.resync_sent_bytes + peer.resync_zero_bytes + peer.resync_equal_bytes;
            found.push(Transfer {
                peer: name.clone(),
                kind: TransferKind::Resync,
                done_bytes: done,
                total_bytes: done + peer.out_of_sync_bytes,
                bytes_per_second: peer.resync_bytes_per_second,
            });
        }
        if let Some(done) = peer.verify_done_bytes {
            found.push(Transfer {
                peer: name,
                kind: TransferKind::Verify,
                done_bytes: done,
                total_bytes: s.size_bytes,
                bytes_per_second: s.verify.map_or(0, |v| v.bytes_per_second),
            });
        }
    }
    found
}

fn phase(word: PhaseWord) -> Phase {
    match word {
        PhaseWord::Unknown => Phase::Unknown,
        PhaseWord::Secondary => Phase::Secondary,
        PhaseWord::Candidate => Phase::Candidate,
        PhaseWord::Leading => Phase::Leading,
        PhaseWord::Starting => Phase::Starting,
        PhaseWord::Primary => Phase::Primary,
        PhaseWord::Stopping => Phase::Stopping,
    }
}
