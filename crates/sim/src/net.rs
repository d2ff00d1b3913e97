//! The networks. Two of them: the data network carries the peer lanes (connections, in order), the
//! control network carries single messages.
//!
//! A connection between two data nodes has two lanes and behaves as TCP does:
//! - bytes of a lane and direction arrive in order, late, or not at all from some point on (the cut);
//! - each end learns of the end of a connection at its own time, by a reset or by a timeout;
//! - what a blocked direction holds arrives when it opens again, if neither end gave up before;
//! - a new connection ends what is left of the old one.

use crate::rng::Rng;
use holdfast_types::NodeId;
use holdfast_wire::Lane;

/// Nodes in a world at the most.
pub const NODES: usize = holdfast_types::NODES_MAX as usize;

/// Times of messages, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    /// Shortest.
    pub min_ns: u64,
    /// Usual spread above it.
    pub spread_ns: u64,
    /// One in 16 takes up to this much longer.
    pub tail_ns: u64,
}

impl Delay {
    /// One drawn time.
    pub fn draw(&self, rng: &mut Rng) -> u64 {
        let tail = if rng.below(16) == 0 {
            rng.below(self.tail_ns + 1)
        } else {
            0
        };
        self.min_ns + rng.below(self.spread_ns + 1) + tail
    }
}

/// Who cannot send to whom on one network. Counted, because partitions overlap.
#[derive(Clone, Debug, Default)]
pub struct Blocks([[u8; NODES]; NODES]);

impl Blocks {
    /// Nothing from `from` reaches `to`, until [`Self::open`].
    pub fn block(&mut self, from: usize, to: usize) {
        self.0[from][to] += 1;
    }
    /// Takes one block away; true if the way is open now.
    pub fn open(&mut self, from: usize, to: usize) -> bool {
        self.0[from][to] = self.0[from][to].saturating_sub(1);
        self.0[from][to] == 0
    }
    /// Is this way blocked?
    pub fn is(&self, from: usize, to: usize) -> bool {
        self.0[from][to] > 0
    }
}

/// Frames on the way in one direction.
#[derive(Clone, Debug, Default)]
pub struct Way {
    /// Nothing on a lane arrives before what was sent on it earlier.
    pub last: [u64; 2],
    /// Nothing that would arrive at or after this does.
    pub cut_at: u64,
    /// Sent while the way was blocked.
    pub held: Vec<(Lane, holdfast_wire::Encoded)>,
    /// Further delay of each lane (a clog).
    pub clog_ns: [u64; 2],
}

/// A connection between two data nodes. End 0 is the lower node.
#[derive(Clone, Debug)]
pub struct Link {
    /// The ends.
    pub ends: [NodeId; 2],
    /// Number of the newest connection.
    pub conn: u64,
    /// Which connection each end has, as far as it knows.
    pub up: [Option<u64>; 2],
    /// From end 0 to end 1, and back.
    pub ways: [Way; 2],
    /// A connection attempt is on the agenda.
    pub connecting: bool,
}

impl Link {
    /// Not connected.
    pub fn new(a: NodeId, b: NodeId) -> Self {
        assert!(a < b);
        Self {
            ends: [a, b],
            conn: 0,
            up: [None; 2],
            ways: Default::default(),
            connecting: false,
        }
    }

    /// Which end a node is.
    pub fn end_of(&self, node: NodeId) -> usize {
        usize::from(self.ends[1] == node)
    }

    /// A new connection, of which each end will learn: its number.
    pub fn open(&mut self, now: u64) -> u64 {
        self.conn += 1;
        for way in &mut self.ways {
            way.last = [now; 2];
            way.cut_at = u64::MAX;
            way.held.clear();
        }
        self.conn
    }

    /// When a frame sent now arrives, or `None` if the connection is cut. `way` is the sender's end.
    pub fn arrival(&mut self, way: usize, lane: Lane, now: u64, delay: u64) -> Option<u64> {
        let way = &mut self.ways[way];
        let lane = lane_index(lane);
        let at = (now + delay + way.clog_ns[lane]).max(way.last[lane]);
        way.last[lane] = at;
        (at < way.cut_at).then_some(at)
    }

    /// Nothing that is not there by `at` arrives any more in this direction.
    pub fn cut(&mut self, way: usize, at: u64) {
        let way = &mut self.ways[way];
        way.cut_at = way.cut_at.min(at);
        way.held.clear();
    }

    /// Does what arrives now on `conn` at end `to` get there?
    pub fn delivers(&self, to: usize, conn: u64, now: u64) -> bool {
        self.up[to] == Some(conn) && self.conn == conn && now < self.ways[1 - to].cut_at
    }
}

/// Position of a lane in tables.
pub fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Write => 0,
        Lane::Bulk => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_in_order_and_cut_anywhere() {
        let mut link = Link::new(NodeId(0), NodeId(1));
        let conn = link.open(100);
        link.up = [Some(conn); 2];
        let slow = link.arrival(0, Lane::Write, 100, 50).unwrap();
        let fast = link.arrival(0, Lane::Write, 101, 5).unwrap();
        assert!(fast >= slow, "in order on a lane");
        assert!(
            link.arrival(0, Lane::Bulk, 101, 5).unwrap() < slow,
            "lanes do not wait for each other"
        );
        link.cut(0, 120);
        assert!(link.delivers(1, conn, 119));
        assert!(!link.delivers(1, conn, 120));
        assert!(
            link.delivers(0, conn, 500),
            "the other direction lives until it is cut"
        );
        assert_eq!(link.arrival(0, Lane::Write, 130, 1), None);
        let newer = link.open(200);
        assert!(
            !link.delivers(0, conn, 201),
            "nothing of the old connection"
        );
        assert!(
            !link.delivers(1, newer, 201),
            "not before that end knows of the new one"
        );
    }

    #[test]
    fn overlapping_partitions_open_with_the_last() {
        let mut blocks = Blocks::default();
        blocks.block(0, 1);
        blocks.block(0, 1);
        assert!(!blocks.open(0, 1));
        assert!(blocks.is(0, 1));
        assert!(!blocks.is(1, 0));
        assert!(blocks.open(0, 1));
        assert!(!blocks.is(0, 1));
    }
}
