//! Verify: every block of the primary's copy is compared with every asked member's, online.
//!
//! A range is compared under its lock, shared: writes of it that were in flight have settled on every member
//! before, and none begins until the hashes are here. So what differs differs, and nothing is reported for being
//! written just now. What is found is only told, unless the order says who is right: then it is handed to `repair`.

use super::{Compared, Kind, Primary, merge, runs_by};
use crate::config::{JOB_BLOCKS_SHORT, JOBS_MAX};
use crate::ctx::{Ctx, JobId};
use crate::primary::pace::{Bucket, Meter};
use crate::{
    Note, Now, Repair, VERIFY_RANGES_MAX, VerifyOrder, VerifyPeer, VerifyReport, VerifyStatus,
};
use holdfast_types::{BlockRange, NodeId, NodeSet};
use holdfast_wire::UNREADABLE;
use std::collections::{BTreeMap, VecDeque};

/// Jobs of a verify in flight at once.
const VERIFY_JOBS_MAX: usize = 16;
/// Ranges that wait for their repair before a verify goes on.
const REPAIRS_WAITING_MAX: usize = 256;

/// What was found on one peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    ranges: Vec<BlockRange>,
    blocks: u64,
    pub(super) repaired: u64,
    pub(super) undecided: u64,
}

/// A verify under way.
#[derive(Clone, Debug)]
pub(in crate::primary) struct Verify {
    pub(super) order: VerifyOrder,
    /// With whom.
    peers: NodeSet,
    /// Who of them has left.
    left: NodeSet,
    next: u64,
    done_blocks: u64,
    pub(super) found: BTreeMap<NodeId, Found>,
    /// Found and not repaired yet.
    pub(super) wrong: VecDeque<BlockRange>,
    bucket: Bucket,
    meter: Meter,
    due: Option<Now>,
}

impl Verify {
    fn report(self, block_bytes: u32) -> VerifyReport {
        let left = self.left;
        VerifyReport {
            order: self.order,
            refused: None,
            compared_bytes: self.done_blocks * u64::from(block_bytes),
            peers: self
                .found
                .into_iter()
                .map(|(node, found)| VerifyPeer {
                    node,
                    complete: !left.has(node),
                    differing: merge(found.ranges),
                    differing_blocks: found.blocks,
                    repaired_blocks: found.repaired,
                    undecided_blocks: found.undecided,
                })
                .collect(),
        }
    }
}

impl Primary {
    pub(in crate::primary) fn start_verify(&mut self, ctx: &mut Ctx, order: VerifyOrder) {
        if let Err(why) = self.begin_verify(ctx, order) {
            ctx.note(Note::Verified(VerifyReport {
                order,
                refused: Some(why),
                compared_bytes: 0,
                peers: Vec::new(),
            }));
        }
        self.pump_jobs(ctx);
    }

    fn begin_verify(&mut self, ctx: &Ctx, order: VerifyOrder) -> Result<(), String> {
        let members = self.members(ctx);
        let here = self.attached_members(ctx);
        let peers = if order.peers.is_empty() {
            here
        } else {
            order.peers.and(here)
        };
        if ctx.disk_failed() {
            return Err(
                "the primary's disk is not in use: there is nothing to compare with".into(),
            );
        }
        if self.verify.is_some() {
            return Err("another verify of this volume is under way".into());
        }
        if !self.reconciled_noted {
            return Err("the volume is not reconciled yet: try again in a moment".into());
        }
        if peers.is_empty() || !peers.contains(order.peers) {
            let missing = order.peers.minus(here);
            return Err(format!(
                "only members of the in-sync set that are connected can be compared: \
                 {missing:?} is not; members are {:?}",
                members.iter().map(|n| n.0).collect::<Vec<_>>()
            ));
        }
        match order.repair {
            Some(Repair::Source(node)) if node != ctx.me() && !here.has(node) => {
                return Err(format!(
                    "{node} has no copy to repair from: it is not in sync"
                ));
            }
            Some(Repair::Majority) if self.in_sync.len() < 3 => {
                return Err(
                    "of two copies neither is a majority: name the right one with --source NODE"
                        .into(),
                );
            }
            _ => {}
        }
        self.verify = Some(Verify {
            order,
            peers,
            left: NodeSet::EMPTY,
            next: 0,
            done_blocks: 0,
            found: peers.iter().map(|n| (n, Found::default())).collect(),
            wrong: VecDeque::new(),
            bucket: Bucket::default(),
            meter: Meter::default(),
            due: None,
        });
        Ok(())
    }

    /// With whom the running verify still compares.
    pub(super) fn verified_now(&self) -> NodeSet {
        self.verify
            .as_ref()
            .map_or(NodeSet::EMPTY, |v| v.peers.minus(v.left))
    }

    pub(super) fn pump_verify(&mut self, ctx: &mut Ctx) {
        self.pump_repair(ctx);
        let geometry = ctx.superblock.geometry;
        while let Some(verify) = self.verify.as_mut() {
            verify.due = None;
            let running = self
                .jobs
                .count(|k| matches!(k, Kind::Verify | Kind::Repair));
            let over = verify.next >= geometry.blocks || verify.peers == verify.left;
            if over && (running > 0 || !verify.wrong.is_empty()) {
                return;
            }
            if over {
                let verify = self.verify.take().expect("just seen");
                ctx.note(Note::Verified(verify.report(geometry.block_bytes)));
                return;
            }
            if running >= VERIFY_JOBS_MAX
                || verify.wrong.len() >= REPAIRS_WAITING_MAX
                || self.jobs.all.len() >= JOBS_MAX
            {
                return;
            }
            let count = JOB_BLOCKS_SHORT.min(geometry.blocks - verify.next);
            let range = BlockRange::new(verify.next, count);
            let bytes = count * u64::from(geometry.block_bytes);
            if let Some(rate) = verify.order.max_rate {
                if verify.bucket.due() > ctx.now {
                    verify.due = Some(verify.bucket.due());
                    return;
                }
                if !self.pace.grant(ctx.now, bytes) {
                    return;
                }
                verify.bucket.take(ctx.now, bytes, rate);
            } else if !self.pace.grant(ctx.now, bytes) {
                return;
            }
            verify.next = range.end();
            self.start_job(ctx, Kind::Verify, range, bytes);
        }
    }

    /// When a verify that is held to a rate may go on.
    pub(in crate::primary) fn verify_due(&self) -> Option<Now> {
        self.verify.as_ref().and_then(|v| v.due)
    }

    pub(super) fn verify_compared(&mut self, ctx: &mut Ctx, id: JobId, compared: &Compared) {
        if let Some(verify) = self.verify.as_mut() {
            let range = compared.range;
            verify.done_blocks += range.count;
            let bytes = range.count * u64::from(ctx.layout.geometry.block_bytes);
            verify.meter.add(ctx.now, bytes);
            let runs = runs_by(range, |b| compared.differs(b));
            for (run, _) in runs.into_iter().filter(|(_, differs)| *differs) {
                for (peer, hashes) in &compared.hashes {
                    let theirs = runs_by(run, |b| {
                        let i = compared.at(b);
                        hashes[i] != compared.ours[i] || hashes[i] == UNREADABLE
                    });
                    let Some(found) = verify.found.get_mut(peer) else {
                        continue;
                    };
                    for (run, _) in theirs.into_iter().filter(|(_, differs)| *differs) {
                        found.blocks += run.count;
                        found.ranges.push(run);
                    }
                    if found.ranges.len() > VERIFY_RANGES_MAX {
                        found.ranges = merge(std::mem::take(&mut found.ranges));
                        found.ranges.truncate(VERIFY_RANGES_MAX);
                    }
                }
                if verify.order.repair.is_some() {
                    verify.wrong.push_back(run);
                }
            }
        }
        self.end_job(ctx, id);
    }

    /// A session ended: its copy is not compared any further.
    pub(super) fn verify_lost(&mut self, ctx: &mut Ctx, peer: NodeId) {
        let Some(verify) = self.verify.as_mut().filter(|v| v.peers.has(peer)) else {
            return;
        };
        verify.left = verify.left.with(peer);
        let waiting: Vec<JobId> = self
            .jobs
            .all
            .iter()
            .filter(|(_, j)| j.kind == Kind::Verify && j.asked.has(peer) && !j.copying)
            .map(|(&id, _)| id)
            .collect();
        for id in waiting {
            let Some(job) = self.jobs.all.get_mut(&id) else {
                continue;
            };
            job.asked = job.asked.without(peer);
            job.hashes.remove(&peer);
            if job.asked.is_empty() {
                // Without a pump: the session that ended is still being taken apart.
                self.take_job(ctx, id);
            } else {
                self.try_compare(ctx, id);
            }
        }
    }

    pub(crate) fn verify_status(&self, ctx: &Ctx) -> Option<VerifyStatus> {
        let block = u64::from(ctx.layout.geometry.block_bytes);
        self.verify.as_ref().map(|v| VerifyStatus {
            order: v.order,
            done_bytes: v.done_blocks * block,
            bytes_per_second: v.meter.rate(ctx.now),
            differing_bytes: v.found.values().map(|f| f.blocks).sum::<u64>() * block,
        })
    }

    /// This node is primary no longer: what was found so far is told, as unfinished.
    pub(in crate::primary) fn end_verify(&mut self, ctx: &mut Ctx) {
        if let Some(mut verify) = self.verify.take() {
            verify.left = verify.peers;
            ctx.note(Note::Verified(
                verify.report(ctx.layout.geometry.block_bytes),
            ));
        }
    }
}
