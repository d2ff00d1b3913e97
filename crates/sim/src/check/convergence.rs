//! Convergence (G7): when the faults have ended, all replicas are identical, and no bitmap says otherwise.

use holdfast_meta::Recovered;
use holdfast_types::{Geometry, NodeId};

/// The first block in which two data areas differ.
pub fn differ(a: &[u8], b: &[u8], block_bytes: usize) -> Option<u64> {
    a.chunks(block_bytes)
        .zip(b.chunks(block_bytes))
        .position(|(a, b)| a != b)
        .map(|i| i as u64)
}

/// All blocks in which the data areas of two images differ.
pub fn differing<'a>(a: &'a [u8], b: &'a [u8], g: &Geometry) -> impl Iterator<Item = u64> + 'a {
    let (area, block) = (g.bytes() as usize, g.block_bytes as usize);
    (0..g.blocks)
        .zip(a[..area].chunks(block).zip(b[..area].chunks(block)))
        .filter(|(_, (a, b))| a != b)
        .map(|(at, _)| at)
}

/// Blocks that a replica's durable bitmaps still call dirty: the first such, and for whom.
pub fn dirty(recovered: &Recovered) -> Option<(NodeId, u64)> {
    recovered
        .bitmaps
        .iter()
        .find_map(|(node, bits)| bits.next_set_run(0).map(|run| (*node, run.first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let a = vec![0; 256];
        let mut b = a.clone();
        assert_eq!(differ(&a, &b, 64), None);
        b[130] = 1;
        assert_eq!(differ(&a, &b, 64), Some(2));
        b[0] = 1;
        let g = Geometry {
            block_bytes: 64,
            blocks: 4,
            extent_blocks: 2,
        };
        assert_eq!(differing(&a, &b, &g).collect::<Vec<_>>(), [0, 2]);
    }
}
