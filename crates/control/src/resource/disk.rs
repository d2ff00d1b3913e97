//! The disks of the replicas on this node: given up, remembered as such, taken up again.
//!
//! Invariants
//! - that a disk may have lost something is remembered durably before anything else, and until its replica was made equal again;
//! - a disk is taken up again only by a new run of its replica, and only when it owes the old run no answer (rule 18);
//! - not while its node is primary, for that run leads: another node leads first. The last member's excepted, whose
//!   I/O fails anyway.

use super::*;

/// A disk that could not be taken up is tried again after this, in milliseconds.
const REOPEN_RETRY_MS: u64 = 5_000;

/// How far the taking up of a disk is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attach {
    /// It owes no answer.
    pub(super) idle: bool,
    /// The operator asks for it.
    pub(crate) asked: bool,
    /// It is being opened.
    under_way: bool,
    /// Why it could not be, last time, and when to try again.
    pub(crate) error: Option<String>,
    again: Now,
}

impl Node {
    /// A local disk is used no more. That is remembered before anything else: the cluster may not be there to be told.
    pub(super) fn disk_failed(&mut self, now: Now, ix: usize, v: usize, why: DiskTrouble) {
        let (resource, volume) = (ResourceIx(ix as u16), VolumeIx(v as u16));
        let local = &mut self.resources[ix].locals[v];
        local.failed = Some(why);
        // Was it just being taken up? Not again at once.
        let again = std::mem::take(&mut local.attach);
        if again.under_way {
            local.attach.again = now.plus_ms(REOPEN_RETRY_MS);
            local.attach.error = Some(format!("the disk was opened, but {why}"));
        }
        let started = self.resources[ix].locals[v].started.map(|s| s.incarnation);
        let recorded = || Some(self.record(ix)?.replica(volume, self.me())?.incarnation);
        if let Some(disk) = started.or_else(recorded).filter(|_| why.loses()) {
            self.trust(resource, volume, Some((disk, why)));
        }
        if let Phase::Promising { stand, .. } | Phase::Fencing { stand, .. } =
            &self.resources[ix].phase
        {
            let stand = *stand;
            self.withdraw(now, ix, stand);
        }
    }

    /// The primary here has no disk and nobody to serve it: a member that is there had better lead (rule 38). Client
    /// sessions end with that, as they must should it turn out to have lost something (rule 25).
    pub(super) fn stranded(&mut self, now: Now, ix: usize, epoch: Epoch) {
        let Some(record) = self.record(ix).cloned() else {
            return;
        };
        let serving = self.resources[ix].serving() == Some(epoch);
        if serving && record.epoch == epoch && !self.successors(now, ix, &record).is_empty() {
            self.stop(now, ix, epoch, StepDownReason::DiskFailed, true);
        }
    }

    /// Takes up disks that hung and answer again, and those the operator asks for.
    pub(super) fn drive_reopen(&mut self, now: Now, ix: usize, record: &ResourceRecord) {
        let me = NodeSet::only(self.me());
        for v in 0..self.resources[ix].locals.len() {
            let local = &self.resources[ix].locals[v];
            let out = local.failed.is_some() || (local.started.is_none() && local.attach.asked);
            let wanted = local.attach.asked || local.failed == Some(DiskTrouble::Hung);
            let idle = local.attach.idle || local.failed.is_none();
            let last = record.volumes.get(v).is_some_and(|r| r.in_sync == me);
            let leads = self.resources[ix].phase != Phase::Secondary && !last;
            if !out || !wanted || !idle || leads || local.attach.under_way || self.shutting_down {
                continue;
            }
            if now < local.attach.again {
                let at = local.attach.again;
                self.wake(at);
                continue;
            }
            let attach = &mut self.resources[ix].locals[v].attach;
            attach.under_way = true;
            attach.error = None;
            let (resource, volume) = (ResourceIx(ix as u16), VolumeIx(v as u16));
            self.act(Action::Reopen { resource, volume });
        }
    }

    pub(crate) fn not_reopened(
        &mut self,
        now: Now,
        resource: ResourceIx,
        volume: VolumeIx,
        error: String,
    ) {
        let resource = self.resources.get_mut(usize::from(resource.0));
        if let Some(local) = resource.and_then(|r| r.locals.get_mut(usize::from(volume.0))) {
            local.attach.under_way = false;
            local.attach.asked = false;
            local.attach.error = Some(error);
            local.attach.again = now.plus_ms(REOPEN_RETRY_MS);
        }
    }

    /// Is the disk of a local replica in use?
    pub(crate) fn attached(&self, ix: usize, v: usize) -> bool {
        let local = &self.resources[ix].locals[v];
        local.started.is_some() && local.failed.is_none()
    }
}
