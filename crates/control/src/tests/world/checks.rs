//! What must hold after every step and over a whole run.

use super::*;
use crate::durable::Stored;
use crate::message::{Body, RaftId, RaftMessage};

impl World {
    /// What the fencer process does at the end of a lease, whether the daemon runs or not.
    pub(super) fn fencers(&mut self) {
        for h in 0..self.hosts.len() {
            let local = self.local(h);
            let margin = self.hosts[h].config.timing.margin_ms * MS;
            let host = &mut self.hosts[h];
            for (effects, lease) in host.effects.iter_mut().zip(&host.lease) {
                if lease.is_some_and(|l| local.0 >= l.0 + margin / 2) {
                    effects.clear();
                }
            }
        }
    }

    pub(in crate::tests) fn picture(&self) -> Vec<String> {
        let of = |h: usize| match &self.hosts[h].node {
            None => format!("n{h}: down"),
            Some(n) => format!(
                "n{h}: {:?} {:?} {:?}\n  notes {:?}",
                n.consensus_facts(),
                n.resources.iter().map(|r| &r.phase).collect::<Vec<_>>(),
                self.status(h)
                    .resources
                    .iter()
                    .map(|r| (r.epoch, r.primary, r.generation, r.waiting.clone()))
                    .collect::<Vec<_>>(),
                self.hosts[h]
                    .notes
                    .iter()
                    .rev()
                    .take(12)
                    .collect::<Vec<_>>(),
            ),
        };
        (0..self.hosts.len()).map(of).collect()
    }

    pub(super) fn check(&mut self) {
        for h in 0..self.hosts.len() {
            let Some(node) = &self.hosts[h].node else {
                continue;
            };
            let (term, leads, _) = node.consensus_facts();
            if leads {
                let leader = *self.leaders.entry(term).or_insert(h);
                assert_eq!(leader, h, "two leaders in term {term}");
            }
            for (ix, record) in &node.state().resources {
                let fact = (
                    record.epoch,
                    record.primary,
                    record.volumes.iter().map(|v| v.in_sync).collect(),
                );
                let forced = record.history.back().is_some_and(|e| {
                    matches!(
                        e.change,
                        Change::Primary {
                            why: state::Promotion::Forced { .. },
                            ..
                        }
                    )
                });
                if forced {
                    self.forced.insert((*ix, record.generation));
                }
                let key = (*ix, record.generation);
                let known = self.facts.entry(key).or_insert_with(|| fact.clone());
                assert_eq!(
                    *known, fact,
                    "generation {} differs on n{h}",
                    record.generation
                );
                if let Some(primary) = record.primary {
                    let known = *self.primaries.entry((*ix, record.epoch)).or_insert(primary);
                    assert_eq!(known, primary, "two primaries of epoch {}", record.epoch);
                }
            }
        }
        for r in 0..self.hosts[0].effects.len() {
            let with_effects: Vec<_> = (0..self.hosts.len())
                .filter(|&h| !self.hosts[h].effects[r].is_empty())
                .collect();
            assert!(
                with_effects.len() <= 1,
                "effects of r{r} on {with_effects:?} {:#?}",
                self.picture()
            );
            let leased: Vec<_> = (0..self.hosts.len())
                .filter(|&h| self.hosts[h].lease[r].is_some_and(|l| self.local(h) < l))
                .collect();
            assert!(
                leased.len() <= 1,
                "leases of r{r} on {leased:?} {:#?}",
                self.picture()
            );
        }
    }

    /// Over the whole run: epochs and members from one generation to the next.
    pub(in crate::tests) fn check_history(&self) {
        let mut last: BTreeMap<ResourceIx, (Gen, &Fact)> = BTreeMap::new();
        for ((ix, generation), fact) in &self.facts {
            if let Some((before, old)) = last.insert(*ix, (*generation, fact)) {
                assert!(fact.0 >= old.0, "epoch went back");
                assert!(fact.2.iter().all(|set| !set.is_empty()));
                let next = before.next() == *generation;
                if next && fact.0 > old.0 && !self.forced.contains(&(*ix, *generation)) {
                    assert_eq!(fact.0, old.0.next());
                    let primary = fact.1.expect("a new epoch has a primary");
                    assert!(
                        old.2.iter().all(|set| set.has(primary)),
                        "{primary} was no member"
                    );
                    assert_eq!(fact.2, old.2, "a takeover leaves the sets alone");
                }
            }
        }
    }

    /// What a message says must be in a slot already, so that no crash can take it back.
    pub(super) fn check_durable(&self, h: usize, to: usize, msg: &Message) {
        let (first, second) = (&self.hosts[h].slots[0], &self.hosts[h].slots[1]);
        let durable = || {
            let (payload, _) = durable::choose([first, second]).expect("a slot is sound");
            Stored::decode(&payload.expect("something is stored")).expect("parses")
        };
        match &msg.0 {
            Body::Hello(hello) => assert_eq!(durable().id, hello.id),
            Body::Raft {
                msg:
                    RaftMessage::VoteReply {
                        term,
                        granted: true,
                    },
                ..
            } => {
                let stored = durable();
                let voted = stored.voted_for.map(RaftId::node);
                assert!(
                    (stored.term, voted) == (*term, Some(NodeId(to as u8))) || stored.term > *term
                );
            }
            Body::Raft {
                msg: RaftMessage::Vote { term, .. },
                ..
            } => assert!(durable().term >= *term),
            Body::Raft {
                msg: RaftMessage::AppendReply { term, last },
                ..
            } => {
                let stored = durable();
                let end = stored.snapshot_position.index + stored.entries.len() as u64;
                assert!(stored.term >= *term);
                assert!(
                    end >= last.index || stored.term > *term,
                    "n{h} has {end}, says {last:?}"
                );
            }
            Body::FenceReply {
                resource,
                epoch,
                generation,
            } => {
                // Of a takeover that is decided already it matters no more.
                let node = self.hosts[h].node.as_ref().expect("alive");
                let record = &node.state().resources[resource];
                let stored = durable();
                let fence = stored.fences.iter().find(|(r, ..)| r == resource);
                let stands = fence.is_some_and(|(_, e, g)| e >= epoch && g >= generation);
                assert!(stands || record.generation > *generation, "n{h}: {msg:?}");
            }
            _ => {}
        }
    }
}
