//! What clients ask, and what other daemons ask on their behalf.

use super::{
    Answer, Context, Input, Question, VolumeKey, api, create, members, sentences, status, upkeep,
    verify,
};
use crate::api_types::{self as types, ApiError, ErrorCode, Progress, Reply, Request};
use holdfast_config::Resource;
use holdfast_control::{
    AdminReply, AdminRequest, FORCE_CONSENT, ResourceIx, ResourceStatus, Status as ControlStatus,
    VolumeIx,
};
use holdfast_types::{NodeId, NodeSet};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a client that waits is told what for.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How long a request that was handed to another node may take.
const FORWARD_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

pub(super) type Told = Result<types::Answer, ApiError>;
pub(super) type ToClient = mpsc::UnboundedSender<Reply>;

pub(super) fn error(code: ErrorCode, message: impl Into<String>) -> ApiError {
    ApiError {
        code,
        message: message.into(),
        fix: None,
    }
}

pub(super) fn done(message: impl Into<String>) -> Told {
    Ok(types::Answer::Done {
        message: message.into(),
    })
}

/// Does what a client asks.
pub(super) async fn perform(cx: &Context, request: Request, client: &ToClient) -> Told {
    match request {
        Request::Status => Ok(types::Answer::Status(Box::new(status::cluster(cx).await?))),
        Request::History => {
            let status = control_status(cx).await?;
            Ok(types::Answer::History(sentences::history(cx, &status)))
        }
        Request::Timeline { after } => Ok(types::Answer::Timeline(timeline(cx, after))),
        Request::Promote { resource, force } => {
            known(cx, &resource)?;
            let ask = AdminRequest::Promote {
                resource: resource.clone(),
                node: None,
                force: force.clone(),
            };
            match waiting(cx, &resource, ask, client).await {
                Err(e) if force.is_none() && e.message.contains(FORCE_CONSENT) => Err(ApiError {
                    code: ErrorCode::NoUpToDateData,
                    fix: Some(format!(
                        "wait for the node that has it, or give it up: promote {resource} --force \"{FORCE_CONSENT}\""
                    )),
                    ..e
                }),
                other => other,
            }
        }
        Request::Demote { resource } => {
            known(cx, &resource)?;
            waiting(
                cx,
                &resource,
                AdminRequest::Demote {
                    resource: resource.clone(),
                },
                client,
            )
            .await
        }
        Request::Create { resource } => {
            let (ix, _) = known(cx, &resource)?;
            create::create(cx, ix, client).await
        }
        Request::Verify {
            ref resource,
            ref volume,
            ref peer,
            ref repair,
        } => {
            let asked = verify::Asked {
                peer: peer.as_deref(),
                repair: repair.as_deref(),
            };
            match at_primary(cx, resource, volume.as_deref(), &request, client).await? {
                Either::Forwarded(told) => told,
                Either::Here(held) => verify::verify(cx, &held, &asked, client).await,
            }
        }
        Request::Resolve {
            ref resource,
            ref volume,
            ref keep,
            ref peer,
        } => match at_primary(cx, resource, volume.as_deref(), &request, client).await? {
            Either::Forwarded(told) => told,
            Either::Here(held) if *keep == cx.me.name => {
                let peer = copy_of(cx, &held, peer.as_deref())?;
                resolve(cx, held.key, peer).await
            }
            Either::Here(_) => Err(ApiError {
                fix: Some(format!(
                    "demote {resource}, then on {keep}: promote {resource} --force \"{FORCE_CONSENT}\"; then resolve again"
                )),
                ..error(
                    ErrorCode::Refused,
                    format!(
                        "{keep} is not the primary of {resource}: only the primary's data can be kept"
                    ),
                )
            }),
        },
        Request::Resync {
            ref resource,
            ref volume,
            ref peer,
        } => match at_primary(cx, resource, volume.as_deref(), &request, client).await? {
            Either::Forwarded(told) => told,
            Either::Here(held) => {
                let ask = AdminRequest::Invalidate {
                    resource: resource.clone(),
                    volume: Some(held.key.volume),
                    node: copy_of(cx, &held, peer.as_deref())?,
                };
                admin(cx, ask).await
            }
        },
        Request::ResyncBounds {
            ref resource,
            ref volume,
            paused,
            min,
            max,
        } => {
            let (ix, r) = known(cx, resource)?;
            let key = VolumeKey {
                resource: ix,
                volume: volume_of(r, volume.as_deref())?,
            };
            upkeep::bounds(cx, key, paused, min, max).await
        }
        Request::Resize {
            resource,
            volume,
            size_bytes,
            shrink,
        } => {
            let (ix, r) = known(cx, &resource)?;
            let volume = volume_of(r, volume.as_deref())?;
            let key = super::VolumeKey {
                resource: ix,
                volume,
            };
            let size_bytes = match size_bytes {
                Some(bytes) => bytes,
                None => members::largest(cx, key).await?,
            };
            let ask = AdminRequest::Resize {
                resource: resource.clone(),
                volume,
                size_bytes,
                shrink,
            };
            waiting(cx, &resource, ask, client).await
        }
        Request::ReplicaAdd {
            resource,
            volume,
            node,
            backing,
        } => members::add(cx, (&resource, volume.as_deref(), &node), backing, client).await,
        Request::ReplicaRemove {
            resource,
            volume,
            node,
        } => members::remove(cx, (&resource, volume.as_deref(), &node)).await,
        Request::ReplicaMove {
            resource,
            volume,
            from,
            to,
            backing,
        } => {
            let which = (
                resource.as_str(),
                volume.as_deref(),
                from.as_str(),
                to.as_str(),
            );
            members::shift(cx, which, backing, client).await
        }
        Request::Isolate { on } => isolate(cx, on).await,
        Request::Shutdown => {
            cx.tell(Input::Stop);
            done("the daemon stops")
        }
    }
}

fn timeline(cx: &Context, after: u64) -> Vec<types::TimelineEntry> {
    cx.timeline
        .since(after)
        .into_iter()
        .map(|e| types::TimelineEntry {
            number: e.number,
            at_ns: e.at.0,
            wall_ms: e.wall_ms,
            resource: e.resource,
            kind: e.kind.to_owned(),
            text: e.text,
        })
        .collect()
}

async fn isolate(cx: &Context, on: bool) -> Told {
    if !cx.allow_faults {
        return Err(ApiError {
            fix: Some("start the daemon with fault injection allowed".into()),
            ..error(
                ErrorCode::Refused,
                "this daemon does not allow fault injection",
            )
        });
    }
    cx.ask_loop(|reply| Input::Isolate { on, reply })
        .await
        .map_err(|e| error(ErrorCode::Internal, e))?;
    done(if on {
        "cut off from all nodes"
    } else {
        "connected again"
    })
}

/// Which of a resource's volumes is meant.
pub(super) fn volume_of(r: &Resource, volume: Option<&str>) -> Result<VolumeIx, ApiError> {
    let bad = |message: String| error(ErrorCode::BadRequest, message);
    let at = match volume {
        None if r.volumes.len() == 1 => 0,
        None => {
            return Err(bad(format!(
                "{} has {} volumes: say which",
                r.name,
                r.volumes.len()
            )));
        }
        Some(name) => r
            .volumes
            .iter()
            .position(|v| v.name == name)
            .ok_or_else(|| bad(format!("resource {} has no volume {name:?}", r.name)))?,
    };
    Ok(VolumeIx(at as u16))
}

/// The resource of this name.
pub(super) fn known<'a>(
    cx: &'a Context,
    name: &str,
) -> Result<(ResourceIx, &'a Resource), ApiError> {
    let found = cx
        .config
        .resources
        .iter()
        .enumerate()
        .find(|(_, r)| r.name == name);
    found
        .map(|(at, r)| (ResourceIx(at as u16), r))
        .ok_or_else(|| {
            let names: Vec<&str> = cx
                .config
                .resources
                .iter()
                .map(|r| r.name.as_str())
                .collect();
            ApiError {
                fix: Some(format!("resources of this cluster: {}", names.join(", "))),
                ..error(
                    ErrorCode::BadRequest,
                    format!("there is no resource {name:?}"),
                )
            }
        })
}

/// Asks the control plane.
pub(super) async fn admin(cx: &Context, request: AdminRequest) -> Told {
    let reply = cx.ask_loop(|reply| Input::Admin { request, reply }).await;
    match reply.map_err(|e| error(ErrorCode::Internal, e))? {
        AdminReply::Done { message } => done(message),
        AdminReply::Refused { message } => Err(error(ErrorCode::Refused, message)),
        AdminReply::TimedOut { message } => Err(error(ErrorCode::TimedOut, message)),
        AdminReply::Status(_) => Err(error(
            ErrorCode::Internal,
            "the control plane answered something else",
        )),
    }
}

/// The cluster as the control plane of this node sees it.
pub(super) async fn control_status(cx: &Context) -> Result<ControlStatus, ApiError> {
    let reply = cx
        .ask_loop(|reply| Input::Admin {
            request: AdminRequest::Status,
            reply,
        })
        .await;
    match reply.map_err(|e| error(ErrorCode::Internal, e))? {
        AdminReply::Status(status) => Ok(*status),
        _ => Err(error(
            ErrorCode::Internal,
            "the control plane answered something else than its status",
        )),
    }
}

/// The same, with a line now and then for the client that waits.
async fn waiting(cx: &Context, resource: &str, request: AdminRequest, client: &ToClient) -> Told {
    let asked = admin(cx, request);
    tokio::pin!(asked);
    let mut last = String::new();
    loop {
        tokio::select! {
            told = &mut asked => return told,
            () = tokio::time::sleep(PROGRESS_EVERY) => {
                let status = control_status(cx).await?;
                let waits = status.waiting.clone().or_else(|| {
                    status.resources.iter().find(|r| r.name == resource).and_then(|r| r.waiting.clone())
                });
                if let Some(what) = waits.filter(|w| *w != last) {
                    last.clone_from(&what);
                    let _ = client.send(Reply::Progress(Progress { what, ..Progress::default() }));
                }
            }
        }
    }
}

/// A volume and who holds replicas of it.
pub(super) struct Held {
    pub(super) key: VolumeKey,
    pub(super) holders: NodeSet,
}

/// A volume whose primary is here, or what the primary said.
enum Either {
    Here(Held),
    Forwarded(Told),
}

/// Finds the volume a client means; if the primary is elsewhere, that node does the rest.
async fn at_primary(
    cx: &Context,
    resource: &str,
    volume: Option<&str>,
    request: &Request,
    client: &ToClient,
) -> Result<Either, ApiError> {
    let (ix, r) = known(cx, resource)?;
    let volume_ix = volume_of(r, volume)?;
    let status = control_status(cx).await?;
    let primary = record(&status, resource)?.primary.ok_or_else(|| {
        error(
            ErrorCode::Refused,
            format!("{resource} has no primary, and copies are compared with the primary's"),
        )
    })?;
    if primary != cx.me.id {
        return Ok(Either::Forwarded(
            forward(cx, primary, request, client).await,
        ));
    }
    let holders: NodeSet = record(&status, resource)?
        .volumes
        .get(usize::from(volume_ix.0))
        .map_or(NodeSet::EMPTY, |v| {
            v.replicas.iter().map(|r| r.node).collect()
        });
    Ok(Either::Here(Held {
        key: VolumeKey {
            resource: ix,
            volume: volume_ix,
        },
        holders,
    }))
}

/// The other copy a client names, or the only one there is.
fn copy_of(cx: &Context, held: &Held, peer: Option<&str>) -> Result<NodeId, ApiError> {
    let bad = |message: String| error(ErrorCode::BadRequest, message);
    let (resource, _) = cx.names(held.key);
    let others = held.holders.without(cx.me.id);
    match peer {
        Some(name) => node_of(cx, others, name)
            .ok_or_else(|| bad(format!("{name:?} holds no other copy of {resource}"))),
        None if others.len() == 1 => Ok(others.iter().next().unwrap_or(cx.me.id)),
        None => Err(bad(format!(
            "{resource} has {} other copies: say whose",
            others.len()
        ))),
    }
}

/// The node of this name, if it is one of these.
pub(super) fn node_of(cx: &Context, among: NodeSet, name: &str) -> Option<NodeId> {
    cx.config.node(name).map(|n| n.id).filter(|n| among.has(*n))
}

pub(super) fn record<'a>(
    status: &'a ControlStatus,
    resource: &str,
) -> Result<&'a ResourceStatus, ApiError> {
    status
        .resources
        .iter()
        .find(|r| r.name == resource)
        .ok_or_else(|| {
            error(
                ErrorCode::Internal,
                format!("the control plane does not know {resource}"),
            )
        })
}

/// Lets another node do what a client asks here.
async fn forward(cx: &Context, to: NodeId, request: &Request, client: &ToClient) -> Told {
    let what = format!("{}, the primary, does it", cx.name(to));
    let _ = client.send(Reply::Progress(Progress {
        what,
        ..Progress::default()
    }));
    let line =
        serde_json::to_string(request).map_err(|e| error(ErrorCode::Internal, e.to_string()))?;
    match cx
        .ask_node(to, Question::Api { line }, FORWARD_TIME_MAX)
        .await
    {
        Ok(Answer::Api { line }) => match serde_json::from_str(&line) {
            Ok(Reply::Ok(answer)) => Ok(answer),
            Ok(Reply::Error(e)) => Err(e),
            Ok(Reply::Progress(_)) | Err(_) => Err(error(
                ErrorCode::Internal,
                format!("{} answered what this version does not know", cx.name(to)),
            )),
        },
        Ok(_) => Err(error(
            ErrorCode::Internal,
            format!("{} answered something else", cx.name(to)),
        )),
        Err(e) => Err(error(ErrorCode::TimedOut, e)),
    }
}

/// A peer of another line of history saves what differs and gives it up.
async fn resolve(cx: &Context, key: VolumeKey, peer: NodeId) -> Told {
    let (tx, mut notes) = mpsc::unbounded_channel();
    cx.tell(Input::Watch { key, notes: tx });
    let facts = cx.ask_loop(|reply| Input::Facts { reply }).await;
    let facts = facts.map_err(|e| error(ErrorCode::Internal, e))?;
    let (resource, volume) = cx.names(key);
    let told = facts.volumes.get(&key).is_some_and(|commands| {
        commands.send(crate::volume::Command::Control(
            holdfast_replicator::FromControl::Discard { peer },
        ))
    });
    if !told {
        let message = format!("volume {resource}/{volume} is not open here");
        return Err(error(ErrorCode::Refused, message));
    }
    let name = cx.name(peer);
    let answer = tokio::time::timeout(FORWARD_TIME_MAX, async {
        while let Some(note) = notes.recv().await {
            match note {
                holdfast_replicator::Note::Discarded {
                    peer: p,
                    done,
                    text,
                } if p == peer => {
                    return Some((done, text));
                }
                _ => {}
            }
        }
        None
    });
    match answer.await {
        Ok(Some((true, text))) => done(format!(
            "{name} gave up its line of history of {resource}/{volume}: {text} on {name}; it is resynced now"
        )),
        Ok(Some((false, text))) => Err(error(ErrorCode::Refused, format!("{name}: {text}"))),
        Ok(None) => Err(error(ErrorCode::Internal, "the daemon stops")),
        Err(_) => Err(error(
            ErrorCode::TimedOut,
            format!("{name} has not answered"),
        )),
    }
}

/// Only what the primary alone can do is done for another node's client.
fn handed_on(line: &str) -> bool {
    matches!(
        serde_json::from_str(line),
        Ok(Request::Verify { .. } | Request::Resync { .. } | Request::Resolve { .. })
    )
}

/// Answers another daemon.
pub(super) async fn answer(
    cx: &Context,
    from: NodeId,
    question: Question,
) -> Result<Answer, String> {
    match question {
        Question::Inspect {
            key,
            size_bytes,
            recorded,
        } => create::inspect(cx, key, size_bytes, recorded).await,
        Question::Initialise {
            key,
            volume,
            incarnation,
            data_nodes,
            equal,
            member,
            recorded,
        } => {
            let new = crate::backing::NewReplica {
                volume,
                incarnation,
                data_nodes,
                equal,
                member,
            };
            create::initialise(cx, key, new, recorded).await
        }
        Question::Add {
            key,
            size_bytes,
            replica,
            recorded,
            backing,
        } => members::make(cx, key, size_bytes, replica, recorded, backing).await,
        Question::Backing { key } => members::backing_bytes(cx, key).map(Answer::Backing),
        Question::Open { key } => {
            cx.ask_loop(|reply| Input::Open { key, reply }).await??;
            Ok(Answer::Done)
        }
        Question::Replicas => {
            let facts = cx.ask_loop(|reply| Input::Facts { reply }).await?;
            let found = cx.replica_status(facts.volumes).await;
            Ok(Answer::Replicas(
                found.into_iter().map(|(k, s)| (k, s.replica)).collect(),
            ))
        }
        Question::Api { line } => {
            if !handed_on(&line) {
                return Err("that request is not handed on between nodes".into());
            }
            tracing::info!(
                "{} hands on a client's request: {}",
                cx.name(from),
                line.trim()
            );
            let (tx, _) = mpsc::unbounded_channel();
            let reply = Box::pin(api::reply(cx, &line, &tx)).await;
            Ok(Answer::Api {
                line: serde_json::to_string(&reply).map_err(|e| e.to_string())?,
            })
        }
    }
}
