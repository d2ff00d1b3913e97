//! What a run is like: every parameter drawn from the seed (swarm testing).
//!
//! Each fault class is absent from half of all runs: a run with everything at once rarely gets anywhere
//! interesting, and some bugs need the absence of a fault.

use crate::disk::Latency;
use crate::net::Delay;
use crate::rng::{Ratio, Rng};
use holdfast_types::Geometry;

/// A microsecond in nanoseconds.
pub const US: u64 = 1_000;
/// A millisecond in nanoseconds.
pub const MS: u64 = 1_000_000;
/// A second in nanoseconds.
pub const S: u64 = 1_000_000_000;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The daemon is killed; the cache of its disk lives on.
    Kill,
    /// A machine loses power.
    PowerCut,
    /// All machines lose power.
    PowerAll,
    /// The daemon is stopped for a while (its fencer is not).
    Pause,
    /// Ways between nodes are blocked, one way or both, on one network or both.
    Partition,
    /// A connection between two data nodes breaks.
    LinkBreak,
    /// A lane, or all messages between two nodes, are delayed.
    Clog,
    /// A disk returns errors from now on, until it is replaced.
    DiskErrors,
    /// A disk answers nothing for a while.
    DiskHang,
    /// A disk is slow for a while.
    DiskSlow,
    /// A data node comes back with a blank disk.
    Wipe,
    /// A voter comes back without its control state.
    StateLoss,
    /// An operator moves the primary.
    Promote,
    /// An operator has a node's copy compared or distrusted.
    Verify,
    /// The daemon is stopped in good order and started again.
    CleanRestart,
    /// A new primary is struck again right after it opened.
    Aftermath,
    /// Part of a disk cannot be read until it is written over.
    BadSector,
    /// The backing of a replica has no space left.
    NoSpace,
    /// A disk says that it has flushed when it has not.
    LyingFlush,
    /// A clock leaps ahead (in runs whose clocks are broken).
    ClockLeap,
    /// An operator removes a replica, or gives a node that has none one again.
    Members,
    /// A data node comes back with its disk as it was earlier.
    Revert,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::Kill,
        Self::PowerCut,
        Self::PowerAll,
        Self::Pause,
        Self::Partition,
        Self::LinkBreak,
        Self::Clog,
        Self::DiskErrors,
        Self::DiskHang,
        Self::DiskSlow,
        Self::Wipe,
        Self::StateLoss,
        Self::Promote,
        Self::Verify,
        Self::CleanRestart,
        Self::Aftermath,
        Self::BadSector,
        Self::NoSpace,
        Self::LyingFlush,
        Self::ClockLeap,
        Self::Members,
        Self::Revert,
    ];

    /// The class of this name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| format!("{f:?}") == name)
    }
}

/// What the application does, as shares of 100.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Reads.
    pub reads: u64,
    /// Flushes.
    pub flushes: u64,
    /// Zeroes.
    pub zeroes: u64,
    /// Writes with FUA, out of all writes.
    pub fua: u64,
    /// Requests that go to the hot spot.
    pub hot: u64,
    /// Requests that do not begin and end at blocks.
    pub ragged: u64,
    /// Longest request in blocks.
    pub blocks_max: u64,
    /// Requests of a burst.
    pub burst_max: u64,
    /// Requests in flight at the most.
    pub depth_max: u64,
    /// Usual time between bursts, in nanoseconds.
    pub gap_ns: u64,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed all is drawn from.
    pub seed: u64,
    /// Nodes with replicas: the first ones.
    pub data_nodes: u8,
    /// Nodes without.
    pub witnesses: u8,
    /// The volume.
    pub geometry: Geometry,
    /// Activity-log slots of each node's replica.
    pub log_slots: Vec<u32>,
    /// Disk times per node.
    pub disks: Vec<Latency>,
    /// Frames take this long.
    pub frame_delay: Delay,
    /// Control messages take this long.
    pub message_delay: Delay,
    /// Control messages lost.
    pub loss: Ratio,
    /// Control messages that arrive twice.
    pub duplicates: Ratio,
    /// Clock drift per node.
    pub drift_ppm: Vec<i32>,
    /// The clocks break the stated bound: G5 is not claimed, all else is.
    pub wild_clocks: bool,
    /// A host step takes up to this long, in nanoseconds.
    pub host_ns: u64,
    /// What the application does.
    pub mix: Mix,
    /// Fault classes of this run and the usual time between two of a class, in nanoseconds.
    pub faults: Vec<(Fault, u64)>,
    /// The faults stop after this long.
    pub safety_ns: u64,
    /// In the end a copy of a block rots, and a verify must find it.
    pub rot: bool,
    /// Wait for clean members, or go on without after a while.
    pub unclean_allow: bool,
}

/// Virtual time within which everything must be well again after the last fault.
pub const LIVENESS_NS: u64 = 90 * S;
/// Bytes of a metadata page: one sector, so that simulated disks are small.
pub const PAGE_BYTES: u32 = 512;
/// Drift of clocks in runs that have it, in ppm; the lease arithmetic allows for 2000.
const DRIFT_PPM_MAX: u64 = 1_500;
/// Drift of clocks that are broken, in ppm.
const WILD_DRIFT_PPM_MAX: u64 = 400_000;

impl Scenario {
    /// The run of `seed`; without `swarm` one of moderate size with every fault class.
    pub fn draw(seed: u64, swarm: bool) -> Self {
        let mut rng = Rng::stream(seed, "swarm");
        let r = &mut rng;
        // Two data nodes and a witness is what most people run.
        let (data_nodes, witnesses) = *r.pick(&[
            (2, 1),
            (2, 1),
            (2, 1),
            (3, 0),
            (3, 0),
            (3, 2),
            (4, 1),
            (5, 0),
        ]);
        let nodes = usize::from(data_nodes) + usize::from(witnesses);
        let geometry = Geometry {
            block_bytes: *r.pick(&[64, 128]),
            blocks: *r.pick(&[32, 64, 64, 128, 128, 256, 256, 768]),
            extent_blocks: *r.pick(&[4, 8, 16]),
        };
        let mut log_slots = vec![*r.pick(&[4, 6, 8, 16]); crate::net::NODES];
        if r.below(3) == 0 {
            // One has another size: the smallest decides what may be in flight.
            let odd = r.below(data_nodes.into()) as usize;
            log_slots[odd] = *r.pick(&[4, 8, 16]);
        }
        let disks = (0..nodes).map(|_| latency(r)).collect();
        let frame_delay = delay(r);
        let message_delay = delay(r);
        let lossy = r.coin();
        let loss = if lossy {
            Ratio::new(r.between(1, 15) as u32, 100)
        } else {
            Ratio::NEVER
        };
        let duplicates = if lossy {
            Ratio::new(r.between(0, 10) as u32, 100)
        } else {
            Ratio::NEVER
        };
        let wild_clocks = r.below(8) == 0;
        let drift = match r.coin() {
            _ if wild_clocks => WILD_DRIFT_PPM_MAX,
            true => DRIFT_PPM_MAX,
            false => 0,
        };
        let drift_ppm = (0..nodes)
            .map(|_| r.between(0, 2 * drift) as i32 - drift as i32)
            .collect();
        let mut faults = Vec::new();
        for fault in Fault::ALL {
            let on = r.coin();
            let gap = r.between(1, 8) * S;
            if on || !swarm {
                faults.push((fault, gap));
            }
        }
        Self {
            seed,
            data_nodes,
            witnesses,
            geometry,
            log_slots,
            disks,
            frame_delay,
            message_delay,
            loss,
            duplicates,
            drift_ppm,
            wild_clocks,
            host_ns: *r.pick(&[200 * US, 60 * MS]),
            mix: mix(r, geometry),
            faults,
            safety_ns: r.between(4, 20) * S,
            unclean_allow: r.below(4) == 0,
            rot: r.below(4) == 0,
        }
    }

    /// Number of nodes.
    pub fn nodes(&self) -> usize {
        usize::from(self.data_nodes) + usize::from(self.witnesses)
    }
}

fn latency(r: &mut Rng) -> Latency {
    let spread_ns = *r.pick(&[20 * US, 200 * US, 2 * MS]);
    Latency {
        min_ns: 10 * US,
        spread_ns,
        tail_ns: spread_ns * r.between(1, 20),
    }
}

fn delay(r: &mut Rng) -> Delay {
    let spread_ns = *r.pick(&[30 * US, 300 * US, 3 * MS]);
    Delay {
        min_ns: 20 * US,
        spread_ns,
        tail_ns: spread_ns * r.between(1, 20),
    }
}

fn mix(r: &mut Rng, geometry: Geometry) -> Mix {
    let blocks_max = match r.below(3) {
        0 => 1,
        1 => 4,
        _ => 2 * u64::from(geometry.extent_blocks),
    };
    Mix {
        reads: r.between(5, 50),
        flushes: *r.pick(&[0, 1, 5, 15]),
        zeroes: *r.pick(&[0, 3, 10]),
        fua: *r.pick(&[0, 5, 30]),
        hot: *r.pick(&[0, 50, 90]),
        ragged: *r.pick(&[0, 20, 60]),
        blocks_max,
        burst_max: *r.pick(&[1, 4, 16]),
        depth_max: *r.pick(&[1, 8, 32]),
        gap_ns: *r.pick(&[5 * MS, 20 * MS, 60 * MS]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_scenario_and_scenarios_differ() {
        let text = |seed| format!("{:?}", Scenario::draw(seed, true));
        assert_eq!(text(5), text(5));
        assert_ne!(text(5), text(6));
    }

    #[test]
    fn the_swarm_covers_sizes_and_drops_fault_classes() {
        let all: Vec<Scenario> = (0..300).map(|s| Scenario::draw(s, true)).collect();
        for data_nodes in 2..=5 {
            assert!(all.iter().any(|s| s.data_nodes == data_nodes));
        }
        for fault in Fault::ALL {
            let with = all
                .iter()
                .filter(|s| s.faults.iter().any(|f| f.0 == fault))
                .count();
            assert!((75..225).contains(&with), "{fault:?} is in {with} of 300");
        }
        for s in &all {
            let voters = s.data_nodes + s.witnesses;
            assert!(voters % 2 == 1, "a cluster has an odd number of voters");
            assert!(s.geometry.bytes() % 512 == 0);
        }
        assert_eq!(Scenario::draw(1, false).faults.len(), Fault::ALL.len());
    }
}
