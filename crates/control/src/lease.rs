//! Leases: what a voter promises, and how a holder counts promises (reference rules B1-B10).
//!
//! A holder stamps the time of sending on its own clock and a fresh nonce; when a majority of voters has granted *that*
//! nonce, its lease reaches to the stamp and `lease_ms`. A grantor lets no takeover in before its own
//! receipt and [`Timing::promise_ms`]. Letting one in is a durable *fence*: from then on the voter grants nothing
//! for older epochs of the resource, until its applied record has a later generation than the takeover was
//! made for, which proves that the takeover took effect or never will. A takeover is proposed only when a majority has
//! fenced; majorities meet, so the old lease is over before the new epoch can exist.
//!
//! A restarted voter has forgotten its promises, so it lets no takeover in until the longest promise it may
//! have given has passed. It does grant at once: one promise more is never unsafe, and what must be
//! remembered against granting, the fence, is durable.

use crate::api::{Now, ResourceIx, Timing};
use crate::message::Verdict;
use crate::state::ResourceRecord;
use holdfast_types::{Epoch, Gen, NodeId, NodeSet};
use std::collections::{BTreeMap, VecDeque};

/// Renewal rounds whose answers are waited for at once.
const ROUNDS_MAX: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Promise {
    epoch: Epoch,
    holder: NodeId,
    until: Now,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    pub(crate) epoch: Epoch,
    pub(crate) generation: Gen,
}

/// What a takeover is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) candidate: NodeId,
    pub(crate) resource: ResourceIx,
    /// The epoch to be.
    pub(crate) epoch: Epoch,
    /// Of the record it replaces.
    pub(crate) generation: Gen,
}

/// The voter's side.
#[derive(Debug)]
pub(crate) struct Grantor {
    promise_ms: u64,
    /// Promises of a former life may last until then.
    hold_off: Now,
    promises: BTreeMap<ResourceIx, Promise>,
    released: BTreeMap<ResourceIx, Epoch>,
    pub(crate) fences: BTreeMap<ResourceIx, Fence>,
}

impl Grantor {
    pub(crate) fn new(timing: &Timing, now: Now, fences: BTreeMap<ResourceIx, Fence>) -> Self {
        let promise_ms = timing.promise_ms();
        Self {
            promise_ms,
            hold_off: now.plus_ms(promise_ms),
            promises: BTreeMap::new(),
            released: BTreeMap::new(),
            fences,
        }
    }

    /// A holder counts on a lease that needs this promise: a node whose configuration has another one than this
    /// node's (while a new one is being rolled out) must not keep its lease longer than anybody promises.
    pub(crate) fn promise_at_least(&mut self, promise_ms: u64) {
        self.promise_ms = self.promise_ms.max(promise_ms);
    }

    /// A fence stands until the record has moved past the generation it was made for.
    fn fence(&self, resource: ResourceIx, record: Option<&ResourceRecord>) -> Option<Fence> {
        let fence = self.fences.get(&resource).copied()?;
        record
            .is_none_or(|r| r.generation <= fence.generation)
            .then_some(fence)
    }

    /// A holder asks for `epoch` of `resource`.
    pub(crate) fn request(
        &mut self,
        now: Now,
        holder: NodeId,
        resource: ResourceIx,
        epoch: Epoch,
        record: Option<&ResourceRecord>,
    ) -> Verdict {
        if let Some(record) = record
            && (record.epoch > epoch || (record.epoch == epoch && record.primary != Some(holder)))
        {
            return Verdict::Stale(record.epoch);
        }
        if let Some(fence) = self.fence(resource, record)
            && fence.epoch > epoch
        {
            return Verdict::Fenced(fence.generation);
        }
        if self.released.get(&resource).is_some_and(|r| *r >= epoch) {
            return Verdict::Refused; // an older request that came late
        }
        let until = now.plus_ms(self.promise_ms);
        match self.promises.get_mut(&resource) {
            Some(old) if old.epoch > epoch => return Verdict::Stale(old.epoch),
            Some(old) if old.epoch == epoch && old.holder != holder => return Verdict::Refused,
            Some(old) => {
                *old = Promise {
                    epoch,
                    holder,
                    until: until.max(old.until),
                }
            }
            None => {
                self.promises.insert(
                    resource,
                    Promise {
                        epoch,
                        holder,
                        until,
                    },
                );
            }
        }
        Verdict::Granted
    }

    /// The holder of `epoch` has stopped everything and asks no more.
    pub(crate) fn release(
        &mut self,
        holder: NodeId,
        resource: ResourceIx,
        epoch: Epoch,
        record: Option<&ResourceRecord>,
    ) {
        let promised = self
            .promises
            .get(&resource)
            .is_some_and(|p| p.holder == holder && p.epoch <= epoch);
        let recorded = record.is_some_and(|r| r.epoch == epoch && r.primary == Some(holder));
        if promised {
            self.promises.remove(&resource);
        }
        if promised || recorded {
            let released = self.released.entry(resource).or_default();
            *released = epoch.max(*released);
        }
    }

    /// Nanoseconds until this voter would let the takeover in; `None`: not as things are.
    pub(crate) fn free_in(
        &self,
        now: Now,
        claim: &Claim,
        record: Option<&ResourceRecord>,
    ) -> Option<u64> {
        let record = record?;
        if record.epoch >= claim.epoch || record.generation > claim.generation {
            return None;
        }
        if self
            .fence(claim.resource, Some(record))
            .is_some_and(|f| f.epoch > claim.epoch)
        {
            return None;
        }
        let released = self
            .released
            .get(&claim.resource)
            .copied()
            .unwrap_or_default();
        let mut until = now;
        if let Some(promise) = self.promises.get(&claim.resource)
            && promise.holder != claim.candidate
            && released < promise.epoch
        {
            until = until.max(promise.until);
        }
        // Forgotten promises can only have been made to the holder of the epoch that is replaced, if
        // this voter's record is the one the claim is made for: harmless if that is the candidate, or nobody.
        let current = record.generation == claim.generation && record.epoch.next() == claim.epoch;
        let harmless = current && record.primary.is_none_or(|p| p == claim.candidate);
        if !harmless && released.next() < claim.epoch {
            until = until.max(self.hold_off);
        }
        Some(until.0 - now.0)
    }

    /// Lets a takeover in, if it is free: from now on nothing is granted for older epochs. Durable before it is answered.
    pub(crate) fn let_in(
        &mut self,
        now: Now,
        claim: &Claim,
        record: Option<&ResourceRecord>,
    ) -> bool {
        if self.free_in(now, claim, record) != Some(0) {
            return false;
        }
        let new = Fence {
            epoch: claim.epoch,
            generation: claim.generation,
        };
        let fence = self.fences.entry(claim.resource).or_insert(new);
        if fence.generation < new.generation {
            *fence = new;
        }
        fence.epoch = fence.epoch.max(new.epoch);
        true
    }

    /// Forgets fences the record has moved past.
    pub(crate) fn prune(&mut self, resource: ResourceIx, record: &ResourceRecord) {
        if self.fence(resource, Some(record)).is_none() {
            self.fences.remove(&resource);
        }
    }
}

#[derive(Debug)]
struct Round {
    nonce: u64,
    sent: Now,
    entries: Vec<(ResourceIx, Epoch)>,
    granted: BTreeMap<ResourceIx, NodeSet>,
}

/// What an answer means for a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// A majority granted a request sent at this time.
    Extended(ResourceIx, Epoch, Now),
    /// A voter let a takeover in that was made for this generation.
    Fenced(ResourceIx, Epoch, Gen),
    /// A newer epoch exists than this one.
    Stale(ResourceIx, Epoch),
}

/// The holder's side.
#[derive(Debug)]
pub(crate) struct Holder {
    majority: u32,
    voters: NodeSet,
    rounds: VecDeque<Round>,
}

impl Holder {
    pub(crate) fn new(voters: NodeSet) -> Self {
        Self {
            majority: voters.len() / 2 + 1,
            voters,
            rounds: VecDeque::new(),
        }
    }

    pub(crate) fn ask(&mut self, now: Now, nonce: u64, entries: Vec<(ResourceIx, Epoch)>) {
        if self.rounds.len() == ROUNDS_MAX {
            self.rounds.pop_front();
        }
        self.rounds.push_back(Round {
            nonce,
            sent: now,
            entries,
            granted: BTreeMap::new(),
        });
    }

    pub(crate) fn answer(
        &mut self,
        from: NodeId,
        nonce: u64,
        verdicts: &[(ResourceIx, Verdict)],
    ) -> Vec<Renewal> {
        let Some(round) = self.rounds.iter_mut().find(|r| r.nonce == nonce) else {
            return Vec::new();
        };
        if !self.voters.has(from) {
            return Vec::new();
        }
        let mut renewals = Vec::new();
        for (resource, verdict) in verdicts {
            let Some(&(_, epoch)) = round.entries.iter().find(|(r, _)| r == resource) else {
                continue;
            };
            match verdict {
                Verdict::Granted => {
                    let set = round.granted.entry(*resource).or_default();
                    let before = set.len();
                    *set = set.with(from);
                    if before < self.majority && set.len() >= self.majority {
                        renewals.push(Renewal::Extended(*resource, epoch, round.sent));
                    }
                }
                Verdict::Fenced(generation) => {
                    renewals.push(Renewal::Fenced(*resource, epoch, *generation));
                }
                Verdict::Stale(newer) if *newer >= epoch => {
                    renewals.push(Renewal::Stale(*resource, epoch));
                }
                Verdict::Stale(_) | Verdict::Refused => {}
            }
        }
        renewals
    }
}
