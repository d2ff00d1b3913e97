//! What a primary tells of its peers and of resync.

use super::Primary;
use crate::ctx::Ctx;
use crate::{PeerStatus, ResyncStatus};
use holdfast_types::{DiskState, NodeId};

impl Primary {
    pub(crate) fn resync_status(&self, ctx: &Ctx) -> ResyncStatus {
        ResyncStatus {
            bounds: self.pace.bounds(),
            held_to: self.pace.held_to(ctx.now),
        }
    }

    pub(crate) fn peer_status(&self, ctx: &Ctx, node: NodeId) -> PeerStatus {
        let block = u64::from(ctx.layout.geometry.block_bytes);
        let link = &ctx.links[&node];
        let session = self.sessions.get(&node);
        let attached = session.is_some_and(|s| s.attached);
        let disk = if self.in_sync.has(node) {
            DiskState::UpToDate
        } else if attached {
            DiskState::Syncing
        } else {
            match link.hello.as_ref().map(|h| h.disk) {
                Some(d @ (DiskState::Diskless | DiskState::Failed)) => d,
                _ => DiskState::Outdated,
            }
        };
        let verify = self.verify_status(ctx);
        PeerStatus {
            node,
            connected: link.up,
            attached,
            disk,
            trouble: link.trouble.or(self
                .distrusted
                .get(&node)
                .copied()
                .map(crate::Trouble::Strange)),
            out_of_sync_bytes: ctx.bits.dirty(node).count() * block,
            resync_sent_bytes: session.map_or(0, |s| s.sent_bytes),
            resync_zero_bytes: session.map_or(0, |s| s.zero_blocks * block),
            resync_equal_bytes: session.map_or(0, |s| s.equal_blocks * block),
            resync_bytes_per_second: session.map_or(0, |s| s.meter.rate(ctx.now)),
            verify_done_bytes: verify
                .filter(|_| self.verified_now().has(node))
                .map(|v| v.done_bytes),
        }
    }
}
