//! Timings: profiles for the usual networks, and what makes a set of timings impossible.

use serde::{Deserialize, Serialize};

/// Shortest lease worth having: below it one scheduling hiccup is a failover.
pub const LEASE_MS_MIN: u64 = 500;
/// Longest lease: an unplanned failover never takes less than this.
pub const LEASE_MS_MAX: u64 = 120_000;
/// Shortest time between heartbeats.
pub const HEARTBEAT_MS_MIN: u64 = 20;
/// Heartbeats that must fit into a lease, so that two lost ones cost nothing and the fencer's margin remains.
pub const HEARTBEATS_PER_LEASE_MIN: u64 = 4;
/// Heartbeats a peer must miss before it counts as gone.
pub const HEARTBEATS_PER_PEER_TIMEOUT_MIN: u64 = 3;

/// Timings for a kind of network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Machines in one room (the default).
    #[default]
    Lan,
    /// Bare metal with a direct link: the shortest failover.
    Fast,
    /// Virtual machines on shared hosts, which pause now and then.
    Cloud,
    /// Two sites.
    Stretched,
}

/// All times that are a matter of configuration, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Between two heartbeats of the control plane; a lease is renewed as often.
    pub heartbeat_ms: u64,
    /// How long a primary may serve without hearing a majority.
    pub lease_ms: u64,
    /// How long a connected peer may owe an answer before it is removed from the in-sync set.
    pub peer_timeout_ms: u64,
    /// How long a disconnected peer is waited for before it is removed from the in-sync set.
    pub reconnect_grace_ms: u64,
    /// How long the local disk may take for one write before the lease is no longer renewed.
    pub disk_timeout_ms: u64,
}

impl Profile {
    /// The timings of this profile.
    pub const fn timing(self) -> Timing {
        let (heartbeat_ms, lease_ms, peer_timeout_ms, reconnect_grace_ms, disk_timeout_ms) =
            match self {
                Self::Lan => (300, 2_000, 1_500, 500, 1_500),
                Self::Fast => (150, 1_200, 800, 300, 900),
                Self::Cloud => (1_000, 10_000, 5_000, 3_000, 5_000),
                Self::Stretched => (2_000, 30_000, 10_000, 5_000, 10_000),
            };
        Timing {
            heartbeat_ms,
            lease_ms,
            peer_timeout_ms,
            reconnect_grace_ms,
            disk_timeout_ms,
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Profile::default().timing()
    }
}

/// An impossible timing: which key, what is wrong, the fix.
pub(crate) struct Impossible {
    pub(crate) key: &'static str,
    pub(crate) what: String,
    pub(crate) fix: String,
}

impl Timing {
    /// What makes these timings impossible, the first found.
    pub(crate) fn impossible(&self) -> Option<Impossible> {
        let Self {
            heartbeat_ms,
            lease_ms,
            peer_timeout_ms,
            reconnect_grace_ms,
            disk_timeout_ms,
        } = *self;
        let refuse = |key, what: String, fix: String| Some(Impossible { key, what, fix });
        if lease_ms < LEASE_MS_MIN {
            return refuse(
                "lease_ms",
                format!(
                    "a lease of {lease_ms} ms is too short: any pause of a process would be a failover"
                ),
                format!("lease_ms of at least {LEASE_MS_MIN}"),
            );
        }
        if lease_ms > LEASE_MS_MAX {
            return refuse(
                "lease_ms",
                format!(
                    "a lease of {lease_ms} ms is too long: no failover would be faster than that"
                ),
                format!("lease_ms of at most {LEASE_MS_MAX}"),
            );
        }
        if heartbeat_ms < HEARTBEAT_MS_MIN {
            return refuse(
                "heartbeat_ms",
                format!("a heartbeat every {heartbeat_ms} ms is too often"),
                format!("heartbeat_ms of at least {HEARTBEAT_MS_MIN}"),
            );
        }
        if heartbeat_ms.saturating_mul(HEARTBEATS_PER_LEASE_MIN) > lease_ms {
            return refuse(
                "heartbeat_ms",
                format!(
                    "{HEARTBEATS_PER_LEASE_MIN} heartbeats of {heartbeat_ms} ms do not fit into a lease of {lease_ms} ms: \
                     one lost message would end it"
                ),
                format!(
                    "heartbeat_ms of at most {}, or lease_ms of at least {}",
                    lease_ms / HEARTBEATS_PER_LEASE_MIN,
                    heartbeat_ms.saturating_mul(HEARTBEATS_PER_LEASE_MIN)
                ),
            );
        }
        let peer_timeout_ms_min = heartbeat_ms.saturating_mul(HEARTBEATS_PER_PEER_TIMEOUT_MIN);
        if peer_timeout_ms < peer_timeout_ms_min {
            return refuse(
                "peer_timeout_ms",
                format!(
                    "a peer heard every {heartbeat_ms} ms cannot be given up after {peer_timeout_ms} ms"
                ),
                format!("peer_timeout_ms of at least {peer_timeout_ms_min}"),
            );
        }
        if reconnect_grace_ms > peer_timeout_ms {
            return refuse(
                "reconnect_grace_ms",
                format!(
                    "waiting {reconnect_grace_ms} ms for a lost connection is longer than waiting \
                     {peer_timeout_ms} ms for a silent one"
                ),
                format!("reconnect_grace_ms of at most {peer_timeout_ms}"),
            );
        }
        if disk_timeout_ms >= lease_ms {
            return refuse(
                "disk_timeout_ms",
                format!(
                    "a disk that hangs for {disk_timeout_ms} ms would go unnoticed for a whole lease of {lease_ms} ms"
                ),
                format!("disk_timeout_ms below {lease_ms}"),
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_possible() {
        for profile in [
            Profile::Lan,
            Profile::Fast,
            Profile::Cloud,
            Profile::Stretched,
        ] {
            assert!(profile.timing().impossible().is_none(), "{profile:?}");
        }
    }

    #[test]
    fn extreme_numbers_do_not_overflow() {
        let timing = Timing {
            heartbeat_ms: u64::MAX,
            ..Timing::default()
        };
        assert_eq!(timing.impossible().map(|i| i.key), Some("heartbeat_ms"));
    }
}
