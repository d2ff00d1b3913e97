//! Single writer (G2): of each epoch, one node acknowledges writes.

use std::collections::BTreeMap;

/// Who acknowledged in which epoch.
#[derive(Clone, Debug, Default)]
pub struct Writer(BTreeMap<u64, usize>);

impl Writer {
    /// A node acknowledges a write that was asked for in an epoch.
    pub fn acks(&mut self, node: usize, epoch: u64) -> Result<(), String> {
        let first = *self.0.entry(epoch).or_insert(node);
        if first == node {
            return Ok(());
        }
        Err(format!(
            "G2: node {node} and node {first} both acknowledge writes of epoch {epoch}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_in_one_epoch() {
        let mut w = Writer::default();
        w.acks(0, 1).unwrap();
        w.acks(1, 2).unwrap();
        w.acks(0, 1).unwrap();
        assert!(w.acks(0, 2).unwrap_err().contains("epoch 2"));
    }
}
