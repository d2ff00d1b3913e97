//! What happened when, in milliseconds since the fault: from the new primary's own record, and from the
//! outside by a prober and by the writers.

use super::site::Site;
use holdfast_node::api_types::TimelineEntry;
use holdfast_node::clock;
use serde::Serialize;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long one attempt to connect to the virtual IP may take.
const PROBE_TIME_MAX: Duration = Duration::from_millis(100);
/// Between two attempts.
const PROBE_PAUSE: Duration = Duration::from_millis(20);

/// One line of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Moment {
    /// A fixed word.
    pub(super) event: &'static str,
    /// Since the fault.
    pub(super) ms: f64,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) what: String,
}

/// Milliseconds from one time to a later one, both in nanoseconds.
pub(super) fn ms(from_ns: u64, to_ns: u64) -> f64 {
    let micros = to_ns.saturating_sub(from_ns) / 1000;
    // A demonstration lasts minutes: exact in 53 bits.
    micros as f64 / 1000.0
}

/// Event and the words by which the daemon's timeline knows it, in the order they happen.
const STEPS: [(&str, &str, &str); 8] = [
    ("detected", "detected", "the loss of the primary is noticed"),
    (
        "candidate",
        "candidate",
        "a member of the in-sync set steps forward",
    ),
    (
        "promoted",
        "promoted",
        "it is the primary, by a majority's vote",
    ),
    (
        "reconciled",
        "opened",
        "blocks in doubt are equal on the in-sync set",
    ),
    ("device_open", "device-open", "the volume is open"),
    ("mounted", "mounted", "the filesystem is mounted"),
    ("service_up", "services-up", "the service is up"),
    ("vip_up", "vip-up", "the virtual IP is there and announced"),
];

/// The new primary's part of the failover. `mounts`: a filesystem belongs to it.
pub(super) fn failover(entries: &[TimelineEntry], fault_ns: u64, mounts: bool) -> Vec<Moment> {
    // Tries that came to nothing lie before the promotion that led to everything being up.
    let since: Vec<&TimelineEntry> = entries.iter().filter(|e| e.at_ns >= fault_ns).collect();
    let end = since
        .iter()
        .position(|e| e.kind == "up")
        .map_or(since.len(), |at| at + 1);
    let before_up = &since[..end];
    let promoted = before_up.iter().rposition(|e| e.kind == "promoted");
    STEPS
        .iter()
        .filter(|(event, ..)| mounts || *event != "mounted")
        .filter_map(|(event, kind, what)| {
            let early = matches!(*event, "detected" | "candidate");
            let range = if early {
                before_up
            } else {
                &before_up[promoted.unwrap_or(0)..]
            };
            let entry = range.iter().find(|e| e.kind == *kind)?;
            Some(Moment {
                event,
                ms: ms(fault_ns, entry.at_ns),
                what: (*what).to_owned(),
            })
        })
        .collect()
}

/// When the new primary was promoted, in nanoseconds.
pub(super) fn promoted_ns(entries: &[TimelineEntry], fault_ns: u64) -> Option<u64> {
    let promotions = entries.iter().filter(|e| e.kind == "promoted");
    promotions.map(|e| e.at_ns).find(|at| *at >= fault_ns)
}

/// Connects to the service's address again and again, and remembers when that went well.
#[derive(Debug)]
pub(super) struct Prober {
    stop: Arc<AtomicBool>,
    answered: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Prober {
    /// Starts it.
    pub(super) fn start(site: &Site, address: SocketAddr) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(Mutex::new(Vec::new()));
        let (ends, seen) = (stop.clone(), answered.clone());
        site.in_lan(|| {
            std::thread::Builder::new()
                .name("prober".into())
                .spawn(move || {
                    while !ends.load(Ordering::Acquire) {
                        let tried = clock::now().0;
                        if TcpStream::connect_timeout(&address, PROBE_TIME_MAX).is_ok() {
                            let done = clock::now().0;
                            seen.lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push((tried, done));
                        }
                        std::thread::sleep(PROBE_PAUSE);
                    }
                })
        })??;
        Ok(Self { stop, answered })
    }

    /// The end of the first attempt that was begun at `at_ns` or later and went well.
    pub(super) fn first_since(&self, at_ns: u64) -> Option<u64> {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered
            .iter()
            .find(|(tried, _)| *tried >= at_ns)
            .map(|(_, done)| *done)
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, at_ms: u64, kind: &str) -> TimelineEntry {
        TimelineEntry {
            number,
            at_ns: at_ms * 1_000_000,
            wall_ms: 0,
            resource: "data".into(),
            kind: kind.into(),
            text: String::new(),
        }
    }

    #[test]
    fn the_promotion_that_led_to_everything_counts() {
        let kinds = [
            (900, "promoted"),
            (1100, "detected"),
            (1200, "candidate"),
            (1300, "withdrawn"),
            (1400, "candidate"),
            (1500, "promoted"),
            (1600, "opened"),
            (1700, "device-open"),
            (1750, "mounted"),
            (1800, "services-up"),
            (1900, "vip-up"),
            (1901, "up"),
            (3000, "promoted"),
        ];
        let entries: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(i, (at, kind))| entry(i as u64, *at, kind))
            .collect();
        let told = failover(&entries, 1_000_000_000, true);
        let told: Vec<(&str, f64)> = told.iter().map(|m| (m.event, m.ms)).collect();
        let expected = [
            ("detected", 100.0),
            ("candidate", 200.0),
            ("promoted", 500.0),
            ("reconciled", 600.0),
            ("device_open", 700.0),
            ("mounted", 750.0),
            ("service_up", 800.0),
            ("vip_up", 900.0),
        ];
        assert_eq!(told, expected);
        assert_eq!(promoted_ns(&entries, 1_000_000_000), Some(1_500_000_000));
        assert_eq!(failover(&entries, 1_000_000_000, false).len(), 7);
    }
}
