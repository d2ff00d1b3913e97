//! The creation of a resource: every node looks first, and only when all agree is anything made; the
//! control plane records it last. A creation that was cut short is begun anew by asking again.

use super::requests::{ToClient, Told, admin, control_status, error};
use super::{Answer, Context, Question, VolumeKey};
use crate::api_types::{ErrorCode, Progress, Reply};
use crate::backing::{NewReplica, Place};
use crate::clock;
use crate::settings::preferred_first;
use holdfast_control::{AdminRequest, CreateVolume, ResourceIx, VolumeIx};
use holdfast_types::{Incarnation, NodeId, NodeSet, VolumeId};
use std::time::Duration;

/// How long a node may take to look at or make one replica.
const STEP_TIME_MAX: Duration = Duration::from_secs(60);

/// Creates a resource on all its nodes.
pub(super) async fn create(cx: &Context, ix: ResourceIx, client: &ToClient) -> Told {
    let resource = &cx.config.resources[usize::from(ix.0)];
    let name = &resource.name;
    let status = control_status(cx).await?;
    if !status.quorum {
        let why = status
            .waiting
            .unwrap_or_else(|| "this node hears no majority of the voters".into());
        return Err(error(
            ErrorCode::NoQuorum,
            format!("{name} cannot be created: {why}"),
        ));
    }
    if status
        .resources
        .iter()
        .any(|r| r.name == *name && r.created)
    {
        return Err(error(
            ErrorCode::Refused,
            format!("{name} exists already; nothing was changed"),
        ));
    }
    let recorded: Vec<VolumeId> = status
        .resources
        .iter()
        .filter(|r| r.created)
        .flat_map(|r| &r.volumes)
        .map(|v| v.id)
        .collect();
    let say = |what: String| {
        let _ = client.send(Reply::Progress(Progress {
            what,
            ..Progress::default()
        }));
    };
    // Nothing is touched anywhere before every node has found its backings fit.
    let mut plans = Vec::new();
    for (v, volume) in resource.volumes.iter().enumerate() {
        let key = VolumeKey {
            resource: ix,
            volume: VolumeIx(v as u16),
        };
        let mut zero = NodeSet::EMPTY;
        for node in resource.nodes.iter() {
            let question = Question::Inspect {
                key,
                size_bytes: volume.size_bytes,
                recorded: recorded.clone(),
            };
            if let Answer::Found { all_zero: true, .. } = ask(cx, node, question).await? {
                zero = zero.with(node);
            }
        }
        let equal = zero == resource.nodes;
        let first = preferred_first(resource)[0];
        plans.push(Plan {
            key,
            volume: VolumeId(clock::random_u64()),
            equal,
            // Without knowing them equal, one copy is taken for the truth and the others are made so.
            in_sync: if equal {
                resource.nodes
            } else {
                NodeSet::only(first)
            },
        });
    }
    let mut volumes = Vec::new();
    for plan in &plans {
        let config = &resource.volumes[usize::from(plan.key.volume.0)];
        let mut replicas = Vec::new();
        for node in resource.nodes.iter() {
            say(format!(
                "volume {}: making the replica on {}",
                config.name,
                cx.name(node)
            ));
            let incarnation = Incarnation(clock::random_u64());
            ask(
                cx,
                node,
                plan.initialise(incarnation, node, resource.nodes, &recorded),
            )
            .await?;
            replicas.push((node, incarnation));
        }
        volumes.push(CreateVolume {
            id: plan.volume,
            size_bytes: config.size_bytes,
            in_sync: plan.in_sync,
            replicas,
        });
    }
    say("recording it".into());
    let told = admin(
        cx,
        AdminRequest::Create {
            resource: name.clone(),
            volumes,
        },
    )
    .await?;
    for plan in &plans {
        for node in resource.nodes.iter() {
            // It is recorded: a node that cannot open its replica now says so in its status.
            if let Err(e) = ask(cx, node, Question::Open { key: plan.key }).await {
                say(e.message);
            }
        }
    }
    Ok(told)
}

struct Plan {
    key: VolumeKey,
    volume: VolumeId,
    equal: bool,
    in_sync: NodeSet,
}

impl Plan {
    fn initialise(
        &self,
        incarnation: Incarnation,
        node: NodeId,
        data_nodes: NodeSet,
        recorded: &[VolumeId],
    ) -> Question {
        Question::Initialise {
            key: self.key,
            volume: self.volume,
            incarnation,
            data_nodes,
            equal: self.equal,
            member: self.in_sync.has(node),
            recorded: recorded.to_vec(),
        }
    }
}

async fn ask(
    cx: &Context,
    node: NodeId,
    question: Question,
) -> Result<Answer, crate::api_types::ApiError> {
    cx.ask_node(node, question, STEP_TIME_MAX)
        .await
        .map_err(|e| error(ErrorCode::Refused, format!("{}: {e}", cx.name(node))))
}

/// Looks at this node's backing of a volume.
pub(super) async fn inspect(
    cx: &Context,
    key: VolumeKey,
    size_bytes: u64,
    recorded: Vec<VolumeId>,
) -> Result<Answer, String> {
    let (r, v) = cx.names(key);
    let place = cx.place(key).ok_or_else(|| {
        format!(
            "its configuration has no replica of {r}/{v} here: give all nodes the same cluster.toml"
        )
    })?;
    if place.size_bytes != size_bytes {
        return Err(format!(
            "volume {r}/{v} has {} bytes by its configuration and {size_bytes} by the asker's: give all nodes the same cluster.toml",
            place.size_bytes
        ));
    }
    blocking(move || {
        let found = place.inspect(&recorded).map_err(|e| e.to_string())?;
        Ok(Answer::Found {
            found,
            all_zero: found.all_zero(&place.path),
        })
    })
    .await
}

/// Makes this node's replica of a volume.
pub(super) async fn initialise(
    cx: &Context,
    key: VolumeKey,
    new: NewReplica,
    recorded: Vec<VolumeId>,
) -> Result<Answer, String> {
    let place = cx
        .place(key)
        .ok_or("its configuration has no replica of that volume here")?;
    make(cx, key, place, new, recorded).await
}

/// The same at a given place.
pub(super) async fn make(
    cx: &Context,
    key: VolumeKey,
    place: Place,
    new: NewReplica,
    recorded: Vec<VolumeId>,
) -> Result<Answer, String> {
    let cx = cx.clone();
    blocking(move || {
        place
            .initialise(&new, &recorded)
            .map_err(|e| e.to_string())?;
        let (r, v) = cx.names(key);
        cx.book
            .put(&r, &v, new.volume, &place.path)
            .map_err(|e| format!("cannot note the new replica in the state directory: {e}"))?;
        cx.timeline.add(
            &r,
            "replica-made",
            format!("volume {v} on {}", place.path.display()),
        );
        Ok(Answer::Done)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(format!("it broke off: {e}")))
}
