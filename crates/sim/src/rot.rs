//! Rot: a copy changes by itself, or a write meant for another block lands on it. Nothing but a comparison can tell.
//!
//! It strikes a cluster that is well and at rest, one copy of one block, so that there is no doubt about who is right: another
//! member's copy (with two replicas the primary's, with more the majority's). What must hold: an operator's verify with repair reports
//! that block of that copy and nothing else, makes it equal again, and the good copies are what they were (the checks at the
//! end of the run look at all of them).

use crate::rng::Rng;
use crate::scenario::{LIVENESS_NS, S};
use crate::world::{RESOURCE, World};
use holdfast_control::{AdminRequest, VolumeIx};
use holdfast_replicator::{Repair, VerifyOrder, VerifyReport};
use holdfast_types::{BlockRange, NodeId, NodeSet};

/// A verify without report is asked for again after this long.
const ASK_AGAIN_NS: u64 = 5 * S;

/// What rotted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rot {
    victim: NodeId,
    block: u64,
    struck_at: u64,
    asked_at: u64,
    /// A verify has made it equal again; its report comes when it has seen everything else too.
    repaired: bool,
    /// A verify has reported it.
    found: bool,
}

impl World {
    /// The cluster is well: a copy rots, if this run has that and it has not yet. True if there is something to wait for.
    pub(crate) fn rots(&mut self) -> bool {
        match self.rot {
            Some(rot) if rot.found => false,
            Some(rot) if rot.repaired && self.now < rot.struck_at + LIVENESS_NS => {
                self.still_rotten();
                true
            }
            Some(_) => {
                self.fail("rot: it is gone, and no verify has reported it");
                false
            }
            None if self.scenario.rot && self.at_rest() => self.decay(),
            // It may never rest: a replica that waits to stop for a successor.
            None if self.scenario.rot => {
                self.now < self.healed_at.unwrap_or(self.now) + LIVENESS_NS
            }
            None => false,
        }
    }

    /// Nobody stops or comes back: who does is compared in part, or leads, and then nothing tells which copy is right.
    fn at_rest(&self) -> bool {
        let stopping = self.nodes.iter().any(|n| n.stopping);
        let serving = self.nodes.iter().find(|n| n.open_epoch.is_some());
        let replica = serving.and_then(|n| n.process.as_ref()?.replica.as_ref());
        !stopping && replica.is_some_and(|r| r.status().peers.iter().all(|p| p.attached))
    }

    fn decay(&mut self) -> bool {
        let mut rng = Rng::stream(self.scenario.seed, "rot");
        let Some(primary) = self.checks.promotion.committed().and_then(|v| v.primary) else {
            return false;
        };
        let data = self.scenario.data_nodes;
        let mut victim = NodeId(rng.below(data.into()) as u8);
        if data == 2 && victim == primary {
            victim = NodeId(1 - victim.0);
        }
        let g = self.layout.geometry;
        let (block, other) = (rng.below(g.blocks), rng.below(g.blocks));
        let bytes = g.block_bytes as usize;
        let Some(disk) = &mut self.nodes[usize::from(victim.0)].disk else {
            return false;
        };
        let of = |b: u64| b as usize * bytes..(b as usize + 1) * bytes;
        let mut content = disk.cached()[of(other)].to_vec();
        // Misdirected, unless that changes nothing: then some bits.
        if rng.coin() || content == disk.cached()[of(block)] {
            content = disk.cached()[of(block)].to_vec();
            content[rng.below(bytes as u64) as usize] ^= 1 << rng.below(8);
        }
        disk.put(block * bytes as u64, &content);
        self.trace.mark("a copy rotted");
        self.trace
            .news(self.now, victim, || format!("block {block} rots"));
        self.rot = Some(Rot {
            victim,
            block,
            struck_at: self.now,
            asked_at: self.now,
            repaired: false,
            found: false,
        });
        self.ask_for_verify();
        true
    }

    fn ask_for_verify(&mut self) {
        let Some(primary) = self.checks.promotion.committed().and_then(|v| v.primary) else {
            return;
        };
        let repair = match self.scenario.data_nodes {
            2 => Repair::Source(primary),
            _ => Repair::Majority,
        };
        let request = AdminRequest::Verify {
            resource: RESOURCE.into(),
            volume: Some(VolumeIx(0)),
            order: VerifyOrder {
                repair: Some(repair),
                ..VerifyOrder::default()
            },
        };
        self.admin(usize::from(primary.0), request);
    }

    /// Something is still to be made well: if that is the rot, a verify that came to nothing is repeated.
    pub(crate) fn still_rotten(&mut self) {
        let now = self.now;
        if let Some(rot) = self.rot.as_mut().filter(|r| !r.found)
            && now >= rot.asked_at + ASK_AGAIN_NS
        {
            rot.asked_at = now;
            self.ask_for_verify();
        }
    }

    /// Does something rot, so that copies differ and nobody can know?
    pub(crate) fn is_rotten(&self) -> bool {
        self.rot.is_some()
    }

    /// A verify makes a block equal.
    pub(crate) fn repaired(&mut self, range: BlockRange, wrong: NodeSet) {
        let Some(rot) = self.rot.as_mut().filter(|r| !r.found) else {
            return;
        };
        rot.repaired = range == BlockRange::new(rot.block, 1) && wrong == NodeSet::only(rot.victim);
        if !rot.repaired {
            let why = format!(
                "rot: block {} of {} rotted, a verify repairs {range:?} of {wrong:?}",
                rot.block, rot.victim
            );
            self.fail(why);
        }
    }

    /// A verify has ended.
    pub(crate) fn verified(&mut self, n: usize, report: &VerifyReport) {
        let Some(rot) = self.rot.filter(|r| !r.found && report.is_complete()) else {
            return;
        };
        // The primary's own rot shows as a difference to everybody else.
        let own = rot.victim == self.nodes[n].id;
        let is = |ranges: &[BlockRange]| ranges == [BlockRange::new(rot.block, 1)];
        let right = report.peers.iter().all(|p| {
            let differs = own || p.node == rot.victim;
            if differs {
                // An earlier one that was cut short may have repaired it.
                is(&p.differing) || (rot.repaired && p.differing.is_empty())
            } else {
                p.differing.is_empty()
            }
        });
        if !right {
            let why = format!(
                "rot: block {} of {} rotted, a verify reports {:?}",
                rot.block, rot.victim, report.peers
            );
            return self.fail(why);
        }
        self.trace.mark("rot found by verify");
        self.rot = Some(Rot { found: true, ..rot });
    }
}
