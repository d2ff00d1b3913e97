//! Dirty superset (G4): where two replicas may differ, a durable trace says so, at every instant.
//!
//! What is claimed, for each member `m` of the committed in-sync set and each other replica `x` whose disk the
//! cluster knows: a block of which any sector on `m` (in its cache or on its medium: either may be what a
//! crash leaves) differs from that sector on `x` (cache or medium) is named by at least one of
//! - an extent of `m`'s activity log;
//! - an extent of `x`'s activity log;
//! - `m`'s bit for `x`;
//! - `x`'s bit for `m`;
//!
//! all as their stable storage says. It must be these two disks: the others may never come back. Nothing in
//! flight weakens the claim, because a write starts anywhere only when an activity log there names its
//! extent; a member that has not received it holds what it held, and is compared as such.
//!
//! Not claimed: anything about a disk that is blank or was replaced and no commit has taken in since
//! (it is resynced in full), and about two replicas neither of which is a member.

use holdfast_meta::{MetaError, Recovered};
use holdfast_types::{Geometry, NodeId};

/// A replica's metadata as an image of its disk holds it.
pub fn decode(image: &[u8]) -> Result<Recovered, MetaError> {
    let bytes = image.len() as u64;
    let (at, len) = holdfast_meta::superblock_range(bytes)?;
    let located = holdfast_meta::locate(bytes, &image[at as usize..(at + len) as usize])?;
    let (at, len) = located.layout.region();
    located.recover(&image[at as usize..(at + len) as usize])
}

/// A replica.
#[derive(Debug)]
pub struct Replica<'a> {
    /// Whose.
    pub node: NodeId,
    /// What a read returns.
    pub cached: &'a [u8],
    /// What a power cut leaves at the least.
    pub stable: &'a [u8],
    /// Its metadata on stable storage.
    pub meta: Recovered,
}

impl Replica<'_> {
    /// Does its metadata say that this block may differ on `peer`?
    fn traces(&self, geometry: &Geometry, block: u64, peer: NodeId) -> bool {
        let extent = geometry.extent_of(block);
        self.meta.log.active.contains(&extent)
            // A peer without a bitmap counts as all dirty.
            || self.meta.bitmaps.iter().find(|(node, _)| *node == peer).is_none_or(|(_, bits)| bits.get(block))
    }
}

/// Checks the claim for a member and another replica.
pub fn compare(
    geometry: &Geometry,
    member: &Replica<'_>,
    other: &Replica<'_>,
) -> Result<(), String> {
    let bytes = geometry.block_bytes as usize;
    let area = geometry.bytes() as usize;
    // Most of the time all four are equal.
    let first = &member.cached[..area];
    if [member.stable, other.cached, other.stable]
        .iter()
        .all(|i| &i[..area] == first)
    {
        return Ok(());
    }
    for block in 0..geometry.blocks {
        let at = block as usize * bytes;
        let of = |image: &[u8]| image[at..at + bytes].to_vec();
        let content = of(member.cached);
        if [member.stable, other.cached, other.stable]
            .iter()
            .all(|i| i[at..at + bytes] == content[..])
        {
            continue;
        }
        if member.traces(geometry, block, other.node) || other.traces(geometry, block, member.node)
        {
            continue;
        }
        return Err(format!(
            "G4: block {block} (extent {}) differs between member {} and {} without a durable trace on either: \
             {} holds {} (stable {}), {} holds {} (stable {}); logs {:?} and {:?}",
            geometry.extent_of(block),
            member.node,
            other.node,
            member.node,
            words(&of(member.cached)),
            words(&of(member.stable)),
            other.node,
            words(&of(other.cached)),
            words(&of(other.stable)),
            member.meta.log.active,
            other.meta.log.active,
        ));
    }
    Ok(())
}

/// The writes a block's cells come from.
fn words(block: &[u8]) -> String {
    let ids: Vec<String> = block
        .chunks(super::history::CELL_BYTES as usize)
        .map(|c| u64::from_le_bytes(c[..8].try_into().unwrap_or_default()).to_string())
        .collect();
    format!("[{}]", ids.join(" "))
}

#[cfg(test)]
#[path = "dirty_tests.rs"]
mod tests;
