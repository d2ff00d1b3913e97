//! Exclusive side effects (G5), in true time: leases do not overlap, device, mount, services and address are on one host at a time,
//! and nothing is answered to an application any more once a newer epoch serves elsewhere.
//! It must hold without exception in runs whose clocks drift less than the stated bound, and is not claimed in others.

use std::collections::BTreeMap;

/// Where what is.
#[derive(Clone, Debug, Default)]
pub struct Exclusive {
    claimed: bool,
    /// Per node, the true time until which its replica may answer.
    leases: BTreeMap<usize, u64>,
    holders: Vec<usize>,
    /// The newest epoch whose device opened, and where.
    newest: (u64, usize),
}

impl Exclusive {
    /// For a run in which it is claimed, or not.
    pub fn new(claimed: bool) -> Self {
        Self {
            claimed,
            ..Self::default()
        }
    }

    /// A host has side effects of the resource from now on, or none any more.
    pub fn side_effects(&mut self, now: u64, node: usize, any: bool) -> Result<(), String> {
        if !any {
            self.holders.retain(|&n| n != node);
            return Ok(());
        }
        if !self.holders.contains(&node) {
            self.holders.push(node);
        }
        match self.holders.iter().find(|&&n| n != node) {
            Some(other) if self.claimed => Err(format!(
                "G5: at {now} nodes {node} and {other} both have side effects"
            )),
            _ => Ok(()),
        }
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
    fn one_host_at_a_time() {
        let mut e = Exclusive::new(true);
        e.side_effects(1, 0, true).unwrap();
        e.side_effects(2, 0, true).unwrap();
        e.side_effects(3, 0, false).unwrap();
        e.side_effects(4, 1, true).unwrap();
        assert!(e.side_effects(5, 0, true).is_err());
    }

    #[test]
    fn leases_do_not_overlap() {
        let mut e = Exclusive::new(true);
        e.lease(10, 0, 100).unwrap();
        e.lease(50, 0, 150).unwrap();
        e.clone().lease(150, 1, 200).unwrap();
        assert!(e.clone().lease(149, 1, 200).is_err());
        e.lease_over(0);
        e.lease(149, 1, 200).unwrap();
    }

    #[test]
    fn an_old_epoch_answers_nothing_after_a_newer_one_opened() {
        let mut e = Exclusive::new(true);
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
        let mut e = Exclusive::new(false);
        e.side_effects(1, 0, true).unwrap();
        e.side_effects(2, 1, true).unwrap();
        e.opened(0, 1).unwrap();
        e.opened(1, 2).unwrap();
        e.completes(0, 1).unwrap();
        assert!(e.opened(0, 2).is_err());
        e.opened(0, 1).unwrap();
        assert!(e.outdated(1));
    }
}
