//! Single writer (G2, G5): of each epoch one node acknowledges writes; and in true time the intervals in which nodes may answer
//! do not overlap, nor is anything answered once a newer epoch serves elsewhere.
//!
//! The first holds without exception. The others are claimed where clocks keep the stated bound.

use std::collections::BTreeMap;

/// Who may answer, and who did.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    claimed: bool,
    /// Who acknowledged first in an epoch.
    acked: BTreeMap<u64, usize>,
    /// Per node, the true time until which its replica may answer.
    leases: BTreeMap<usize, u64>,
    /// The newest epoch whose device opened, and where.
    newest: (u64, usize),
}

impl Writer {
    /// For a run in which clocks keep the bound, or not.
    pub fn new(claimed: bool) -> Self {
        Self {
            claimed,
            ..Self::default()
        }
    }

    /// A node acknowledges a write that was asked for in an epoch.
    pub fn acks(&mut self, node: usize, epoch: u64) -> Result<(), String> {
        let first = *self.acked.entry(epoch).or_insert(node);
        if first == node {
            return Ok(());
        }
        Err(format!(
            "G2: node {node} and node {first} both acknowledge writes of epoch {epoch}"
        ))
    }

    /// A replica may answer until this true time.
    pub fn lease(&mut self, now: u64, node: usize, until: u64) -> Result<(), String> {
        self.leases.insert(node, until);
        let other = self
            .leases
            .iter()
            .find(|&(&n, &end)| n != node && end > now && until > now);
        match other {
            Some((other, end)) if self.claimed => Err(format!(
                "G5: at {now} node {node} has a lease until {until}, and node {other} until {end}"
            )),
            _ => Ok(()),
        }
    }

    /// A replica stepped down, or its daemon is gone.
    pub fn lease_over(&mut self, node: usize) {
        self.leases.remove(&node);
    }

    /// A device opened.
    pub fn opened(&mut self, node: usize, epoch: u64) -> Result<(), String> {
        let (newest, at) = self.newest;
        if epoch == newest && node != at {
            return Err(format!("G2: nodes {node} and {at} both open epoch {epoch}"));
        }
        if epoch < newest {
            // Without clocks it may; it just gets nothing acknowledged.
            return match self.claimed {
                true => Err(format!(
                    "G5: node {node} opens epoch {epoch} while node {at} serves epoch {newest}"
                )),
                false => Ok(()),
            };
        }
        self.newest = (epoch, node);
        Ok(())
    }

    /// Is this epoch over, with another one serving?
    pub fn outdated(&self, epoch: u64) -> bool {
        epoch < self.newest.0
    }

    /// A node answers a request that was asked for in an epoch.
    pub fn completes(&self, node: usize, epoch: u64) -> Result<(), String> {
        let (newest, at) = self.newest;
        if self.claimed && epoch < newest && node != at {
            return Err(format!(
                "G5: node {node} answers a request of epoch {epoch} while node {at} serves epoch {newest}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_in_one_epoch() {
        let mut w = Writer::new(false);
        w.acks(0, 1).unwrap();
        w.acks(1, 2).unwrap();
        w.acks(0, 1).unwrap();
        assert!(w.acks(0, 2).unwrap_err().contains("epoch 2"));
    }

    #[test]
    fn leases_do_not_overlap() {
        let mut e = Writer::new(true);
        e.lease(10, 0, 100).unwrap();
        e.lease(50, 0, 150).unwrap();
        e.clone().lease(150, 1, 200).unwrap();
        assert!(e.clone().lease(149, 1, 200).is_err());
        e.lease_over(0);
        e.lease(149, 1, 200).unwrap();
    }

    #[test]
    fn an_old_epoch_answers_nothing_after_a_newer_one_opened() {
        let mut e = Writer::new(true);
        e.opened(0, 1).unwrap();
        e.completes(0, 1).unwrap();
        e.opened(1, 2).unwrap();
        assert!(e.completes(0, 1).is_err());
        assert!(e.opened(0, 1).is_err());
        assert!(e.opened(0, 2).is_err());
        e.completes(1, 2).unwrap();
    }

    #[test]
    fn broken_clocks_excuse_g5_but_not_g2() {
        let mut e = Writer::new(false);
        e.opened(0, 1).unwrap();
        e.opened(1, 2).unwrap();
        e.completes(0, 1).unwrap();
        assert!(e.opened(0, 2).is_err());
        e.opened(0, 1).unwrap();
        assert!(e.outdated(1));
    }
}
