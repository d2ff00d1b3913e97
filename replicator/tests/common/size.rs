//! The register's part of growing and shrinking.

use super::*;

impl Cluster {
    /// The operator wants the volume to have this many blocks.
    pub fn grow_to(&mut self, blocks: u64) {
        let now = self.size.map_or(GEOMETRY.bytes(), |s| s.size_bytes);
        self.size = Some(VolumeSize {
            size_bytes: now,
            room_bytes: blocks * BLOCK as u64,
            shrunk: self.size.map_or(0, |s| s.shrunk),
        });
        self.publish_size();
        self.try_resize();
    }

    /// The same, smaller, at once.
    pub fn shrink_to(&mut self, blocks: u64) {
        let bytes = blocks * BLOCK as u64;
        self.shrinks += 1;
        self.size = Some(VolumeSize {
            size_bytes: bytes,
            room_bytes: bytes,
            shrunk: self.shrinks,
        });
        self.sites.iter_mut().for_each(|s| s.room = 0);
        self.shrank = true;
        self.publish_size();
    }

    /// The volume grows when every member has the room.
    pub(super) fn try_resize(&mut self) {
        let Some(size) = self.size.filter(|s| s.room_bytes > s.size_bytes) else {
            return;
        };
        let roomy = |n: NodeId| self.sites[usize::from(n.0)].room >= size.room_bytes;
        let waited_for = if self.shrank {
            self.view.data_nodes
        } else {
            self.view.in_sync
        };
        if waited_for.iter().all(roomy) {
            self.shrank = false;
            self.size = Some(VolumeSize {
                size_bytes: size.room_bytes,
                shrunk: 0,
                ..size
            });
            self.publish_size();
        }
    }

    pub(super) fn publish_size(&mut self) {
        if let Some(size) = self.size {
            for n in 0..self.sites.len() {
                if self.deaf != Some(n) {
                    self.event(n, Event::Control(FromControl::Size(size)));
                }
            }
        }
    }
}
