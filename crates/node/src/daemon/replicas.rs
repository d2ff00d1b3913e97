//! The replicas of this node: opened, joined to their peers, handed to their host steps.

use super::{Context, Daemon, FaultPlan, Input, VolumeKey};
use crate::backing::{NewReplica, Place};
use crate::clock;
use crate::hostops::VolumeLink;
use crate::net::lanes::{Command as LanesCommand, Lanes};
use crate::settings;
use crate::volume::{Command, Volume, VolumeOptions};
use holdfast_control::Event;
use holdfast_replicator::{DiskTrouble, Replica};
use holdfast_types::{Incarnation, NodeSet, VolumeId};
use holdfast_uring::BufPool;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::oneshot;

impl Daemon {
    /// Opens what this node made in earlier lives.
    pub(super) fn open_noted_replicas(&mut self) {
        for key in self.cx.local_volumes() {
            self.open_replica(key, None);
        }
    }

    pub(super) fn open_replica(
        &mut self,
        key: VolumeKey,
        reply: Option<oneshot::Sender<Result<(), String>>>,
    ) {
        if self.volumes.contains_key(&key) {
            if let Some(reply) = reply {
                let _ = reply.send(Ok(()));
            }
            return;
        }
        self.open(key, reply, None);
    }

    /// Closes the replica's present life, whatever its disk still owes, and starts another.
    pub(super) fn reopen_replica(&mut self, key: VolumeKey) {
        let (r, v) = self.cx.names(key);
        self.cx
            .timeline
            .add(&r, "replica-reopen", format!("volume {v}"));
        self.stalled.remove(&key);
        self.stalls(key.resource);
        let old = self.volumes.remove(&key);
        self.open(key, None, old);
    }

    fn open(
        &mut self,
        key: VolumeKey,
        reply: Option<oneshot::Sender<Result<(), String>>>,
        old: Option<Volume>,
    ) {
        let opening = Opening {
            cx: self.cx.clone(),
            key,
            lanes: self.lanes.clone(),
            fault: self.fault.clone(),
            boot_id: self.boot_id,
            distrust: self.node.distrusted(key.resource, key.volume),
        };
        let input = self.cx.input.clone();
        tokio::task::spawn_blocking(move || {
            // All its reports come before the first one of the next life.
            if let Some(old) = old {
                old.end();
            }
            let result = opening.run();
            let _ = input.send(Input::Opened { key, result, reply });
        });
    }

    pub(super) fn opened(
        &mut self,
        key: VolumeKey,
        result: Result<Volume, String>,
        reply: Option<oneshot::Sender<Result<(), String>>>,
    ) {
        let (r, v) = self.cx.names(key);
        let answer = match result {
            Ok(volume) => {
                self.closed.remove(&key);
                if self.isolated {
                    volume.commands().send(Command::Isolate(true));
                }
                if let Some(Some(host)) = self.hosts.get(usize::from(key.resource.0)) {
                    host.thread.volume(
                        &v,
                        VolumeLink {
                            commands: volume.commands().clone(),
                            port: volume.port(),
                            size: volume.size(),
                        },
                    );
                }
                self.volumes.insert(key, volume);
                self.serve_lanes(key);
                self.cx
                    .timeline
                    .add(&r, "replica-open", format!("volume {v}"));
                Ok(())
            }
            Err(e) => {
                tracing::error!("volume {r}/{v} cannot be opened: {e}");
                self.closed.insert(key, e.clone());
                let (resource, volume, error) = (key.resource, key.volume, e.clone());
                self.event(Event::NotReopened {
                    resource,
                    volume,
                    error,
                });
                Err(e)
            }
        };
        if let Some(reply) = reply {
            let _ = reply.send(answer);
        }
    }

    /// The committed record says who holds a replica of this volume.
    pub(super) fn placed(&mut self, key: VolumeKey, data_nodes: NodeSet) {
        let peers = data_nodes.without(self.cx.me.id);
        if self.peers.insert(key, peers) != Some(peers) {
            self.serve_lanes(key);
        }
    }

    /// Connects a volume to the nodes that hold its other replicas, once these are known.
    fn serve_lanes(&self, key: VolumeKey) {
        let (r, v) = self.cx.names(key);
        let (Some(volume), Some(peers), Some(id)) = (
            self.volumes.get(&key),
            self.peers.get(&key),
            self.cx.book.get(&r, &v).and_then(|e| e.volume()),
        ) else {
            return;
        };
        let commands = volume.commands().clone();
        let peers = peers
            .iter()
            .filter_map(|n| self.cx.config.node_by_id(n))
            .map(|n| (n.id, n.name.clone(), n.data_address()))
            .collect();
        self.lanes.tell(LanesCommand::Serve {
            volume: id,
            name: format!("{r}/{v}"),
            peers,
            sink: Box::new(move |pair| commands.send(Command::Lanes(pair))),
        });
    }

    /// The replica was removed from the record and has stopped: it is closed, and not opened again.
    pub(super) fn forget_replica(&mut self, key: VolumeKey) {
        let (r, v) = self.cx.names(key);
        self.peers.remove(&key);
        self.closed.remove(&key);
        let entry = self.cx.book.get(&r, &v);
        if let Some(volume) = entry.as_ref().and_then(|e| e.volume()) {
            self.lanes.tell(LanesCommand::Forget { volume });
        }
        if let Some(volume) = self.volumes.remove(&key) {
            tokio::task::spawn_blocking(move || volume.end());
        }
        if let Err(e) = self.cx.book.remove(&r, &v) {
            // At the next start it stops and is struck out once more.
            tracing::error!("cannot strike {r}/{v} out in the state directory: {e}");
        }
        let place = entry.map_or_else(String::new, |e| {
            format!("; {} is left as it is", e.backing.display())
        });
        self.cx
            .timeline
            .add(&r, "replica-removed", format!("volume {v}{place}"));
    }
}

/// Everything that opening a replica needs, on a thread that may wait.
struct Opening {
    cx: Context,
    key: VolumeKey,
    lanes: Lanes,
    fault: Option<FaultPlan>,
    boot_id: u128,
    distrust: Option<(Incarnation, DiskTrouble)>,
}

impl Opening {
    fn run(self) -> Result<Volume, String> {
        let (r, v) = self.cx.names(self.key);
        let entry = self.cx.book.get(&r, &v);
        let id = entry
            .ok_or("no replica was made on this node")?
            .volume()
            .ok_or("the book of replicas names an impossible volume")?;
        let place = self
            .cx
            .place(self.key)
            .ok_or("this node holds no replica of it by the configuration")?;
        let resource = &self.cx.config.resources[usize::from(self.key.resource.0)];
        let configured = self.cx.configured_backing(self.key);
        let lost = !place.path.exists();
        if let Some(other) = configured.filter(|p| lost && *p != place.path && p.exists()) {
            return Err(format!(
                "its backing was {} when it was made, which is gone, and is {} by the configuration: put it back",
                place.path.display(),
                other.display()
            ));
        }
        let anew = NewReplica {
            volume: id,
            incarnation: Incarnation(clock::random_u64()),
            data_nodes: resource.nodes.with(self.cx.me.id),
            equal: false,
            member: false,
        };
        if place.replace(&anew).map_err(|e| e.to_string())? {
            tracing::warn!(
                "volume {r}/{v}: nothing is left at {}: a new replica was made there, to be filled by a full resync",
                place.path.display()
            );
        }
        self.open(id, &place, format!("{r}/{v}"))
            .map_err(|e| e.to_string())
    }

    fn open(self, id: VolumeId, place: &Place, name: String) -> anyhow::Result<Volume> {
        let pool = BufPool::default();
        let opened = place.open(id, &pool, self.fault)?;
        if let Some(note) = opened.store.note() {
            tracing::warn!("volume {name}: {note}");
        }
        let known = opened.recovered.superblock.data_nodes();
        let config =
            settings::replica_config(&self.cx.config, self.cx.me.id, known, id, self.distrust);
        let (r, v) = self.cx.names(self.key);
        // Before anything can make the backing larger.
        let end = opened.recovered.layout.region_end;
        self.cx.book.put_end(&r, &v, end)?;
        let geometry = opened.recovered.layout.geometry;
        let size = opened.recovered.superblock.geometry.bytes();
        let mut first = Vec::new();
        let replica = Replica::start(
            config,
            opened.recovered,
            self.boot_id,
            clock::now(),
            &mut first,
        )?
        .with_resync(settings::resync_bounds(&self.cx.config, self.key));
        let input = self.cx.input.clone();
        let key = self.key;
        Volume::spawn(VolumeOptions {
            machine: Box::new(replica),
            first,
            store: opened.store,
            pool,
            volume: id,
            geometry,
            size: Arc::new(AtomicU64::new(size)),
            me: self.cx.me.id,
            name,
            lanes: Some(self.lanes),
            stall_ms: self.cx.config.timing.disk_timeout_ms,
            report: Box::new(move |report| {
                // The loop may have ended.
                let _ = input.send(Input::Report { key, report });
            }),
        })
    }
}
