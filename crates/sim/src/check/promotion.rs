//! Promotion (G3): epochs grow by one, and only a member of the committed in-sync set becomes primary.
//! The newest record any node applied is what counts as committed.
//!
//! A node that lost its cache may be promoted only if no member is known to have kept its own (rule 9), unless the
//! volume's policy says not to wait for those.

use holdfast_replicator::View;
use holdfast_types::{NodeId, NodeSet};

/// What is committed.
#[derive(Clone, Debug, Default)]
pub struct Promotion {
    committed: Option<View>,
}

/// What a new record brings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Who came into the in-sync set.
    pub grown: NodeSet,
    /// A new primary, chosen from this set.
    pub promoted: Option<(NodeId, NodeSet)>,
}

impl Promotion {
    /// The committed in-sync set.
    pub fn in_sync(&self) -> NodeSet {
        self.committed.map_or(NodeSet::EMPTY, |v| v.in_sync)
    }

    /// The committed record.
    pub fn committed(&self) -> Option<View> {
        self.committed
    }

    /// A node applied this record. `None` if it is not news.
    pub fn applied(&mut self, view: View) -> Result<Option<Change>, String> {
        let Some(old) = self.committed else {
            self.committed = Some(view);
            return Ok(Some(Change::default()));
        };
        if view.generation <= old.generation {
            return Ok(None);
        }
        self.committed = Some(view);
        if view.epoch < old.epoch {
            return Err(format!(
                "G3: the epoch went back from {} to {}",
                old.epoch, view.epoch
            ));
        }
        if view.in_sync.is_empty() {
            return Err("G3: the in-sync set is empty".into());
        }
        let mut change = Change {
            grown: view.in_sync.minus(old.in_sync),
            promoted: None,
        };
        if view.epoch == old.epoch {
            return Ok(Some(change));
        }
        let next_record = view.generation == old.generation.next();
        if next_record && view.epoch != old.epoch.next() {
            return Err(format!(
                "G3: the epoch jumped from {} to {}",
                old.epoch, view.epoch
            ));
        }
        let Some(primary) = view.primary else {
            return Ok(Some(change));
        };
        if next_record && !old.in_sync.has(primary) {
            return Err(format!(
                "G3: {primary} is promoted, but the in-sync set was {:?} (record {})",
                old.in_sync, old.generation
            ));
        }
        change.promoted = Some((primary, old.in_sync));
        Ok(Some(change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{Epoch, Gen};

    fn view(generation: u64, epoch: u64, primary: u8, in_sync: u8) -> View {
        View {
            generation: Gen(generation),
            epoch: Epoch(epoch),
            primary: Some(NodeId(primary)),
            in_sync: NodeSet(in_sync),
            data_nodes: NodeSet(7),
            suspect: NodeSet::EMPTY,
            lineage: 1,
            doubtful: NodeSet::EMPTY,
        }
    }

    #[test]
    fn only_members_and_only_one_step() {
        let mut p = Promotion::default();
        p.applied(view(1, 1, 0, 0b011)).unwrap();
        let mut other = p.clone();
        let change = p.applied(view(2, 2, 1, 0b011)).unwrap().unwrap();
        assert_eq!(change.promoted, Some((NodeId(1), NodeSet(0b011))));
        assert_eq!(p.applied(view(1, 1, 0, 0b011)).unwrap(), None, "old news");
        let grown = p.applied(view(3, 2, 1, 0b111)).unwrap().unwrap();
        assert_eq!(
            grown,
            Change {
                grown: NodeSet(0b100),
                promoted: None
            }
        );
        assert!(
            p.applied(view(4, 1, 1, 0b111)).is_err(),
            "the epoch went back"
        );
        assert!(
            other.clone().applied(view(2, 2, 2, 0b011)).is_err(),
            "no member"
        );
        assert!(
            other.clone().applied(view(2, 3, 1, 0b011)).is_err(),
            "two steps"
        );
        assert!(other.applied(view(2, 1, 0, 0)).is_err(), "empty set");
    }
}
