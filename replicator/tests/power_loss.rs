//! A loss of power at every write point of a volume's life. While a scenario runs (writes and evictions,
//! a flush, shrink, resync, grow, failover, clean stop), after each event every image that a loss of power
//! may leave of each disk is read back, and of some of them a cluster is started again.
//!
//! - G4: a block that differs between two images is named by a bit or a log extent on one of them;
//! - a promise, a run, the mark that a resync is under way are on disk before they are told;
//! - a clean mark stands only over an empty log; nothing is ever damaged;
//! - G1: what a flush was answered for is on every member, and after a restart still there on all;
//! - G7: from each of those states the replicas become equal again.
//!
//! Every check is seen to fail with a rule switched off or on a disk that lies.

mod common;

use common::power::{Disk, Rng};
use common::{BLOCK, Cluster, GEOMETRY};
use holdfast_meta::{Recovered, locate, superblock_range};
use holdfast_replicator::{Event, FromControl, Request, Rule};
use holdfast_types::{DiskState, NodeId, NodeSet};
use std::cell::RefCell;
use std::rc::Rc;

/// Pending units up to which every subset is looked at here; the images are looked at in pairs.
const EXHAUSTIVE: usize = 9;
/// One point in so many is continued with a restart.
const RESTART_ONE_IN: u64 = 12;
/// Orders of events looked at.
const SEEDS: u64 = 24;
const DATA_END: usize = 64 * BLOCK;

/// A part of the disk whose writes are called stable before they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    Superblock,
    Log,
    Bitmaps,
    Flush,
    /// All of it, flushes too.
    Everything,
}

fn recover(image: &[u8]) -> Result<Recovered, String> {
    let bytes = image.len() as u64;
    let part = |(at, len): (u64, u64)| &image[at as usize..(at + len) as usize];
    superblock_range(bytes)
        .and_then(|range| locate(bytes, part(range)))
        .and_then(|located| {
            let region = located.layout.region();
            located.recover(part(region))
        })
        .map_err(|e| format!("cannot be read: {e}"))
}

/// A disk as it may come back.
struct Image {
    bytes: Vec<u8>,
    meta: Recovered,
}

impl Image {
    fn of(bytes: &[u8]) -> Result<Self, String> {
        Ok(Self {
            bytes: bytes.to_vec(),
            meta: recover(bytes)?,
        })
    }

    fn block(&self, block: u64) -> &[u8] {
        &self.bytes[block as usize * BLOCK..][..BLOCK]
    }

    fn traces(&self, block: u64, peer: NodeId) -> bool {
        let extent = GEOMETRY.extent_of(block);
        let bits = self.meta.bitmaps.iter().find(|(node, _)| *node == peer);
        self.meta.log.active.contains(&extent) || bits.is_none_or(|(_, bits)| bits.get(block))
    }
}

#[derive(Default)]
struct Found {
    points: u64,
    images: u64,
    restarts: u64,
    wrong: Option<String>,
    /// Blocks and values that a flush was answered for and that are not written again.
    held: Vec<(u64, u8)>,
    rng: Option<Rng>,
    /// Only what says this is wrong; to see a check fail that others would forestall.
    only: &'static str,
    /// Bitmap sectors of each that were never written: they count as damaged, and all dirty.
    unwritten: Vec<u32>,
    /// What was looked at last, by name.
    last: Vec<(usize, Vec<u8>)>,
}

impl Found {
    fn look(&mut self, c: &Cluster) {
        if self.wrong.is_some() {
            return;
        }
        let disks: Vec<&Disk> = c
            .sites
            .iter()
            .map(|s| s.power.as_ref().expect("watched"))
            .collect();
        let now: Vec<_> = disks.iter().map(|d| (d.pending(), d.cached())).collect();
        if now == self.last {
            return;
        }
        self.last = now;
        self.points += 1;
        if let Err(wrong) = self.point(c, &disks) {
            self.wrong = Some(format!("point {}: {wrong}", self.points));
        }
    }

    fn point(&mut self, c: &Cluster, disks: &[&Disk]) -> Result<(), String> {
        let mut rng = self.rng.clone().expect("set at the start");
        let mut all: Vec<Vec<Image>> = Vec::new();
        for (n, disk) in disks.iter().enumerate() {
            let mut images = Vec::new();
            disk.images(EXHAUSTIVE, &mut rng, |bytes| {
                images.push(Image::of(bytes).and_then(|i| self.alone(c, n, &i).map(|()| i)));
            });
            self.images += images.len() as u64;
            let images: Result<Vec<_>, _> = images.into_iter().collect();
            all.push(images.map_err(|e| format!("n{n}: {e}"))?);
        }
        for a in 0..all.len() {
            for b in 0..a {
                let (na, nb) = (NodeId(a as u8), NodeId(b as u8));
                if !c.view.in_sync.has(na) && !c.view.in_sync.has(nb) {
                    continue;
                }
                // Each of one side with both extremes and a few others of the other side.
                for (from, to) in [(a, b), (b, a)] {
                    for x in &all[from] {
                        let others = all[to].len() as u64;
                        let picks = [0, others - 1, rng.below(others), rng.below(others)];
                        for pick in picks {
                            let (from, to) = (NodeId(from as u8), NodeId(to as u8));
                            let other = &all[usize::from(to.0)][pick as usize];
                            traced(x, from, other, to).or_else(|wrong| self.say(wrong))?;
                        }
                    }
                }
            }
        }
        if rng.one_in(RESTART_ONE_IN) {
            self.restart(c, &mut all, &mut rng)?;
        }
        self.rng = Some(rng);
        Ok(())
    }

    /// What must hold of one image by itself.
    fn say(&self, wrong: String) -> Result<(), String> {
        if wrong.contains(self.only) {
            Err(wrong)
        } else {
            Ok(())
        }
    }

    fn alone(&self, c: &Cluster, n: usize, image: &Image) -> Result<(), String> {
        let (s, told) = (&image.meta.superblock, c.sites[n].told);
        let node = NodeId(n as u8);
        if image.meta.damaged_sectors > self.unwritten[n] {
            self.say(format!("{} damaged sectors", image.meta.damaged_sectors))?;
        }
        if s.promised < told.promised {
            self.say(format!(
                "promise {} told, {} kept",
                told.promised.0, s.promised.0
            ))?;
        }
        if s.run < told.run {
            self.say(format!("run {} told, {} kept", told.run.0, s.run.0))?;
        }
        if told.syncing && !c.view.in_sync.has(node) && s.disk == DiskState::UpToDate {
            self.say("a resync is under way and the disk says it is whole".into())?;
        }
        if s.clean && s.run.0 > 0 && !image.meta.log.active.is_empty() {
            self.say(format!(
                "a clean mark over extents {:?}",
                image.meta.log.active
            ))?;
        }
        let lost = |(block, value): &&(u64, u8)| image.block(*block).iter().any(|b| b != value);
        match self.held.iter().find(lost) {
            Some((block, value)) if c.view.in_sync.has(node) => self.say(format!(
                "G1: block {block} was flushed with {value} and is {:?} on a member",
                &image.block(*block)[..2]
            )),
            _ => Ok(()),
        }
    }

    /// Power goes on one node or on all; what comes back must become whole again by itself.
    fn restart(
        &mut self,
        c: &Cluster,
        all: &mut [Vec<Image>],
        rng: &mut Rng,
    ) -> Result<(), String> {
        self.restarts += 1;
        let mut again = Cluster::new(0, &[]);
        again.view = c.view;
        let cut: Vec<bool> = all.iter().map(|_| rng.one_in(2)).collect();
        for (n, images) in all.iter_mut().enumerate() {
            // Without a loss of power what was written is there: the last image has all of it.
            let pick = if cut[n] {
                rng.below(images.len() as u64) as usize
            } else {
                images.len() - 1
            };
            let bytes = if cut[n] {
                images.swap_remove(pick).bytes
            } else {
                c.sites[n].power.as_ref().expect("watched").cached()
            };
            let mut site = Cluster::site(n, c.view.data_nodes, bytes);
            site.boot = c.sites[n].boot + u128::from(cut[n]);
            again.sites.push(site);
        }
        for n in 0..all.len() {
            again.start(n);
        }
        // The control plane prefers a member that lost nothing.
        let members = || c.view.in_sync.iter().map(|n| usize::from(n.0));
        let first = members().find(|&n| !cut[n]).or_else(|| members().next());
        let first = first.ok_or("no member")?;
        again.promote(first);
        again.pass(4000);
        let whole: NodeSet = c.view.data_nodes;
        let how = format!("after power was lost on {cut:?} and n{first} was promoted");
        if again.view.in_sync != whole || again.sites[first].opened.is_none() {
            self.say(format!("G7: in sync are {:?} {how}", again.view.in_sync))?;
        }
        let area = GEOMETRY.bytes() as usize;
        for site in &again.sites {
            if site.disk[..area] != again.sites[first].disk[..area] {
                self.say(format!("the replicas differ for good {how}"))?;
            }
        }
        for &(block, value) in &self.held {
            if again.sites[first].disk[block as usize * BLOCK] != value {
                self.say(format!("G1: block {block} lost its {value} {how}"))?;
            }
        }
        Ok(())
    }
}

/// G4 between two images.
fn traced(a: &Image, node_a: NodeId, b: &Image, node_b: NodeId) -> Result<(), String> {
    if a.bytes[..DATA_END] == b.bytes[..DATA_END] {
        return Ok(());
    }
    for block in 0..GEOMETRY.blocks {
        if a.block(block) != b.block(block) && !a.traces(block, node_b) && !b.traces(block, node_a)
        {
            return Err(format!(
                "G4: block {block} is {:?} on {node_a} and {:?} on {node_b} without a trace; logs {:?} and {:?}",
                &a.block(block)[..2],
                &b.block(block)[..2],
                a.meta.log.active,
                b.meta.log.active
            ));
        }
    }
    Ok(())
}

struct Run {
    c: Cluster,
    found: Rc<RefCell<Found>>,
}

impl Run {
    fn new(
        nodes: usize,
        members: &[u8],
        seed: u64,
        off: Option<Rule>,
        lie: Option<Lie>,
        only: &'static str,
    ) -> Self {
        let mut c = Cluster::unstarted(nodes, &(0..nodes as u8).collect::<Vec<_>>(), members);
        c.off = off;
        c.chance = Some(Rng(seed));
        let found = Rc::new(RefCell::new(Found {
            rng: Some(Rng(!seed)),
            only,
            ..Found::default()
        }));
        for site in &mut c.sites {
            let made = recover(&site.disk).expect("just made");
            let layout = made.layout;
            found.borrow_mut().unwritten.push(made.damaged_sectors);
            let mut disk = Disk::new(site.disk.clone(), 512, DATA_END, BLOCK);
            match lie {
                None => {}
                Some(Lie::Superblock) => disk.lies(layout.superblock_offset, layout.region_end),
                Some(Lie::Log) => disk.lies(layout.log_offset, layout.superblock_offset),
                Some(Lie::Bitmaps) => disk.lies(layout.region_offset, layout.log_offset),
                Some(Lie::Flush) => disk.flushes_nothing(),
                Some(Lie::Everything) => {
                    disk.lies(0, layout.region_end);
                    disk.flushes_nothing();
                }
            }
            site.power = Some(disk);
        }
        let looking = Rc::clone(&found);
        c.watch = Some(Box::new(move |c| looking.borrow_mut().look(c)));
        for n in 0..nodes {
            c.start(n);
        }
        Self { c, found }
    }

    /// Some writes at once, then whatever may happen for a few steps.
    fn writes(&mut self, n: usize, blocks: impl IntoIterator<Item = u64>, value: u8) -> Vec<u64> {
        let mut requests = Vec::new();
        for block in blocks {
            requests.push(self.c.write(n, block, value));
            for _ in 0..3 {
                self.c.any();
            }
        }
        requests
    }

    /// These blocks are written, and the flush after it is answered: from now on they are held.
    fn hold(&mut self, n: usize, blocks: &[u64], value: u8) {
        let mut requests = self.writes(n, blocks.iter().copied(), value);
        self.c.settle();
        requests.push(self.c.request(n, Request::Flush));
        self.c.settle();
        if requests.iter().all(|&r| self.c.acked(n, r)) {
            let mut found = self.found.borrow_mut();
            found.held.extend(blocks.iter().map(|&b| (b, value)));
        }
    }

    fn end(self) -> Found {
        let Self { c, found } = self;
        drop(c);
        let found = Rc::try_unwrap(found).ok().expect("the cluster is gone");
        found.into_inner()
    }
}

/// Everything that writes metadata: sixteen extents, eight slots.
fn life(
    nodes: usize,
    members: &[u8],
    seed: u64,
    off: Option<Rule>,
    lie: Option<Lie>,
    only: &'static str,
) -> Found {
    let mut r = Run::new(nodes, members, seed, off, lie, only);
    let last = nodes - 1;
    r.c.promote(0);
    r.hold(0, &[0, 5, 61], 1);
    // All extents in turn: evictions.
    r.writes(0, (0..16).map(|e| e * 4 + 2), 2);
    r.c.settle();
    r.c.pass(100);
    // The last one goes; the set shrinks; bits for it, under evictions.
    r.c.kill(last);
    r.c.pass(700);
    r.writes(0, (0..16).rev().map(|e| e * 4 + 3), 3);
    r.c.settle();
    // All that is in the log once more, then others: the first to leave has bits that were never saved, and
    // the log of the one that is gone does not name it.
    r.writes(0, [4, 8, 12, 16, 20, 24, 28, 1], 10);
    r.c.settle();
    r.writes(0, [34, 38, 42, 46], 10);
    r.c.settle();
    r.hold(0, &[9, 29], 4);
    r.c.pass(2100);
    // It comes back, is resynced under writes, and is taken in.
    r.c.start(last);
    r.writes(0, [4, 8, 12, 44], 5);
    r.c.pass(1500);
    r.hold(0, &[17], 6);
    // The primary goes with writes under way; another one takes over; it comes back.
    r.writes(0, [2, 6, 22, 30, 50], 7);
    r.c.kill(0);
    r.c.settle();
    r.c.promote(last);
    r.c.pass(700);
    r.writes(last, [3, 7, 23, 31, 51], 8);
    r.c.settle();
    r.c.start(0);
    r.c.pass(2500);
    r.hold(last, &[33], 9);
    // A clean stop of all, the primary last.
    for n in (0..nodes).filter(|&n| n != last).chain([last]) {
        r.c.event(n, Event::Control(FromControl::Stop));
        r.c.settle();
    }
    let stopped = r.c.sites.iter().all(|s| s.stopped);
    let found = r.end();
    assert!(
        stopped || found.wrong.is_some(),
        "the scenario did not come to its end"
    );
    found
}

#[test]
fn a_loss_of_power_at_any_write_point_leaves_a_legal_state() {
    let mut sum = (0, 0, 0);
    for seed in 0..SEEDS {
        let (nodes, members) = [(2, &[0, 1][..]), (2, &[0]), (3, &[0, 1, 2])][seed as usize % 3];
        let found = life(nodes, members, seed, None, None, "");
        if let Some(wrong) = found.wrong {
            panic!("seed {seed}, {nodes} nodes: {wrong}");
        }
        assert!(found.held.len() >= 5, "flushes were answered");
        sum.0 += found.points;
        sum.1 += found.images;
        sum.2 += found.restarts;
    }
    println!("{} points, {} images, {} restarts", sum.0, sum.1, sum.2);
    assert!(sum.0 > 1000 && sum.1 > 5000 && sum.2 > 50, "{sum:?}");
}

/// Each check fails where it should: the first bug or lie it is there for.
#[test]
fn every_rule_that_is_off_and_every_lie_is_found() {
    let cases: [(Option<Rule>, Option<Lie>, &str); 11] = [
        (Some(Rule::EvictTrace), None, "G4"),
        (Some(Rule::BitsUntilAnswered), None, "G1"),
        (Some(Rule::FlushByAll), None, "G1"),
        (None, Some(Lie::Superblock), "promise"),
        (None, Some(Lie::Everything), "run"),
        (None, Some(Lie::Superblock), "resync is under way"),
        (None, Some(Lie::Log), "G4"),
        (None, Some(Lie::Bitmaps), "G4"),
        (None, Some(Lie::Log), "clean mark"),
        (None, Some(Lie::Flush), "G1"),
        (None, Some(Lie::Flush), "differ for good"),
    ];
    for (off, lie, what) in cases {
        let found = (1..6).find_map(|seed| life(2, &[0, 1], seed, off, lie, what).wrong);
        let found = found.unwrap_or_else(|| panic!("{off:?} {lie:?} was not found"));
        println!("{off:?} {lie:?}: {found}");
        assert!(
            found.contains(what),
            "{off:?} {lie:?} was found as: {found}"
        );
    }
}
