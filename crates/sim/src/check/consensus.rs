//! Consensus, as far as it shows: one leader per term; one record per generation, whoever applied it.

use holdfast_replicator::View;
use holdfast_types::NodeId;
use std::collections::BTreeMap;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Consensus {
    leaders: BTreeMap<u64, NodeId>,
    records: BTreeMap<u64, View>,
}

impl Consensus {
    /// A node says that it leads a term.
    pub fn leader(&mut self, leader: NodeId, term: u64) -> Result<(), String> {
        let first = *self.leaders.entry(term).or_insert(leader);
        if first == leader {
            return Ok(());
        }
        Err(format!(
            "consensus: {leader} and {first} both lead term {term}"
        ))
    }

    /// A node applied this record.
    pub fn applied(&mut self, view: View) -> Result<(), String> {
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
        };
        c.applied(view).unwrap();
        c.applied(view).unwrap();
        assert!(
            c.applied(View {
                epoch: Epoch(2),
                ..view
            })
            .is_err()
        );
    }
}
