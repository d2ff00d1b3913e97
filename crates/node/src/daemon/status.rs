//! What is known, put into the words of [`crate::api_types`].

use super::requests::{control_status, error};
use super::{Answer, Context, Input, Question, VolumeKey};
use crate::api_types::{
    ApiError, ClusterStatus, ErrorCode, FrontendInfo, HistoryLine, Item, LocalStatus, NodeInfo,
    Phase, ReplicaInfo, ResourceInfo, ResourceNode, Transfer, TransferKind, VolumeInfo,
};
use crate::clock;
use crate::hostops;
use crate::net::{lanes, mesh};
use crate::volume::{Commands, VolumeStatus};
use holdfast_control::state::{Change, Promotion};
use holdfast_control::{
    Note as ControlNote, PhaseWord, ResourceIx, ResourceStatus, SetChange, Status as ControlStatus,
    StepDownReason, VolumeIx, Wanted,
};
use holdfast_replicator::{Note, Now};
use holdfast_types::{NodeId, NodeSet};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a volume loop may take to say how it is: it answers at its next turn, unless it hangs.
pub(super) const LOOP_TIME_MAX: Duration = Duration::from_millis(500);
/// How long the primary of a resource may take to tell of its transfers.
const PRIMARY_TIME_MAX: Duration = Duration::from_millis(500);
/// Shortest time over which a rate is measured, in milliseconds.
const RATE_MS_MIN: u64 = 200;

/// What the loop knows besides the control plane.
pub(super) struct Facts {
    pub(super) volumes: BTreeMap<VolumeKey, Commands>,
    pub(super) hosts: Vec<hostops::Facts>,
    pub(super) leases: BTreeMap<ResourceIx, Now>,
    pub(super) closed: BTreeMap<VolumeKey, String>,
    pub(super) rates: Rates,
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Facts").finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Now,
    done: u64,
    rate: u64,
}

/// How fast transfers go, from one look to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates(Arc<Mutex<BTreeMap<(VolumeKey, NodeId, bool), Sample>>>);

impl Rates {
    /// Bytes per second of a transfer that has done so much.
    fn of(&self, key: VolumeKey, peer: NodeId, verify: bool, done: u64, now: Now) -> u64 {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = map.entry((key, peer, verify)).or_insert(Sample {
            at: now,
            done,
            rate: 0,
        });
        if done < sample.done {
            *sample = Sample {
                at: now,
                done,
                rate: 0,
            };
        }
        let ms = now.ms_since(sample.at);
        if ms >= RATE_MS_MIN {
            *sample = Sample {
                at: now,
                done,
                rate: (done - sample.done) * 1000 / ms,
            };
        }
        sample.rate
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
        if let Some(trouble) = cx.troubles.get(&mesh::trouble_key(&node.name)) {
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
            volume(cx, key, r, facts, &host, local.get(&key), remote)
        })
        .collect();
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
    facts: &Facts,
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
        transfers: at_primary
            .map(|s| transfers(cx, key, s, &facts.rates))
            .unwrap_or_default(),
        frontends: frontends
            .map(|(_, kind, path)| FrontendInfo {
                kind: (*kind).to_owned(),
                path: path.clone(),
                clients: local.filter(|_| kind.starts_with("nbd")).map(|s| s.clients),
            })
            .collect(),
    }
}

fn transfers(cx: &Context, key: VolumeKey, s: &LocalStatus, rates: &Rates) -> Vec<Transfer> {
    let now = clock::now();
    let mut found = Vec::new();
    for peer in s.peers.iter().filter(|p| p.attached) {
        let name = cx.name(peer.node);
        if peer.out_of_sync_bytes > 0 {
            let done = peer.resync_sent_bytes + peer.resync_equal_bytes;
            found.push(Transfer {
                peer: name.clone(),
                kind: TransferKind::Resync,
                done_bytes: done,
                total_bytes: done + peer.out_of_sync_bytes,
                bytes_per_second: rates.of(key, peer.node, false, done, now),
            });
        }
        if let Some(done) = peer.verify_done_bytes {
            found.push(Transfer {
                peer: name,
                kind: TransferKind::Verify,
                done_bytes: done,
                total_bytes: s.size_bytes,
                bytes_per_second: rates.of(key, peer.node, true, done, now),
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

// ---- sentences

/// The history of all resources, oldest first within each.
pub(super) fn history(cx: &Context, status: &ControlStatus) -> Vec<HistoryLine> {
    let lines = status
        .resources
        .iter()
        .flat_map(|r| r.history.iter().map(move |h| (r, h)));
    lines
        .map(|(r, h)| HistoryLine {
            resource: r.name.clone(),
            generation: h.generation,
            epoch: h.epoch,
            what: changed(cx, r, &h.change),
        })
        .collect()
}

fn changed(cx: &Context, r: &ResourceStatus, change: &Change) -> String {
    match change {
        Change::Created => "created".into(),
        Change::Primary { node, why } => {
            let why = match why {
                Promotion::Failover => "the former primary was gone".into(),
                Promotion::Restart => "it started again".into(),
                Promotion::Planned => "planned".into(),
                Promotion::Forced { lineage } => {
                    format!(
                        "FORCED by the operator without the newest data; new history {lineage:016x}"
                    )
                }
            };
            format!("{} became primary: {why}", cx.name(*node))
        }
        Change::Set {
            volume,
            in_sync,
            peer,
            why,
        } => {
            let volume = r
                .volumes
                .get(usize::from(volume.0))
                .map_or("?", |v| &v.name);
            format!(
                "volume {volume}: {} {}; in sync: {}",
                cx.name(*peer),
                set_change(*why),
                names(cx, *in_sync)
            )
        }
        Change::Restarted { node } => format!("{} started anew", cx.name(*node)),
        Change::DiskFailed { node } => format!("the disk of {} failed", cx.name(*node)),
        Change::Vacated => "stopped by the operator".into(),
        Change::Reasserted => "the primary went on although another node tried to take over".into(),
        Change::VoterReplaced { node } => format!("{} votes under a new identity", cx.name(*node)),
    }
}

fn set_change(why: SetChange) -> &'static str {
    match why {
        SetChange::Lost => "was removed: not connected",
        SetChange::Slow => "was removed: it did not answer",
        SetChange::DiskFailed => "was removed: its disk failed",
        SetChange::Restarted => "was removed: it started anew and is resynced first",
        SetChange::Invalidated => "was removed by the operator",
        SetChange::Synced => "is in sync",
    }
}

fn names(cx: &Context, set: NodeSet) -> String {
    set.iter()
        .map(|n| cx.name(n))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Resource, kind and sentence of a control-plane note; `None` for what is not worth a line.
pub(super) fn describe_control(
    cx: &Context,
    note: &ControlNote,
) -> Option<(String, &'static str, String)> {
    let r = |ix: &ResourceIx| {
        cx.config
            .resources
            .get(usize::from(ix.0))
            .map_or_else(|| ix.0.to_string(), |r| r.name.clone())
    };
    let me = &cx.me.name;
    let nobody = String::new;
    Some(match note {
        ControlNote::Formed => (nobody(), "formed", "a new cluster was formed".into()),
        ControlNote::Leader { leader, term } => {
            let who = leader.map_or_else(|| "nobody".into(), |n| cx.name(n));
            (
                nobody(),
                "leader",
                format!("{who} leads the control plane (term {term})"),
            )
        }
        ControlNote::VoterAdmitted { node } => (
            nobody(),
            "voter-admitted",
            format!("{} counts again as a voter", cx.name(*node)),
        ),
        ControlNote::Detected { resource, holder } => (
            r(resource),
            "detected",
            format!("the primary {} is silent", cx.name(*holder)),
        ),
        ControlNote::Candidate { resource, epoch } => (
            r(resource),
            "candidate",
            format!("{me} tries to become primary in epoch {epoch}"),
        ),
        ControlNote::Withdrawn { resource, epoch } => (
            r(resource),
            "withdrawn",
            format!("epoch {epoch} came to nothing"),
        ),
        ControlNote::Promoted {
            resource,
            epoch,
            node,
        } => (
            r(resource),
            "promoted",
            format!("{} is primary in epoch {epoch}", cx.name(*node)),
        ),
        ControlNote::Opened { resource, epoch } => (
            r(resource),
            "opened",
            format!("reconciled, epoch {epoch} may serve"),
        ),
        ControlNote::Step { resource, step } => (r(resource), step_word(*step), "done".into()),
        ControlNote::StepFailed {
            resource,
            step,
            error,
        } => (
            r(resource),
            "step-failed",
            format!("{}: {error}", step_word(*step)),
        ),
        ControlNote::Up { resource, epoch } => (
            r(resource),
            "up",
            format!("everything is up on {me} in epoch {epoch}"),
        ),
        ControlNote::SteppingDown {
            resource,
            epoch,
            why,
        } => (
            r(resource),
            "stepping-down",
            format!("epoch {epoch} on {me}: {}", step_down(cx, *why)),
        ),
        ControlNote::SteppedDown { resource, epoch } => (
            r(resource),
            "stepped-down",
            format!("nothing of epoch {epoch} is left on {me}"),
        ),
        ControlNote::SetChanged {
            resource,
            volume,
            in_sync,
            why,
        } => {
            let (_, v) = cx.names(VolumeKey {
                resource: *resource,
                volume: *volume,
            });
            let text = format!(
                "volume {v}: in sync: {} ({})",
                names(cx, *in_sync),
                set_change(*why)
            );
            (r(resource), "in-sync", text)
        }
        ControlNote::Protocol { .. } => return None,
    })
}

fn step_down(cx: &Context, why: StepDownReason) -> String {
    match why {
        StepDownReason::LeaseLost => "the lease could not be renewed".into(),
        StepDownReason::Deposed => "another node leads a newer epoch".into(),
        StepDownReason::HandOver { to } => format!("handed over to {}", cx.name(to)),
        StepDownReason::Demoted => "stopped by the operator".into(),
        StepDownReason::Restarted => "the replica started anew".into(),
        StepDownReason::DiskFailed => "the local disk failed".into(),
        StepDownReason::Shutdown => "the daemon stops".into(),
    }
}

/// Words for programs; the demo's timeline looks for them.
fn step_word(step: holdfast_control::HostStep) -> &'static str {
    use holdfast_control::HostStep as S;
    match step {
        S::OpenDevice => "device-open",
        S::Mount => "mounted",
        S::StartServices => "services-up",
        S::AddVips => "vip-up",
        S::RemoveVips { .. } => "vip-down",
        S::StopServices { .. } => "services-down",
        S::Unmount { .. } => "unmounted",
        S::CloseDevice { .. } => "device-closed",
    }
}

/// Kind and sentence of a replica's note.
pub(super) fn describe_replica(cx: &Context, note: &Note) -> (&'static str, String) {
    match note {
        Note::Attached {
            peer,
            member,
            dirty_blocks,
        } => {
            let what = if *member {
                "a member"
            } else {
                "to be resynced"
            };
            (
                "attached",
                format!(
                    "{} is attached, {what}, {dirty_blocks} blocks to look at",
                    cx.name(*peer)
                ),
            )
        }
        Note::Detached { peer } => ("detached", format!("{} is detached", cx.name(*peer))),
        Note::Resynced {
            peer,
            sent_bytes,
            equal_blocks,
        } => (
            "resynced",
            format!(
                "{} is equal: {sent_bytes} bytes sent, {equal_blocks} blocks were equal",
                cx.name(*peer)
            ),
        ),
        Note::Reconciled { blocks } => {
            ("reconciled", format!("{blocks} blocks in doubt made equal"))
        }
        Note::Verified { peer, differing } => {
            let what = match differing {
                None => "was cut short".into(),
                Some(d) if d.is_empty() => "found no difference".into(),
                Some(d) => format!("found {} ranges that DIFFER", d.len()),
            };
            (
                "verified",
                format!("comparison with {} {what}", cx.name(*peer)),
            )
        }
        Note::Protocol { peer, what } => (
            "protocol",
            format!("{} was disconnected: {what}", cx.name(*peer)),
        ),
        Note::DiskFailed { what } => ("disk-failed", what.clone()),
    }
}
