//! Acknowledged durability (G1): what is acknowledged rests on every member at that moment, what is flushed on their stable
//! storage, and whoever becomes a member holds all of it.
//!
//! Members that the faults have harmed since (power, disk) are left out by the caller: what they lost shows when they serve.

use super::history::{History, WriteId};
use holdfast_types::NodeId;

/// A member's disk.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Whose.
    pub node: NodeId,
    /// What a read returns.
    pub cached: &'a [u8],
    /// What a power cut leaves at the least.
    pub stable: &'a [u8],
}

/// `by` acknowledges a write.
pub fn acknowledged<'a>(
    history: &History,
    by: NodeId,
    id: WriteId,
    fua: bool,
    members: impl IntoIterator<Item = Member<'a>>,
) -> Result<(), String> {
    for member in members {
        let image = if fua { member.stable } else { member.cached };
        history.holds(id, image).map_err(|e| {
            let how = if fua { " with FUA" } else { "" };
            format!(
                "G1: {by} acknowledges{how}, member {} lacks it: {e}",
                member.node
            )
        })?;
    }
    Ok(())
}

/// `by` acknowledges a flush.
pub fn flushed<'a>(
    history: &History,
    by: NodeId,
    covered: &[u64],
    members: impl IntoIterator<Item = Member<'a>>,
) -> Result<(), String> {
    for member in members {
        history.holds_flushed(covered, member.stable).map_err(|e| {
            format!(
                "G1: {by} acknowledges a flush, member {} lacks something: {e}",
                member.node
            )
        })?;
    }
    Ok(())
}

/// A replica becomes a member.
pub fn joined(history: &History, member: Member<'_>) -> Result<(), String> {
    history
        .holds_all(member.cached, member.stable)
        .map_err(|e| format!("G1: {} becomes a member, but {e}", member.node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::history::stamp;

    #[test]
    fn every_member_holds_it_where_it_must() {
        let mut h = History::new(1);
        let a = h.begin(10, 1, 0, 1, false);
        h.ack(11, a).unwrap();
        let (with, without) = (stamp(a, 0).to_vec(), vec![0; 16]);
        let member = |node, cached, stable| Member {
            node: NodeId(node),
            cached,
            stable,
        };
        let good = member(1, &with, &with);
        let unflushed = member(2, &with, &without);
        let empty = member(3, &without, &without);
        acknowledged(&h, NodeId(0), a, false, [good, unflushed]).unwrap();
        assert!(acknowledged(&h, NodeId(0), a, true, [good, unflushed]).is_err());
        assert!(
            acknowledged(&h, NodeId(0), a, false, [good, empty])
                .unwrap_err()
                .contains("node 3")
        );
        let covered = h.flush_begins();
        flushed(&h, NodeId(0), &covered, [good]).unwrap();
        assert!(flushed(&h, NodeId(0), &covered, [good, unflushed]).is_err());
        joined(&h, unflushed).unwrap();
        assert!(joined(&h, empty).is_err());
        h.flushed(&covered);
        assert!(joined(&h, unflushed).is_err());
    }
}
