//! A primary: its lease, its host steps up and down, the hand-over.

use super::*;

impl Node {
    pub(super) fn lead(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
        let r = &mut self.resources[ix];
        r.lease = None;
        r.hint = None;
        r.force_until = None;
        r.refused_wish = None;
        let waiting = r.volumes();
        let lease_by = now.plus_ms(self.config.timing.handover_ms);
        r.phase = Phase::Leading {
            epoch: record.epoch,
            waiting,
            lease_by,
        };
        for volume in 0..self.resources[ix].locals.len() {
            if let Some(view) = record.view(VolumeIx(volume as u16)) {
                self.resources[ix].locals[volume].view_sent = Some(record.generation);
                self.tell_one(ix, volume, FromControl::Lead(view));
            }
        }
        self.renew_at = now;
        self.renew(now);
        self.wake(lease_by);
    }

    /// Asks for the leases of everything held here, once per heartbeat.
    pub(crate) fn renew(&mut self, now: Now) {
        let held: Vec<_> = self
            .resources
            .iter()
            .enumerate()
            .filter(|(_, r)| !r.stalled)
            .filter_map(|(ix, r)| Some((ResourceIx(ix as u16), r.holding()?)))
            .collect();
        if held.is_empty() {
            return;
        }
        if now >= self.renew_at {
            self.renew_at = now.plus_ms(self.config.timing.heartbeat_ms);
            let nonce = self.rng.draw();
            self.holder.ask(now, nonce, held.clone());
            self.tell_voters(
                now,
                &Body::LeaseRequest {
                    nonce,
                    lease_ms: self.config.timing.lease_ms,
                    entries: held,
                },
            );
        }
        self.wake(self.renew_at);
    }

    /// A majority granted a request sent at `sent`.
    pub(crate) fn lease_extended(
        &mut self,
        now: Now,
        resource: ResourceIx,
        epoch: Epoch,
        sent: Now,
    ) {
        let ix = usize::from(resource.0);
        let timing = &self.config.timing;
        let until = sent.plus_ms(timing.lease_ms - timing.margin_ms);
        let r = &mut self.resources[ix];
        if r.holding() != Some(epoch) || until <= now || r.lease.is_some_and(|l| l >= until) {
            return;
        }
        if r.lease.is_some_and(|l| now >= l) {
            return; // it had ended before: too late
        }
        r.lease = Some(until);
        self.tell(ix, &FromControl::Lease { until });
        self.act(Action::LeaseDeadline {
            resource,
            until: Some(until),
        });
    }

    pub(super) fn start_step(&mut self, ix: usize, epoch: Epoch, step: usize) {
        self.resources[ix].phase = Phase::Starting {
            epoch,
            step,
            retry_at: None,
        };
        let resource = ResourceIx(ix as u16);
        self.act(Action::Host {
            resource,
            step: START_STEPS[step],
        });
    }

    /// Stops being primary. Planned: host first, then drain. Forced: I/O first.
    pub(crate) fn stop(
        &mut self,
        now: Now,
        ix: usize,
        epoch: Epoch,
        why: StepDownReason,
        forced: bool,
    ) {
        let resource = ResourceIx(ix as u16);
        self.note(Note::SteppingDown {
            resource,
            epoch,
            why,
        });
        if forced {
            self.tell(ix, &FromControl::StepDown);
        }
        let phase = self.resources[ix].phase.clone();
        let mut stop = Stop {
            epoch,
            why,
            forced,
            step: 0,
            retry_at: None,
            failures: 0,
        };
        match phase {
            Phase::Leading { .. } => self.finish_stop(now, ix, stop), // nothing was started
            Phase::Draining { .. } => self.finish_stop(now, ix, stop), // everything was stopped
            Phase::Stopping(old) => {
                stop.step = old.step;
                self.stop_step(ix, stop);
            }
            _ => self.stop_step(ix, stop),
        }
    }

    pub(super) fn stop_step(&mut self, ix: usize, stop: Stop) {
        self.resources[ix].phase = Phase::Stopping(stop);
        let step = stop_steps(stop.forced)[stop.step];
        self.act(Action::Host {
            resource: ResourceIx(ix as u16),
            step,
        });
    }

    /// A planned stop that cannot be carried out: goes on serving.
    pub(super) fn call_off_stop(&mut self, now: Now, ix: usize, stop: Stop) {
        let why = stop.why;
        if matches!(
            why,
            StepDownReason::Shutdown | StepDownReason::Demoted | StepDownReason::DiskFailed
        ) {
            self.stop(now, ix, stop.epoch, why, true); // there is no way back: as if the lease had ended
            return;
        }
        if let StepDownReason::HandOver { to } = why {
            self.resources[ix].refused_wish = Some(to);
        }
        self.tell(ix, &FromControl::Resume);
        self.start_step(ix, stop.epoch, 0);
    }

    /// Nothing is left on the host.
    pub(super) fn finish_stop(&mut self, now: Now, ix: usize, stop: Stop) {
        let resource = ResourceIx(ix as u16);
        if !stop.forced {
            self.tell(ix, &FromControl::StepDown);
        }
        self.act(Action::LeaseDeadline {
            resource,
            until: None,
        });
        self.become_secondary(now, ix);
        self.note(Note::SteppedDown {
            resource,
            epoch: stop.epoch,
        });
        self.tell_voters(
            now,
            &Body::Release {
                resource,
                epoch: stop.epoch,
            },
        );
        let successor = match stop.why {
            StepDownReason::HandOver { to } => Some(to),
            StepDownReason::Shutdown | StepDownReason::DiskFailed => {
                let record = self.record(ix).cloned();
                record.and_then(|r| self.successors(now, ix, &r).first().copied())
            }
            _ => None,
        };
        if let Some(to) = successor {
            self.resources[ix].handed = Some((stop.epoch, to));
            self.resources[ix].hold_back = now.plus_ms(self.config.timing.handover_ms);
            self.send(
                now,
                to,
                Body::HandOver {
                    resource,
                    epoch: stop.epoch,
                },
            );
        }
    }

    pub(crate) fn on_host(
        &mut self,
        now: Now,
        resource: ResourceIx,
        step: HostStep,
        result: Result<(), String>,
    ) {
        let ix = usize::from(resource.0);
        let Some(r) = self.resources.get(ix) else {
            return;
        };
        let retry = now.plus_ms(self.config.timing.step_retry_ms);
        match (r.phase.clone(), result) {
            (
                Phase::Starting {
                    epoch,
                    step: at,
                    retry_at: None,
                },
                result,
            ) if START_STEPS[at] == step => match result {
                Ok(()) => {
                    self.note(Note::Step { resource, step });
                    if at + 1 < START_STEPS.len() {
                        self.start_step(ix, epoch, at + 1);
                    } else {
                        self.resources[ix].phase = Phase::Up { epoch };
                        self.note(Note::Up { resource, epoch });
                    }
                }
                Err(error) => {
                    self.note(Note::StepFailed {
                        resource,
                        step,
                        error,
                    });
                    let retry_at = Some(retry);
                    self.resources[ix].phase = Phase::Starting {
                        epoch,
                        step: at,
                        retry_at,
                    };
                }
            },
            (Phase::Stopping(stop), result)
                if stop.retry_at.is_none() && stop_steps(stop.forced)[stop.step] == step =>
            {
                match result {
                    Ok(()) => {
                        self.note(Note::Step { resource, step });
                        if stop.step + 1 < 4 {
                            self.stop_step(
                                ix,
                                Stop {
                                    step: stop.step + 1,
                                    failures: 0,
                                    ..stop
                                },
                            );
                        } else if stop.forced {
                            self.finish_stop(now, ix, stop);
                        } else {
                            self.drain(now, ix, stop);
                        }
                    }
                    Err(error) => {
                        self.note(Note::StepFailed {
                            resource,
                            step,
                            error,
                        });
                        let failures = stop.failures + 1;
                        if !stop.forced && failures >= STOP_FAILURES_MAX {
                            self.call_off_stop(now, ix, stop);
                        } else {
                            let stop = Stop {
                                failures,
                                retry_at: Some(retry),
                                ..stop
                            };
                            self.resources[ix].phase = Phase::Stopping(stop);
                        }
                    }
                }
            }
            _ => {} // of a step that was given up
        }
    }

    pub(super) fn drain(&mut self, now: Now, ix: usize, stop: Stop) {
        let waiting = self.resources[ix].volumes();
        let until = now.plus_ms(self.config.timing.handover_ms);
        self.resources[ix].phase = Phase::Draining {
            stop,
            waiting,
            until,
        };
        self.tell(ix, &FromControl::Drain);
    }
}
