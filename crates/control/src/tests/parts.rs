//! The rooms one by one.

use crate::durable::{self, DurableError, Slots, Stored};
use crate::lease::{Claim, Grantor, Holder, Renewal};
use crate::message::{Body, Entry, Hello, Position, RaftId, RaftMessage, Verdict, WireConfig};
use crate::rng::Rng;
use crate::state::{Applied, ClusterState, Command, Promotion};
use crate::*;
use holdfast_types::{Epoch, Gen, Incarnation, NodeId, NodeSet, Run, VolumeId};
use std::collections::BTreeMap;

const R: ResourceIx = ResourceIx(0);
const V: VolumeIx = VolumeIx(0);
const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const W: NodeId = NodeId(2);

fn both() -> NodeSet {
    NodeSet::only(A).with(B)
}

fn created() -> ClusterState {
    let mut state = ClusterState::default();
    let volumes = vec![CreateVolume {
        id: VolumeId(7),
        size_bytes: 4096,
        in_sync: both(),
        replicas: vec![(A, Incarnation(1)), (B, Incarnation(2))],
    }];
    let create = Command::Create {
        resource: R,
        name: "r".into(),
        volumes,
    };
    assert_eq!(state.apply(&create), Applied::Changed(R));
    assert_eq!(state.apply(&create), Applied::Nothing, "twice");
    state
}

fn record(state: &ClusterState) -> &ResourceRecord {
    &state.resources[&R]
}

fn takeover(state: &ClusterState, primary: NodeId) -> Command {
    let (generation, epoch) = (record(state).generation, record(state).epoch.next());
    Command::Takeover {
        resource: R,
        generation,
        epoch,
        primary,
        forced: None,
    }
}

fn change(state: &ClusterState, in_sync: NodeSet, peer: NodeId, why: SetChange) -> Command {
    let (generation, epoch) = (record(state).generation, record(state).epoch);
    let grows = in_sync.has(peer);
    let life = record(state)
        .replica(V, peer)
        .filter(|_| grows)
        .map(|r| (r.incarnation, r.run));
    Command::SetChange {
        resource: R,
        volume: V,
        generation,
        epoch,
        in_sync,
        peer,
        life,
        why,
    }
}

// ---- state

#[test]
fn commands_compare_the_generation() {
    let mut state = created();
    let first = takeover(&state, A);
    let rival = takeover(&state, B);
    assert_eq!(state.apply(&first), Applied::Promoted(R));
    assert_eq!(state.apply(&rival), Applied::Nothing);
    assert_eq!(
        state.apply(&first),
        Applied::Nothing,
        "repeating does nothing"
    );
    assert_eq!(
        (record(&state).epoch, record(&state).primary),
        (Epoch(1), Some(A))
    );
    let late = takeover(&state, B);
    let (generation, epoch) = (record(&state).generation, record(&state).epoch);
    assert_eq!(
        state.apply(&Command::Reassert {
            resource: R,
            generation,
            epoch
        }),
        Applied::Changed(R)
    );
    assert_eq!(state.apply(&late), Applied::Nothing, "reasserted");
}

#[test]
fn in_sync_sets_change_by_one_and_never_become_empty() {
    let mut state = created();
    state.apply(&takeover(&state.clone(), A));
    let wrong = [
        change(&state, both(), B, SetChange::Synced),
        change(&state, NodeSet::EMPTY, A, SetChange::Lost),
        change(&state, both().with(W), W, SetChange::Synced),
        change(&state, NodeSet::only(A), A, SetChange::Lost),
    ];
    for command in wrong {
        assert_eq!(state.apply(&command), Applied::Nothing, "{command:?}");
    }
    let shrink = change(&state, NodeSet::only(A), B, SetChange::Lost);
    assert_eq!(state.apply(&shrink), Applied::Set(R, V, SetChange::Lost));
    let last = change(&state, NodeSet::EMPTY, A, SetChange::DiskFailed);
    assert_eq!(state.apply(&last), Applied::Nothing, "rule 23");
    assert_eq!(
        state.apply(&takeover(&state.clone(), B)),
        Applied::Nothing,
        "outdated (G3)"
    );
    let grow = change(&state, both(), B, SetChange::Synced);
    assert_eq!(state.apply(&grow), Applied::Set(R, V, SetChange::Synced));
    assert_eq!(
        state.apply(&takeover(&state.clone(), B)),
        Applied::Promoted(R)
    );
}

#[test]
fn a_promise_is_as_long_as_the_longest_lease_asked_for() {
    let state = created();
    let r = Some(record(&state));
    let timing = Timing::default();
    let start = Now(1_000_000_000);
    let mut g = Grantor::new(&timing, start, BTreeMap::new());
    let t = start.plus_ms(timing.promise_ms() + 1);
    g.promise_at_least(timing.promise_for(timing.lease_ms * 5));
    assert_eq!(g.request(t, A, R, Epoch(1), r), Verdict::Granted);
    let claim = Claim {
        candidate: B,
        resource: R,
        epoch: Epoch(2),
        generation: record(&state).generation,
    };
    let free = g.free_in(t, &claim, r).expect("it would, later");
    assert!(free >= timing.lease_ms * 5 * 1_000_000, "{free}");
}

#[test]
fn a_new_run_kills_what_was_proposed_about_the_old_one() {
    let mut state = created();
    state.apply(&takeover(&state.clone(), A));
    state.apply(&change(
        &state.clone(),
        NodeSet::only(A),
        B,
        SetChange::Lost,
    ));
    let rival = takeover(&state, A);
    let grow = change(&state, both(), B, SetChange::Synced);
    let seen = |expect: u64, run: u64, incarnation: u64, unclean| Command::ReplicaSeen {
        resource: R,
        volume: V,
        node: B,
        expect: (Incarnation(2), Run(expect)),
        incarnation: Incarnation(incarnation),
        run: Run(run),
        nonce: 10 * run,
        unclean,
        outdated: false,
    };
    assert_eq!(state.apply(&seen(0, 5, 2, true)), Applied::Changed(R));
    assert_eq!(
        state.apply(&rival),
        Applied::Nothing,
        "the generation moved"
    );
    assert_eq!(state.apply(&grow), Applied::Nothing);
    assert_eq!(
        state.apply(&seen(0, 4, 2, false)),
        Applied::Nothing,
        "a late one of an older life"
    );
    let replica = *record(&state).replica(V, B).expect("is there");
    assert!(replica.unclean && !replica.suspect);
    // The same generation, but another life.
    let mut stale = change(&state, both(), B, SetChange::Synced);
    if let Command::SetChange { life, .. } = &mut stale {
        *life = Some((Incarnation(2), Run(4)));
    }
    assert_eq!(state.apply(&stale), Applied::Nothing, "rule 8");
    assert_eq!(state.apply(&seen(5, 3, 2, false)), Applied::Changed(R));
    assert!(
        record(&state).replica(V, B).is_some_and(|r| r.suspect),
        "run went back (rule 31)"
    );
    let grow = change(&state, both(), B, SetChange::Synced);
    assert_eq!(state.apply(&grow), Applied::Set(R, V, SetChange::Synced));
    let replica = *record(&state).replica(V, B).expect("is there");
    assert!(!replica.unclean && !replica.suspect, "resynced");
    assert_eq!(
        state.apply(&seen(3, 3, 2, false)),
        Applied::Nothing,
        "known already"
    );
    let mut twice = seen(3, 3, 2, false);
    if let Command::ReplicaSeen { nonce, .. } = &mut twice {
        *nonce = 31;
    }
    assert_eq!(state.apply(&twice), Applied::Changed(R));
    let view = record(&state).view(V).expect("is there");
    assert_eq!(
        view.suspect,
        NodeSet::only(B),
        "a life that starts the same run a second time was put back to before it (rule 31)"
    );
}

#[test]
fn force_is_a_new_lineage_and_alone() {
    let mut state = created();
    state.apply(&takeover(&state.clone(), A));
    state.apply(&change(
        &state.clone(),
        NodeSet::only(A),
        B,
        SetChange::Lost,
    ));
    let mut force = takeover(&state, B);
    if let Command::Takeover { forced, .. } = &mut force {
        *forced = Some(77);
    }
    assert_eq!(state.apply(&force), Applied::Promoted(R));
    let record = record(&state);
    assert_eq!((record.lineage, record.members()), (77, NodeSet::only(B)));
    let last = record.history.back().map(|e| e.change);
    assert_eq!(
        last,
        Some(Change::Primary {
            node: B,
            why: Promotion::Forced { lineage: 77 }
        })
    );
}

#[test]
fn a_failover_ends_the_wish_for_another_node() {
    let mut state = created();
    state.apply(&Command::Want {
        resource: R,
        wanted: Wanted::On(A),
    });
    state.apply(&takeover(&state.clone(), A));
    assert_eq!(record(&state).wanted, Wanted::On(A));
    state.apply(&takeover(&state.clone(), B));
    assert_eq!(record(&state).wanted, Wanted::Auto);
}

#[test]
fn history_is_bounded_and_a_new_voter_calls_takeovers_off() {
    let mut state = created();
    let pending = takeover(&state, A);
    assert_eq!(
        state.apply(&Command::Admit { node: W, voter: 9 }),
        Applied::Admitted(W)
    );
    assert_eq!(
        state.apply(&Command::Admit { node: W, voter: 9 }),
        Applied::Nothing
    );
    assert_eq!(state.apply(&pending), Applied::Nothing);
    for voter in 0..200 {
        state.apply(&Command::Admit { node: W, voter });
    }
    assert_eq!(record(&state).history.len(), crate::state::HISTORY_MAX);
}

// ---- leases

fn claim(candidate: NodeId, state: &ClusterState) -> Claim {
    let record = record(state);
    Claim {
        candidate,
        resource: R,
        epoch: record.epoch.next(),
        generation: record.generation,
    }
}

/// A voter past its hold-off, and a state in which A holds epoch 1.
fn grantor() -> (Grantor, ClusterState, Now) {
    let mut state = created();
    state.apply(&takeover(&state.clone(), A));
    let timing = Timing::default();
    let grantor = Grantor::new(&timing, Now(0), BTreeMap::new());
    (grantor, state, Now(0).plus_ms(timing.promise_ms()))
}

#[test]
fn a_promise_is_kept_to_the_end_and_renewed() {
    let (mut g, state, t) = grantor();
    let promise = Timing::default().promise_ms();
    let r = Some(record(&state));
    assert_eq!(g.free_in(t, &claim(B, &state), r), Some(0));
    assert_eq!(g.request(t, A, R, Epoch(1), r), Verdict::Granted);
    let later = t.plus_ms(100);
    assert_eq!(g.request(later, A, R, Epoch(1), r), Verdict::Granted);
    assert_eq!(
        g.free_in(later, &claim(B, &state), r),
        Some(promise * 1_000_000)
    );
    assert!(!g.let_in(later.plus_ms(promise - 1), &claim(B, &state), r));
    assert_eq!(
        g.free_in(later, &claim(A, &state), r),
        Some(0),
        "its own promise binds nobody"
    );
    assert!(g.let_in(later.plus_ms(promise), &claim(B, &state), r));
}

#[test]
fn a_fence_stands_until_the_generation_moves() {
    let (mut g, mut state, t) = grantor();
    let c = claim(B, &state);
    assert!(g.let_in(t, &c, Some(record(&state))));
    assert_eq!(
        g.request(t, A, R, Epoch(1), Some(record(&state))),
        Verdict::Fenced(c.generation)
    );
    g.prune(R, record(&state));
    assert_eq!(
        g.request(t, A, R, Epoch(1), Some(record(&state))),
        Verdict::Fenced(c.generation)
    );
    let (generation, epoch) = (record(&state).generation, record(&state).epoch);
    state.apply(&Command::Reassert {
        resource: R,
        generation,
        epoch,
    });
    assert_eq!(
        g.request(t, A, R, Epoch(1), Some(record(&state))),
        Verdict::Granted
    );
    assert_eq!(
        g.free_in(t, &c, Some(record(&state))),
        None,
        "made for an older generation"
    );
    state.apply(&takeover(&state.clone(), B));
    assert_eq!(
        g.request(t, A, R, Epoch(1), Some(record(&state))),
        Verdict::Stale(Epoch(2))
    );
    // A voter that has not heard of epoch 2 yet grants it: it could not be asked for otherwise.
    let (mut behind, old, t) = grantor();
    assert_eq!(
        behind.request(t, B, R, Epoch(2), Some(record(&old))),
        Verdict::Granted
    );
    assert_eq!(
        behind.request(t, A, R, Epoch(1), Some(record(&old))),
        Verdict::Stale(Epoch(2))
    );
}

#[test]
fn a_restarted_voter_holds_off_but_grants() {
    let (_, state, _) = grantor();
    let timing = Timing::default();
    let mut g = Grantor::new(&timing, Now(0), BTreeMap::new());
    let r = Some(record(&state));
    let t = Now(0).plus_ms(timing.promise_ms() - 1);
    assert!(g.free_in(t, &claim(B, &state), r).is_some_and(|w| w > 0));
    assert_eq!(
        g.free_in(t, &claim(A, &state), r),
        Some(0),
        "the recorded holder itself"
    );
    assert_eq!(g.request(t, A, R, Epoch(1), r), Verdict::Granted);
    // Behind the candidate: its record may hide the holder it made a promise to.
    let mut ahead = claim(A, &state);
    ahead.generation = ahead.generation.next();
    ahead.epoch = ahead.epoch.next();
    assert!(g.free_in(t, &ahead, r).is_some_and(|w| w > 0));
    let fences = g.fences.clone();
    assert!(fences.is_empty());
}

#[test]
fn a_release_frees_at_once_and_late_requests_change_nothing() {
    let (mut g, state, t) = grantor();
    let r = Some(record(&state));
    assert_eq!(g.request(t, A, R, Epoch(1), r), Verdict::Granted);
    g.release(B, R, Epoch(1), r);
    assert!(
        g.free_in(t, &claim(B, &state), r).is_some_and(|w| w > 0),
        "not its to release"
    );
    g.release(A, R, Epoch(1), r);
    assert_eq!(
        g.request(t, A, R, Epoch(1), r),
        Verdict::Refused,
        "came late"
    );
    assert_eq!(g.free_in(t, &claim(B, &state), r), Some(0));
}

#[test]
fn a_lease_counts_from_the_sending_of_the_nonce_a_majority_granted() {
    let mut h = Holder::new([A, B, W].into_iter().collect());
    let granted = [(R, Verdict::Granted)];
    h.ask(Now(10), 1, vec![(R, Epoch(1))]);
    h.ask(Now(20), 2, vec![(R, Epoch(1))]);
    assert!(h.answer(A, 1, &granted).is_empty());
    assert!(
        h.answer(A, 1, &granted).is_empty(),
        "one voter twice is one voter"
    );
    assert!(
        h.answer(B, 2, &granted).is_empty(),
        "two nonces do not add up"
    );
    assert!(h.answer(NodeId(5), 1, &granted).is_empty(), "not a voter");
    assert_eq!(
        h.answer(W, 1, &granted),
        [Renewal::Extended(R, Epoch(1), Now(10))]
    );
    assert!(h.answer(B, 1, &granted).is_empty(), "told once");
    assert!(h.answer(W, 3, &granted).is_empty(), "unknown nonce");
    let fenced = [(R, Verdict::Fenced(Gen(4)))];
    assert_eq!(
        h.answer(W, 2, &fenced),
        [Renewal::Fenced(R, Epoch(1), Gen(4))]
    );
    assert_eq!(
        h.answer(W, 2, &[(R, Verdict::Stale(Epoch(2)))]),
        [Renewal::Stale(R, Epoch(1))]
    );
}

// ---- bytes

fn stored() -> Stored {
    Stored {
        id: RaftId::new(A, 3),
        term: 4,
        voted_for: Some(RaftId::new(B, 5)),
        snapshot_position: Position { term: 2, index: 7 },
        snapshot_config: WireConfig {
            voters: vec![RaftId::new(A, 3), RaftId::new(B, 5), RaftId::new(W, 6)],
            new_voters: vec![],
            non_voters: vec![],
        },
        snapshot_state: created(),
        entries: vec![Entry::Term(3), Entry::Command(takeover(&created(), A))],
        fences: vec![(R, Epoch(2), Gen(3))],
        distrusted: vec![(R, VolumeIx(0), Incarnation(5), DiskTrouble::NoSpace)],
    }
}

#[test]
fn stored_state_survives_and_damage_is_seen() {
    let bytes = stored().encode();
    assert_eq!(Stored::decode(&bytes), Ok(stored()));
    let mut longer = bytes.clone();
    longer.push(0);
    let mut other_version = bytes.clone();
    other_version[0] = 99;
    for bad in [
        &longer[..],
        &other_version[..],
        &bytes[..bytes.len() - 1],
        &[],
    ] {
        assert!(matches!(
            Stored::decode(bad),
            Err(DurableError::Malformed(_))
        ));
    }
    let mut slots = Slots::default();
    let (first, one) = slots.next(b"one");
    let (second, two) = slots.next(b"two");
    assert_ne!(first, second);
    let chosen = |a: &[u8], b: &[u8]| durable::choose([a, b]).map(|(p, s)| (p, s.generation));
    assert_eq!(chosen(&one, &two), Ok((Some(b"two".to_vec()), 2)));
    for at in 0..two.len() {
        let mut torn = two.clone();
        torn[at] ^= 1;
        assert_eq!(
            chosen(&torn, &one),
            Ok((Some(b"one".to_vec()), 1)),
            "byte {at}"
        );
        assert_eq!(
            chosen(&two[..at], &one),
            Ok((Some(b"one".to_vec()), 1)),
            "cut at {at}"
        );
        assert_eq!(chosen(&torn, &torn), Err(DurableError::Damaged));
    }
    assert_eq!(chosen(&[], &[]), Ok((None, 0)));
    assert_eq!(
        chosen(&[0; 64], &two[..9]),
        Ok((None, 0)),
        "the first write, torn"
    );
}

#[test]
fn a_node_refuses_the_state_of_another() {
    let start = Start {
        stored: Some(stored().encode()),
        random: 1,
    };
    let config = super::world::config(1, &[0, 1], 1, 1);
    let err = Node::start(config, start, Now(0)).expect_err("another node's");
    assert!(err.to_string().contains("node 0"), "{err}");
}

/// One message of every kind that changes rarely, byte by byte.
#[test]
fn golden_messages() {
    let hello = Hello {
        id: RaftId::new(B, 1),
        blank: true,
        echo: Some(RaftId::new(A, 2)),
        resources: vec![crate::message::ResourceHello {
            resource: R,
            phase: PhaseWord::Primary,
            epoch: Epoch(3),
            disks: vec![Some(holdfast_types::DiskState::UpToDate), None],
            troubles: vec![None, None],
        }],
    };
    let from = RaftId::new(A, 1);
    let to = RaftId::new(B, 1);
    let append = RaftMessage::Append {
        term: 2,
        commit: 1,
        prev: Position { term: 1, index: 1 },
        entries: vec![Entry::Term(2), Entry::Command(takeover(&created(), A))],
    };
    let golden = [
        (
            Body::Hello(hello),
            "00fb01010101fb00020100050302010400020000",
        ),
        (
            Body::Raft {
                from,
                to,
                msg: append,
            },
            "01fb0001fb0101020201010102000202020001010000",
        ),
        (
            Body::LeaseRequest {
                nonce: 300,
                lease_ms: 100,
                entries: vec![(R, Epoch(1))],
            },
            "06fb2c0164010001",
        ),
        (
            Body::LeaseReply {
                nonce: 300,
                verdicts: vec![(R, Verdict::Fenced(Gen(4)))],
            },
            "07fb2c0101000104",
        ),
        (
            Body::Fence {
                resource: R,
                epoch: Epoch(2),
                generation: Gen(3),
            },
            "0b000203",
        ),
        (
            Body::PollReply {
                nonce: 1,
                resource: R,
                free_in: Some(70_000),
            },
            "0a010001fc70110100",
        ),
    ];
    let mut differing = Vec::new();
    for (body, hex) in golden {
        let msg = Message(body);
        let bytes = msg.encode().expect("encodes");
        let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        if text != hex {
            differing.push(format!("{}: {text}", msg.word()));
        }
        assert_eq!(Message::decode(&bytes), Ok(msg));
    }
    assert!(
        differing.is_empty(),
        "the wire format changed: {differing:#?}"
    );
}

#[test]
fn bad_message_bytes_are_refused() {
    let msg = Message(Body::Propose(takeover(&created(), A)));
    let bytes = msg.encode().expect("encodes");
    let mut longer = bytes.clone();
    longer.push(7);
    assert_eq!(Message::decode(&longer), Err(MessageError::Trailing(1)));
    for cut in 0..bytes.len() {
        assert!(matches!(
            Message::decode(&bytes[..cut]),
            Err(MessageError::Malformed(_))
        ));
    }
    // Noise: never a panic, never a large allocation; what parses says the same again.
    let mut rng = Rng::new(1);
    for _ in 0..20_000 {
        let len = rng.between(0, 64) as usize;
        let noise: Vec<u8> = (0..len).map(|_| rng.draw() as u8).collect();
        if let Ok(msg) = Message::decode(&noise) {
            let again = Message::decode(&msg.encode().expect("encodes"));
            assert_eq!(again, Ok(msg));
        }
    }
}

#[test]
fn nonsense_from_a_node_is_noted_and_ignored() {
    let config = super::world::config(0, &[0, 1], 1, 1);
    let start = Start {
        stored: None,
        random: 1,
    };
    let (mut node, _) = Node::start(config, start, Now(0)).expect("starts");
    let mut noted = |from: NodeId, body: Body| {
        node.handle(
            Now(1),
            Event::Message {
                from,
                msg: Message(body),
            },
        )
        .into_iter()
        .any(|a| matches!(a, Action::Note(Note::Protocol { .. })))
    };
    let me = RaftId::new(A, 1);
    let vote = RaftMessage::VoteReply {
        term: 1,
        granted: true,
    };
    assert!(noted(
        B,
        Body::Raft {
            from: RaftId::new(W, 1),
            to: me,
            msg: vote.clone()
        }
    ));
    assert!(noted(
        NodeId(7),
        Body::Raft {
            from: RaftId::new(NodeId(7), 1),
            to: me,
            msg: vote
        }
    ));
    let hello = Hello {
        id: RaftId::new(W, 1),
        blank: true,
        echo: None,
        resources: vec![],
    };
    assert!(noted(B, Body::Hello(hello)));
}

/// A hello that does not answer this very life proves nothing about the present.
#[test]
fn a_cluster_forms_only_on_fresh_hellos() {
    let config = super::world::config(0, &[0, 1], 1, 1);
    let start = Start {
        stored: None,
        random: 1,
    };
    let (mut node, actions) = Node::start(config, start, Now(0)).expect("starts");
    let [Action::Persist { ticket, bytes }] = &actions[..] else {
        panic!("{actions:?}")
    };
    let me = Stored::decode(bytes).expect("parses").id;
    let said = node.handle(Now(1), Event::Persisted { ticket: *ticket });
    assert!(!said.iter().any(|a| matches!(a, Action::Note(Note::Formed))));
    let mut formed = |from: NodeId, blank, echo| {
        let hello = Hello {
            id: RaftId::new(from, 9),
            blank,
            echo,
            resources: vec![],
        };
        node.handle(
            Now(2),
            Event::Message {
                from,
                msg: Message(Body::Hello(hello)),
            },
        )
        .iter()
        .any(|a| matches!(a, Action::Note(Note::Formed)))
    };
    assert!(!formed(B, true, Some(me)), "one is missing");
    assert!(!formed(W, true, None), "may be old");
    assert!(
        !formed(W, true, Some(RaftId::new(A, 77))),
        "meant for a former life"
    );
    assert!(!formed(W, false, Some(me)), "has a cluster");
    assert!(formed(W, true, Some(me)));
}

// ---- configuration

#[test]
fn impossible_configurations_are_refused_with_the_fix() {
    let good = || super::world::config(0, &[0, 1], 1, 1);
    assert_eq!(good().validate(), Ok(()));
    let refused = |change: fn(&mut Config)| {
        let mut config = good();
        change(&mut config);
        config.validate().expect_err("refused").to_string()
    };
    assert!(refused(|c| c.nodes[2].voter = false).contains("3, 5 or 7"));
    assert!(refused(|c| c.nodes[1].name = "n0".into()).contains("twice"));
    assert!(refused(|c| c.nodes[1].id = NodeId(0)).contains("twice"));
    assert!(refused(|c| c.nodes[1].id = NodeId(9)).contains("too high"));
    assert!(refused(|c| c.me = NodeId(6)).contains("not among"));
    assert!(refused(|c| c.resources[0].data_nodes.push(NodeId(4))).contains("not among"));
    assert!(refused(|c| c.resources[0].data_nodes.push(NodeId(0))).contains("twice"));
    assert!(refused(|c| c.resources[0].volumes.clear()).contains("at least one"));
    assert!(refused(|c| c.resources.push(c.resources[0].clone())).contains("twice"));
    assert!(refused(|c| c.timing.heartbeat_ms = 700).contains("three heartbeats"));
    assert!(refused(|c| c.timing.margin_ms = 1900).contains("margin"));
    assert!(refused(|c| c.timing.election_max_ms = 1).contains("election_max"));
    assert!(refused(|c| c.timing.handover_ms = 1).contains("handover"));
    assert!(refused(|c| c.timing.unclean_wait_ms = u64::MAX).contains("one day"));
}

#[test]
fn a_promise_outlasts_the_lease_on_the_fastest_clock() {
    let timing = Timing::default();
    // The grantor's clock may run faster than the holder's by twice the bound.
    let fast = timing.lease_ms as f64 * (1.0 + 2.0 * timing.drift_ppm as f64 / 1e6);
    assert!(timing.promise_ms() as f64 >= fast + timing.guard_ms as f64);
}
