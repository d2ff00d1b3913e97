//! `wait`: looks at the status until it is as wanted. It outlives restarts of the daemon.

use super::progress::Shown;
use super::status::resource;
use crate::args::{WaitArgs, WaitFor};
use crate::client::Client;
use crate::failure::Failure;
use holdfast_node::api_types::{
    ClusterStatus, Phase, Progress, ResourceInfo, TransferKind, VolumeInfo,
};
use holdfast_types::{DiskState, Role};
use std::time::{Duration, Instant};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn run(args: &WaitArgs, json: bool) -> Result<(), Failure> {
    let client = Client::find(&args.daemon)?;
    let start = Instant::now();
    let mut shown = Shown::new(json);
    loop {
        let waiting = match client.status() {
            Ok(status) => missing(&status, resource(&status, &args.resource)?, args.condition),
            Err(failure @ Failure::Unreachable { .. }) => Some(plain(failure.to_string())),
            Err(failure) => return Err(failure),
        };
        let elapsed = start.elapsed();
        let Some(progress) = waiting else {
            if json {
                let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
                println!(
                    "{}",
                    serde_json::json!({ "resource": args.resource, "waited_ms": ms })
                );
            }
            return Ok(());
        };
        if elapsed >= Duration::from_secs(args.timeout) {
            return Err(Failure::TimedOut {
                seconds: args.timeout,
                waiting: progress.what,
            });
        }
        shown.show(&progress);
        std::thread::sleep(INTERVAL);
    }
}

/// What is still missing; `None`: the condition holds.
fn missing(
    status: &ClusterStatus,
    resource: &ResourceInfo,
    condition: WaitFor,
) -> Option<Progress> {
    let up = |node: &str| {
        resource
            .nodes
            .iter()
            .any(|n| n.node == node && n.phase == Phase::Primary)
    };
    match condition {
        WaitFor::Quorum if status.quorum && status.leader.is_some() => None,
        WaitFor::Quorum => {
            let why = status
                .why
                .first()
                .map_or("no majority is heard", String::as_str);
            Some(plain(why.to_owned()))
        }
        WaitFor::Primary if resource.nodes.iter().any(|n| n.phase == Phase::Primary) => None,
        WaitFor::Primary => Some(because(resource, "no node serves it yet")),
        WaitFor::Here if up(&status.node) || resource.here == Some(Phase::Primary) => None,
        WaitFor::Here => Some(because(
            resource,
            &format!("{} does not serve it", status.node),
        )),
        WaitFor::Secondary if resource.here.and_then(Phase::role) == Some(Role::Secondary) => None,
        WaitFor::Secondary => Some(because(
            resource,
            &format!("{} is not Secondary", status.node),
        )),
        WaitFor::Connected => resource
            .volumes
            .iter()
            .find_map(|v| disconnected(status, resource, v)),
        WaitFor::Synced => resource.volumes.iter().find_map(|v| unsynced(resource, v)),
    }
}

fn disconnected(
    status: &ClusterStatus,
    resource: &ResourceInfo,
    volume: &VolumeInfo,
) -> Option<Progress> {
    let Some(local) = &volume.local else {
        return Some(because(
            resource,
            &format!("{} holds no copy of volume {}", status.node, volume.name),
        ));
    };
    let peer = local.peers.iter().find(|p| !p.connected)?;
    let name = status
        .nodes
        .iter()
        .find(|n| n.id == peer.node.0)
        .map_or_else(|| peer.node.to_string(), |n| n.name.clone());
    Some(plain(format!(
        "volume {}: {name} is not connected",
        volume.name
    )))
}

fn unsynced(resource: &ResourceInfo, volume: &VolumeInfo) -> Option<Progress> {
    let behind = volume
        .replicas
        .iter()
        .find(|r| r.disk != DiskState::UpToDate)?;
    let what = format!(
        "volume {}: the copy on {} is {:?}",
        volume.name, behind.node, behind.disk
    );
    let transfer = volume
        .transfers
        .iter()
        .find(|t| t.peer == behind.node && t.kind == TransferKind::Resync);
    Some(match transfer {
        Some(t) => Progress {
            what,
            done_bytes: Some(t.done_bytes),
            total_bytes: Some(t.total_bytes),
        },
        None => because(resource, &what),
    })
}

/// `what`, and what the resource itself says it waits for.
fn because(resource: &ResourceInfo, what: &str) -> Progress {
    match resource.why.first() {
        Some(why) => plain(format!("{what}: {why}")),
        None => plain(what.to_owned()),
    }
}

fn plain(what: String) -> Progress {
    Progress {
        what,
        ..Progress::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::sample;

    #[test]
    fn conditions_hold_when_the_status_says_so() {
        let healthy = sample("healthy");
        for condition in [
            WaitFor::Primary,
            WaitFor::Here,
            WaitFor::Connected,
            WaitFor::Synced,
        ] {
            assert_eq!(
                missing(&healthy, &healthy.resources[0], condition),
                None,
                "{condition:?}"
            );
        }
        let waiting =
            missing(&healthy, &healthy.resources[0], WaitFor::Secondary).expect("it is primary");
        assert!(waiting.what.contains("alpha is not Secondary"));
    }

    #[test]
    fn what_is_missing_is_said() {
        let resync = sample("resync");
        let waiting =
            missing(&resync, &resync.resources[0], WaitFor::Synced).expect("a resync runs");
        assert!(waiting.what.contains("beta is Syncing") && waiting.total_bytes.is_some());
        let stale = sample("stale");
        let waiting =
            missing(&stale, &stale.resources[0], WaitFor::Primary).expect("nobody serves");
        assert!(waiting.what.contains("alpha"), "{}", waiting.what);
        let waiting =
            missing(&stale, &stale.resources[0], WaitFor::Connected).expect("alpha is away");
        assert!(
            waiting.what.contains("alpha is not connected"),
            "{}",
            waiting.what
        );
    }
}
