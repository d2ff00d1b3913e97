//! From the configuration file to what the pure crates are told: names to numbers, one profile to many times.

use crate::daemon::VolumeKey;
use holdfast_config::{Config, Resource, UncleanPromotion};
use holdfast_control as control;
use holdfast_replicator as replicator;
use holdfast_types::{Incarnation, NodeId, NodeSet, VolumeId};

/// The control plane's view of the configuration.
pub fn control_config(config: &Config, me: NodeId) -> control::Config {
    control::Config {
        me,
        nodes: config
            .nodes
            .iter()
            .map(|n| control::NodeConfig {
                id: n.id,
                name: n.name.clone(),
                voter: true,
            })
            .collect(),
        resources: config.resources.iter().map(resource_config).collect(),
        timing: control_timing(&config.timing),
        off: None,
    }
}

fn resource_config(r: &Resource) -> control::ResourceConfig {
    control::ResourceConfig {
        name: r.name.clone(),
        volumes: r
            .volumes
            .iter()
            .map(|v| control::VolumeConfig {
                name: v.name.clone(),
                size_bytes: v.size_bytes,
            })
            .collect(),
        data_nodes: preferred_first(r),
        unclean_promotion: match r.unclean_promotion {
            UncleanPromotion::Wait => control::UncleanPromotion::Wait,
            UncleanPromotion::Allow => control::UncleanPromotion::Allow,
        },
        auto_promote: true,
    }
}

/// The data nodes of a resource, the preferred one first.
pub fn preferred_first(r: &Resource) -> Vec<NodeId> {
    let preferred = r.preferred.filter(|p| r.nodes.has(*p));
    preferred
        .into_iter()
        .chain(r.nodes.iter().filter(|n| Some(*n) != preferred))
        .collect()
}

/// Least and largest part of a lease kept for what still travels when it ends, in milliseconds.
const MARGIN_MS_MIN: u64 = 100;
const MARGIN_MS_MAX: u64 = 1000;

/// The control plane's times.
pub fn control_timing(t: &holdfast_config::Timing) -> control::Timing {
    let defaults = control::Timing::default();
    control::Timing {
        heartbeat_ms: t.heartbeat_ms,
        lease_ms: t.lease_ms,
        margin_ms: (t.lease_ms * 15 / 100).clamp(MARGIN_MS_MIN, MARGIN_MS_MAX),
        // An election waits for three missed heartbeats, then differs by up to two more per voter.
        election_min_ms: t.heartbeat_ms * 3,
        election_max_ms: t.heartbeat_ms * 5,
        peer_timeout_ms: t.peer_timeout_ms.max(t.heartbeat_ms * 3),
        handover_ms: defaults.handover_ms.max(2 * t.lease_ms),
        ..defaults
    }
}

/// The replicator's times.
pub fn replicator_timing(t: &holdfast_config::Timing) -> replicator::Timing {
    let defaults = replicator::Timing::default();
    let silence_ms = t.peer_timeout_ms * 2 / 3;
    replicator::Timing {
        ping_ms: (silence_ms / 4).max(1),
        silence_ms,
        grace_ms: t.reconnect_grace_ms,
        answer_ms: t.peer_timeout_ms,
        collect_ms: t.reconnect_grace_ms.max(defaults.collect_ms),
        disk_ms: t.disk_timeout_ms,
        ..defaults
    }
}

/// What one replica is told of itself.
pub fn replica_config(
    config: &Config,
    me: NodeId,
    data_nodes: NodeSet,
    volume: VolumeId,
    distrust: Option<(Incarnation, replicator::DiskTrouble)>,
) -> replicator::Config {
    replicator::Config {
        me,
        data_nodes,
        volume,
        timing: replicator_timing(&config.timing),
        distrust,
        off: None,
    }
}

/// Bounds of resync of a volume by the configuration; one that it does not name any more has none of its own.
pub fn resync_bounds(config: &Config, key: VolumeKey) -> replicator::ResyncBounds {
    let resource = config.resources.get(usize::from(key.resource.0));
    let volume = resource.and_then(|r| r.volumes.get(usize::from(key.volume.0)));
    let set = volume.map_or_else(Default::default, |v| v.resync);
    let order = replicator::ResyncOrder {
        min: set.min,
        max: set.max,
        paused: false,
    };
    order.over(replicator::ResyncBounds::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_config::Profile;

    #[test]
    fn every_profile_makes_sound_times() {
        for profile in [
            Profile::Lan,
            Profile::Fast,
            Profile::Cloud,
            Profile::Stretched,
        ] {
            let t = profile.timing();
            control_timing(&t)
                .validate()
                .unwrap_or_else(|e| panic!("{profile:?}: {e}"));
            let r = replicator_timing(&t);
            assert!(r.ping_ms * 3 <= r.silence_ms, "{profile:?}");
            assert!(r.silence_ms <= r.answer_ms, "{profile:?}");
            // A member that is gone is removed well before the lease could be in doubt.
            assert!(r.grace_ms + r.silence_ms < 2 * t.lease_ms, "{profile:?}");
        }
    }
}
