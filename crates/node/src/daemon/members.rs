//! Replicas that are added to, removed from and moved between nodes while the resource runs.
//!
//! The committed record says who holds a replica; `cluster.toml` only says where a resource begins. A node
//! makes its replica before that is recorded, and opens it after: a step that is cut short is taken up again by
//! asking again.

use super::requests::{ToClient, Told, admin, control_status, done, error, known, volume_of};
use super::{Answer, Context, Question, VolumeKey, create, status};
use crate::api_types::{ApiError, ErrorCode, Progress, Reply, TransferKind};
use crate::backing::{NewReplica, Place};
use crate::clock;
use holdfast_control::{AdminRequest, Status, VolumeStatus};
use holdfast_meta::{Layout, PEERS_MAX};
use holdfast_types::{Geometry, Incarnation, NodeId, VolumeId};
use std::path::PathBuf;
use std::time::Duration;

/// How long a node may take to make one replica.
const STEP_TIME_MAX: Duration = Duration::from_secs(60);
/// How often a move looks whether the new replica is in sync.
const LOOK: Duration = Duration::from_millis(500);

/// A volume as the client names it, and a node.
struct Which {
    key: VolumeKey,
    resource: String,
    volume: String,
    node: NodeId,
}

impl Which {
    fn find(
        cx: &Context,
        resource: &str,
        volume: Option<&str>,
        node: &str,
    ) -> Result<Self, ApiError> {
        let (ix, r) = known(cx, resource)?;
        let volume = volume_of(r, volume)?;
        let found = cx.config.node(node).ok_or_else(|| {
            let names: Vec<&str> = cx.config.nodes.iter().map(|n| n.name.as_str()).collect();
            ApiError {
                fix: Some(format!("nodes of this cluster: {}", names.join(", "))),
                ..error(ErrorCode::BadRequest, format!("there is no node {node:?}"))
            }
        })?;
        Ok(Self {
            key: VolumeKey {
                resource: ix,
                volume,
            },
            resource: resource.to_owned(),
            volume: r.volumes[usize::from(volume.0)].name.clone(),
            node: found.id,
        })
    }

    /// The volume as it is recorded.
    fn recorded<'a>(&self, status: &'a Status) -> Result<&'a VolumeStatus, ApiError> {
        let record = status
            .resources
            .iter()
            .find(|r| r.name == self.resource && r.created);
        record
            .and_then(|r| r.volumes.get(usize::from(self.key.volume.0)))
            .ok_or_else(|| {
                let text = format!("{} is not created yet", self.resource);
                error(ErrorCode::Refused, text)
            })
    }
}

fn say(client: &ToClient, what: String) {
    let _ = client.send(Reply::Progress(Progress {
        what,
        ..Progress::default()
    }));
}

/// Gives a node a replica; it is filled by resync.
pub(super) async fn add(
    cx: &Context,
    (resource, volume, node): (&str, Option<&str>, &str),
    backing: Option<PathBuf>,
    client: &ToClient,
) -> Told {
    let which = Which::find(cx, resource, volume, node)?;
    place(cx, &which, backing, client).await?;
    done(format!(
        "{node} has a replica of {}/{}; it is being filled: `holdfast status {resource}` shows how far it is",
        which.resource, which.volume
    ))
}

async fn place(
    cx: &Context,
    which: &Which,
    backing: Option<PathBuf>,
    client: &ToClient,
) -> Result<(), ApiError> {
    let name = cx.name(which.node);
    let at = |e: String| error(ErrorCode::Refused, format!("{name}: {e}"));
    if cx.config.node_by_id(which.node).is_some_and(|n| n.witness) {
        return Err(at("a witness holds no data".into()));
    }
    let status = control_status(cx).await?;
    if !status.quorum {
        let why = status
            .waiting
            .unwrap_or_else(|| "this node hears no majority of the voters".into());
        return Err(error(ErrorCode::NoQuorum, why));
    }
    let recorded = which.recorded(&status)?;
    if recorded.replicas.iter().all(|r| r.node != which.node) {
        let in_use = status
            .resources
            .iter()
            .filter(|r| r.created)
            .flat_map(|r| &r.volumes)
            .map(|v| v.id)
            .filter(|id| *id != recorded.id)
            .collect();
        let incarnation = Incarnation(clock::random_u64());
        say(client, format!("making the replica on {name}"));
        let question = Question::Add {
            key: which.key,
            size_bytes: recorded.size_bytes,
            replica: NewReplica {
                volume: recorded.id,
                incarnation,
                data_nodes: recorded
                    .replicas
                    .iter()
                    .map(|r| r.node)
                    .chain([which.node])
                    .collect(),
                equal: false,
                member: false,
            },
            recorded: in_use,
            backing,
        };
        cx.ask_node(which.node, question, STEP_TIME_MAX)
            .await
            .map_err(at)?;
        say(client, "recording it".into());
        admin(
            cx,
            AdminRequest::ReplicaAdd {
                resource: which.resource.clone(),
                volume: which.key.volume,
                node: which.node,
                incarnation,
            },
        )
        .await?;
    }
    let question = Question::Open { key: which.key };
    cx.ask_node(which.node, question, STEP_TIME_MAX)
        .await
        .map_err(at)?;
    Ok(())
}

/// Gives a node's replica up.
pub(super) async fn remove(
    cx: &Context,
    (resource, volume, node): (&str, Option<&str>, &str),
) -> Told {
    let which = Which::find(cx, resource, volume, node)?;
    dismiss(cx, &which).await?;
    done(format!(
        "{node} holds no replica of {}/{} any more; its backing is left as it is",
        which.resource, which.volume
    ))
}

async fn dismiss(cx: &Context, which: &Which) -> Told {
    admin(
        cx,
        AdminRequest::ReplicaRemove {
            resource: which.resource.clone(),
            volume: which.key.volume,
            node: which.node,
        },
    )
    .await
}

/// Moves a replica: the new one is made and in sync before the old one goes, and a primary hands over in between.
pub(super) async fn shift(
    cx: &Context,
    (resource, volume, from, to): (&str, Option<&str>, &str, &str),
    backing: Option<PathBuf>,
    client: &ToClient,
) -> Told {
    let old = Which::find(cx, resource, volume, from)?;
    let new = Which::find(cx, resource, volume, to)?;
    let status = control_status(cx).await?;
    let recorded = old.recorded(&status)?;
    let holds = |n: NodeId| recorded.replicas.iter().any(|r| r.node == n);
    if !holds(old.node) && !holds(new.node) {
        let text = format!("{from} holds no replica of {resource}/{}", old.volume);
        return Err(error(ErrorCode::Refused, text));
    }
    place(cx, &new, backing, client).await?;
    loop {
        let status = control_status(cx).await?;
        let recorded = new.recorded(&status)?;
        if recorded.in_sync.has(new.node) {
            break;
        }
        if recorded.replicas.iter().all(|r| r.node != new.node) {
            let text = format!("the replica on {to} was removed meanwhile");
            return Err(error(ErrorCode::Refused, text));
        }
        let _ = client.send(Reply::Progress(filling(cx, &new).await));
        tokio::time::sleep(LOOK).await;
    }
    let status = control_status(cx).await?;
    let primary = status
        .resources
        .iter()
        .find(|r| r.name == resource)
        .and_then(|r| r.primary);
    if primary == Some(old.node) {
        say(client, format!("{from} hands {resource} over to {to}"));
        admin(
            cx,
            AdminRequest::Promote {
                resource: resource.to_owned(),
                node: Some(new.node),
                force: None,
            },
        )
        .await?;
    }
    if holds(old.node) {
        say(client, format!("removing the replica on {from}"));
        dismiss(cx, &old).await?;
    }
    done(format!(
        "the replica of {resource}/{} moved from {from} to {to}; its old backing is left as it is",
        old.volume
    ))
}

/// How far the resync of a replica is.
async fn filling(cx: &Context, which: &Which) -> Progress {
    let name = cx.name(which.node);
    let what = format!("waiting until the replica on {name} is in sync");
    let mut progress = Progress {
        what,
        ..Progress::default()
    };
    if let Ok(cluster) = status::cluster(cx).await
        && let Some(r) = cluster.resources.iter().find(|r| r.name == which.resource)
        && let Some(v) = r.volumes.get(usize::from(which.key.volume.0))
        && let Some(t) = v
            .transfers
            .iter()
            .find(|t| t.peer == name && t.kind == TransferKind::Resync)
    {
        progress.done_bytes = Some(t.done_bytes);
        progress.total_bytes = Some(t.total_bytes);
    }
    progress
}

/// Makes this node's replica of a volume that exists.
pub(super) async fn make(
    cx: &Context,
    key: VolumeKey,
    size_bytes: u64,
    new: NewReplica,
    recorded: Vec<VolumeId>,
    backing: Option<PathBuf>,
) -> Result<Answer, String> {
    let (r, v) = cx.names(key);
    let path = match backing {
        Some(path) if path.is_absolute() => path,
        Some(path) => return Err(format!("{} is not an absolute path", path.display())),
        None => cx.configured_backing(key).ok_or_else(|| {
            format!("its cluster.toml names no backing for {r}/{v} here: name one, --backing PATH")
        })?,
    };
    if let Some(other) = cx.book.user_of(&path)
        && other != (r, v)
    {
        return Err(format!(
            "{} is the backing of {}/{}",
            path.display(),
            other.0,
            other.1
        ));
    }
    let place = Place {
        cluster: cx.cluster.short(),
        me: cx.me.id,
        size_bytes,
        path,
        end: None,
    };
    create::make(cx, key, place, new, recorded).await
}

/// The largest size that every replica's backing has room for now.
pub(super) async fn largest(cx: &Context, key: VolumeKey) -> Result<u64, ApiError> {
    let status = control_status(cx).await?;
    let (resource, _) = cx.names(key);
    let recorded = status
        .resources
        .iter()
        .find(|r| r.name == resource && r.created)
        .and_then(|r| r.volumes.get(usize::from(key.volume.0)))
        .ok_or_else(|| error(ErrorCode::Refused, format!("{resource} is not created yet")))?;
    let mut smallest = u64::MAX;
    for replica in &recorded.replicas {
        let asked = cx.ask_node(replica.node, Question::Backing { key }, STEP_TIME_MAX);
        let bytes = match asked.await {
            Ok(Answer::Backing(bytes)) => bytes,
            Ok(_) => 0,
            Err(e) => {
                let text = format!("{}: {e}; say the size", cx.name(replica.node));
                return Err(error(ErrorCode::Refused, text));
            }
        };
        smallest = smallest.min(bytes);
    }
    let now = Geometry::of_bytes(recorded.size_bytes);
    Ok(Layout::largest(now, smallest, PEERS_MAX)
        .map_or(recorded.size_bytes, |g| g.bytes())
        .max(recorded.size_bytes))
}

/// How large this node's backing of a volume is.
pub(super) fn backing_bytes(cx: &Context, key: VolumeKey) -> Result<u64, String> {
    use std::io::Seek as _;
    let place = cx.place(key).ok_or("it holds no replica of it")?;
    let size = |p: &std::path::Path| std::fs::File::open(p)?.seek(std::io::SeekFrom::End(0));
    size(&place.path).map_err(|e| format!("{}: {e}", place.path.display()))
}
