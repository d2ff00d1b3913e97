//! A storm: for minutes the daemon of a node chosen at random is killed every few seconds and started again soon
//! after, while a service and writers on a bare volume go on writing. Then everything is looked at.

use super::compare;
use super::failover::RESYNC_TIME_MAX;
use super::patience;
use super::raw::{Places, RawWriter};
use super::site::{DATA, NODES};
use super::story::{COMPARE_TIME_MAX, Run};
use super::workload::{self, Verified, Workload, Writer};
use super::{Told, Voice};
use crate::args::DemoWorkload;
use holdfast_host::machine::Mode;
use holdfast_node::api_types::API_SOCKET;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Writers on the bare volume.
const RAW_WRITERS: u64 = 4;
/// Between a return and the next kill, in milliseconds: from, and so much more at the most.
const CALM_MS: (u64, u64) = (500, 5500);
/// How long a killed node stays away, in milliseconds: the same.
const AWAY_MS: (u64, u64) = (0, 3000);
/// How long everything may take to be up and in sync after the last kill.
const HEAL_TIME_MAX: Duration = Duration::from_secs(120);

/// What a storm showed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StormReport {
    mode: Mode,
    workload: &'static str,
    /// How long it raged.
    seconds: u64,
    /// Daemons killed.
    kills: u64,
    /// Of these, the primary's.
    primary_kills: u64,
    /// Writes of the service that were acknowledged.
    acknowledged_writes: u64,
    /// Of these, gone or changed at the end.
    lost_writes: u64,
    /// Writes on the bare volume that were acknowledged.
    raw_acknowledged_writes: u64,
    /// Blocks of the bare volume that hold something else than they must.
    raw_lost_blocks: u64,
    /// What the service's own check of all its data found wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_check: Option<String>,
    /// Every byte of every volume is the same on both nodes.
    replicas_identical: bool,
    /// Where the first differing byte is.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<String>,
    /// Longest time without an acknowledgement of the service.
    longest_pause_ms: f64,
    /// The same for the bare volume.
    raw_longest_pause_ms: f64,
    /// In one line.
    verdict: String,
}

impl StormReport {
    fn good(&self) -> bool {
        self.lost_writes == 0
            && self.raw_lost_blocks == 0
            && self.acknowledged_writes > 0
            && self.raw_acknowledged_writes > 0
            && self.kills > 0
            && self.service_check.is_none()
            && self.replicas_identical
    }

    fn judge(&mut self) {
        let (writes, raw) = (self.acknowledged_writes, self.raw_acknowledged_writes);
        self.verdict = if self.good() {
            format!(
                "PASS: {} kills ({} of the primary) in {} s; {writes} writes of the service and {raw} on the bare volume \
                 acknowledged, none lost; replicas identical",
                self.kills, self.primary_kills, self.seconds
            )
        } else {
            format!(
                "FAIL: {} kills; {} of {writes} acknowledged writes of the service lost, {} blocks of the bare volume wrong \
                 after {raw} writes{}; replicas {}",
                self.kills,
                self.lost_writes,
                self.raw_lost_blocks,
                self.service_check
                    .as_ref()
                    .map_or_else(String::new, |c| format!("; check: {c}")),
                match &self.first_difference {
                    None if self.replicas_identical => "identical".to_owned(),
                    None => "not compared".to_owned(),
                    Some(at) => format!("differ at {at}"),
                }
            )
        };
    }

    fn tell(self, voice: Voice) -> anyhow::Result<Told> {
        voice.say(&format!(
            "\n  longest pause of the service {:.0} ms, of the bare volume {:.0} ms\n\n{}",
            self.longest_pause_ms, self.raw_longest_pause_ms, self.verdict
        ));
        if voice.json {
            println!("{}", serde_json::to_string(&self)?);
        }
        Ok(Told {
            good: self.good(),
            verdict: self.verdict,
        })
    }
}

impl Run<'_> {
    /// The whole storm, on a cluster that is not built yet.
    pub(super) fn storm(&mut self, seconds: u64) -> anyhow::Result<Told> {
        let primary = self.build()?;
        let service = self.cluster.service_address();
        let mut of_service = Workload::start(
            self.cluster.site(),
            workload::clients(self.args.with, service),
        )?;
        let places = Places {
            nodes: DATA
                .map(|node| self.cluster.files().state_dir(node).join(API_SOCKET))
                .into(),
            device: self.cluster.site().mode() == Mode::Root,
        };
        let raw = (0..RAW_WRITERS)
            .map(|i| Box::new(RawWriter::new(places.clone(), i)) as Box<dyn Writer>)
            .collect();
        let mut of_raw = Workload::start(self.cluster.site(), raw)?;
        self.say(&format!(
            "{RAW_WRITERS} writers on the bare volume ({}); a node is killed every few seconds for {seconds} s",
            if places.device { "block device" } else { "NBD socket" }
        ));
        let (kills, primary_kills) = self.rage(seconds, primary, &mut of_service, &mut of_raw)?;
        self.say("the storm is over");
        let primary = self
            .cluster
            .wait_for_primary(&DATA, HEAL_TIME_MAX, self.cancel)?;
        self.cluster
            .wait_for_sync(primary, RESYNC_TIME_MAX, self.cancel)?;
        let pauses = [
            of_service.acknowledged().longest_pause_ms(),
            of_raw.acknowledged().longest_pause_ms(),
        ];
        let writers = of_service.stop(self.cancel)?;
        let raw_writers = of_raw.stop(self.cancel)?;
        self.say("reading back every acknowledged write");
        let of_service = workload::verify(self.cluster.site(), writers, self.cancel)?;
        let of_raw = workload::verify(self.cluster.site(), raw_writers, self.cancel)?;
        let first_difference = self.compare_all()?;
        let mut report = self.storm_report(of_service, of_raw, pauses);
        (report.seconds, report.kills, report.primary_kills) = (seconds, kills, primary_kills);
        report.replicas_identical = first_difference.is_none();
        report.first_difference = first_difference;
        report.judge();
        report.tell(self.voice())
    }

    /// Kills and starts again; how often, and how often it was the primary.
    fn rage(
        &mut self,
        seconds: u64,
        mut primary: usize,
        of_service: &mut Workload,
        of_raw: &mut Workload,
    ) -> anyhow::Result<(u64, u64)> {
        let random = |(from, more): (u64, u64)| {
            Duration::from_millis(from + holdfast_node::clock::random_u64() % more)
        };
        let end = Instant::now() + Duration::from_secs(seconds);
        let (mut kills, mut primary_kills) = (0, 0);
        while Instant::now() < end {
            self.pass(&mut [of_service, of_raw], random(CALM_MS))?;
            let node = (holdfast_node::clock::random_u64() % NODES.len() as u64) as usize;
            if let Some(serves) = self.cluster.serves_now() {
                primary = serves;
            }
            kills += 1;
            primary_kills += u64::from(node == primary);
            self.say(&format!(
                "kill {kills}: {}{}; {} writes, {} on the bare volume so far",
                NODES[node],
                if node == primary { " (primary)" } else { "" },
                of_service.acknowledged().count(),
                of_raw.acknowledged().count()
            ));
            self.cluster.kill(node)?;
            self.pass(&mut [of_service, of_raw], random(AWAY_MS))?;
            self.cluster.start(node, self.cancel)?;
        }
        Ok((kills, primary_kills))
    }

    /// Stops everything in order and compares all volumes; where the first difference is.
    fn compare_all(&mut self) -> anyhow::Result<Option<String>> {
        self.say("stopping everything, then comparing the replicas byte for byte");
        self.cluster.stop_all(self.cancel)?;
        for (volume, bytes) in self.cluster.volumes() {
            let [a, b] = DATA.map(|node| self.cluster.files().backing(node, volume));
            let what = "the replicas are compared";
            let difference = patience::run(self.cancel, what, COMPARE_TIME_MAX, move || {
                compare::first_difference(&a, &b, bytes)
            })?;
            if let Some(at) = difference {
                return Ok(Some(format!("byte {at} of {volume}")));
            }
        }
        Ok(None)
    }

    fn storm_report(&self, service: Verified, raw: Verified, pauses: [f64; 2]) -> StormReport {
        StormReport {
            mode: self.cluster.site().mode(),
            workload: match self.args.with {
                DemoWorkload::Records => "records",
                DemoWorkload::Postgres => "postgres",
            },
            seconds: 0,
            kills: 0,
            primary_kills: 0,
            acknowledged_writes: service.acknowledged,
            lost_writes: service.lost,
            raw_acknowledged_writes: raw.acknowledged,
            raw_lost_blocks: raw.lost,
            service_check: service.wrong.or(raw.wrong),
            replicas_identical: false,
            first_difference: None,
            longest_pause_ms: pauses[0],
            raw_longest_pause_ms: pauses[1],
            verdict: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_makes_a_storm_bad() {
        let good = StormReport {
            mode: Mode::Loopback,
            workload: "records",
            seconds: 10,
            kills: 3,
            primary_kills: 1,
            acknowledged_writes: 5,
            lost_writes: 0,
            raw_acknowledged_writes: 7,
            raw_lost_blocks: 0,
            service_check: None,
            replicas_identical: true,
            first_difference: None,
            longest_pause_ms: 1.0,
            raw_longest_pause_ms: 1.0,
            verdict: String::new(),
        };
        assert!(good.good());
        let spoil: [fn(&mut StormReport); 6] = [
            |r| r.lost_writes = 1,
            |r| r.raw_lost_blocks = 1,
            |r| r.raw_acknowledged_writes = 0,
            |r| r.kills = 0,
            |r| r.service_check = Some("bad".into()),
            |r| r.replicas_identical = false,
        ];
        for spoil in spoil {
            let mut report = good.clone();
            spoil(&mut report);
            report.judge();
            assert!(
                !report.good() && report.verdict.starts_with("FAIL"),
                "{report:?}"
            );
        }
    }
}
