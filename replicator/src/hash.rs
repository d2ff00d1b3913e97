//! Block hashes, and zero detection.

/// xxh3-128 of each block.
pub(crate) fn hash_blocks(bytes: &[u8], block_bytes: u32) -> Vec<u128> {
    bytes
        .chunks_exact(block_bytes as usize)
        .map(xxhash_rust::xxh3::xxh3_128)
        .collect()
}

/// Is every byte zero?
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|c| c.iter().all(|&b| b == 0))
}
