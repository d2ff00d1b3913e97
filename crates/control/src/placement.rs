//! How commands change who holds a replica of a volume, and how large the volume is.
//!
//! Invariant: a record that changes here gets a new generation; what compares it is in [`crate::state`].

use crate::api::VolumeIx;
use crate::state::{Change, ReplicaRecord, ResourceRecord, Wanted};
use holdfast_types::{Incarnation, NodeId, Run};

impl ResourceRecord {
    pub(crate) fn resize(&mut self, volume: VolumeIx, size_bytes: u64, shrink: bool) -> bool {
        let running = self.primary.is_some();
        let Some(record) = self.volumes.get_mut(usize::from(volume.0)) else {
            return false;
        };
        let target = (size_bytes > record.size_bytes).then_some(size_bytes);
        if size_bytes == 0 || (size_bytes < record.size_bytes && (!shrink || running)) {
            return false;
        }
        if size_bytes >= record.size_bytes {
            if record.target_bytes == target {
                return false;
            }
            record.target_bytes = target;
            self.changed(Change::Growing { volume, size_bytes });
            self.grow(volume);
            return true;
        }
        record.size_bytes = size_bytes;
        record.target_bytes = None;
        record.shrank = true;
        record.shrinks += 1;
        for replica in record.replicas.values_mut() {
            // What it has past that is not zero before it says so.
            replica.room_bytes = size_bytes;
        }
        self.changed(Change::Resized { volume, size_bytes });
        true
    }

    /// The volume grows if every member has the room.
    pub(crate) fn grow(&mut self, volume: VolumeIx) {
        let Some(record) = self.volumes.get_mut(usize::from(volume.0)) else {
            return;
        };
        let Some(size_bytes) = record.target_bytes else {
            return;
        };
        let roomy = |n: NodeId| {
            let replica = record.replicas.get(&n);
            replica.is_some_and(|r| r.room_bytes >= size_bytes)
        };
        if record.waited_for().iter().all(roomy) {
            record.size_bytes = size_bytes;
            record.target_bytes = None;
            record.shrank = false;
            self.changed(Change::Resized { volume, size_bytes });
        }
    }

    pub(crate) fn replica_room(
        &mut self,
        volume: VolumeIx,
        node: NodeId,
        incarnation: Incarnation,
        went_by: (u64, u32),
        room_bytes: u64,
    ) -> bool {
        let Some(record) = self.volumes.get_mut(usize::from(volume.0)) else {
            return false;
        };
        let size = record.size();
        let same_size = (size.size_bytes, size.shrunk) == went_by;
        match record.replicas.get_mut(&node) {
            Some(r) if r.incarnation == incarnation && same_size && r.room_bytes < room_bytes => {
                r.room_bytes = room_bytes;
            }
            _ => return false,
        }
        self.grow(volume);
        true
    }

    pub(crate) fn replica_add(
        &mut self,
        volume: VolumeIx,
        node: NodeId,
        incarnation: Incarnation,
    ) -> bool {
        let Some(record) = self.volumes.get_mut(usize::from(volume.0)) else {
            return false;
        };
        if record.replicas.contains_key(&node) {
            return false;
        }
        record.departed.remove(&node);
        record.replicas.insert(
            node,
            ReplicaRecord {
                incarnation,
                room_bytes: record.size_bytes,
                suspect: true,
                ..ReplicaRecord::default()
            },
        );
        self.changed(Change::ReplicaAdded { volume, node });
        true
    }

    pub(crate) fn replica_remove(&mut self, volume: VolumeIx, node: NodeId) -> bool {
        let primary = self.primary;
        let Some(record) = self.volumes.get_mut(usize::from(volume.0)) else {
            return false;
        };
        if primary == Some(node) || record.in_sync.has(node) {
            return false;
        }
        let Some(replica) = record.replicas.remove(&node) else {
            return false;
        };
        record.departed.insert(node, replica.incarnation);
        if self.wanted == Wanted::On(node) {
            self.wanted = Wanted::Auto;
        }
        self.changed(Change::ReplicaRemoved { volume, node });
        true
    }

    pub(crate) fn replica_failed(
        &mut self,
        volume: VolumeIx,
        node: NodeId,
        life: (Incarnation, Run),
    ) -> bool {
        let replica = self
            .volumes
            .get_mut(usize::from(volume.0))
            .and_then(|v| v.replicas.get_mut(&node));
        match replica {
            Some(r) if (r.incarnation, r.run) == life && !r.unclean => r.unclean = true,
            _ => return false,
        }
        self.changed(Change::DiskFailed { node });
        true
    }

    pub(crate) fn replica_seen(
        &mut self,
        volume: VolumeIx,
        node: NodeId,
        expect: (Incarnation, Run),
        seen: ReplicaRecord,
    ) -> bool {
        let Some(replica) = self
            .volumes
            .get_mut(usize::from(volume.0))
            .and_then(|v| v.replicas.get_mut(&node))
        else {
            return false;
        };
        if (replica.incarnation, replica.run) != expect
            || (seen.incarnation, seen.run, seen.nonce)
                == (replica.incarnation, replica.run, replica.nonce)
        {
            return false;
        }
        // Another disk, or one that went back in time (rules 31, 37): its content is not what was committed.
        let strange = seen.incarnation != replica.incarnation || seen.run <= replica.run;
        let same_disk = seen.incarnation == replica.incarnation;
        *replica = ReplicaRecord {
            incarnation: seen.incarnation,
            run: seen.run,
            nonce: seen.nonce,
            room_bytes: if same_disk { replica.room_bytes } else { 0 },
            unclean: replica.unclean || seen.unclean,
            suspect: replica.suspect || seen.suspect || strange,
        };
        // Its former life may have proposed an epoch, and the primary may have proposed to take that former life
        // in: everybody must come to know that neither will be.
        self.changed(Change::Restarted { node });
        true
    }
}
