//! The loss of the primary and its return, and what is measured on the way.

use super::late::{Late, LateWriter};
use super::patience;
use super::site::{DATA, NODES};
use super::story::Run;
use super::timeline::{self, Moment, Prober, ms};
use super::workload::Workload;
use crate::args::{DemoFault, DemoWorkload};
use anyhow::{Context, ensure};
use holdfast_host::machine::Mode;
use holdfast_node::api_types::{Phase, TimelineEntry, VolumeInfo};
use holdfast_node::clock;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// How long the other data node may take to serve everything.
const FAILOVER_TIME_MAX: Duration = Duration::from_secs(60);
/// How long the first acknowledgement may take after that.
const FIRST_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the returned node may take to be equal.
pub(super) const RESYNC_TIME_MAX: Duration = Duration::from_secs(180);
/// How long the writer at the old primary insists while that is cut off, and after it is back.
const INSIST: Duration = Duration::from_millis(500);

/// What the failover was.
pub(super) struct Failover {
    /// Position of the lost node, and of the one that took over.
    pub(super) old: usize,
    pub(super) new: usize,
    fault_ns: u64,
    /// What happened when.
    pub(super) moments: Vec<Moment>,
    first_ack_ns: u64,
    /// Without an acknowledgement for any client, around the fault.
    pub(super) pause_ms: f64,
    /// Insists at the old primary.
    pub(super) late: Option<LateWriter>,
}

impl Failover {
    /// From the fault to the first write acknowledged by the new primary.
    pub(super) fn ms(&self) -> f64 {
        ms(self.fault_ns, self.first_ack_ns)
    }
}

impl Run<'_> {
    /// The fault, and all until the other node has acknowledged a write.
    pub(super) fn break_primary(
        &mut self,
        old: usize,
        workload: &mut Workload,
    ) -> anyhow::Result<Failover> {
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
    pub(super) fn bring_back(&mut self, failover: &Failover) -> anyhow::Result<u64> {
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
    pub(super) fn resync(
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
    pub(super) fn ask_late(
        &self,
        late: Option<LateWriter>,
        old: usize,
    ) -> anyhow::Result<Option<Late>> {
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
}

/// Payload sent to a node by the last resync.
pub(super) fn resync_bytes(volume: &VolumeInfo, node: usize) -> u64 {
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
