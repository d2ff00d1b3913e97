//! The peers' lanes in the loop: pairs come authenticated, carry frames, and go together.

use super::engine::{Engine, POLLIN, TAG_LANE_POLL, TAG_LANE_SEND};
use super::lane::Lane;
use crate::net::lanes::{Command as LanesCommand, Pair};
use holdfast_replicator::Event;
use holdfast_types::{Geometry, NodeId};
use holdfast_uring::{Op, token};
use holdfast_wire::{Frame, Lane as Kind};
use nix::sys::socket::{Shutdown, shutdown};
use std::io;
use std::os::fd::AsRawFd as _;

/// Both lanes to a peer.
#[derive(Debug)]
pub(super) struct PeerLanes {
    connection: u64,
    /// Tells this pair's answers of the ring from those of an earlier one.
    generation: u32,
    write: Lane,
    bulk: Lane,
    /// Fault injection: nothing goes in or out.
    muted: bool,
}

impl PeerLanes {
    /// Frames may speak of more blocks from now on.
    pub(super) fn set_geometry(&mut self, geometry: Geometry) {
        self.write.set_geometry(geometry);
        self.bulk.set_geometry(geometry);
    }

    pub(super) fn queued(&self) -> u64 {
        self.write.queued() + self.bulk.queued()
    }
    fn lane(&mut self, kind: Kind) -> &mut Lane {
        match kind {
            Kind::Write => &mut self.write,
            Kind::Bulk => &mut self.bulk,
        }
    }
}

const KINDS: [Kind; 2] = [Kind::Write, Kind::Bulk];

/// Peer, lane and generation in the number of a ring token.
fn pack(peer: NodeId, kind: Kind, generation: u32) -> u64 {
    u64::from(generation) << 16 | u64::from(peer.0) << 8 | u64::from(kind == Kind::Bulk)
}

fn unpack(low: u64) -> (NodeId, Kind, u32) {
    let kind = if low & 1 == 0 {
        Kind::Write
    } else {
        Kind::Bulk
    };
    (NodeId((low >> 8) as u8), kind, (low >> 16) as u32)
}

impl Engine {
    /// A new pair; an older one with the same peer is over.
    pub(super) fn take_pair(&mut self, pair: Pair) {
        let peer = pair.peer;
        if self.isolated {
            self.tell_lost(peer, pair.connection);
            return;
        }
        self.close_peer(peer, "replaced by a new connection");
        // What the old pair brought is answered before the new one exists, or the answers would leave on it.
        self.drain_events();
        for socket in [&pair.write, &pair.bulk] {
            // The ring wants blocking sockets; reads here say MSG_DONTWAIT themselves.
            if let Err(e) = socket.set_nonblocking(false) {
                tracing::warn!("volume {}: lane to {peer}: {e}", self.o.name);
                self.tell_lost(peer, pair.connection);
                return;
            }
        }
        self.generation = self.generation.wrapping_add(1);
        let make = |socket: std::net::TcpStream, kind| {
            Lane::new(
                socket.into(),
                self.o.volume,
                self.o.geometry,
                kind,
                self.o.pool.clone(),
            )
        };
        let lanes = PeerLanes {
            connection: pair.connection,
            generation: self.generation,
            write: make(pair.write, Kind::Write),
            bulk: make(pair.bulk, Kind::Bulk),
            muted: false,
        };
        self.peers.insert(peer, lanes);
        self.events.push_back(Event::PeerUp { peer });
    }

    /// Waits for bytes on every lane that is not waited for yet, unless the disk is too far behind.
    pub(super) fn poll_peers(&mut self) {
        if self.disk_full() {
            return;
        }
        let mut wanted = Vec::new();
        for (&peer, lanes) in &mut self.peers {
            if lanes.muted {
                continue;
            }
            for kind in KINDS {
                let generation = lanes.generation;
                let lane = lanes.lane(kind);
                if !lane.polling {
                    lane.polling = true;
                    wanted.push((lane.fd(), pack(peer, kind, generation)));
                }
            }
        }
        for (fd, low) in wanted {
            if !self.start(
                Op::Poll {
                    fd,
                    events: POLLIN,
                    multishot: false,
                },
                token(TAG_LANE_POLL, low),
            ) {
                self.close_peer(unpack(low).0, "the ring is full");
            }
        }
    }

    pub(super) fn queue_frame(&mut self, peer: NodeId, frame: &Frame) {
        let Some(lanes) = self.peers.get_mut(&peer) else {
            return;
        };
        if lanes.muted {
            return;
        }
        if let Err(e) = lanes.lane(frame.lane()).push(frame) {
            tracing::error!(
                "volume {}: a frame for {peer} cannot be sent: {e}",
                self.o.name
            );
            self.close_peer(peer, "a frame could not be encoded");
        }
    }

    /// Starts a send on every lane that has something and is not sending.
    pub(super) fn send_to_peers(&mut self) {
        let mut sends = Vec::new();
        for (&peer, lanes) in &mut self.peers {
            for kind in KINDS {
                let generation = lanes.generation;
                let lane = lanes.lane(kind);
                if let Some(data) = lane.take_output() {
                    sends.push((lane.fd(), data, pack(peer, kind, generation)));
                }
            }
        }
        let mut lost = Vec::new();
        for (fd, data, low) in sends {
            if !self.start(Op::Send { fd, data }, token(TAG_LANE_SEND, low)) {
                lost.push(unpack(low).0);
            }
        }
        for peer in lost {
            self.close_peer(peer, "the ring is full");
        }
    }

    /// The lane an answer of the ring is about, unless its pair is gone.
    fn lane_of(&mut self, low: u64) -> Option<(NodeId, Kind, &mut PeerLanes)> {
        let (peer, kind, generation) = unpack(low);
        let lanes = self
            .peers
            .get_mut(&peer)
            .filter(|l| l.generation == generation)?;
        Some((peer, kind, lanes))
    }

    pub(super) fn lane_sent(&mut self, low: u64, result: io::Result<u32>) {
        let Some((peer, kind, lanes)) = self.lane_of(low) else {
            return;
        };
        lanes.lane(kind).sending = None;
        if let Err(e) = result {
            self.close_peer(peer, &e.to_string());
        }
    }

    pub(super) fn lane_readable(&mut self, low: u64) {
        let Some((peer, kind, lanes)) = self.lane_of(low) else {
            return;
        };
        let lane = lanes.lane(kind);
        lane.polling = false;
        if lanes.muted {
            return;
        }
        let mut frames = Vec::new();
        let result = lanes.lane(kind).receive(&mut frames);
        self.events
            .extend(frames.into_iter().map(|frame| Event::Frame { peer, frame }));
        if let Err(e) = result {
            self.close_peer(peer, &e.to_string());
        }
    }

    /// Closes both lanes. Frames that came before are handled before the news of the end.
    pub(super) fn close_peer(&mut self, peer: NodeId, why: &str) {
        let Some(lanes) = self.peers.remove(&peer) else {
            return;
        };
        tracing::info!("volume {}: lanes to {peer} closed: {why}", self.o.name);
        let connection = lanes.connection;
        for lane in [lanes.write, lanes.bulk] {
            self.ring.cancel_fd(lane.fd());
            // It may be closed already by the other side; the descriptor goes after the next wait.
            let _ = shutdown(lane.socket.as_raw_fd(), Shutdown::Both);
            self.graveyard.push(lane.socket);
        }
        self.events.push_back(Event::PeerDown { peer });
        self.tell_lost(peer, connection);
    }

    fn tell_lost(&self, peer: NodeId, connection: u64) {
        if let Some(lanes) = &self.o.lanes {
            lanes.tell(LanesCommand::Lost {
                volume: self.o.volume,
                peer,
                connection,
            });
        }
    }

    pub(super) fn isolate(&mut self, on: bool) {
        self.isolated = on;
        if on {
            for lanes in self.peers.values_mut() {
                lanes.muted = true;
                lanes.write.drop_output();
                lanes.bulk.drop_output();
            }
            return;
        }
        // What was dropped meanwhile can never be made up for on the same connection.
        let muted: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, l)| l.muted)
            .map(|(&p, _)| p)
            .collect();
        for peer in muted {
            self.close_peer(peer, "the isolation has ended");
        }
    }
}
