//! What tasks can ask of the loop, of other nodes and of the configuration.

use super::{Answer, BTreeMap, Context, Input, Question, VolumeKey, requests, status};
use crate::backing::Place;
use crate::volume::{Command, Commands, VolumeStatus};
use holdfast_control::{ResourceIx, VolumeIx};
use holdfast_types::NodeId;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::oneshot;

impl Context {
    /// Tells the loop. Nothing happens once it has ended.
    pub(super) fn tell(&self, input: Input) {
        let _ = self.input.send(input);
    }

    /// A node's name.
    pub(super) fn name(&self, node: NodeId) -> String {
        self.config
            .node_by_id(node)
            .map_or_else(|| node.to_string(), |n| n.name.clone())
    }

    /// Names of a resource and its volume.
    pub(super) fn names(&self, key: VolumeKey) -> (String, String) {
        let resource = self.config.resources.get(usize::from(key.resource.0));
        let volume = resource.and_then(|r| r.volumes.get(usize::from(key.volume.0)));
        (
            resource.map_or_else(|| key.resource.0.to_string(), |r| r.name.clone()),
            volume.map_or_else(|| key.volume.0.to_string(), |v| v.name.clone()),
        )
    }

    /// All volumes that this node holds replicas of: those it made, whatever the configuration says by now.
    pub(super) fn local_volumes(&self) -> Vec<VolumeKey> {
        let mut keys = Vec::new();
        for (r, resource) in self.config.resources.iter().enumerate() {
            for (v, volume) in resource.volumes.iter().enumerate() {
                if self.book.get(&resource.name, &volume.name).is_some() {
                    keys.push(VolumeKey {
                        resource: ResourceIx(r as u16),
                        volume: VolumeIx(v as u16),
                    });
                }
            }
        }
        keys
    }

    /// Where this node's replica of a volume is to be made, by the configuration.
    pub(super) fn configured_backing(&self, key: VolumeKey) -> Option<PathBuf> {
        let resource = self.config.resources.get(usize::from(key.resource.0))?;
        let volume = resource.volumes.get(usize::from(key.volume.0))?;
        volume.backing.get(&self.me.id).cloned()
    }

    /// Where this node's replica of a volume is: where it was made, before that where the configuration says.
    pub(super) fn place(&self, key: VolumeKey) -> Option<Place> {
        let resource = self.config.resources.get(usize::from(key.resource.0))?;
        let volume = resource.volumes.get(usize::from(key.volume.0))?;
        let made = self.book.get(&resource.name, &volume.name);
        let (path, end) = match made {
            Some(entry) => (entry.backing, entry.end),
            None => (self.configured_backing(key)?, None),
        };
        Some(Place {
            cluster: self.cluster.short(),
            me: self.me.id,
            size_bytes: volume.size_bytes,
            path,
            end,
        })
    }

    /// Asks the loop for something and waits for the answer.
    pub(super) async fn ask_loop<T>(
        &self,
        input: impl FnOnce(oneshot::Sender<T>) -> Input,
    ) -> Result<T, String> {
        let (tx, rx) = oneshot::channel();
        self.tell(input(tx));
        rx.await.map_err(|_| "the daemon stops".to_owned())
    }

    /// Asks another node (or this one) and waits so long for the answer.
    pub(super) async fn ask_node(
        &self,
        to: NodeId,
        question: Question,
        time: Duration,
    ) -> Result<Answer, String> {
        if to == self.me.id {
            return Box::pin(requests::answer(self, to, question)).await;
        }
        let asked = self.ask_loop(|reply| Input::Ask {
            to,
            question,
            reply,
        });
        match tokio::time::timeout(time, asked).await {
            Ok(answered) => answered?,
            Err(_) => Err(format!(
                "{} did not answer within {} s",
                self.name(to),
                time.as_secs()
            )),
        }
    }

    /// The replicas of this node that are open: how they are.
    pub(super) async fn replica_status(
        &self,
        volumes: BTreeMap<VolumeKey, Commands>,
    ) -> BTreeMap<VolumeKey, VolumeStatus> {
        let mut found = BTreeMap::new();
        for (key, commands) in volumes {
            let (tx, rx) = oneshot::channel();
            commands.send(Command::Status(Box::new(move |s| {
                // Who asked may have given up.
                let _ = tx.send(s);
            })));
            if let Ok(Ok(status)) = tokio::time::timeout(status::LOOP_TIME_MAX, rx).await {
                found.insert(key, status);
            }
        }
        found
    }
}
