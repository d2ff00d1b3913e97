//! Replicas that are added to and removed from the record.

use super::world::World;
use crate::state::Command;
use crate::*;
use holdfast_types::{Incarnation, NodeId, NodeSet};

const V: VolumeIx = VolumeIx(0);

fn set(nodes: &[u8]) -> NodeSet {
    nodes.iter().map(|n| NodeId(*n)).collect()
}

fn remove(node: u8) -> AdminRequest {
    AdminRequest::ReplicaRemove {
        resource: "r0".into(),
        volume: V,
        node: NodeId(node),
    }
}

fn add(node: u8, disk: u64) -> AdminRequest {
    AdminRequest::ReplicaAdd {
        resource: "r0".into(),
        volume: V,
        node: NodeId(node),
        incarnation: Incarnation(disk),
    }
}

fn refusal(w: &mut World, h: usize, request: AdminRequest) -> String {
    match w.ask(h, request, 70_000) {
        AdminReply::Refused { message } => message,
        other => panic!("not refused: {other:?}"),
    }
}

fn up_with_three(seed: u64) -> World {
    let mut w = World::with(seed, &[0, 1, 2], 1, 1);
    w.create();
    w.run_until(20_000, |w| w.primary_up(0) == Some(0));
    w.run(1000);
    w
}

#[test]
fn a_replica_is_removed_from_any_node_and_its_own_node_forgets_it() {
    for (seed, asked) in [(1, 0), (2, 1), (3, 2)] {
        let mut w = up_with_three(seed);
        let reply = w.ask(asked, remove(2), 70_000);
        assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
        w.run(2000);
        let volume = &w.record(0).volumes[0];
        assert_eq!(volume.data_nodes(), set(&[0, 1]));
        assert_eq!(volume.in_sync, set(&[0, 1]));
        assert_eq!(w.forgotten, vec![(2, ResourceIx(0), V)]);
        let nodes = &w.status(1).resources[0].nodes;
        assert_eq!(
            nodes.iter().map(|n| n.node).collect::<NodeSet>(),
            set(&[0, 1])
        );
        // It is not promoted, whatever its configuration says.
        w.crash(0, false);
        w.run_until(20_000, |w| w.primary_up(0) == Some(1));
    }
}

#[test]
fn a_node_that_was_away_forgets_its_replica_when_it_comes_back() {
    let mut w = up_with_three(4);
    w.crash(2, false);
    w.run(3000);
    let reply = w.ask(1, remove(2), 70_000);
    assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
    w.boot(2);
    w.run_until(10_000, |w| !w.forgotten.is_empty());
    assert_eq!(w.forgotten, vec![(2, ResourceIx(0), V)]);
}

#[test]
fn the_primary_and_the_only_copy_are_not_removed() {
    let mut w = up_with_three(5);
    assert!(refusal(&mut w, 1, remove(0)).contains("promote another"));
    w.grow = false;
    w.crash(1, false);
    w.crash(0, false);
    w.boot(1);
    w.run_until(30_000, |w| w.primary_up(0).is_some_and(|p| p != 0));
    let primary = w.primary_up(0).unwrap();
    w.run(3000);
    w.boot(0);
    w.run(3000);
    let sole = w.record(primary).volumes[0].in_sync;
    for node in sole.without(NodeId(primary as u8)).iter() {
        let reply = w.ask(primary, remove(node.0), 70_000);
        assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
    }
    assert!(refusal(&mut w, primary, remove(primary as u8)).contains("primary"));
    let demote = AdminRequest::Demote {
        resource: "r0".into(),
    };
    w.ask(primary, demote, 70_000);
    assert!(refusal(&mut w, primary, remove(primary as u8)).contains("alone has the newest data"));
}

#[test]
fn a_member_needs_a_primary_that_lets_it_go() {
    let mut w = up_with_three(6);
    let demote = AdminRequest::Demote {
        resource: "r0".into(),
    };
    w.ask(0, demote, 70_000);
    assert!(refusal(&mut w, 0, remove(2)).contains("no primary runs"));
    let generation = w.record(0).generation;
    let command = Command::ReplicaRemove {
        resource: ResourceIx(0),
        volume: V,
        generation,
        node: NodeId(2),
    };
    let state = w.hosts[0].node.as_ref().unwrap().state();
    assert!(
        !state.may_apply(&command),
        "no member without its primary's word"
    );
}

#[test]
fn a_replica_is_added_once_and_is_not_trusted_before_it_is_in_sync() {
    let mut w = up_with_three(7);
    w.ask(0, remove(2), 70_000);
    w.run(1000);
    w.crash(2, false);
    w.hosts[2].replicas[0][0].incarnation = 999;
    for _ in 0..2 {
        // Asked again, as after a crash of who asked: nothing more happens.
        let reply = w.ask(1, add(2, 999), 70_000);
        assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
    }
    let replica = w.record(0).volumes[0].replicas[&NodeId(2)];
    assert!(replica.suspect);
    assert_eq!(w.record(0).volumes[0].in_sync, set(&[0, 1]));
    assert!(refusal(&mut w, 0, add(2, 1000)).contains("already"));
    w.boot(2);
    w.run_until(20_000, |w| {
        w.record(0).volumes[0].in_sync == set(&[0, 1, 2])
    });
    assert!(!w.record(0).volumes[0].replicas[&NodeId(2)].suspect);
    assert_eq!(
        w.forgotten.len(),
        1,
        "the new one is not taken for the old one"
    );
}
