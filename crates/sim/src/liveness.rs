//! The second half of a run: faults have ended, and within a bounded time all must be well (G7). Until it is,
//! there is a reason, and the reason of a run that never gets there is its failure.

use crate::check::convergence;
use crate::check::dirty;
use crate::net::Blocks;
use crate::rng::Ratio;
use crate::scenario::{LIVENESS_NS, MS, S};
use crate::world::{Ev, Outcome, World};
use holdfast_types::NodeId;

/// The application goes on for so long after the faults have ended.
const WORK_NS: u64 = S;
/// Time between two looks.
const LOOK_NS: u64 = 200 * MS;
/// An operator tries to relieve a primary without a disk so often.
const RELIEVE_NS: u64 = 8 * S;

impl World {
    /// No faults from now on: all ways open, all machines up, failed disks replaced.
    pub(crate) fn heal(&mut self) {
        self.trace
            .news(self.now, "world", || "no more faults".into());
        self.healed_at = Some(self.now);
        self.compare_now();
        self.data_blocks = Blocks::default();
        self.message_blocks = Blocks::default();
        self.message_clog_ns = Default::default();
        for link in 0..self.links.len() {
            for way in 0..2 {
                self.links[link].ways[way].clog_ns = [0; 2];
                self.release_held(link, way);
            }
            self.want_connection(link);
        }
        for n in 0..self.nodes.len() {
            if self.nodes[n].bad_disk {
                self.undo(crate::faults::Undo::Replace { node: n });
            }
            let normal = self.scenario.disks[n];
            if let Some(disk) = &mut self.nodes[n].disk {
                disk.latency = normal;
                disk.come_clean();
                disk.hung_until = disk.hung_until.min(self.now + S);
            }
            self.resume(n);
            if !self.nodes[n].up() {
                self.nodes[n].starting = true;
                self.agenda.at(self.now + 500 * MS, Ev::Start { node: n });
            }
        }
        self.scenario.loss = Ratio::NEVER;
        self.agenda.at(self.now + LOOK_NS, Ev::Check);
    }

    pub(crate) fn check_well(&mut self) {
        let healed_at = self.healed_at.unwrap_or(self.now);
        self.relieve();
        self.quiet |= self.now >= healed_at + WORK_NS && self.somebody_serves();
        self.take_in_all();
        match self.pending() {
            None => self.all_is_well(),
            Some(why) if self.now >= healed_at + LIVENESS_NS => {
                if self.recoverable() {
                    let state = self.describe();
                    self.fail(format!(
                        "G7: {} s after the last fault {why}\n{state}",
                        LIVENESS_NS / S
                    ));
                } else {
                    self.outcome = Some(Outcome::Unrecoverable);
                }
            }
            Some(_) => {
                self.still_rotten();
                self.agenda.at(self.now + LOOK_NS, Ev::Check);
            }
        }
    }

    /// An operator lets another node lead where the primary goes on without a disk that works again.
    fn relieve(&mut self) {
        let diskless = self.nodes.iter().position(|n| {
            let replica = n.process.as_ref().and_then(|p| p.replica.as_ref());
            n.open_epoch.is_some()
                && !n.bad_disk
                && replica.is_some_and(|r| r.status().trouble.is_some())
        });
        let members = self.checks.promotion.in_sync();
        if let Some(n) = diskless
            && self.now >= self.relieved_at + RELIEVE_NS
            && let Some(to) = members.iter().find(|m| usize::from(m.0) != n)
        {
            self.relieved_at = self.now;
            self.trace.mark("diskless primary relieved");
            let request = holdfast_control::AdminRequest::Promote {
                resource: crate::world::RESOURCE.into(),
                node: Some(to),
                force: None,
            };
            self.admin(n, request);
        }
    }

    fn somebody_serves(&self) -> bool {
        self.nodes
            .iter()
            .any(|n| n.open_epoch.is_some() && n.app.running)
    }

    /// Is there a member whose copy the faults have not destroyed?
    fn recoverable(&self) -> bool {
        let members = self.checks.promotion.in_sync();
        members.is_empty()
            || self
                .nodes
                .iter()
                .any(|n| members.has(n.id) && !n.strange_disk)
    }

    /// What is not well yet.
    fn pending(&self) -> Option<String> {
        if let Some(n) = self.nodes.iter().find(|n| !n.up()) {
            return Some(format!("{} is not up", n.id));
        }
        let Some(committed) = self.checks.promotion.committed() else {
            return Some("the resource is not created".into());
        };
        let serving: Vec<_> = self
            .nodes
            .iter()
            .filter(|n| n.open_epoch.is_some() && n.host.vip)
            .collect();
        let [primary] = serving[..] else {
            return Some(format!("{} nodes serve", serving.len()));
        };
        if committed.primary != Some(primary.id) || primary.open_epoch != Some(committed.epoch.0) {
            return Some(format!(
                "{} serves an epoch that is not the committed one",
                primary.id
            ));
        }
        if !self.quiet {
            return Some("the application still works".into());
        }
        if let Some((req, _)) = primary.app.asked.iter().next() {
            return Some(format!(
                "request {} of {} is not answered",
                req.0, primary.id
            ));
        }
        let data = self.nodes.iter().filter(|n| n.data);
        if let Some(n) = data.clone().find(|n| !committed.in_sync.has(n.id)) {
            return Some(format!("{} is not in sync", n.id));
        }
        let images: Vec<_> = data
            .filter_map(|n| Some((n.id, n.disk.as_ref()?)))
            .collect();
        let g = self.scenario.geometry;
        let area = g.bytes() as usize;
        for (id, disk) in &images[1..] {
            let (first, own) = (&images[0].1.cached()[..area], &disk.cached()[..area]);
            if let Some(block) = convergence::differ(first, own, g.block_bytes as usize) {
                return Some(format!(
                    "block {block} differs between {} and {id}",
                    images[0].0
                ));
            }
        }
        for (id, disk) in &images {
            let recovered = dirty::decode(disk.cached()).ok()?;
            if let Some((peer, block)) = convergence::dirty(&recovered) {
                return Some(format!("{id} still calls block {block} dirty for {peer}"));
            }
        }
        None
    }

    /// The last checks: everything that was ever acknowledged is there.
    fn all_is_well(&mut self) {
        self.compare_now();
        let image = self
            .nodes
            .iter()
            .find_map(|n| n.disk.as_ref())
            .map(|d| d.cached().to_vec());
        if let Some(image) = image {
            let result = self.checks.history.check_image(self.now, &image);
            self.must(result.map_err(|e| format!("at the end: {e}")));
        }
        if self.outcome.is_none() && self.rots() {
            self.agenda.at(self.now + LOOK_NS, Ev::Check);
        } else if self.outcome.is_none() {
            self.outcome = Some(Outcome::Well);
        }
    }

    /// How things are, for the report of a failure.
    pub(crate) fn describe(&self) -> String {
        let mut out = format!("committed: {:?}\n", self.checks.promotion.committed());
        for n in &self.nodes {
            out += &format!(
                "{}: up {}, open {:?}, host {:?}, asked {}, unclean {}, strange disk {}\n",
                NodeId(n.id.0),
                n.up(),
                n.open_epoch,
                n.host,
                n.app.asked.len(),
                n.unclean,
                n.strange_disk
            );
            if let Some(replica) = n.process.as_ref().and_then(|p| p.replica.as_ref()) {
                out += &format!("    {:?}\n", replica.status());
            }
        }
        out
    }
}
