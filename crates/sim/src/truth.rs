//! What is true: what was committed, who serves, what the operator does, when replicas are compared.

use crate::check::{dirty, durability};
use crate::scenario::MS;
use crate::world::{Ev, RESOURCE, VOLUME, World};
use holdfast_control::{AdminReply, AdminRequest, CreateVolume};
use holdfast_replicator::View;
use holdfast_types::{NodeId, NodeSet};

/// Time between two comparisons of all replicas (besides those at crashes).
const COMPARE_NS: u64 = 250 * MS;

/// Among whom the newest primary was chosen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Choice {
    epoch: u64,
    members: NodeSet,
    /// One that had kept its cache.
    clean: Option<NodeId>,
    /// One whose disk was not replaced.
    whole: Option<NodeId>,
}

impl World {
    /// A node applied a record.
    pub(crate) fn committed(&mut self, n: usize, view: View) {
        let result = self.checks.consensus.applied(self.nodes[n].id, view);
        self.must(result);
        let change = match self.checks.promotion.applied(view) {
            Ok(Some(change)) => change,
            Ok(None) => return,
            Err(why) => return self.fail(why),
        };
        self.trace.news(self.now, NodeId(n as u8), || {
            format!(
                "knows first: record {}, epoch {}, primary {:?}, in sync {:?}",
                view.generation, view.epoch, view.primary, view.in_sync
            )
        });
        for node in &mut self.nodes {
            node.adding &= !view.data_nodes.has(node.id);
        }
        self.mark_record(&view);
        for m in change.grown.iter() {
            let node = &mut self.nodes[usize::from(m.0)];
            // What it lost since the session in which it was made equal it lost for good, however late the commit.
            // What it was given then it had flushed before it was proposed, so that it is no stranger.
            node.strange_disk &= node.replaced_at >= node.attached_at;
            if node.lost_at < node.attached_at {
                node.unclean = false;
                node.lossy = false;
                node.strange_disk = false;
                if let Some(disk) = node.disk.as_ref().filter(|d| !d.lies) {
                    let member = durability::Member {
                        node: m,
                        cached: disk.cached(),
                        stable: disk.stable(),
                    };
                    let result = durability::joined(&self.checks.history, member);
                    if result.is_err() && node.beyond_telling {
                        return self.nobody_could_tell();
                    }
                    self.must(result);
                }
            }
        }
        if let Some((_, members)) = change.promoted {
            self.trace.mark("promoted");
            self.mark_promotion(&view);
            // A write or flush error is final for a disk: it counts as lost, whatever can still be read from it.
            let failed = |m: &crate::node::SimNode| {
                m.bad_disk && m.disk.as_ref().is_some_and(|d| d.failed > 0)
            };
            let clean = |m: &&crate::node::SimNode| members.has(m.id) && !m.unclean && !failed(m);
            let whole = |m: &&crate::node::SimNode| members.has(m.id) && !m.strange_disk;
            self.choice = Choice {
                epoch: view.epoch.0,
                members,
                clean: self.nodes.iter().find(clean).map(|m| m.id),
                whole: self.nodes.iter().find(whole).map(|m| m.id),
            };
        }
    }

    /// A node whose cache was lost opens: that is permitted only if no member was known to have kept its own when it was
    /// promoted, or by policy. (That such a node is named primary is no harm: its proposal may commit long after it died.)
    fn may_have_lost(&mut self, n: usize, epoch: u64) {
        let node = &self.nodes[n];
        let (id, choice) = (node.id, self.choice);
        if !node.unclean || choice.epoch != epoch {
            return;
        }
        if let (Some(whole), true) = (choice.whole, node.strange_disk) {
            if self.is_beyond_telling(n) {
                return self.nobody_could_tell();
            }
            return self.fail(format!(
                "G3: {id} has a blank disk and serves, although {whole} had the data"
            ));
        }
        if let (Some(clean), true, false) = (choice.clean, node.lossy, self.scenario.unclean_allow)
        {
            return self.fail(format!(
                "G3: {id} lost its cache and serves, although member {clean} did not"
            ));
        }
        self.trace.mark("an unclean member serves");
        self.checks.history.rollback();
        for m in choice.members.iter() {
            let node = &mut self.nodes[usize::from(m.0)];
            if m == id || !node.strange_disk {
                node.lossy = false;
            }
        }
        self.nodes[n].unclean = false;
    }

    /// A node's device opens.
    pub(crate) fn opened(&mut self, n: usize, epoch: u64) {
        self.trace.mark("opened");
        self.trace.news(self.now, NodeId(n as u8), || {
            format!("opens in epoch {epoch}")
        });
        let result = self.checks.writer.opened(n, epoch);
        self.must(result);
        self.checks.services.opened(n, epoch);
        self.may_have_lost(n, epoch);
        self.checks.history.opened(self.now, epoch);
        self.nodes[n].open_epoch = Some(epoch);
        self.aftermath(|w| w.strike(n));
    }

    /// The operator's `create`, repeated until it is done.
    pub(crate) fn create(&mut self) {
        if self.created {
            return;
        }
        let data = || self.nodes.iter().filter(|n| n.data);
        let request = AdminRequest::Create {
            resource: RESOURCE.into(),
            volumes: vec![CreateVolume {
                id: VOLUME,
                size_bytes: self.scenario.geometry.bytes(),
                in_sync: data().map(|n| n.id).collect(),
                replicas: data().map(|n| (n.id, n.incarnation)).collect(),
            }],
        };
        self.admin(0, request);
        self.agenda.at(self.now + 500 * MS, Ev::Create);
    }

    pub(crate) fn admin_reply(&mut self, n: usize, reply: &AdminReply) {
        self.trace.news(self.now, NodeId(n as u8), || {
            format!("answers the operator: {reply:?}")
        });
        match reply {
            AdminReply::Done { .. } => {
                self.created = true;
                self.trace.mark("operator's request done");
            }
            AdminReply::Refused { .. } => self.trace.mark("operator's request refused"),
            AdminReply::TimedOut { .. } => self.trace.mark("operator's request timed out"),
            AdminReply::Status(_) => {}
        }
    }

    pub(crate) fn compare(&mut self) {
        self.agenda.at(self.now + COMPARE_NS, Ev::Compare);
        self.tell_of_disks(COMPARE_NS);
        self.compare_now();
        self.check_status();
    }

    /// Checks G4 as of this instant.
    pub(crate) fn compare_now(&mut self) {
        let members = self.checks.promotion.in_sync();
        if members.is_empty() || self.outcome.is_some() || self.is_rotten() {
            return;
        }
        let placed = self
            .checks
            .promotion
            .committed()
            .map_or(NodeSet::EMPTY, |v| v.data_nodes);
        let replicas: Result<Vec<_>, String> = (0..self.nodes.len())
            .filter(|&n| placed.has(self.nodes[n].id))
            .filter_map(|n| self.replica_of(n))
            .collect();
        let replicas = match replicas {
            Ok(replicas) => replicas,
            Err(why) => return self.fail(why),
        };
        let g = self.scenario.geometry;
        let mut result = Ok(());
        'all: for member in replicas.iter().filter(|r| members.has(r.node)) {
            for other in replicas.iter().filter(|r| r.node != member.node) {
                result = dirty::compare(&g, member, other);
                if result.is_err() {
                    break 'all;
                }
            }
        }
        self.must(result);
    }
}
