//! The care of volumes: bounds of resync that the operator sets, scrubs by the calendar.
//!
//! Both are kept in the committed record. A scrub's next date is recorded before it begins, so that a failover in
//! its middle does not start it over at once, and again when it has gone through.

use super::requests::{Told, admin, control_status, record as record_of};
use super::{Context, VolumeKey, verify};
use crate::api_types::ApiError;
use crate::clock;
use holdfast_config::Scrub;
use holdfast_control::{AdminRequest, Care, PhaseWord, ResourceIx, Upkeep, VolumeIx};
use holdfast_replicator::{Repair, VerifyOrder};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often the calendar is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A scrub that was cut short is tried again after this part of its period.
const RETRY_PART: u64 = 8;

/// Has something recorded.
pub(super) async fn record(cx: &Context, key: VolumeKey, care: Care) -> Told {
    let (resource, _) = cx.names(key);
    admin(
        cx,
        AdminRequest::Care {
            resource,
            volume: key.volume,
            care,
        },
    )
    .await
}

/// What is recorded.
async fn upkeep(cx: &Context, key: VolumeKey) -> Result<Upkeep, ApiError> {
    let (resource, _) = cx.names(key);
    let status = control_status(cx).await?;
    let volume = record_of(&status, &resource)?
        .volumes
        .get(usize::from(key.volume.0));
    Ok(volume.map_or_else(Upkeep::default, |v| v.upkeep))
}

/// The operator bounds resync; what is `None` stays, zero is what the configuration says.
pub(super) async fn bounds(
    cx: &Context,
    key: VolumeKey,
    paused: Option<bool>,
    min: Option<u64>,
    max: Option<u64>,
) -> Told {
    let mut order = upkeep(cx, key).await?.resync;
    order.paused = paused.unwrap_or(order.paused);
    if let Some(min) = min {
        order.min = (min > 0).then_some(min);
    }
    if let Some(max) = max {
        order.max = (max > 0).then_some(max);
    }
    record(cx, key, Care::Resync(order)).await
}

/// Looks at the calendar as long as the daemon runs.
pub(super) async fn calendar(cx: Context) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for (r, resource) in cx.config.resources.iter().enumerate() {
            for (v, volume) in resource.volumes.iter().enumerate() {
                let key = VolumeKey {
                    resource: ResourceIx(r as u16),
                    volume: VolumeIx(v as u16),
                };
                if let Some(scrub) = volume.scrub
                    && let Err(e) = scrub_if_due(&cx, key, scrub).await
                {
                    tracing::warn!("scrub of {}/{}: {e}", resource.name, volume.name);
                }
            }
        }
    }
}

async fn scrub_if_due(cx: &Context, key: VolumeKey, scrub: Scrub) -> Result<(), ApiError> {
    let (resource, _) = cx.names(key);
    let status = control_status(cx).await?;
    let record_now = record_of(&status, &resource)?;
    let up_here = record_now.primary == Some(cx.me.id)
        && record_now
            .nodes
            .iter()
            .any(|n| n.node == cx.me.id && n.phase == PhaseWord::Primary);
    if !up_here {
        return Ok(());
    }
    let due = upkeep(cx, key).await?.scrub_due_ms;
    let began = clock::wall_ms();
    if due == 0 {
        // Never: its copies were made equal when they were made.
        record(cx, key, Care::ScrubDue(began + scrub.every_ms)).await?;
        return Ok(());
    }
    if began < due {
        return Ok(());
    }
    let again = began + scrub.every_ms / RETRY_PART;
    record(cx, key, Care::ScrubDue(again)).await?;
    let order = VerifyOrder {
        repair: scrub.repair.then_some(Repair::Majority),
        max_rate: scrub.max_rate,
        scrub: true,
        ..VerifyOrder::default()
    };
    // Nobody follows it but the status.
    let (client, _) = mpsc::unbounded_channel();
    let report = verify::run(cx, key, order, &client).await?;
    if report.is_complete() {
        record(cx, key, Care::ScrubDue(began + scrub.every_ms)).await?;
    }
    Ok(())
}
