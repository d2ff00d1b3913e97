//! Consensus, as far as it shows: one leader per term (election safety); one record per generation, whoever applied it and
//! under whichever leader (state-machine safety, and with it leader completeness: a leader that lacked a committed record would
//! give its generation away again); in one life of a node neither its terms nor its records go back.

use holdfast_replicator::View;
use holdfast_types::NodeId;
use std::collections::BTreeMap;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Consensus {
    leaders: BTreeMap<u64, NodeId>,
    records: BTreeMap<u64, View>,
    /// Per node, in its present life, the last term and generation it knew of.
    known: BTreeMap<NodeId, (u64, u64)>,
}

impl Consensus {
    /// A node says that it leads a term.
    pub fn leader(&mut self, leader: NodeId, term: u64) -> Result<(), String> {
        let known = self.known.entry(leader).or_default();
        if term < known.0 {
            return Err(format!(
                "consensus: {leader} leads term {term} after it knew of {}",
                known.0
            ));
        }
        known.0 = term;
        let first = *self.leaders.entry(term).or_insert(leader);
        if first == leader {
            return Ok(());
        }
        Err(format!(
            "consensus: {leader} and {first} both lead term {term}"
        ))
    }

    /// A node's daemon is gone: what it knows it learns anew.
    pub fn gone(&mut self, node: NodeId) {
        self.known.remove(&node);
    }

    /// A node applied this record.
    pub fn applied(&mut self, node: NodeId, view: View) -> Result<(), String> {
        let known = self.known.entry(node).or_default();
        if view.generation.0 < known.1 {
            return Err(format!(
                "consensus: {node} goes back from record {} to {}",
                known.1, view.generation
            ));
        }
        known.1 = view.generation.0;
        let first = *self.records.entry(view.generation.0).or_insert(view);
        if first == view {
            return Ok(());
        }
        Err(format!(
            "consensus: two records of one generation: {first:?} and {view:?}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{Epoch, Gen, NodeSet};

    #[test]
    fn terms_and_generations_have_one_meaning() {
        let mut c = Consensus::default();
        c.leader(NodeId(1), 5).unwrap();
        c.leader(NodeId(1), 5).unwrap();
        assert!(c.leader(NodeId(2), 5).is_err());
        let view = View {
            generation: Gen(3),
            epoch: Epoch(1),
            primary: None,
            in_sync: NodeSet(3),
            data_nodes: NodeSet(3),
            suspect: NodeSet::EMPTY,
            lineage: 1,
            doubtful: NodeSet::EMPTY,
        };
        c.applied(NodeId(0), view).unwrap();
        c.applied(NodeId(1), view).unwrap();
        let other = View {
            epoch: Epoch(2),
            ..view
        };
        assert!(c.applied(NodeId(2), other).is_err());
        assert!(c.leader(NodeId(1), 4).is_err(), "terms do not fall");
        let older = View {
            generation: Gen(2),
            ..view
        };
        assert!(c.applied(NodeId(0), older).is_err());
        c.gone(NodeId(0));
        c.applied(NodeId(0), older).unwrap();
    }
}
