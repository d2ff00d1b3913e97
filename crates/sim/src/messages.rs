//! The control network: single messages that are lost, late, doubled and out of order, and the
//! control connections whose breaking a node may learn of.

use crate::check::bounds::Bounds;
use crate::mutation::Mutation;
use crate::node::Input;
use crate::scenario::{MS, S};
use crate::world::{Ev, World};
use holdfast_control as control;
use holdfast_types::NodeId;

/// Time between two looks at the control connections.
const MESH_NS: u64 = 100 * MS;
/// A doubled message is late by up to this.
const LATE_NS: u64 = 4 * S;
/// A connection over a blocked or dead way is given up after this.
const MESH_GIVE_UP_NS: u64 = S;

impl World {
    /// A daemon sends a control message.
    pub(crate) fn send_message(&mut self, from: usize, to: NodeId, message: &control::Message) {
        let to = usize::from(to.0);
        if !self.mesh[from][to] {
            return;
        }
        let bytes = match message.encode() {
            Ok(bytes) => bytes,
            Err(e) => {
                self.fail(format!(
                    "node {from} made a message that cannot be encoded: {e}"
                ));
                return;
            }
        };
        self.trace.line(self.now, NodeId(from as u8), || {
            format!("~> node {to}: {}", message.word())
        });
        self.trace.mix_bytes(&bytes);
        self.must(Bounds::message(bytes.len()));
        let (loss, twice) = (self.scenario.loss, self.scenario.duplicates);
        let rng = &mut self.rng.net;
        let calm = self.healed_at.is_some();
        if !calm && rng.happens(loss) {
            return;
        }
        let copies = if !calm && rng.happens(twice) { 2 } else { 1 };
        for copy in 0..copies {
            let mut delay = self.scenario.message_delay.draw(&mut self.rng.net)
                + self.message_clog_ns[from][to];
            // The second may come long after, over another connection.
            if copy == 1 && self.rng.net.below(4) == 0 {
                delay += self.rng.net.below(LATE_NS);
            }
            if self.mutation == Some(Mutation::Wobble) {
                delay += crate::mutation::wobble();
            }
            self.agenda.at(
                self.now + delay,
                Ev::Message {
                    to,
                    from,
                    bytes: bytes.clone(),
                },
            );
        }
    }

    pub(crate) fn message_arrives(&mut self, to: usize, from: usize, bytes: &[u8]) {
        if self.message_blocks.is(from, to) || !self.nodes[to].up() || !self.mesh[to][from] {
            return;
        }
        match control::Message::decode(bytes) {
            Ok(msg) => {
                let from = NodeId(from as u8);
                self.input(to, Input::Control(control::Event::Message { from, msg }));
            }
            Err(e) => self.fail(format!(
                "a control message from node {from} does not decode: {e}"
            )),
        }
    }

    pub(crate) fn look_after_mesh(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                self.look_after_pair(a, b);
            }
        }
        let at = self.now + MESH_NS + self.rng.net.below(MESH_NS / 4);
        self.agenda.at(at, Ev::Mesh);
    }

    fn look_after_pair(&mut self, a: usize, b: usize) {
        let both = self.nodes[a].up() && self.nodes[b].up();
        let good = both && !self.message_blocks.is(a, b) && !self.message_blocks.is(b, a);
        if good {
            self.mesh_bad_since[a][b] = u64::MAX;
            if !self.nodes[a].paused && !self.nodes[b].paused {
                self.mesh_end(a, b, true);
                self.mesh_end(b, a, true);
            }
            return;
        }
        let since = &mut self.mesh_bad_since[a][b];
        *since = (*since).min(self.now);
        if self.now >= *since + MESH_GIVE_UP_NS {
            self.mesh_end(a, b, false);
            self.mesh_end(b, a, false);
        }
    }

    /// One end learns that its connection is up or down.
    pub(crate) fn mesh_end(&mut self, at: usize, to: usize, up: bool) {
        if self.mesh[at][to] == up {
            return;
        }
        self.mesh[at][to] = up;
        if !self.nodes[at].up() {
            self.mesh[at][to] = false;
            return;
        }
        let node = NodeId(to as u8);
        let event = if up {
            control::Event::LinkUp { node }
        } else {
            control::Event::LinkDown { node }
        };
        self.input(at, Input::Control(event));
    }

    /// A daemon is gone. If it was killed its kernel closes its connections; if the power went nobody does.
    pub(crate) fn mesh_gone(&mut self, node: usize, power: bool) {
        for other in 0..self.nodes.len() {
            self.mesh[node][other] = false;
            if !power && other != node && !self.message_blocks.is(node, other) {
                self.mesh_end(other, node, false);
            }
        }
    }
}
