//! The loop itself: waits, hands events to the control plane, performs its actions.

use super::{
    Daemon, End, Input, MeshMessage, ORDERLY_STOP_MS_MAX, Question, RunningStep, VolumeKey,
    message, requests, sentences, status, timer,
};
use crate::clock;
use crate::hostops;
use crate::net::lanes::Command as LanesCommand;
use crate::net::mesh::MeshEvent;
use crate::volume::{Command, Report};
use holdfast_control::{Action, Event, FromControl, HostStep, Note as ControlNote, ResourceIx};
use holdfast_host::fencer::Slot;
use holdfast_replicator::{Note, Now, ToControl};
use holdfast_types::NodeId;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// How long the threads of host steps may take to end at the daemon's end.
const HOST_END_TIME_MAX: Duration = Duration::from_secs(1);

impl Daemon {
    /// Until the end, whatever it is.
    pub(super) async fn turn(
        mut self,
        mut inputs: mpsc::UnboundedReceiver<Input>,
        mut events: mpsc::Receiver<MeshEvent<MeshMessage>>,
        mut timer: timer::BootTimer,
    ) -> End {
        let mut signals = match signals() {
            Ok(signals) => signals,
            Err(e) => return End::Failed(e.into()),
        };
        loop {
            if let Some(end) = self.end.take() {
                return self.finish(end);
            }
            if let Err(e) = timer.set(self.deadline()) {
                return self.finish(End::Failed(e.into()));
            }
            tokio::select! {
                biased;
                _ = signals.0.recv() => self.signalled("SIGTERM"),
                _ = signals.1.recv() => self.signalled("SIGINT"),
                off = timer.off() => match off {
                    Ok(()) => self.tick(),
                    Err(e) => self.end = Some(End::Failed(e.into())),
                },
                event = events.recv() => match event {
                    Some(event) => self.meshed(event),
                    None => self.end = Some(End::Failed(anyhow::anyhow!("the control mesh has ended"))),
                },
                Some(input) = inputs.recv() => self.input(input),
            }
        }
    }

    fn deadline(&self) -> Option<Now> {
        let steps = self
            .hosts
            .iter()
            .flatten()
            .filter_map(|h| h.running.as_ref())
            .map(|r| r.until);
        let stop = self
            .stopping
            .map(|since| since.plus_ms(ORDERLY_STOP_MS_MAX));
        steps.chain(stop).chain(self.node.deadline()).min()
    }

    fn tick(&mut self) {
        let now = clock::now();
        if self.node.deadline().is_some_and(|at| at <= now) {
            self.event(Event::Tick);
        }
        for at in 0..self.hosts.len() {
            let late = self.hosts[at]
                .as_mut()
                .and_then(|h| h.running.take_if(|r| r.until <= now));
            if let Some(late) = late {
                let resource = ResourceIx(at as u16);
                let text = format!(
                    "{:?} is still not done after a long time; a device or a program hangs",
                    late.step
                );
                self.event(Event::HostDone {
                    resource,
                    step: late.step,
                    result: Err(text),
                });
            }
        }
        if self
            .stopping
            .is_some_and(|since| since.plus_ms(ORDERLY_STOP_MS_MAX) <= now)
        {
            self.end = Some(End::AtOnce(format!(
                "the orderly stop took longer than {} s; the fencer removes what is left",
                ORDERLY_STOP_MS_MAX / 1000
            )));
        }
    }

    fn signalled(&mut self, name: &str) {
        if self.stopping.is_some() {
            self.end = Some(End::AtOnce(format!(
                "{name} for the second time: stopped at once"
            )));
            return;
        }
        self.cx
            .timeline
            .add("", "stopping", format!("{name}: stopping in order"));
        self.stop();
    }

    fn stop(&mut self) {
        if self.stopping.is_none() {
            self.stopping = Some(clock::now());
            self.event(Event::Stop);
        }
    }

    pub(super) fn event(&mut self, event: Event) {
        let actions = self.node.handle(clock::now(), event);
        self.perform_all(actions);
    }

    pub(super) fn perform_all(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Persist { ticket, bytes } => {
                if self.writer.send((ticket, bytes)).is_err() && self.end.is_none() {
                    self.end = Some(End::Failed(anyhow::anyhow!(
                        "the control state's writer has ended"
                    )));
                }
            }
            Action::Send { to, msg } => {
                self.mesh.send(to, &MeshMessage::Control(msg));
            }
            Action::Replica {
                resource,
                volume,
                msg,
            } => {
                let key = VolumeKey { resource, volume };
                let placed = match &msg {
                    FromControl::View(view) | FromControl::Lead(view) => Some(view.data_nodes),
                    _ => None,
                };
                if let Some(v) = self.volumes.get(&key) {
                    v.commands().send(Command::Control(msg));
                }
                // After the replica: it shall know a node before it is connected to it.
                if let Some(data_nodes) = placed {
                    self.placed(key, data_nodes);
                }
            }
            Action::Host { resource, step } => self.host_step(resource, step),
            Action::Forget { resource, volume } => {
                self.forget_replica(VolumeKey { resource, volume })
            }
            Action::Reopen { resource, volume } => {
                self.reopen_replica(VolumeKey { resource, volume });
            }
            Action::LeaseDeadline { resource, until } => self.lease(resource, until),
            Action::Reply { id, reply } => {
                if let Some(to) = self.admin.remove(&id) {
                    // Who asked may have gone away.
                    let _ = to.send(reply);
                }
            }
            Action::Stopped => self.end = Some(End::Orderly),
            Action::Note(note) => self.control_note(&note),
        }
    }

    fn host_step(&mut self, resource: ResourceIx, step: HostStep) {
        let Some(host) = self
            .hosts
            .get_mut(usize::from(resource.0))
            .and_then(Option::as_mut)
        else {
            return;
        };
        let limit = if hostops::is_start(step) {
            hostops::START_MS_MAX
        } else {
            hostops::STOP_MS_MAX
        };
        // From here on, not from its end: a step that runs, or fails half-way, has things on the host too.
        host.held |= hostops::is_start(step);
        let number = host.thread.step(step);
        host.running = Some(RunningStep {
            number,
            step,
            until: clock::now().plus_ms(limit),
        });
    }

    /// Tells the fencer until when side effects may be there.
    fn lease(&mut self, resource: ResourceIx, until: Option<Now>) {
        match until {
            Some(until) => self.leases.insert(resource, until),
            None => self.leases.remove(&resource),
        };
        let Some(fencer) = &self.fencer else { return };
        let Ok(slot) = Slot::new(usize::from(resource.0)) else {
            return;
        };
        match until {
            Some(until) => {
                let host = self.hosts.get(usize::from(resource.0));
                let held = host.and_then(Option::as_ref).is_some_and(|h| h.held);
                let mut set = fencer.set_deadline(slot, until.0);
                if !set && !held {
                    // An old fencing, of which nobody has taken note yet: nothing has been made since.
                    set = fencer.rearm(slot) && fencer.set_deadline(slot, until.0);
                }
                if !set && held {
                    // The fencer was faster than the renewal: everything is gone, and the lease must go too.
                    self.fenced(resource);
                }
            }
            None => {
                // Should something be there all the same, the old deadline stays, and at it the fencer takes it away.
                let left = !fencer.is_fenced(slot) && fencer.has_records(slot);
                if left {
                    tracing::error!(
                        "the lease of resource {} has ended with something left on the host; the fencer removes it",
                        resource.0
                    );
                } else if !fencer.clear(slot) {
                    // Nothing is held any more, so there is nothing left to be fenced.
                    fencer.rearm(slot);
                }
                if let Some(Some(host)) = self.hosts.get_mut(usize::from(resource.0)) {
                    host.held = left;
                    if std::mem::take(&mut host.fenced) {
                        self.cx.tell(Input::Fenced {
                            resource,
                            over: true,
                        });
                    }
                }
            }
        }
    }

    /// Tells the control plane whether the resource's lease may be renewed.
    pub(super) fn stalls(&mut self, resource: ResourceIx) {
        let host = self.hosts.get(usize::from(resource.0));
        let fenced = host.and_then(Option::as_ref).is_some_and(|h| h.fenced);
        let stalled = fenced || self.stalled.iter().any(|k| k.resource == resource);
        self.event(Event::DiskStalled { resource, stalled });
    }

    /// The fencer has undone what a living lease allows: not renewed, that lease ends by itself, and with it the role.
    fn fenced(&mut self, resource: ResourceIx) {
        if let Some(Some(host)) = self.hosts.get_mut(usize::from(resource.0))
            && !host.fenced
        {
            host.fenced = true;
            self.cx.tell(Input::Fenced {
                resource,
                over: false,
            });
        }
    }

    fn meshed(&mut self, event: MeshEvent<MeshMessage>) {
        match event {
            MeshEvent::Up { node, boot: _ } => {
                self.cx.timeline.add(
                    "",
                    "link-up",
                    format!("control connection to {}", self.cx.name(node)),
                );
                self.event(Event::LinkUp { node });
            }
            MeshEvent::Down { node } => {
                self.cx.timeline.add(
                    "",
                    "link-down",
                    format!("control connection to {}", self.cx.name(node)),
                );
                self.event(Event::LinkDown { node });
            }
            MeshEvent::Message {
                from,
                message: MeshMessage::Control(msg),
            } => {
                self.event(Event::Message { from, msg });
            }
            MeshEvent::Message {
                from,
                message: MeshMessage::Question { id, question },
            } => {
                self.question(from, id, question);
            }
            MeshEvent::Message {
                message: MeshMessage::Answer { id, result },
                ..
            } => {
                if let Some(reply) = self.questions.remove(&id) {
                    let _ = reply.send(result);
                }
            }
        }
    }

    fn question(&mut self, from: NodeId, id: u64, question: Question) {
        tracing::debug!("{}", message::describe(from, &question));
        let cx = self.cx.clone();
        tokio::spawn(async move {
            let result = requests::answer(&cx, from, question).await;
            cx.tell(Input::Answer {
                to: from,
                id,
                result,
            });
        });
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Report { key, report } => self.report(key, report),
            Input::HostDone {
                resource,
                number,
                step,
                result,
            } => {
                let Some(host) = self
                    .hosts
                    .get_mut(usize::from(resource.0))
                    .and_then(Option::as_mut)
                else {
                    return;
                };
                // One that was given up, or overtaken by a stop, is answered already or needs no answer.
                if host.running.take_if(|r| r.number == number).is_some() {
                    self.event(Event::HostDone {
                        resource,
                        step,
                        result,
                    });
                }
            }
            Input::Persisted(Ok(ticket)) => self.event(Event::Persisted { ticket }),
            Input::Persisted(Err(e)) => {
                tracing::error!("{e}");
                self.end = Some(End::Failed(e.into()));
            }
            Input::Open { key, reply } => self.open_replica(key, Some(reply)),
            Input::Opened { key, result, reply } => self.opened(key, result, reply),
            Input::Admin { request, reply } => {
                let id = holdfast_control::AdminId(self.fresh_id());
                self.admin.insert(id, reply);
                self.event(Event::Admin { id, request });
            }
            Input::Ask {
                to,
                question,
                reply,
            } => {
                let id = self.fresh_id();
                self.questions.retain(|_, reply| !reply.is_closed());
                if self.mesh.send(to, &MeshMessage::Question { id, question }) {
                    self.questions.insert(id, reply);
                } else {
                    let _ = reply.send(Err(format!("{} is not connected", self.cx.name(to))));
                }
            }
            Input::Answer { to, id, result } => {
                self.mesh.send(to, &MeshMessage::Answer { id, result });
            }
            Input::Facts { reply } => self.facts(reply),
            Input::Watch { key, notes } => {
                self.watchers.retain(|(_, tx)| !tx.is_closed());
                self.watchers.push((key, notes));
            }
            Input::Isolate { on, reply } => {
                self.isolate(on);
                let _ = reply.send(());
            }
            Input::Stop => {
                self.cx
                    .timeline
                    .add("", "stopping", "a client asked for it: stopping in order");
                self.stop();
            }
            Input::FencerDied => self.fencer_died(),
            Input::NoFencer(why) => {
                self.end = Some(End::Failed(anyhow::anyhow!(
                    "no fencer can be started, and without one nothing may be held: {why}"
                )));
            }
            Input::Fenced { resource, over } => {
                if !over {
                    let r = self
                        .cx
                        .config
                        .resources
                        .get(usize::from(resource.0))
                        .map_or("", |r| r.name.as_str());
                    self.cx.timeline.add(
                        r,
                        "fenced",
                        "the fencer was faster than the lease's renewal",
                    );
                }
                self.stalls(resource);
            }
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn fencer_died(&mut self) {
        let Some(fencer) = self.fencer.clone() else {
            return;
        };
        tracing::error!("the fencer has died; a new one is started");
        let cx = self.cx.clone();
        // It may take seconds to report for duty, in which leases must be renewed.
        tokio::task::spawn_blocking(move || {
            if let Err(e) = fencer.respawn() {
                cx.tell(Input::NoFencer(e.to_string()));
            }
        });
    }

    fn isolate(&mut self, on: bool) {
        self.isolated = on;
        self.cx.timeline.add(
            "",
            "isolate",
            if on {
                "cut off from all nodes"
            } else {
                "connected again"
            },
        );
        self.mesh.isolate(on);
        self.lanes.tell(LanesCommand::Isolate(on));
        for volume in self.volumes.values() {
            volume.commands().send(Command::Isolate(on));
        }
    }

    fn report(&mut self, key: VolumeKey, report: Report) {
        let VolumeKey { resource, volume } = key;
        match report {
            Report::Control(msg) => {
                if let ToControl::Room { store_bytes, .. } = msg {
                    let (r, v) = self.cx.names(key);
                    if let Err(e) = self.cx.book.put_end(&r, &v, store_bytes) {
                        // Found again as long as the backing does not grow once more.
                        tracing::error!("cannot note where the metadata of {r}/{v} ends: {e}");
                    }
                }
                self.event(Event::Replica {
                    resource,
                    volume,
                    msg,
                });
            }
            Report::Save(job) => self.save(key, job),
            Report::Stalled(stalled) => {
                let (r, v) = self.cx.names(key);
                let text = if stalled {
                    "the local disk does not answer"
                } else {
                    "the local disk answers again"
                };
                self.cx
                    .timeline
                    .add(&r, "disk-stall", format!("volume {v}: {text}"));
                if stalled {
                    self.stalled.insert(key);
                } else {
                    self.stalled.remove(&key);
                }
                self.stalls(resource);
            }
            Report::Note(note) => {
                if let Note::Resized { .. } = note
                    && let Some(Some(host)) = self.hosts.get(usize::from(resource.0))
                {
                    host.thread.resized(&self.cx.names(key).1);
                }
                self.replica_note(key, &note);
                self.watchers
                    .retain(|(k, tx)| *k != key || tx.send(note.clone()).is_ok());
            }
            Report::Ended(Ok(())) => {}
            Report::Ended(Err(e)) => self.end = Some(End::Failed(anyhow::anyhow!("{e}"))),
        }
    }

    /// Saves blocks that are about to be given up, on a thread that may wait.
    fn save(&self, key: VolumeKey, job: holdfast_replicator::Save) {
        let Some(commands) = self.volumes.get(&key).map(|v| v.commands().clone()) else {
            return;
        };
        let cx = self.cx.clone();
        tokio::task::spawn_blocking(move || {
            let save = job.save;
            let result = save_blocks(&cx, key, &job);
            commands.send(crate::volume::Command::Saved { save, result });
        });
    }

    fn facts(&mut self, reply: oneshot::Sender<status::Facts>) {
        let volumes = self
            .volumes
            .iter()
            .map(|(k, v)| (*k, v.commands().clone()))
            .collect();
        let hosts = self
            .hosts
            .iter()
            .map(|h| h.as_ref().map(|h| h.thread.facts()).unwrap_or_default())
            .collect();
        let leases = self.leases.clone();
        let closed = self.closed.clone();
        let _ = reply.send(status::Facts {
            volumes,
            hosts,
            leases,
            closed,
        });
    }

    // ---- the end

    fn finish(mut self, end: End) -> End {
        let orderly = matches!(end, End::Orderly);
        for host in std::mem::take(&mut self.hosts).into_iter().flatten() {
            host.thread.end(HOST_END_TIME_MAX);
        }
        if orderly {
            for (_, volume) in std::mem::take(&mut self.volumes) {
                volume.end();
            }
            self.cx.timeline.add("", "stopped", "all is closed");
        }
        // Removing a name that somebody else has taken over would be wrong; the claim rules that out.
        let _ = std::fs::remove_file(self.cx.me.state_dir.join(crate::api_types::API_SOCKET));
        end
    }

    // ---- notes

    fn control_note(&mut self, note: &ControlNote) {
        // After a start, records of long ago are gone through once more: news is only what is newer.
        if let ControlNote::Promoted {
            resource, epoch, ..
        } = note
            && self
                .epochs
                .insert(*resource, *epoch)
                .is_some_and(|known| known >= *epoch)
        {
            return;
        }
        if let Some((resource, kind, text)) = sentences::describe_control(&self.cx, note) {
            self.cx.timeline.add(&resource, kind, text);
        } else {
            tracing::debug!("control: {note:?}");
        }
    }

    fn replica_note(&self, key: VolumeKey, note: &Note) {
        let (r, v) = self.cx.names(key);
        let (kind, text) = sentences::describe_replica(&self.cx, note);
        self.cx
            .timeline
            .add(&r, kind, format!("volume {v}: {text}"));
    }
}

fn signals() -> std::io::Result<(Signal, Signal)> {
    Ok((
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ))
}

fn save_blocks(
    cx: &super::Context,
    key: VolumeKey,
    job: &holdfast_replicator::Save,
) -> Result<String, String> {
    let (r, v) = cx.names(key);
    let place = cx.place(key).ok_or("this node holds no replica of it")?;
    let volume = cx
        .book
        .get(&r, &v)
        .and_then(|e| e.volume())
        .ok_or("no replica was made on this node")?;
    let geometry = holdfast_types::Geometry::of_bytes(place.size_bytes);
    let header = crate::saved::Header {
        name: format!("{r}/{v}"),
        volume: volume.0,
        node: cx.me.id.0,
        block_bytes: geometry.block_bytes,
        // It may have grown since it was configured.
        blocks: job
            .ranges
            .iter()
            .map(|r| r.end())
            .fold(geometry.blocks, u64::max),
        lost: job.lost,
        keep: job.keep,
        epoch: job.epoch.0,
    };
    let dir = cx.me.state_dir.join(crate::saved::SAVED_DIR);
    let saved = crate::saved::save(&dir, &header, job, &place.path);
    let text = match &saved {
        Ok(text) | Err(text) => text.clone(),
    };
    cx.timeline
        .add(&r, "history-saved", format!("volume {v}: {text}"));
    saved
}
