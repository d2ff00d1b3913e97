//! The fault matrix of `ha.md` (F1 to F40), as far as it concerns data: each fault is done to a cluster under load at a
//! chosen moment, what is expected of it is looked at, and at the end all must be well.
//!
//! The checkers look on throughout: G1 to G7 hold at every instant of every one of these runs. Faults of services, mounts
//! and addresses are done to real processes elsewhere; `docs/SCENARIOS.md` says which is where.

mod crashes;
mod disks;
mod networks;

use crate::disk::{Errors, Latency};
use crate::faults::Undo;
use crate::net::Delay;
use crate::rng::Ratio;
use crate::scenario::{MS, S, Scenario, US};
use crate::trace::{Telling, Trace};
use crate::world::{Ev, Outcome, RESOURCE, World};
use holdfast_control::AdminRequest;
use holdfast_types::{NodeId, NodeSet};

/// Each fault is done to clusters of these seeds: another load, other times.
const SEEDS: std::ops::Range<u64> = 0..3;
/// Faults may be done for so long; then the cluster heals.
const PLAY_NS: u64 = 40 * S;
/// A takeover after a lost lease ends within this time.
const TAKEOVER_MS: u64 = 6_000;

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Net {
    Data,
    Control,
    Both,
}

/// A cluster in a script's hands.
struct Play(World);

/// A healthy cluster of this size that serves.
fn play(seed: u64, data: u8, witnesses: u8) -> Play {
    play_with(seed, data, witnesses, |_| {})
}

fn play_with(seed: u64, data: u8, witnesses: u8, shape: impl Fn(&mut Scenario)) -> Play {
    let mut scenario = Scenario::draw(seed, true);
    let nodes = usize::from(data + witnesses);
    let latency = Latency {
        min_ns: 10 * US,
        spread_ns: 200 * US,
        tail_ns: 2 * MS,
    };
    let delay = Delay {
        min_ns: 20 * US,
        spread_ns: 300 * US,
        tail_ns: 3 * MS,
    };
    (scenario.data_nodes, scenario.witnesses) = (data, witnesses);
    scenario.disks = vec![latency; nodes];
    scenario.log_slots = vec![8; nodes];
    (scenario.frame_delay, scenario.message_delay) = (delay, delay);
    (scenario.loss, scenario.duplicates) = (Ratio::NEVER, Ratio::NEVER);
    scenario.drift_ppm = vec![0; nodes];
    scenario.wild_clocks = false;
    scenario.unclean_allow = false;
    scenario.host_ns = 200 * US;
    scenario.mix.gap_ns = 20 * MS;
    scenario.mix.flushes = scenario.mix.flushes.max(2);
    scenario.faults = Vec::new();
    scenario.safety_ns = PLAY_NS;
    shape(&mut scenario);
    let mut play = Play(World::new(
        scenario,
        None,
        Trace::new(Telling::Tail, false),
        None,
    ));
    let up = play.until(10_000, |p| {
        p.serves().is_some() && p.members().len() == u32::from(data)
    });
    assert!(up, "seed {seed}: the cluster never serves");
    play.run(500);
    play
}

impl Play {
    /// Time goes by.
    fn run(&mut self, ms: u64) {
        let until = self.0.now + ms * MS;
        while self.0.now < until && self.0.step() {}
        self.sound();
    }

    /// Time goes by until this holds; false if it never does.
    fn until(&mut self, ms: u64, holds: impl Fn(&Self) -> bool) -> bool {
        let until = self.0.now + ms * MS;
        while self.0.now < until && !holds(self) && self.0.step() {}
        self.sound();
        holds(self)
    }

    /// No checker has found anything.
    fn sound(&self) {
        if let Some(Outcome::Failed(why)) = &self.0.outcome {
            let story = self.0.trace.tail().join("\n");
            panic!("seed {}: {why}\n{story}", self.0.scenario.seed);
        }
    }

    /// Faults have ended; in the end all is well.
    fn well(mut self) {
        let outcome = self.0.run();
        self.sound();
        assert_eq!(outcome, Outcome::Well);
    }

    // ---- what is

    /// Who serves the committed epoch, address and all.
    fn serves(&self) -> Option<usize> {
        let epoch = self.epoch();
        self.0
            .nodes
            .iter()
            .position(|n| n.open_epoch == Some(epoch) && n.host.vip)
    }

    fn primary(&self) -> usize {
        self.serves().unwrap_or_else(|| panic!("somebody serves"))
    }

    /// A data node that does not serve.
    fn secondary(&self) -> usize {
        usize::from(self.primary() == 0)
    }

    fn epoch(&self) -> u64 {
        let committed = self.0.checks.promotion.committed();
        committed.map_or(0, |v| v.epoch.0)
    }

    fn members(&self) -> NodeSet {
        self.0.checks.promotion.in_sync()
    }

    fn is_member(&self, n: usize) -> bool {
        self.members().has(NodeId(n as u8))
    }

    // ---- what is done to it

    /// SIGKILL; the daemon is back after a while.
    fn kill(&mut self, n: usize, down_ms: u64) {
        self.0.compare_now();
        self.0.end_daemon(n, false);
        self.0.start_later(n, down_ms * MS);
    }

    /// The machine loses power and is back after a while.
    fn power_cut(&mut self, n: usize, down_ms: u64) {
        self.0.cut_power(n, down_ms * MS);
    }

    /// SIGSTOP, and SIGCONT after a while.
    fn pause(&mut self, n: usize, ms: u64) {
        self.0.nodes[n].paused = true;
        let life = self.0.nodes[n].life;
        let at = self.0.now + ms * MS;
        self.0
            .agenda
            .at(at, Ev::Undo(Undo::Resume { node: n, life }));
    }

    /// Nothing goes from one to the other for a while.
    fn block(&mut self, net: Net, from: usize, to: usize, ms: u64) {
        let end = self.0.now + ms * MS;
        let of = |data| Ev::Undo(Undo::Open { data, from, to });
        if net != Net::Control {
            self.0.data_blocks.block(from, to);
            self.0.agenda.at(end, of(true));
            if let Some(link) = self.0.link_of(NodeId(from as u8), NodeId(to as u8)) {
                let conn = self.0.links[link].conn;
                self.0.give_up_later(link, conn);
            }
        }
        if net != Net::Data {
            self.0.message_blocks.block(from, to);
            self.0.agenda.at(end, of(false));
        }
    }

    /// Both ways.
    fn part(&mut self, net: Net, a: usize, b: usize, ms: u64) {
        self.block(net, a, b, ms);
        self.block(net, b, a, ms);
    }

    fn others(&self, n: usize) -> Vec<usize> {
        (0..self.0.nodes.len()).filter(|&m| m != n).collect()
    }

    /// From all others, both ways.
    fn isolate(&mut self, net: Net, n: usize, ms: u64) {
        for other in self.others(n) {
            self.part(net, n, other, ms);
        }
    }

    /// The disk ends nothing for a while.
    fn hang(&mut self, n: usize, ms: u64) {
        let until = self.0.now + ms * MS;
        if let Some(disk) = &mut self.0.nodes[n].disk {
            disk.hung_until = until;
        }
        let look = self.0.now + S;
        self.0.agenda.at(look, Ev::Stall { node: n });
    }

    /// The disk fails like this, until somebody replaces it.
    fn errors(&mut self, n: usize, errors: Errors, replaced_after_ms: u64) {
        self.0.nodes[n].bad_disk = true;
        if let Some(disk) = &mut self.0.nodes[n].disk {
            disk.errors = errors;
        }
        let at = self.0.now + replaced_after_ms * MS;
        self.0.agenda.at(at, Ev::Undo(Undo::Replace { node: n }));
    }

    /// An operator moves the primary.
    fn promote(&mut self, n: usize) {
        let request = AdminRequest::Promote {
            resource: RESOURCE.into(),
            node: Some(NodeId(n as u8)),
            force: None,
        };
        self.0.admin(n, request);
    }
}
