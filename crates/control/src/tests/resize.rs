//! Volumes that grow and shrink.

use super::world::World;
use crate::*;
use holdfast_types::{NodeId, NodeSet};

const V: VolumeIx = VolumeIx(0);
const MIB: u64 = 1 << 20;

fn resize(size_bytes: u64, shrink: Option<&str>) -> AdminRequest {
    AdminRequest::Resize {
        resource: "r0".into(),
        volume: V,
        size_bytes,
        shrink: shrink.map(Into::into),
    }
}

fn size(w: &World, h: usize) -> (u64, Option<u64>) {
    let volume = &w.record(h).volumes[0];
    (volume.size_bytes, volume.target_bytes)
}

fn refusal(w: &mut World, h: usize, request: AdminRequest) -> String {
    match w.ask(h, request, 70_000) {
        AdminReply::Refused { message } => message,
        other => panic!("not refused: {other:?}"),
    }
}

fn demote(w: &mut World) {
    let request = AdminRequest::Demote {
        resource: "r0".into(),
    };
    let reply = w.ask(0, request, 70_000);
    assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
    w.run(500);
}

#[test]
fn it_grows_once_every_member_has_the_room() {
    let mut w = World::up(1);
    w.run(1000);
    w.roomy.remove(&1);
    let id = w.post(2, resize(2 * MIB, None));
    w.run(5000);
    assert_eq!(size(&w, 0), (MIB, Some(2 * MIB)), "n1 has no room yet");
    let waits = w.status(0).resources[0].waiting.clone().unwrap();
    assert!(waits.contains("n1") && waits.contains("grows"), "{waits}");
    // Its node starts again, with room.
    w.roomy.insert(1);
    w.crash(1, false);
    w.boot(1);
    w.run_until(20_000, |w| size(w, 0) == (2 * MIB, None));
    let _ = id;
}

#[test]
fn a_member_that_leaves_holds_nothing_up() {
    let mut w = World::up(2);
    w.run(1000);
    w.roomy.remove(&1);
    w.post(0, resize(2 * MIB, None));
    w.run(1000);
    w.crash(1, false);
    w.run_until(20_000, |w| size(w, 0) == (2 * MIB, None));
    assert_eq!(w.record(0).volumes[0].in_sync, NodeSet::only(NodeId(0)));
}

#[test]
fn growing_survives_any_leader_and_primary() {
    for seed in 10..16 {
        let mut w = World::up(seed);
        w.run(1000);
        w.roomy.clear();
        w.post(0, resize(4 * MIB, None));
        w.run(500);
        w.crash(0, false);
        w.run_until(20_000, |w| w.primary_up(0) == Some(1));
        w.roomy = (0..3).collect();
        w.boot(0);
        w.crash(1, false);
        w.boot(1);
        w.run_until(60_000, |w| size(w, 2) == (4 * MIB, None));
    }
}

#[test]
fn it_is_called_off_by_asking_for_the_present_size() {
    let mut w = World::up(3);
    w.run(1000);
    w.roomy.clear();
    w.post(0, resize(2 * MIB, None));
    w.run(1000);
    assert_eq!(size(&w, 0).1, Some(2 * MIB));
    let reply = w.ask(1, resize(MIB, None), 70_000);
    assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
}

#[test]
fn it_shrinks_only_by_consent_and_while_nobody_uses_it() {
    let mut w = World::up(4);
    w.run(1000);
    let half = MIB / 2;
    assert!(refusal(&mut w, 0, resize(half, None)).contains(SHRINK_CONSENT));
    assert!(refusal(&mut w, 0, resize(half, Some("yes"))).contains(SHRINK_CONSENT));
    assert!(refusal(&mut w, 1, resize(half, Some(SHRINK_CONSENT))).contains("demote"));
    assert!(refusal(&mut w, 1, resize(1000, Some(SHRINK_CONSENT))).contains("whole number"));
    demote(&mut w);
    let reply = w.ask(1, resize(half, Some(SHRINK_CONSENT)), 70_000);
    assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
    assert_eq!(size(&w, 0), (half, None));
    // And it may grow again, when what was given up is zero everywhere.
    let reply = w.ask(0, resize(2 * MIB, None), 70_000);
    assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
}

#[test]
fn a_restarted_node_tells_no_size_from_before_the_volume_grew() {
    let mut w = World::up(5);
    w.run(1000);
    // What the nodes store of the state is from now; what they know of the growing is in the log behind it.
    for at in 1..70 {
        let request = AdminRequest::Care {
            resource: "r0".into(),
            volume: V,
            care: Care::ScrubDue(at),
        };
        w.ask(0, request, 3000);
    }
    w.ask(0, resize(2 * MIB, None), 70_000);
    w.run(500);
    for h in [1, 0] {
        w.crash(h, false);
        w.boot(h);
        w.run(5000);
    }
    for h in [0, 1] {
        let sizes = &w.hosts[h].replicas[0][0].sizes;
        assert!(
            sizes.is_sorted() && sizes.last() == Some(&(2 * MIB)),
            "{sizes:?}"
        );
    }
}
