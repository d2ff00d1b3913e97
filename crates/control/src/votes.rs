//! What nodes say to one another about leases and takeovers, and the voter's answers.

use crate::api::*;
use crate::lease::{Claim, Renewal};
use crate::message::{Body, Verdict};
use crate::node::Node;
use crate::state::Command;
use holdfast_types::{Epoch, NodeId};

/// Longest lease that a request may name, far beyond every profile's.
const LEASE_MS_MAX: u64 = 600_000;

impl Node {
    pub(crate) fn on_lease_body(&mut self, now: Now, from: NodeId, body: Body) {
        match body {
            Body::LeaseRequest {
                nonce,
                lease_ms,
                entries,
            } => {
                if lease_ms > LEASE_MS_MAX {
                    return; // no configuration allows it
                }
                let promise = self.config.timing.promise_for(lease_ms);
                self.grantor.promise_at_least(promise);
                let verdicts = entries
                    .into_iter()
                    .map(|(resource, epoch)| (resource, self.verdict(now, from, resource, epoch)))
                    .collect();
                self.send(now, from, Body::LeaseReply { nonce, verdicts });
            }
            Body::LeaseReply { nonce, verdicts } => {
                for renewal in self.holder.answer(from, nonce, &verdicts) {
                    self.on_renewal(now, renewal);
                }
            }
            Body::Release { resource, epoch } => {
                let record = self.consensus.state().resources.get(&resource);
                self.grantor.release(from, resource, epoch, record);
            }
            Body::Poll {
                nonce,
                resource,
                epoch,
                generation,
            } => {
                let claim = Claim {
                    candidate: from,
                    resource,
                    epoch,
                    generation,
                };
                let record = self.consensus.state().resources.get(&resource);
                let free_in = if self.counts() {
                    self.grantor.free_in(now, &claim, record)
                } else {
                    None
                };
                self.send(
                    now,
                    from,
                    Body::PollReply {
                        nonce,
                        resource,
                        free_in,
                    },
                );
            }
            Body::PollReply {
                nonce,
                resource,
                free_in,
            } => {
                self.on_poll_reply(from, resource, nonce, free_in);
            }
            Body::Fence {
                resource,
                epoch,
                generation,
            } => {
                let claim = Claim {
                    candidate: from,
                    resource,
                    epoch,
                    generation,
                };
                let before = self.grantor.fences.get(&resource).copied();
                let record = self.consensus.state().resources.get(&resource);
                if self.counts() && self.grantor.let_in(now, &claim, record) {
                    let changed = before != self.grantor.fences.get(&resource).copied();
                    let reply = Body::FenceReply {
                        resource,
                        epoch,
                        generation,
                    };
                    self.send_durable(from, reply, changed);
                }
            }
            Body::FenceReply {
                resource,
                epoch,
                generation,
            } => {
                self.on_fenced(now, from, resource, epoch, generation);
            }
            Body::HandOver { resource, epoch } => {
                let record = self.consensus.state().resources.get(&resource);
                if record.is_some_and(|r| r.primary == Some(from)) {
                    self.on_hand_over(resource, epoch);
                }
            }
            Body::Admin { id, request } => self.on_forwarded(now, from, id, request),
            Body::AdminReply { id, reply } => self.on_forwarded_reply(from, id, *reply),
            _ => {}
        }
    }

    fn verdict(&mut self, now: Now, holder: NodeId, resource: ResourceIx, epoch: Epoch) -> Verdict {
        if !self.counts() {
            return Verdict::Refused;
        }
        let record = self.consensus.state().resources.get(&resource);
        self.grantor.request(now, holder, resource, epoch, record)
    }

    fn on_renewal(&mut self, now: Now, renewal: Renewal) {
        match renewal {
            Renewal::Extended(resource, epoch, sent) => {
                self.lease_extended(now, resource, epoch, sent);
            }
            Renewal::Fenced(resource, epoch, generation) => {
                // A takeover was let in somewhere while this node still holds: call it off.
                let me = self.me();
                let mine = self.state().resources.get(&resource).is_some_and(|r| {
                    r.epoch == epoch && r.primary == Some(me) && r.generation == generation
                });
                if mine && self.holds(resource, epoch) {
                    self.propose(
                        now,
                        Command::Reassert {
                            resource,
                            generation,
                            epoch,
                        },
                    );
                }
            }
            Renewal::Stale(resource, epoch) => {
                if self.holds(resource, epoch) {
                    let ix = usize::from(resource.0);
                    self.stop(now, ix, epoch, StepDownReason::Deposed, true);
                }
            }
        }
    }

    fn holds(&self, resource: ResourceIx, epoch: Epoch) -> bool {
        self.resources
            .get(usize::from(resource.0))
            .is_some_and(|r| r.holding() == Some(epoch))
    }
}
