//! What a replica says of itself when it is asked.

use super::*;

impl Replica {
    // ---- looking at it

    /// As an operator sees it.
    pub fn status(&self) -> Status {
        let ctx = &self.ctx;
        let s = &ctx.superblock;
        let view = self.view;
        let member = view.is_some_and(|v| v.in_sync.has(ctx.cfg.me));
        let (primary, follower) = match &self.state {
            State::Primary(p) => (Some(p), None),
            State::Follower(f) => (None, Some(f)),
            State::Starting { .. } | State::Stopping { .. } | State::Stopped => (None, None),
        };
        let disk = if ctx.disk_failed() {
            self.disk_state()
        } else if member && s.disk != DiskState::Outdated {
            DiskState::UpToDate
        } else if follower.is_some_and(|f| f.primary().is_some()) {
            DiskState::Syncing
        } else {
            DiskState::Outdated
        };
        Status {
            role: if primary.is_some() {
                Role::Primary
            } else {
                Role::Secondary
            },
            open: primary.is_some_and(|p| p.is_open()),
            held: primary.and_then(|p| p.held(ctx)),
            disk,
            trouble: ctx.trouble,
            reads_from: primary.and_then(|p| p.reads_from(ctx)),
            read_errors: ctx.read_errors,
            epoch: primary.map_or(view.map_or(s.epoch, |v| v.epoch), |p| p.epoch()),
            in_sync: primary.map_or(view.map_or_else(Default::default, |v| v.in_sync), |p| {
                p.in_sync()
            }),
            incarnation: s.incarnation,
            run: s.run,
            size_bytes: s.geometry.bytes(),
            requests: primary.map_or(0, |p| p.request_count() as u32),
            open_writes: primary.map_or(0, |p| p.open_writes() as u32)
                + follower.map_or(0, |f| f.open_writes() as u32),
            written_bytes: primary.map_or(0, |p| p.written_bytes),
            read_bytes: primary.map_or(0, |p| p.read_bytes),
            log_writes: ctx.log_writes,
            resync: primary.map_or_else(
                || ResyncStatus {
                    bounds: ctx.resync(),
                    held_to: None,
                },
                |p| p.resync_status(ctx),
            ),
            verify: primary.and_then(|p| p.verify_status(ctx)),
            peers: ctx
                .others()
                .iter()
                .map(|n| self.peer_status(n, primary.map(|p| &**p), follower.map(|f| &**f)))
                .collect(),
        }
    }

    pub(super) fn peer_status(
        &self,
        node: NodeId,
        primary: Option<&Primary>,
        follower: Option<&Follower>,
    ) -> PeerStatus {
        if let Some(p) = primary {
            return p.peer_status(&self.ctx, node);
        }
        let link = &self.ctx.links[&node];
        let member = self.view.is_some_and(|v| v.in_sync.has(node));
        PeerStatus {
            node,
            connected: link.up,
            attached: follower.is_some_and(|f| f.primary() == Some(node)),
            disk: match link.hello.as_ref().map(|h| h.disk) {
                Some(d @ (DiskState::Diskless | DiskState::Failed)) => d,
                _ if member => DiskState::UpToDate,
                Some(DiskState::Syncing) => DiskState::Syncing,
                _ => DiskState::Outdated,
            },
            trouble: link.trouble,
            out_of_sync_bytes: self.ctx.bits.dirty(node).count()
                * u64::from(self.ctx.layout.geometry.block_bytes),
            resync_sent_bytes: 0,
            resync_zero_bytes: 0,
            resync_equal_bytes: 0,
            resync_bytes_per_second: 0,
            verify_done_bytes: None,
        }
    }
}
