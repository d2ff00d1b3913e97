//! What is checked: the oracle of the client, and what must hold in every state.
//!
//! The oracle keeps, per block, the values a read may return. A write adds its value; its acknowledgement leaves only
//! that one; a read leaves only what it returned (G6). Losing power may take back what no flush covered, but only when
//! no clean member of the committed set is left that holds an allowed value (G1). What a flush covered never comes back.

use crate::state::{FlushRound, Role, Set, State};
use crate::steps::{Model, World};

/// A guarantee that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// G1: an acknowledged write is not on this member of the committed set.
    NotOnMember {
        /// Who lacks it.
        member: usize,
        /// Which block.
        block: usize,
        /// The acknowledged value.
        value: u8,
    },
    /// G1: a flush was acknowledged, and this member has something older on stable storage.
    NotStable {
        /// Who lacks it.
        member: usize,
        /// Which block.
        block: usize,
    },
    /// G2: an older primary acknowledged a write that is not part of the newer history.
    OutsideHistory {
        /// The older primary.
        primary: usize,
        /// The value.
        value: u8,
    },
    /// G1: a read returns what was replaced before an acknowledged flush.
    FlushedLost {
        /// Which block.
        block: usize,
        /// What was read.
        value: u8,
    },
    /// G1 or G6: a read returns what no client may see any more.
    ChangedRead {
        /// Which block.
        block: usize,
        /// What was read.
        value: u8,
        /// A bit for each value that would be right.
        allowed: u8,
    },
    /// G4: two replicas differ and neither has a durable trace of it.
    NoTrace {
        /// A member of the committed set.
        member: usize,
        /// Another data node.
        other: usize,
        /// Which block.
        block: usize,
    },
    /// G1, G4: a member differs from what the primary serves, and nothing says so.
    SilentlyDifferent {
        /// The member.
        member: usize,
        /// Which block.
        block: usize,
    },
}

impl Violation {
    /// Flushed data is lost, or replicas differ for good: worse than the loss of an unflushed write.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::NotStable { .. }
            | Self::FlushedLost { .. }
            | Self::NoTrace { .. }
            | Self::SilentlyDifferent { .. } => true,
            Self::NotOnMember { .. } | Self::OutsideHistory { .. } | Self::ChangedRead { .. } => {
                false
            }
        }
    }
}

impl World<'_> {
    /// The application hears that its write is done.
    pub(crate) fn acknowledged(&mut self, p: usize, block: usize, value: u8) {
        let register = self.s.register;
        let current = self
            .primary(p)
            .is_some_and(|q| q.epoch == register.epoch && register.primary == p as u8);
        let bit = 1 << value;
        if current {
            for member in register.in_sync.iter() {
                let disk = &self.s.nodes[member].disk;
                if !disk.unclean && disk.cache[block] != value {
                    self.violate(Violation::NotOnMember {
                        member,
                        block,
                        value,
                    });
                }
            }
            self.s.client.allowed[block] = bit;
        } else if self.clients_told {
            // Its client has been told, or will be, that what it wrote may be lost.
        } else if self.s.client.allowed[block] & bit != 0 {
            // Of an older epoch, and nobody has read or overwritten the block since: from now on it has to be there.
            self.s.client.allowed[block] &= !(bit - 1);
        } else if self.s.client.inherited[block] & bit == 0 {
            self.violate(Violation::OutsideHistory { primary: p, value });
        }
        self.settle_losses();
    }

    /// The application hears that its flush is done.
    pub(crate) fn flushed(&mut self, p: usize, flush: &FlushRound) {
        let register = self.s.register;
        let current = self
            .primary(p)
            .is_some_and(|q| q.epoch == register.epoch && register.primary == p as u8);
        if !current {
            return;
        }
        for block in self.blocks() {
            self.s.client.gone[block] |= flush.past[block];
        }
    }

    /// The application reads. Does not apply if nothing is learned from it.
    pub(crate) fn was_read(&mut self, block: usize, value: u8, pending: Option<u8>) -> Option<()> {
        let client = &mut self.s.client;
        let (bit, allowed) = (1 << value, client.allowed[block]);
        // A write in flight may still take effect after a read that did not see it.
        let after = bit | pending.map_or(0, |w| 1 << w);
        if client.gone[block] & bit != 0 {
            self.violate(Violation::FlushedLost { block, value });
        } else if allowed & bit == 0 {
            self.violate(Violation::ChangedRead {
                block,
                value,
                allowed,
            });
        } else if after == allowed {
            return None;
        }
        self.s.client.allowed[block] = after;
        self.settle_losses();
        Some(())
    }

    /// Clients expect of every block anything that no flush has replaced.
    pub(crate) fn unflushed_may_be_lost(&mut self) {
        for block in self.blocks() {
            let client = &mut self.s.client;
            client.allowed[block] = client.issued[block] & !client.gone[block];
        }
    }

    /// Where no clean member holds an allowed value any more, what was not flushed may be anything again.
    pub(crate) fn settle_losses(&mut self) {
        for block in self.blocks() {
            let client = &self.s.client;
            let safe = |m: usize| {
                let disk = &self.s.nodes[m].disk;
                !disk.unclean && client.allowed[block] & (1 << disk.cache[block]) != 0
            };
            if !self.s.register.in_sync.iter().any(safe) {
                let client = &mut self.s.client;
                client.allowed[block] = client.issued[block] & !client.gone[block];
            }
        }
    }
}

impl Model {
    /// What must hold in every state.
    pub(crate) fn check(&self, s: &State) -> Option<Violation> {
        let all = Set::first(self.bounds.nodes);
        for block in 0..usize::from(self.bounds.blocks) {
            for member in s.register.in_sync.iter() {
                let a = &s.nodes[member].disk;
                if !a.unclean && s.client.gone[block] & (1 << a.stable[block]) != 0 {
                    return Some(Violation::NotStable { member, block });
                }
                for other in all.without(member).iter() {
                    let b = &s.nodes[other].disk;
                    let traced = a.log[block]
                        || b.log[block]
                        || a.bits[block].has(other)
                        || b.bits[block].has(member);
                    if a.cache[block] != b.cache[block] && !traced {
                        return Some(Violation::NoTrace {
                            member,
                            other,
                            block,
                        });
                    }
                }
            }
            if let Some(member) = self.differs(s, block) {
                return Some(Violation::SilentlyDifferent { member, block });
            }
        }
        None
    }

    /// A member that differs from the serving primary on a block that is not in doubt and not being written.
    fn differs(&self, s: &State, block: usize) -> Option<usize> {
        let p = usize::from(s.register.primary);
        let node = &s.nodes[p];
        let Role::Primary(primary) = &node.role else {
            return None;
        };
        let members = s.register.in_sync.without(p);
        let doubt = node.bits[block].and(members.or(primary.in_sync));
        if primary.epoch != s.register.epoch
            || !primary.open
            || primary.writes[block].is_some()
            || !doubt.is_empty()
        {
            return None;
        }
        members.iter().find(|&m| {
            let disk = &s.nodes[m].disk;
            !disk.unclean && disk.cache[block] != node.disk.cache[block]
        })
    }
}
