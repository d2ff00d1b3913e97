//! A set of nodes in one word.

use crate::{NODES_MAX, NodeId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A set of nodes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeSet(pub u8);

impl NodeSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// The set of one node.
    pub const fn only(node: NodeId) -> Self {
        assert!(node.0 < NODES_MAX);
        Self(1 << node.0)
    }
    /// Is `node` in it?
    pub const fn has(self, node: NodeId) -> bool {
        node.0 < NODES_MAX && self.0 & (1 << node.0) != 0
    }
    /// The set with `node` added.
    #[must_use]
    pub const fn with(self, node: NodeId) -> Self {
        Self(self.0 | Self::only(node).0)
    }
    /// The set with `node` taken out.
    #[must_use]
    pub const fn without(self, node: NodeId) -> Self {
        Self(self.0 & !Self::only(node).0)
    }
    /// Members of either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// Members of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    /// Members of this and not of `other`.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// Is every member of `other` in this?
    pub const fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }
    /// No member?
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// How many members.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }
    /// The members, ascending.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = NodeId> {
        (0..NODES_MAX).map(NodeId).filter(move |&n| self.has(n))
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<T: IntoIterator<Item = NodeId>>(iter: T) -> Self {
        iter.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|n| n.0)).finish()
    }
}
