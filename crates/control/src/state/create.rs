//! A new resource enters the record.

use super::*;

impl ClusterState {
    pub(super) fn create(
        &mut self,
        resource: ResourceIx,
        name: &str,
        volumes: &[CreateVolume],
    ) -> Applied {
        let sound = |v: &CreateVolume| {
            let nodes: NodeSet = v.replicas.iter().map(|r| r.0).collect();
            !v.in_sync.is_empty()
                && nodes.contains(v.in_sync)
                && nodes.len() as usize == v.replicas.len()
        };
        if self.resources.contains_key(&resource)
            || volumes.is_empty()
            || !volumes.iter().all(sound)
        {
            return Applied::Nothing;
        }
        let mut record = ResourceRecord {
            name: name.to_owned(),
            generation: Gen(0),
            epoch: Epoch(0),
            primary: None,
            wanted: Wanted::Auto,
            // Never zero, which would be no history at all.
            lineage: volumes[0].id.0 | 1,
            volumes: volumes
                .iter()
                .map(|v| VolumeRecord {
                    upkeep: Upkeep::default(),
                    id: v.id,
                    size_bytes: v.size_bytes,
                    target_bytes: None,
                    shrank: false,
                    shrinks: 0,
                    in_sync: v.in_sync,
                    replicas: v
                        .replicas
                        .iter()
                        .map(|&(node, incarnation)| {
                            (
                                node,
                                ReplicaRecord {
                                    incarnation,
                                    room_bytes: v.size_bytes,
                                    ..ReplicaRecord::default()
                                },
                            )
                        })
                        .collect(),
                    departed: BTreeMap::new(),
                })
                .collect(),
            history: VecDeque::new(),
        };
        record.changed(Change::Created);
        self.resources.insert(resource, record);
        Applied::Changed(resource)
    }
}
