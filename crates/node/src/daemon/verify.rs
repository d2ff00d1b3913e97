//! A verify that a client asked for: it is started at the primary, followed, and told.

use super::requests::{
    Held, PROGRESS_EVERY, ToClient, Told, admin, control_status, error, node_of, record,
};
use super::{Context, Input, VolumeKey, upkeep};
use crate::api_types::{
    self as types, ApiError, DIFFERING_RANGES_MAX, ErrorCode, MAJORITY, Progress, Reply,
    VerifiedPeer,
};
use crate::clock;
use holdfast_control::{AdminRequest, Care, Verified};
use holdfast_replicator::{Note, Repair, VerifyOrder, VerifyReport};
use holdfast_types::{BLOCK_BYTES, BlockRange, NodeSet};
use tokio::sync::mpsc;

/// What a client wants of a verify.
pub(super) struct Asked<'a> {
    pub(super) peer: Option<&'a str>,
    pub(super) repair: Option<&'a str>,
}

fn order(cx: &Context, held: &Held, asked: &Asked<'_>) -> Result<VerifyOrder, ApiError> {
    let (resource, _) = cx.names(held.key);
    let known = |name: &str, among: NodeSet| {
        node_of(cx, among, name).ok_or_else(|| {
            let text = format!("{name:?} holds no copy of {resource} to compare");
            error(ErrorCode::BadRequest, text)
        })
    };
    let peers = match asked.peer {
        Some(name) => NodeSet::only(known(name, held.holders.without(cx.me.id))?),
        None => NodeSet::EMPTY,
    };
    let repair = match asked.repair {
        None => None,
        Some(MAJORITY) => Some(Repair::Majority),
        Some(name) => Some(Repair::Source(known(name, held.holders)?)),
    };
    Ok(VerifyOrder {
        peers,
        repair,
        ..VerifyOrder::default()
    })
}

/// Compares, and answers when that is done.
pub(super) async fn verify(
    cx: &Context,
    held: &Held,
    asked: &Asked<'_>,
    client: &ToClient,
) -> Told {
    let order = order(cx, held, asked)?;
    let report = run(cx, held.key, order, client).await?;
    verified(cx, report)
}

/// Has a volume whose primary is here compared, and what came of it recorded.
pub(super) async fn run(
    cx: &Context,
    key: VolumeKey,
    order: VerifyOrder,
    client: &ToClient,
) -> Result<VerifyReport, ApiError> {
    let (resource, volume) = cx.names(key);
    let (tx, mut notes) = mpsc::unbounded_channel();
    cx.tell(Input::Watch { key, notes: tx });
    admin(
        cx,
        AdminRequest::Verify {
            resource: resource.clone(),
            volume: Some(key.volume),
            order,
        },
    )
    .await?;
    let mut look = tokio::time::interval(PROGRESS_EVERY);
    let report = loop {
        tokio::select! {
            note = notes.recv() => match note {
                Some(Note::Verified(report)) if report.order == order => break report,
                Some(_) => {}
                None => return Err(error(ErrorCode::Internal, "the daemon stops")),
            },
            _ = look.tick() => {
                if record(&control_status(cx).await?, &resource)?.primary != Some(cx.me.id) {
                    return Err(error(ErrorCode::TimedOut, format!("{} is primary no longer", cx.me.name)));
                }
                if let Some(progress) = progress(cx, key, &volume).await {
                    let _ = client.send(Reply::Progress(progress));
                }
            }
        }
    };
    if report.is_complete() {
        let bytes = |blocks: u64| blocks * u64::from(BLOCK_BYTES);
        let care = Care::Verified(Verified {
            ended_ms: clock::wall_ms(),
            scrub: order.scrub,
            compared_bytes: report.compared_bytes,
            differing_bytes: bytes(report.differing_blocks()),
            repaired_bytes: bytes(report.repaired_blocks()),
        });
        // For the status and the history; the answer does not wait for a majority.
        if let Err(e) = upkeep::record(cx, key, care).await {
            tracing::warn!("volume {volume}: the result of a verify was not recorded: {e}");
        }
    }
    Ok(report)
}

async fn progress(cx: &Context, key: VolumeKey, volume: &str) -> Option<Progress> {
    let facts = cx.ask_loop(|reply| Input::Facts { reply }).await.ok()?;
    let volumes = facts
        .volumes
        .into_iter()
        .filter(|(k, _)| *k == key)
        .collect();
    let found = cx.replica_status(volumes).await;
    let status = &found.get(&key)?.replica;
    let peers = status
        .peers
        .iter()
        .filter(|p| p.verify_done_bytes.is_some());
    let peers: Vec<String> = peers.map(|p| cx.name(p.node)).collect();
    Some(Progress {
        what: format!("volume {volume}: comparing with {}", peers.join(" and ")),
        done_bytes: Some(status.verify?.done_bytes),
        total_bytes: Some(status.size_bytes),
    })
}

fn verified(cx: &Context, report: VerifyReport) -> Told {
    if let Some(why) = report.refused {
        return Err(error(ErrorCode::Refused, why));
    }
    if let Some(left) = report.peers.iter().find(|p| !p.complete) {
        let text = format!("the comparison was cut short: {} left", cx.name(left.node));
        return Err(error(ErrorCode::TimedOut, text));
    }
    let bytes = |blocks: u64| blocks * u64::from(BLOCK_BYTES);
    let places = |ranges: &[BlockRange]| -> Vec<(u64, u64)> {
        ranges
            .iter()
            .take(DIFFERING_RANGES_MAX)
            .map(|r| (bytes(r.first), bytes(r.count)))
            .collect()
    };
    let peers: Vec<VerifiedPeer> = report
        .peers
        .iter()
        .map(|p| VerifiedPeer {
            node: cx.name(p.node),
            differing_bytes: bytes(p.differing_blocks),
            repaired_bytes: bytes(p.repaired_blocks),
            undecided_bytes: bytes(p.undecided_blocks),
            differing: places(&p.differing),
        })
        .collect();
    let mut all: Vec<(u64, u64)> = peers.iter().flat_map(|p| p.differing.clone()).collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(DIFFERING_RANGES_MAX);
    Ok(types::Answer::Verified {
        differing_bytes: peers.iter().map(|p| p.differing_bytes).sum(),
        differing: all,
        peers,
    })
}
