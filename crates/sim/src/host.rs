//! A machine's host: devices, mounts, services and addresses as the control plane orders them, the fencer that
//! clears them, and the application that lives on them.

use crate::app::{self, Asked};
use crate::check::durability;
use crate::mutation::Mutation;
use crate::plan::{Step, What};
use crate::rng::Rng;
use crate::scenario::MS;
use crate::world::{Ev, World};
use bytes::Bytes;
use holdfast_control::{HostStep, ResourceIx};
use holdfast_replicator as rep;
use holdfast_types::NodeId;

/// An orderly stop of the services waits this long for the application's requests.
const STOP_WAIT_NS: u64 = 800 * MS;
/// While it waits it looks this often.
const STOP_LOOK_NS: u64 = 5 * MS;

impl World {
    pub(crate) fn host_step(&mut self, n: usize, step: HostStep) {
        self.trace
            .line(self.now, NodeId(n as u8), || format!("host: {step:?}"));
        let result = self.checks.services.ordered(n, step);
        self.must(result);
        let node = &mut self.nodes[n];
        node.host.stopping |= is_planned_stop(step);
        node.host.steps += 1;
        let number = node.host.steps;
        node.host.step = Some((number, step));
        if let HostStep::StopServices { forced } = step {
            if forced {
                node.host.services = false;
                node.app.tear_down(self.now, &mut self.checks.history);
            } else {
                node.app.running = false;
            }
        }
        let delay = match step {
            HostStep::RemoveVips { forced: true } | HostStep::StopServices { forced: true } => {
                2 * MS
            }
            HostStep::CloseDevice { forced: true } | HostStep::Unmount { forced: true } => 5 * MS,
            _ => self.scenario.host_ns,
        };
        let at = self.now + self.rng.host.below(delay);
        self.agenda.at(
            at,
            Ev::Host {
                node: n,
                step: number,
            },
        );
        // A stop that waits for the application gives up some time.
        self.nodes[n].app.patience = self.now + STOP_WAIT_NS;
    }

    pub(crate) fn host_step_ends(&mut self, n: usize, number: u64) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let Some((current, step)) = node.host.step else {
            return;
        };
        if current != number || node.process.is_none() {
            return;
        }
        let waits = matches!(step, HostStep::StopServices { forced: false });
        if waits && !node.app.asked.is_empty() && now < node.app.patience {
            self.agenda.at(
                now + STOP_LOOK_NS,
                Ev::Host {
                    node: n,
                    step: number,
                },
            );
            return;
        }
        node.host.step = None;
        let host = &mut node.host;
        let mut result = Ok(());
        match step {
            HostStep::OpenDevice => host.device = true,
            HostStep::Mount if host.device => host.mounted = true,
            HostStep::StartServices if host.mounted => {
                host.services = true;
                node.app.life += 1;
                node.app.running = true;
                let life = node.app.life;
                if self.script.is_none() {
                    // Not in this very instant: a decision comes before all else of its instant, also when played again.
                    self.agenda.first(now + 1, Ev::App { node: n, life });
                }
            }
            HostStep::AddVips => host.vip = true,
            HostStep::Mount | HostStep::StartServices => {
                result = Err("nothing to stand on".to_string())
            }
            HostStep::RemoveVips { .. } => host.vip = self.mutation == Some(Mutation::VipStays),
            HostStep::StopServices { .. } => {
                host.services = false;
                node.app.tear_down(now, &mut self.checks.history);
            }
            HostStep::Unmount { .. } => host.mounted = false,
            HostStep::CloseDevice { .. } => host.device = false,
        }
        self.side_effects_changed(n);
        let event = holdfast_control::Event::HostDone {
            resource: ResourceIx(0),
            step,
            result,
        };
        self.input(n, crate::node::Input::Control(event));
    }

    fn side_effects_changed(&mut self, n: usize) {
        let h = &self.nodes[n].host;
        let up = [h.device, h.mounted, h.services, h.vip];
        let result = self.checks.services.are(self.now, n, up);
        self.must(result);
    }

    /// Nothing of the resource is left on this host.
    pub(crate) fn clear_host(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.host.clear();
        node.host.step = None;
        node.host.deadline = None;
        node.host.deadlines += 1;
        node.app.tear_down(self.now, &mut self.checks.history);
        self.side_effects_changed(n);
    }

    pub(crate) fn lease_deadline(&mut self, n: usize, until: Option<rep::Now>) {
        let node = &mut self.nodes[n];
        node.host.deadlines += 1;
        node.host.deadline = until.map(|until| node.clock.true_time(until));
        if let Some(at) = node.host.deadline {
            let deadline = node.host.deadlines;
            self.agenda
                .at(at.max(self.now), Ev::Fencer { node: n, deadline });
        }
    }

    pub(crate) fn fencer(&mut self, n: usize, deadline: u64) {
        if self.nodes[n].host.deadlines != deadline || !self.nodes[n].host.any() {
            return;
        }
        self.trace.mark("fencer acted");
        self.trace.news(self.now, NodeId(n as u8), || {
            "fencer clears the host".into()
        });
        // A start step that runs ends without effect: what it would stand on is gone.
        let step = self.nodes[n].host.step.take();
        self.clear_host(n);
        self.nodes[n].host.step = step.filter(|(_, s)| !is_start(*s));
        if let Some((_, step)) = step.filter(|(_, s)| is_start(*s)) {
            let result = Err("fenced".to_string());
            let event = holdfast_control::Event::HostDone {
                resource: ResourceIx(0),
                step,
                result,
            };
            self.input(n, crate::node::Input::Control(event));
        }
    }

    pub(crate) fn daemon_gone(&mut self, n: usize, life: u64) {
        if self.nodes[n].life == life {
            self.clear_host(n);
        }
    }

    // ---- the application

    pub(crate) fn app_asks(&mut self, n: usize, life: u64) {
        let node = &self.nodes[n];
        if node.app.life != life || !node.app.running {
            return;
        }
        let mix = self.scenario.mix;
        let gap = self.rng.workload.below(2 * mix.gap_ns) + 1;
        self.agenda.first(self.now + gap, Ev::App { node: n, life });
        if self.quiet || !node.up() {
            return;
        }
        for _ in 0..self.rng.workload.between(1, mix.burst_max) {
            let node = &self.nodes[n];
            if node.app.life != life || node.app.asked.len() as u64 >= mix.depth_max {
                return;
            }
            let dice = self.rng.workload.bits();
            self.ask(n, dice);
        }
    }

    /// The script has the application ask on this node, or wherever it runs.
    pub(crate) fn scripted_ask(&mut self, node: usize, dice: u64) {
        let runs = |n: &crate::node::SimNode| n.app.running && n.up();
        let there = self.nodes.get(node).is_some_and(runs).then_some(node);
        let Some(n) = there.or_else(|| self.nodes.iter().position(runs)) else {
            return;
        };
        if !self.quiet && (self.nodes[n].app.asked.len() as u64) < self.scenario.mix.depth_max {
            self.ask(n, dice);
        }
    }

    fn ask(&mut self, n: usize, dice: u64) {
        self.decisions.push(Step {
            at: self.now,
            what: What::Ask(n as u8),
            dice,
        });
        let g = self.scenario.geometry;
        let epoch = self.nodes[n].open_epoch.unwrap_or(0);
        let (request, asked) = app::draw(
            &mut Rng::stream(dice, "ask"),
            &self.scenario.mix,
            g.block_bytes.into(),
            g.blocks,
            self.now,
            epoch,
            &mut self.checks.history,
        );
        self.checks.asked += 1;
        let req = rep::ReqId(self.checks.asked);
        self.trace.mix(req.0);
        self.nodes[n].app.asked.insert(req, (epoch, asked));
        self.input(
            n,
            crate::node::Input::Replica(rep::Event::Request { req, request }),
        );
    }

    pub(crate) fn complete(
        &mut self,
        n: usize,
        req: rep::ReqId,
        result: Result<Bytes, rep::RequestError>,
    ) {
        let Some((epoch, asked)) = self.nodes[n].app.asked.remove(&req) else {
            return;
        };
        self.trace.line(self.now, NodeId(n as u8), || {
            format!(
                "request {} {}",
                req.0,
                if result.is_ok() { "answered" } else { "FAILED" }
            )
        });
        self.trace.ops += 1;
        self.trace.mix(req.0);
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(e) => {
                self.trace.mark(match e {
                    rep::RequestError::Io => "request failed: I/O",
                    rep::RequestError::Range => "request failed: range",
                    rep::RequestError::NotPrimary => "request failed: not primary",
                });
                if let Asked::Write { id, .. } = asked {
                    self.checks.history.forget(self.now, id);
                }
                if e == rep::RequestError::Range {
                    self.fail(format!(
                        "node {n} refuses request {} as out of range",
                        req.0
                    ));
                }
                return;
            }
        };
        let result = self.checks.writer.completes(n, epoch);
        self.must(result);
        match asked {
            Asked::Read { begun, first, len } => {
                if bytes.len() != len as usize {
                    return self.fail(format!("a read of {len} bytes returned {}", bytes.len()));
                }
                if self.scenario.wild_clocks && self.checks.writer.outdated(epoch) {
                    // Only clocks keep a stale primary from reading, and here they do not.
                    return self.trace.mark("stale read by a broken clock");
                }
                let result = self.checks.history.read(self.now, begun, first, &bytes);
                self.must(result.map_err(|e| format!("{e} (on node {n} in epoch {epoch})")));
            }
            Asked::Write { id, fua } => {
                let result = self.checks.writer.acks(n, epoch);
                self.must(result);
                let result = self.checks.history.ack(self.now, id);
                self.must(result);
                self.members_hold(n, id, fua);
            }
            Asked::Flush { covered } => self.members_hold_flushed(n, &covered),
        }
    }

    fn members_hold(&mut self, n: usize, id: u32, fua: bool) {
        let begun = self.checks.history.begun(id);
        let by = self.nodes[n].id;
        let members = self.sound_members(Some(begun));
        let result = durability::acknowledged(&self.checks.history, by, id, fua, members);
        self.must(result);
        if fua {
            self.checks.history.stable(id);
        }
    }

    fn members_hold_flushed(&mut self, n: usize, covered: &[u64]) {
        let by = self.nodes[n].id;
        let members = self.sound_members(None);
        let result = durability::flushed(&self.checks.history, by, covered, members);
        self.must(result);
        self.checks.history.flushed(covered);
    }
}

fn is_planned_stop(step: HostStep) -> bool {
    matches!(
        step,
        HostStep::RemoveVips { forced: false }
            | HostStep::StopServices { forced: false }
            | HostStep::Unmount { forced: false }
            | HostStep::CloseDevice { forced: false }
    )
}

fn is_start(step: HostStep) -> bool {
    matches!(
        step,
        HostStep::OpenDevice | HostStep::Mount | HostStep::StartServices | HostStep::AddVips
    )
}
