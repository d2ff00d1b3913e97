//! Peer lanes: connections between data nodes, and the frames on them.

use crate::mutation::Mutation;
use crate::net::lane_index;
use crate::node::Input;
use crate::scenario::{MS, S};
use crate::world::{Ev, World};
use bytes::Bytes;
use holdfast_replicator as rep;
use holdfast_types::NodeId;
use holdfast_wire::codec::HEADER_BYTES;
use holdfast_wire::{Encoded, Frame, Lane};

/// A connection that stays blocked is given up after between this and thrice as long.
const GIVE_UP_NS: u64 = 2 * S;

impl World {
    /// A daemon sends a frame.
    pub(crate) fn send_frame(&mut self, from: usize, peer: NodeId, frame: &Frame) {
        let me = self.nodes[from].id;
        let lane = frame.lane();
        self.trace
            .line(self.now, me, || format!("-> {peer}: {}", brief(frame)));
        let nothing;
        let frame = match (frame, self.mutation) {
            (
                Frame::Resync {
                    stamp,
                    token,
                    range,
                    data: Some(data),
                },
                Some(Mutation::ResyncOfNothing),
            ) => {
                nothing = Frame::Resync {
                    stamp: *stamp,
                    token: *token,
                    range: *range,
                    data: Some(vec![0; data.len()].into()),
                };
                &nothing
            }
            _ => frame,
        };
        self.sees_send(from, peer, frame);
        let Some(link) = self.link_of(me, peer) else {
            self.fail(format!(
                "{me} sends a frame to {peer}, with whom it has no link"
            ));
            return;
        };
        let end = self.links[link].end_of(me);
        let Some(conn) = self.links[link].up[end] else {
            return;
        };
        if self.links[link].conn != conn {
            return;
        }
        let encoder = &mut self.codecs[link][end][lane_index(lane)].0;
        let bytes = match encoder.encode(frame) {
            Ok(bytes) => bytes,
            Err(e) => {
                self.fail(format!(
                    "{me} made a frame that cannot be encoded: {e}: {frame:?}"
                ));
                return;
            }
        };
        self.trace.mix_bytes(&bytes.head);
        if self.data_blocks.is(from, usize::from(peer.0)) {
            let way = &mut self.links[link].ways[end];
            if way.cut_at == u64::MAX {
                way.held.push((lane, bytes));
            }
            return;
        }
        self.transmit(link, end, conn, lane, bytes);
    }

    fn transmit(&mut self, link: usize, end: usize, conn: u64, lane: Lane, bytes: Encoded) {
        let delay = self.scenario.frame_delay.draw(&mut self.rng.net);
        if let Some(at) = self.links[link].arrival(end, lane, self.now, delay) {
            self.agenda.in_order(
                at,
                Ev::Frame {
                    link,
                    to: 1 - end,
                    conn,
                    lane,
                    bytes,
                },
            );
        }
    }

    /// A way is open again: what it held goes on.
    pub(crate) fn release_held(&mut self, link: usize, end: usize) {
        let conn = self.links[link].conn;
        for (lane, bytes) in std::mem::take(&mut self.links[link].ways[end].held) {
            self.transmit(link, end, conn, lane, bytes);
        }
    }

    pub(crate) fn frame_arrives(
        &mut self,
        link: usize,
        to: usize,
        conn: u64,
        lane: Lane,
        bytes: Encoded,
    ) {
        if !self.links[link].delivers(to, conn, self.now) {
            return;
        }
        let [from, node] = [self.links[link].ends[1 - to], self.links[link].ends[to]];
        let decoder = &mut self.codecs[link][1 - to][lane_index(lane)].1;
        let payload = match bytes.data {
            Some(data) => data,
            None => bytes.head.slice(HEADER_BYTES..),
        };
        let header = bytes.head.first_chunk::<HEADER_BYTES>();
        let frame = header.ok_or("short".to_string()).and_then(|h| {
            decoder
                .header(h)
                .and_then(|_| decoder.finish(payload))
                .map_err(|e| e.to_string())
        });
        match frame {
            Ok(frame) => self.input(
                usize::from(node.0),
                Input::Replica(rep::Event::Frame { peer: from, frame }),
            ),
            Err(e) => self.fail(format!(
                "a frame from {from} does not decode at {node}: {e}"
            )),
        }
    }

    /// Both ends try to connect until they are.
    pub(crate) fn want_connection(&mut self, link: usize) {
        if !self.links[link].connecting {
            self.links[link].connecting = true;
            let at = self.now + self.rng.net.between(MS, 150 * MS);
            self.agenda.at(at, Ev::Connect { link });
        }
    }

    pub(crate) fn try_connect(&mut self, link: usize) {
        self.links[link].connecting = false;
        let [a, b] = self.links[link].ends.map(|n| usize::from(n.0));
        let l = &self.links[link];
        if l.up == [Some(l.conn); 2] && l.ways.iter().all(|w| w.cut_at == u64::MAX) {
            return;
        }
        let able = |n: usize| self.nodes[n].up() && !self.nodes[n].paused;
        let blocked = self.data_blocks.is(a, b) || self.data_blocks.is(b, a);
        if !(self.nodes[a].up() && self.nodes[b].up()) {
            // A daemon that starts asks again.
            return;
        }
        if blocked || !able(a) || !able(b) {
            self.want_connection(link);
            return;
        }
        let conn = self.links[link].open(self.now);
        self.codecs[link] = self.new_codecs();
        for end in 0..2 {
            let delay = self.scenario.frame_delay.draw(&mut self.rng.net);
            // Before anything the other end sends, which learns no earlier than this.
            let at = self.now + delay;
            self.links[link].ways[1 - end].last = [at; 2];
            self.agenda.in_order(
                at,
                Ev::Peer {
                    link,
                    end,
                    conn,
                    up: true,
                },
            );
        }
    }

    pub(crate) fn peer_learns(&mut self, link: usize, end: usize, conn: u64, up: bool) {
        let [peer, me] = [self.links[link].ends[1 - end], self.links[link].ends[end]];
        let node = usize::from(me.0);
        let had = self.links[link].up[end];
        if up {
            if self.links[link].conn != conn || !self.nodes[node].up() {
                return;
            }
            if had.is_some() {
                self.links[link].up[end] = None;
                self.input(node, Input::Replica(rep::Event::PeerDown { peer }));
            }
            self.links[link].up[end] = Some(conn);
            self.trace
                .line(self.now, me, || format!("lanes to {peer} up ({conn})"));
            self.input(node, Input::Replica(rep::Event::PeerUp { peer }));
        } else if had == Some(conn) {
            self.links[link].up[end] = None;
            self.trace
                .line(self.now, me, || format!("lanes to {peer} down ({conn})"));
            self.input(node, Input::Replica(rep::Event::PeerDown { peer }));
            self.want_connection(link);
        }
    }

    /// A daemon closes its end.
    pub(crate) fn disconnect(&mut self, node: usize, peer: NodeId) {
        let Some(link) = self.link_of(self.nodes[node].id, peer) else {
            return;
        };
        let end = self.links[link].end_of(self.nodes[node].id);
        self.trace.line(self.now, NodeId(node as u8), || {
            format!("closes the lanes to {peer}")
        });
        if let Some(conn) = self.links[link].up[end] {
            self.agenda.in_order(
                self.now,
                Ev::Peer {
                    link,
                    end,
                    conn,
                    up: false,
                },
            );
            self.end_of_connection(link, end, conn);
        }
    }

    /// The end `end` of a connection is no more; the other end learns of it, now or much later.
    fn end_of_connection(&mut self, link: usize, end: usize, conn: u64) {
        if self.links[link].conn != conn {
            return;
        }
        let [me, peer] = [end, 1 - end].map(|e| usize::from(self.links[link].ends[e].0));
        // What travels to the closed end is lost.
        self.links[link].cut(1 - end, self.now);
        if self.data_blocks.is(me, peer) {
            self.links[link].cut(end, self.now);
            self.give_up_later(link, conn);
            return;
        }
        // What it sent before arrives, or is cut off by a reset.
        let delay = self.scenario.frame_delay.draw(&mut self.rng.net);
        let last = self.links[link].ways[end].last;
        let whole = last[0].max(last[1]).max(self.now + delay) + 1;
        let at = if self.rng.net.coin() {
            whole
        } else {
            self.rng.net.between(self.now, self.now + delay)
        };
        self.links[link].cut(end, at);
        self.agenda.in_order(
            at,
            Ev::Peer {
                link,
                end: 1 - end,
                conn,
                up: false,
            },
        );
    }

    /// The connection breaks; each end learns at its own time.
    pub(crate) fn break_link(&mut self, link: usize) {
        let conn = self.links[link].conn;
        for end in 0..2 {
            let cut = self.now + self.rng.net.below(2 * MS);
            let learns = cut
                + if self.rng.net.coin() {
                    self.rng.net.below(2 * MS)
                } else {
                    self.rng.net.below(S)
                };
            self.links[link].cut(1 - end, cut);
            self.agenda.in_order(
                learns,
                Ev::Peer {
                    link,
                    end,
                    conn,
                    up: false,
                },
            );
        }
        self.want_connection(link);
    }

    /// A daemon is gone, and with it its end of every connection.
    pub(crate) fn lanes_gone(&mut self, node: usize, power: bool) {
        let me = self.nodes[node].id;
        for link in 0..self.links.len() {
            if !self.links[link].ends.contains(&me) {
                continue;
            }
            let end = self.links[link].end_of(me);
            let Some(conn) = self.links[link].up[end].take() else {
                continue;
            };
            if self.links[link].conn != conn {
                continue;
            }
            if power {
                // Nobody says goodbye; what is on the wire still arrives.
                self.links[link].cut(1 - end, self.now);
                let wire = self.now + self.rng.net.below(MS);
                self.links[link].cut(end, wire);
                self.give_up_later(link, conn);
            } else {
                self.end_of_connection(link, end, conn);
            }
        }
    }

    pub(crate) fn give_up_later(&mut self, link: usize, conn: u64) {
        let at = self.now + self.rng.net.between(GIVE_UP_NS, 3 * GIVE_UP_NS);
        self.agenda.at(at, Ev::LaneTimeout { link, conn });
    }

    pub(crate) fn lane_timeout(&mut self, link: usize, conn: u64) {
        let l = &self.links[link];
        let [a, b] = l.ends.map(|n| usize::from(n.0));
        let blocked = self.data_blocks.is(a, b) || self.data_blocks.is(b, a);
        let dead = l.ways.iter().any(|w| w.cut_at <= self.now);
        if l.conn == conn && (blocked || dead) {
            for end in 0..2 {
                self.links[link].cut(end, self.now);
                let at = self.now + self.rng.net.below(S);
                self.agenda.in_order(
                    at,
                    Ev::Peer {
                        link,
                        end,
                        conn,
                        up: false,
                    },
                );
            }
        }
    }
}

/// A frame in a few words.
pub(crate) fn brief(frame: &Frame) -> String {
    let data = |d: &Bytes| format!("{} bytes", d.len());
    match frame {
        Frame::Write {
            stamp,
            seq,
            range,
            fua,
            data: d,
        } => format!(
            "Write e{} s{} #{seq} {}+{}{} {}",
            stamp.epoch,
            stamp.session,
            range.first,
            range.count,
            if *fua { " fua" } else { "" },
            data(d)
        ),
        Frame::Resync {
            stamp,
            token,
            range,
            data: d,
        } => format!(
            "Resync e{} s{} token {token} {}+{} {}",
            stamp.epoch,
            stamp.session,
            range.first,
            range.count,
            d.as_ref().map_or("zeroes".into(), data)
        ),
        Frame::ReadDone {
            stamp,
            token,
            range,
            data: d,
        } => format!(
            "ReadDone e{} s{} token {token} {}+{} {}",
            stamp.epoch,
            stamp.session,
            range.first,
            range.count,
            d.as_ref().map_or("unreadable".into(), data)
        ),
        Frame::Hashes {
            stamp,
            token,
            hashes,
        } => {
            format!(
                "Hashes e{} s{} token {token} of {}",
                stamp.epoch,
                stamp.session,
                hashes.len()
            )
        }
        other => format!("{other:?}"),
    }
}
