//! What happens, in which order: a cluster is made, a service writes, the primary is lost and comes back, and
//! everything that was promised is looked at.

use super::cluster::{Cluster, Plan, RESOURCE, VOLUME, VOLUME_BYTES};
use super::failover::{Failover, RESYNC_TIME_MAX, resync_bytes};
use super::late::Late;
use super::patience::{self, Stopped};
use super::report::Report;
use super::signals::Cancel;
use super::site::{DATA, NODES, Site};
use super::workload::{self, PATIENCE, Verified, Workload};
use super::{Told, Voice, compare};
use crate::args::{DemoArgs, DemoFault, DemoWorkload};
use anyhow::ensure;
use holdfast_host::machine::{Capability, Mode};
use holdfast_node::api_types::{Answer, Request, VolumeInfo};
use std::time::{Duration, Instant};

/// How long the workload runs without the lost node before that comes back: some writes it will lack.
const ABSENCE: Duration = Duration::from_millis(1500);
/// How long reading two replicas may take.
pub(super) const COMPARE_TIME_MAX: Duration = Duration::from_secs(300);

/// The whole of it.
pub(super) fn tell(
    args: &DemoArgs,
    voice: Voice,
    ground: Capability,
    cancel: &Cancel,
) -> anyhow::Result<Told> {
    ensure!(
        args.with == DemoWorkload::Records || ground.mode == Mode::Root,
        "--with postgres needs a mounted filesystem, and thus root ({}); without it, leave out --with postgres",
        ground.reason
    );
    let site = Site::new(ground.mode)?;
    let plan = Plan {
        profile: args.profile.into(),
        lost_cache: args.storm.is_none() && args.fault == DemoFault::Power,
        raw: args.storm.is_some(),
    };
    let cluster = Cluster::new(site, plan, |site, mount| {
        workload::service(args.with, site, mount)
    })?;
    let mut run = Run {
        args,
        voice,
        cancel,
        cluster,
    };
    let told = match args.storm {
        Some(seconds) => run.storm(seconds),
        None => run.run(),
    };
    if let Some(folder) = &args.logs {
        run.cluster.files().keep_logs(folder)?;
    }
    match &told {
        Ok(told) if told.good => {}
        Err(error) if matches!(error.downcast_ref(), Some(Stopped::Interrupted)) => {}
        Ok(_) | Err(_) => eprint!("{}", run.cluster.files().log_tails()),
    }
    told
}

/// A run under way.
pub(super) struct Run<'a> {
    pub(super) args: &'a DemoArgs,
    voice: Voice,
    pub(super) cancel: &'a Cancel,
    pub(super) cluster: Cluster,
}

impl Run<'_> {
    pub(super) fn voice(&self) -> Voice {
        self.voice
    }

    pub(super) fn say(&self, line: &str) {
        self.voice.say(line);
    }

    fn run(&mut self) -> anyhow::Result<Told> {
        let primary = self.build()?;
        let mut workload = Workload::start(
            self.cluster.site(),
            workload::clients(self.args.with, self.cluster.service_address()),
        )?;
        let half = Duration::from_millis(self.args.seconds * 500);
        self.write_until(&mut workload, "the first write is acknowledged", |w| {
            w.acknowledged().count() > 0
        })?;
        self.pass(&mut [&mut workload], half)?;
        self.say(&format!(
            "{} writes acknowledged so far",
            workload.acknowledged().count()
        ));
        let mut failover = self.break_primary(primary, &mut workload)?;
        let end = Instant::now() + half;
        self.pass(&mut [&mut workload], ABSENCE)?;
        let back_ns = self.bring_back(&failover)?;
        let volume = self.resync(&mut failover, &mut workload, back_ns)?;
        self.pass(
            &mut [&mut workload],
            end.saturating_duration_since(Instant::now()),
        )?;
        let late = self.ask_late(failover.late.take(), failover.old)?;
        let writers = workload.stop(self.cancel)?;
        self.say("reading back every acknowledged write");
        let verified = workload::verify(self.cluster.site(), writers, self.cancel)?;
        let (identical, first_difference) = if self.args.keep {
            (self.verify_online(failover.new)?, None)
        } else {
            self.compare()?
        };
        let report = self.report(
            failover,
            &volume,
            verified,
            late,
            identical,
            first_difference,
        );
        report.tell(self.voice)?;
        if self.args.keep {
            self.stay()?;
        }
        Ok(Told {
            good: report.good(),
            verdict: report.verdict,
        })
    }

    /// A running cluster with a served volume; which node serves it.
    pub(super) fn build(&mut self) -> anyhow::Result<usize> {
        self.say(&format!(
            "three nodes ({}), files in {}",
            NODES.join(", "),
            self.cluster.files().folder().display()
        ));
        for node in 0..NODES.len() {
            self.cluster.start(node, self.cancel)?;
        }
        self.cluster.wait_for_quorum(self.cancel)?;
        let primary = self.cluster.create(self.cancel)?;
        self.cluster
            .wait_for_sync(primary, RESYNC_TIME_MAX, self.cancel)?;
        self.say(&format!(
            "volume {RESOURCE}, {} MiB, mirrored on {} and {}; {} is primary\nservice: {}, at {}",
            VOLUME_BYTES >> 20,
            NODES[DATA[0]],
            NODES[DATA[1]],
            NODES[primary],
            self.cluster.service(),
            self.cluster.service_address()
        ));
        Ok(primary)
    }

    /// Waits while the writers write.
    fn write_until(
        &self,
        workload: &mut Workload,
        what: &str,
        mut so: impl FnMut(&Workload) -> bool,
    ) -> anyhow::Result<()> {
        patience::until(self.cancel, what, PATIENCE, || {
            workload.look()?;
            Ok(if so(workload) {
                Ok(())
            } else {
                Err(String::new())
            })
        })
    }

    /// Lets time pass while the writers write.
    pub(super) fn pass(
        &self,
        workloads: &mut [&mut Workload],
        time: Duration,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        // A limit of time that is long enough for `time` by construction.
        patience::until(self.cancel, "time passes", time + PATIENCE, || {
            for workload in &mut *workloads {
                workload.look()?;
            }
            Ok(if Instant::now() >= end {
                Ok(())
            } else {
                Err(String::new())
            })
        })
    }

    /// Compares by hash through the daemons; for a cluster that is to go on.
    fn verify_online(&self, primary: usize) -> anyhow::Result<bool> {
        let request = Request::Verify {
            resource: RESOURCE.into(),
            volume: None,
            peer: None,
            repair: None,
        };
        let answer =
            self.cluster
                .ask_long(primary, "the copies are compared", request, self.cancel)?;
        match answer {
            Answer::Verified {
                differing_bytes, ..
            } => Ok(differing_bytes == 0),
            other => Err(crate::client::unexpected(&other).into()),
        }
    }

    /// Stops everything in order and compares the backing files.
    fn compare(&mut self) -> anyhow::Result<(bool, Option<u64>)> {
        self.say("stopping everything, then comparing the replicas byte for byte");
        self.cluster.stop_all(self.cancel)?;
        let (a, b) = (
            self.cluster.files().backing(DATA[0], VOLUME),
            self.cluster.files().backing(DATA[1], VOLUME),
        );
        let what = "the replicas are compared";
        let difference = patience::run(self.cancel, what, COMPARE_TIME_MAX, move || {
            compare::first_difference(&a, &b, VOLUME_BYTES)
        })?;
        Ok((difference.is_none(), difference))
    }

    fn report(
        &self,
        failover: Failover,
        volume: &VolumeInfo,
        verified: Verified,
        late: Option<Late>,
        replicas_identical: bool,
        first_difference: Option<u64>,
    ) -> Report {
        let mut report = Report {
            mode: self.cluster.site().mode(),
            fault: match self.args.fault {
                DemoFault::Kill => "kill",
                DemoFault::Stop => "stop",
                DemoFault::Partition => "partition",
                DemoFault::Power => "power",
            },
            workload: match self.args.with {
                DemoWorkload::Records => "records",
                DemoWorkload::Postgres => "postgres",
            },
            acknowledged_writes: verified.acknowledged,
            lost_writes: verified.lost,
            service_check: verified.wrong,
            replicas_identical,
            first_difference,
            failover_ms: failover.ms(),
            longest_pause_ms: failover.pause_ms,
            resync_bytes: resync_bytes(volume, failover.old),
            late_attempts: late.map(|l| l.attempts),
            late_acknowledgements: late.map(|l| l.acknowledged),
            timeline: failover.moments,
            verdict: String::new(),
        };
        report.judge();
        report
    }

    /// Says how to reach the cluster, and stays until a signal comes.
    fn stay(&self) -> anyhow::Result<()> {
        let program = super::cluster::program()?;
        let program = program.display();
        self.say("\nThe cluster runs until Ctrl-C. Ways to reach it:");
        let config = self.cluster.files().config();
        self.say(&format!("  export HOLDFAST_CONFIG={}", config.display()));
        for name in NODES {
            self.say(&format!("  {program} status --name {name}"));
        }
        if let Some(lan) = self.cluster.site().lan() {
            let users = match self.cluster.site().mode() {
                Mode::Userns => "-U --preserve-credentials ",
                _ => "",
            };
            self.say(&format!(
                "  nsenter -t {} {users}-n bash      where clients are",
                lan.pid()
            ));
            for (node, name) in NODES.into_iter().enumerate() {
                if let Some(machine) = self.cluster.site().machine(node) {
                    self.say(&format!(
                        "  nsenter -t {} {users}-n -m -p bash      on {name}",
                        machine.pid(),
                    ));
                }
            }
        }
        self.say(&format!(
            "  service: {} at {}",
            self.cluster.service(),
            self.cluster.service_address()
        ));
        while patience::pass(self.cancel, Duration::from_secs(1)).is_ok() {}
        self.say("ending");
        Ok(())
    }
}
