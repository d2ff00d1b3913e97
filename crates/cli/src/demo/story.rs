//! What happens, in which order: a cluster is made, a service writes, the primary is lost and comes back, and
//! everything that was promised is looked at.

use super::cluster::{Cluster, Plan, RESOURCE, VOLUME_BYTES};
use super::late::{Late, LateWriter};
use super::patience::{self, Stopped};
use super::report::Report;
use super::signals::Cancel;
use super::site::{DATA, NODES, Site, WITNESS};
use super::timeline::{self, Moment, Prober, ms};
use super::workload::{self, PATIENCE, Verified, Workload};
use super::{Voice, compare};
use crate::args::{DemoArgs, DemoFault, DemoWorkload};
use anyhow::{Context, ensure};
use holdfast_host::machine::{Capability, Mode};
use holdfast_node::api_types::{Answer, Phase, Request, TimelineEntry, VolumeInfo};
use holdfast_node::clock;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// How long the other data node may take to serve everything.
const FAILOVER_TIME_MAX: Duration = Duration::from_secs(60);
/// How long the first acknowledgement may take after that.
const FIRST_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the returned node may take to be equal.
const RESYNC_TIME_MAX: Duration = Duration::from_secs(180);
/// How long the workload runs without the lost node before that comes back: some writes it will lack.
const ABSENCE: Duration = Duration::from_millis(1500);
/// How long the writer at the old primary insists after that is back in the cluster.
const INSIST: Duration = Duration::from_millis(500);
/// How long reading two replicas may take.
const COMPARE_TIME_MAX: Duration = Duration::from_secs(300);

/// The whole of it.
pub(super) fn tell(
    args: &DemoArgs,
    voice: Voice,
    ground: Capability,
    cancel: &Cancel,
) -> anyhow::Result<Report> {
    ensure!(
        args.with == DemoWorkload::Records || ground.mode == Mode::Root,
        "--with postgres needs a mounted filesystem, and thus root ({}); without it, leave out --with postgres",
        ground.reason
    );
    let site = Site::new(ground.mode)?;
    let plan = Plan {
        profile: args.profile.into(),
        lost_cache: args.fault == DemoFault::Power,
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
    let told = run.run();
    if let Some(folder) = &args.logs {
        run.cluster.keep_logs(folder)?;
    }
    match &told {
        Ok(report) if report.good() => {}
        Err(error) if matches!(error.downcast_ref(), Some(Stopped::Interrupted)) => {}
        Ok(_) | Err(_) => eprint!("{}", run.cluster.logs()),
    }
    told
}

struct Run<'a> {
    args: &'a DemoArgs,
    voice: Voice,
    cancel: &'a Cancel,
    cluster: Cluster,
}

/// What the failover was.
struct Failover {
    /// Position of the lost node, and of the one that took over.
    old: usize,
    new: usize,
    fault_ns: u64,
    moments: Vec<Moment>,
    first_ack_ns: u64,
    pause_ms: f64,
    late: Option<LateWriter>,
}

impl Run<'_> {
    fn say(&self, line: &str) {
        self.voice.say(line);
    }

    fn run(&mut self) -> anyhow::Result<Report> {
        let primary = self.build()?;
        let mut workload = Workload::start(
            self.args.with,
            self.cluster.site(),
            self.cluster.service_address(),
        )?;
        let half = Duration::from_millis(self.args.seconds * 500);
        self.write_until(&mut workload, "the first write is acknowledged", |w| {
            w.acknowledged().count() > 0
        })?;
        self.pass(&mut workload, half)?;
        self.say(&format!(
            "{} writes acknowledged so far",
            workload.acknowledged().count()
        ));
        let mut failover = self.break_primary(primary, &mut workload)?;
        let end = Instant::now() + half;
        self.pass(&mut workload, ABSENCE)?;
        let back_ns = self.bring_back(&failover)?;
        let volume = self.resync(&mut failover, &mut workload, back_ns)?;
        self.pass(&mut workload, end.saturating_duration_since(Instant::now()))?;
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
        Ok(report)
    }

    /// A running cluster with a served volume; which node serves it.
    fn build(&mut self) -> anyhow::Result<usize> {
        self.say(&format!(
            "three nodes ({}), files in {}",
            NODES.join(", "),
            self.cluster.folder().display()
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
    fn pass(&self, workload: &mut Workload, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        // A limit of time that is long enough for `time` by construction.
        patience::until(self.cancel, "time passes", time + PATIENCE, || {
            workload.look()?;
            Ok(if Instant::now() >= end {
                Ok(())
            } else {
                Err(String::new())
            })
        })
    }

    /// The fault, and all until the other node has acknowledged a write.
    fn break_primary(&mut self, old: usize, workload: &mut Workload) -> anyhow::Result<Failover> {
        let new = DATA[usize::from(old == DATA[0])];
        let fault = self.args.fault;
        let records = self.args.with == DemoWorkload::Records;
        let late = match fault {
            DemoFault::Stop | DemoFault::Partition => {
                Some(LateWriter::connect(&self.cluster, old, records)?)
            }
            DemoFault::Kill | DemoFault::Power => None,
        };
        let last = self
            .cluster
            .timeline(new, 0)?
            .last()
            .map_or(0, |e| e.number);
        let what = match fault {
            DemoFault::Kill => "SIGKILL for the daemon of",
            DemoFault::Stop => "SIGSTOP for the daemon of",
            DemoFault::Partition => "link cut:",
            DemoFault::Power => "power cut, unflushed writes of the store lost:",
        };
        self.say(&format!("FAULT: {what} {}", NODES[old]));
        let address = self.cluster.service_address();
        let prober = Prober::start(self.cluster.site(), address)?;
        let fault_ns = clock::now().0;
        match fault {
            DemoFault::Kill => self.cluster.kill(old)?,
            DemoFault::Stop => self.cluster.signal(old, Signal::SIGSTOP)?,
            DemoFault::Partition => self.cluster.isolate(old, true)?,
            DemoFault::Power => self.cluster.power_off(old),
        }
        self.cluster
            .wait_for_primary(&[new], FAILOVER_TIME_MAX, self.cancel)?;
        let entries = self.cluster.timeline(new, last)?;
        let promoted_ns = timeline::promoted_ns(&entries, fault_ns).with_context(|| {
            format!(
                "{} serves, but tells of no promotion: {}",
                NODES[new],
                told(&entries)
            )
        })?;
        let what = "a write is acknowledged by the new primary";
        let start = Instant::now();
        let (first_ack_ns, answers_ns) =
            patience::until(self.cancel, what, FIRST_TIME_MAX, || {
                workload.look()?;
                let acknowledged = workload.acknowledged().first_since(promoted_ns);
                let answers = prober.first_since(promoted_ns);
                Ok(match (acknowledged, answers) {
                    (Some(ack), Some(answers)) => Ok((ack, answers)),
                    (ack, answers) => Err(format!(
                        "{} ms; an acknowledgement: {}, an answer of the address: {}",
                        start.elapsed().as_millis(),
                        ack.is_some(),
                        answers.is_some()
                    )),
                })
            })?;
        let mounts = self.cluster.site().mode() == Mode::Root;
        let mut moments = timeline::failover(&entries, fault_ns, mounts);
        let moment = |event, at_ns, what: &str| Moment {
            event,
            ms: ms(fault_ns, at_ns),
            what: what.to_owned(),
        };
        moments.push(moment(
            "vip_answers",
            answers_ns,
            "the service answers at the virtual IP",
        ));
        moments.push(moment(
            "first_acknowledged_write",
            first_ack_ns,
            "the first write is acknowledged",
        ));
        moments.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        let before = workload.acknowledged().last_before(promoted_ns);
        self.say(&format!(
            "{} serves; first write acknowledged {:.0} ms after the fault",
            NODES[new],
            ms(fault_ns, first_ack_ns)
        ));
        Ok(Failover {
            old,
            new,
            fault_ns,
            moments,
            first_ack_ns,
            pause_ms: ms(before.unwrap_or(fault_ns), first_ack_ns),
            late,
        })
    }

    /// Ends the fault; when.
    fn bring_back(&mut self, failover: &Failover) -> anyhow::Result<u64> {
        let old = failover.old;
        if let Some(late) = &failover.late {
            // In its sockets before it wakes, or while it is cut off.
            late.begin(self.cancel)?;
        }
        if self.args.fault == DemoFault::Partition {
            // Long enough for an answer, if there is to be one.
            patience::pass(self.cancel, INSIST)?;
        }
        let back_ns = clock::now().0;
        match self.args.fault {
            DemoFault::Kill => self.cluster.start(old, self.cancel)?,
            DemoFault::Stop => self.cluster.signal(old, Signal::SIGCONT)?,
            DemoFault::Partition => self.cluster.isolate(old, false)?,
            DemoFault::Power => {
                self.cluster.power_on(old)?;
                self.cluster.start(old, self.cancel)?;
            }
        }
        self.say(&format!("{} comes back", NODES[old]));
        Ok(back_ns)
    }

    /// Waits until the returned node is equal.
    fn resync(
        &self,
        failover: &mut Failover,
        workload: &mut Workload,
        back_ns: u64,
    ) -> anyhow::Result<VolumeInfo> {
        let (old, new) = (failover.old, failover.new);
        let volume = self
            .cluster
            .wait_for_sync(new, RESYNC_TIME_MAX, self.cancel)?;
        workload.look()?;
        let seen_ns = clock::now().0;
        let entries = self.cluster.timeline(new, 0)?;
        let done = entries
            .iter()
            .rfind(|e| e.kind == "in-sync" && e.at_ns >= back_ns)
            .map_or(seen_ns, |e| e.at_ns);
        for (event, at_ns, what) in [
            ("returned", back_ns, "the lost node comes back"),
            ("resync_done", done, "it is in sync again"),
        ] {
            failover.moments.push(Moment {
                event,
                ms: ms(failover.fault_ns, at_ns),
                what: what.to_owned(),
            });
        }
        self.say(&format!(
            "{} is in sync again: {} bytes sent",
            NODES[old],
            resync_bytes(&volume, old)
        ));
        Ok(volume)
    }

    /// What came of the writes at the old primary; it must be Secondary now, and know it.
    fn ask_late(&self, late: Option<LateWriter>, old: usize) -> anyhow::Result<Option<Late>> {
        let Some(late) = late else {
            return Ok(None);
        };
        patience::pass(self.cancel, INSIST)?;
        let resource = self.cluster.resource(old)?;
        ensure!(
            resource.here == Some(Phase::Secondary),
            "{} should be Secondary and is {:?}",
            NODES[old],
            resource.here
        );
        let late = late.end(self.cancel)?;
        self.say(&format!(
            "{} is Secondary; {} writes tried there after it was replaced, {} acknowledged",
            NODES[old], late.attempts, late.acknowledged
        ));
        Ok(Some(late))
    }

    /// Compares by hash through the daemons; for a cluster that is to go on.
    fn verify_online(&self, primary: usize) -> anyhow::Result<bool> {
        let request = Request::Verify {
            resource: RESOURCE.into(),
            volume: None,
            peer: None,
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
        let (a, b) = (self.cluster.backing(DATA[0]), self.cluster.backing(DATA[1]));
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
            failover_ms: ms(failover.fault_ns, failover.first_ack_ns),
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
        let config = self.cluster.config();
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
                        "  nsenter -t {} {users}-n -m -p bash      on {name}{}",
                        machine.pid(),
                        if node == WITNESS { ", the witness" } else { "" }
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

/// Payload sent to a node by the last resync.
fn resync_bytes(volume: &VolumeInfo, node: usize) -> u64 {
    let peers = volume.local.iter().flat_map(|l| &l.peers);
    peers
        .filter(|p| usize::from(p.node.0) == node + 1)
        .map(|p| p.resync_sent_bytes)
        .sum()
}

fn told(entries: &[TimelineEntry]) -> String {
    let kinds: Vec<&str> = entries.iter().map(|e| e.kind.as_str()).collect();
    kinds.join(", ")
}
