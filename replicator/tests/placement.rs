//! Replicas that come and go by chance, among writes, kills, cut links and failovers. What was acknowledged stays,
//! and in the end all replicas that are recorded are equal and in sync.

mod common;

use common::power::Rng;
use common::{BLOCK, Cluster, GEOMETRY};
use holdfast_replicator::Rule;
use holdfast_types::{NodeId, NodeSet};
use std::collections::BTreeMap;

const NODES: usize = 4;
const SEEDS: u64 = 120;
const STEPS: usize = 60;

/// What the application knows: per block its writes in order, and which was acknowledged last.
#[derive(Default)]
struct Application {
    begun: BTreeMap<u64, u8>,
    acknowledged: BTreeMap<u64, u8>,
    waiting: Vec<(usize, u64, u64, u8)>,
    /// Writes acknowledged, replicas added, replicas removed, promotions.
    seen: [u64; 4],
}

impl Application {
    fn write(&mut self, c: &mut Cluster, n: usize, block: u64) {
        let value = self.begun.entry(block).or_insert(0);
        *value += 1;
        let req = c.write(n, block, *value);
        self.waiting.push((n, req, block, *value));
    }

    fn look(&mut self, c: &Cluster) {
        let acknowledged = &mut self.acknowledged;
        self.waiting.retain(|&(n, req, block, value)| {
            let acked = c.acked(n, req);
            if acked {
                let last = acknowledged.entry(block).or_insert(0);
                *last = (*last).max(value);
                self.seen[0] += 1;
            }
            !acked
        });
    }
}

fn alive(c: &Cluster, n: NodeId) -> bool {
    c.sites[usize::from(n.0)].replica.is_some()
}

fn place(c: &mut Cluster, nodes: NodeSet) {
    let nodes: Vec<u8> = nodes.iter().map(|n| n.0).collect();
    c.place_without_settling(&nodes);
}

/// One thing that happens; the application writes all the time.
fn step(c: &mut Cluster, app: &mut Application, rng: &mut Rng) {
    let node = NodeId(rng.below(NODES as u64) as u8);
    let n = usize::from(node.0);
    let primary = c.view.primary.filter(|p| alive(c, *p));
    if let Some(primary) = primary {
        for _ in 0..rng.below(4) {
            app.write(c, usize::from(primary.0), rng.below(GEOMETRY.blocks));
        }
    }
    for _ in 0..rng.below(30) {
        c.any();
    }
    let settled = rng.one_in(2);
    match rng.below(10) {
        0 => c.kill(n),
        1 | 2 if !alive(c, node) => c.start(n),
        3 => c.cut(n),
        4 if c.view.data_nodes.has(node) && !c.view.in_sync.has(node) => {
            if c.view.primary != Some(node) {
                app.seen[2] += 1;
                place(c, c.view.data_nodes.without(node));
            }
        }
        5 | 6 if !c.view.data_nodes.has(node) => {
            app.look(c);
            c.kill(n);
            c.blank(n);
            app.seen[1] += 1;
            place(c, c.view.data_nodes.with(node));
            if settled {
                c.start(n);
            }
        }
        7 if primary.is_none() && c.view.in_sync.has(node) && alive(c, node) => c.promote(n),
        8 if rng.one_in(3) && c.view.in_sync.has(node) && alive(c, node) => {
            app.seen[3] += 1;
            c.promote(n);
        }
        _ => c.pass(rng.below(400)),
    }
    app.look(c);
}

fn play(seed: u64, off: Option<Rule>) -> Result<[u64; 4], String> {
    let mut c = Cluster::unstarted(NODES, &[0, 1, 2], &[0, 1, 2]);
    c.off = off;
    for n in 0..3 {
        c.start(n);
    }
    let mut rng = Rng(seed);
    c.chance = Some(Rng(!seed));
    c.promote(0);
    let mut app = Application::default();
    for _ in 0..STEPS {
        step(&mut c, &mut app, &mut rng);
    }
    for n in c.view.data_nodes.iter() {
        if !alive(&c, n) {
            c.start(usize::from(n.0));
        }
    }
    c.pass(1000);
    let first = c.view.in_sync.iter().next().expect("never empty");
    let first = usize::from(first.0);
    c.promote(first);
    // The longest that a member which came and went is kept out.
    c.pass(45_000);
    app.look(&c);
    let whole = c.view.data_nodes;
    if c.view.in_sync != whole {
        return Err(format!("in sync are {:?} of {whole:?}", c.view.in_sync));
    }
    let bytes = GEOMETRY.bytes() as usize;
    for n in whole.iter() {
        if c.sites[usize::from(n.0)].disk[..bytes] != c.sites[first].disk[..bytes] {
            return Err(format!("{n} differs"));
        }
    }
    for (&block, &last) in &app.acknowledged {
        let held = c.sites[first].disk[block as usize * BLOCK];
        if !(last..=app.begun[&block]).contains(&held) {
            return Err(format!(
                "block {block} holds {held}, {last} was acknowledged"
            ));
        }
    }
    Ok(app.seen)
}

#[test]
fn replicas_come_and_go_by_chance() {
    let mut sum = [0; 4];
    for seed in 0..SEEDS {
        let seen = play(seed, None).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        for (sum, seen) in sum.iter_mut().zip(seen) {
            *sum += seen;
        }
    }
    assert!(
        sum.iter().all(|&n| n > SEEDS / 2),
        "too little happened: {sum:?}"
    );
}

#[test]
fn bits_that_go_without_an_answer_are_found() {
    let found = (0..SEEDS).find_map(|seed| play(seed, Some(Rule::BitsUntilAnswered)).err());
    let found = found.expect("nothing was found");
    assert!(
        found.contains("differs") || found.contains("acknowledged"),
        "{found}"
    );
}
