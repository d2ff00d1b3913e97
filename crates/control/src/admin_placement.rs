//! What operators ask about replicas and sizes: refused here where it cannot be, with the reason.

use crate::admin::{Asker, Goal, refused};
use crate::api::*;
use crate::node::Node;
use holdfast_types::{BLOCK_BYTES, Incarnation, NodeId};

impl Node {
    pub(crate) fn ask_resize(
        &mut self,
        resource: &str,
        volume: VolumeIx,
        size_bytes: u64,
        shrink: Option<&str>,
    ) -> Result<Option<Goal>, AdminReply> {
        let ix = self.find(resource)?;
        let Some(record) = self.state().resources.get(&ResourceIx(ix as u16)) else {
            return Err(refused(format!("{resource} is not created yet")));
        };
        let Some(of) = record.volumes.get(usize::from(volume.0)) else {
            return Err(refused(format!(
                "{resource} has {} volumes",
                record.volumes.len()
            )));
        };
        if size_bytes == 0 || !size_bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
            return Err(refused(format!(
                "{size_bytes} bytes are no whole number of blocks of {BLOCK_BYTES}"
            )));
        }
        if size_bytes < of.size_bytes {
            if shrink != Some(SHRINK_CONSENT) {
                return Err(refused(format!(
                    "it has {} bytes: making it smaller loses what lies past byte {size_bytes} for good. \
                     Shrink the file system first; then: --force-shrink {SHRINK_CONSENT:?}",
                    of.size_bytes
                )));
            }
            if record.primary.is_some() {
                return Err(refused(format!(
                    "{resource} runs: it shrinks only while nobody uses it. `holdfast demote {resource}` first"
                )));
            }
        }
        Ok(Some(Goal::Resized {
            ix,
            volume,
            size_bytes,
        }))
    }

    pub(crate) fn ask_place(
        &mut self,
        now: Now,
        asker: Asker,
        resource: &str,
        volume: VolumeIx,
        node: NodeId,
        disk: Option<Incarnation>,
    ) -> Result<Option<Goal>, AdminReply> {
        let ix = self.find(resource)?;
        let name = self.config.name_of(node);
        if !self.config.nodes.iter().any(|n| n.id == node) {
            return Err(refused(format!("{node} is no node of this cluster")));
        }
        let Some(record) = self.state().resources.get(&ResourceIx(ix as u16)) else {
            return Err(refused(format!("{resource} is not created yet")));
        };
        let Some(of) = record.volumes.get(usize::from(volume.0)) else {
            return Err(refused(format!(
                "{resource} has {} volumes",
                record.volumes.len()
            )));
        };
        match (disk, of.replicas.get(&node)) {
            (Some(disk), Some(held)) if held.incarnation != disk => {
                return Err(refused(format!("{name} holds a replica of it already")));
            }
            (None, None) => {
                return Err(refused(format!("{name} holds no replica of it")));
            }
            (None, Some(_)) => {
                if let Some(why) = self.keeps(record.primary, of, node) {
                    return Err(refused(why));
                }
                let primary = record.primary.filter(|_| of.in_sync.has(node));
                if let Some(primary) = primary.filter(|p| *p != self.me()) {
                    // Its primary lets a member go.
                    let request = AdminRequest::ReplicaRemove {
                        resource: resource.to_owned(),
                        volume,
                        node,
                    };
                    return self.forward(now, asker, primary, request);
                }
            }
            (Some(_), _) => {}
        }
        Ok(Some(Goal::Placed {
            ix,
            volume,
            node,
            disk,
        }))
    }

    /// Why a replica cannot be given up, if it cannot.
    pub(crate) fn keeps(
        &self,
        primary: Option<NodeId>,
        volume: &crate::state::VolumeRecord,
        node: NodeId,
    ) -> Option<String> {
        let name = self.config.name_of(node);
        if primary == Some(node) {
            return Some(format!(
                "{name} is the primary: promote another node first, then remove its replica"
            ));
        }
        if !volume.in_sync.has(node) {
            return None;
        }
        let others = volume.data_nodes().without(node);
        if others.is_empty() {
            return Some(format!("{name} holds the only replica"));
        }
        if volume.in_sync == holdfast_types::NodeSet::only(node) {
            return Some(format!(
                "{name} alone has the newest data: wait until {} in sync",
                match others.len() {
                    1 => format!("{} is", self.names(others)),
                    _ => format!("one of {} is", self.names(others)),
                }
            ));
        }
        if primary.is_none() {
            return Some(format!(
                "{name} has the newest data, and no primary runs that could go on without it: promote one first"
            ));
        }
        None
    }
}
