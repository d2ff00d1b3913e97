//! Both sides of the handshake against each other, and each against lies.

use super::*;

const CLUSTER: &str = "demo";

fn ask() -> Ask {
    Ask {
        from: NodeId(0),
        to: NodeId(2),
        purpose: Purpose::WriteLane(VolumeId(7)),
        connection: 99,
        boot: 5,
    }
}

fn key(secret: &str, cluster: &str) -> Key {
    Key::new(secret.as_bytes(), ClusterId::of_name(cluster))
}

/// Runs both sides to their ends; `change` may alter what the dialer sends.
fn run(
    mut dialer: Handshake,
    first: Vec<u8>,
    mut listener: Handshake,
    known: Result<(), Refused>,
    change: impl Fn(usize, &mut Vec<u8>),
) -> (Result<Ask, Refused>, Result<Ask, Refused>) {
    let mut ends = (None, None);
    let mut wire = [first, Vec::new()]; // bytes on the way to: listener, dialer
    let mut sent = 0;
    change(sent, &mut wire[0]);
    for _ in 0..32 {
        if ends.1.is_none() && listener.want() > 0 && wire[0].len() >= listener.want() {
            let bytes: Vec<u8> = wire[0].drain(..listener.want()).collect();
            let (out, end) = match listener.feed(&bytes, |_| known) {
                Step::Continue(out) => (out, None),
                Step::Done(out, ask) => (out, Some(Ok(ask))),
                Step::Refuse(out, why) => (out, Some(Err(why))),
            };
            wire[1].extend(out);
            ends.1 = end;
        }
        if ends.0.is_none() && dialer.want() > 0 && wire[1].len() >= dialer.want() {
            let bytes: Vec<u8> = wire[1].drain(..dialer.want()).collect();
            let (mut out, end) = match dialer.feed(&bytes, |_| Ok(())) {
                Step::Continue(out) => (out, None),
                Step::Done(out, ask) => (out, Some(Ok(ask))),
                Step::Refuse(out, why) => (out, Some(Err(why))),
            };
            if !out.is_empty() {
                sent += 1;
                change(sent, &mut out);
            }
            wire[0].extend(out);
            ends.0 = end;
        }
    }
    (
        ends.0.expect("the dialer came to an end"),
        ends.1.expect("the listener came to an end"),
    )
}

fn both(
    secrets: [&str; 2],
    clusters: [&str; 2],
    me: u8,
    known: Result<(), Refused>,
) -> (Result<Ask, Refused>, Result<Ask, Refused>) {
    let (d, first) = Handshake::dial(
        key(secrets[0], clusters[0]),
        ClusterId::of_name(clusters[0]),
        ask(),
        [3; NONCE_BYTES],
    );
    let l = Handshake::listen(
        key(secrets[1], clusters[1]),
        ClusterId::of_name(clusters[1]),
        NodeId(me),
        [4; NONCE_BYTES],
    );
    run(d, first, l, known, |_, _| ())
}

#[test]
fn equal_secrets_agree_on_what_the_connection_is() {
    assert_eq!(
        both(["s", "s"], [CLUSTER; 2], 2, Ok(())),
        (Ok(ask()), Ok(ask()))
    );
}

#[test]
fn another_secret_is_refused_on_both_sides_with_the_same_text() {
    assert_eq!(
        both(["s", "t"], [CLUSTER; 2], 2, Ok(())),
        (Err(Refused::Secret), Err(Refused::Secret))
    );
    assert!(Refused::Secret.to_string().contains("cluster secret"));
}

#[test]
fn another_cluster_is_refused_before_any_proof() {
    assert_eq!(
        both(["s", "s"], [CLUSTER, "prod"], 2, Ok(())),
        (Err(Refused::Cluster), Err(Refused::Cluster))
    );
}

#[test]
fn a_connection_meant_for_another_node_is_refused() {
    assert_eq!(
        both(["s", "s"], [CLUSTER; 2], 1, Ok(())),
        (Err(Refused::WrongNode), Err(Refused::WrongNode))
    );
}

#[test]
fn what_the_listener_does_not_know_is_refused() {
    for why in [Refused::UnknownNode, Refused::NoVolume] {
        assert_eq!(
            both(["s", "s"], [CLUSTER; 2], 2, Err(why)),
            (Err(why), Err(why))
        );
    }
}

#[test]
fn another_version_is_refused_on_both_sides() {
    let cluster = ClusterId::of_name(CLUSTER);
    let (d, first) = Handshake::dial(key("s", CLUSTER), cluster, ask(), [3; NONCE_BYTES]);
    let l = Handshake::listen(key("s", CLUSTER), cluster, NodeId(2), [4; NONCE_BYTES]);
    let (dialer, listener) = run(d, first, l, Ok(()), |n, bytes| {
        if n == 0 {
            bytes[8] = 9;
        }
    });
    assert_eq!(listener, Err(Refused::Version { theirs: 9 }));
    // The dialer learns it with the listener's version: both can name the two numbers.
    assert_eq!(
        dialer,
        Err(Refused::Version {
            theirs: PROTOCOL_VERSION
        })
    );
}

#[test]
fn every_changed_byte_of_question_and_proof_is_noticed() {
    let cluster = ClusterId::of_name(CLUSTER);
    for message in 0..2 {
        let len = [PREFIX_BYTES + ASK_BYTES, PREFIX_BYTES + PROVE_BYTES][message];
        for at in 0..len {
            // A longer body than was sent would wait for bytes that never come.
            if (12..16).contains(&at) {
                continue;
            }
            let (d, first) = Handshake::dial(key("s", CLUSTER), cluster, ask(), [3; NONCE_BYTES]);
            let l = Handshake::listen(key("s", CLUSTER), cluster, NodeId(2), [4; NONCE_BYTES]);
            let (_, listener) = run(d, first, l, Ok(()), |n, bytes| {
                if n == message {
                    bytes[at] ^= 0x40;
                }
            });
            assert!(
                listener.is_err(),
                "byte {at} of message {message} changed unnoticed"
            );
        }
    }
}

#[test]
fn a_listeners_proof_cannot_serve_as_a_dialers() {
    let cluster = ClusterId::of_name(CLUSTER);
    let (mut d, first) = Handshake::dial(key("s", CLUSTER), cluster, ask(), [4; NONCE_BYTES]);
    let mut l = Handshake::listen(key("s", CLUSTER), cluster, NodeId(2), [4; NONCE_BYTES]);
    let (p, b) = first.split_at(l.want());
    assert!(matches!(l.feed(p, |_| Ok(())), Step::Continue(_)));
    let Step::Continue(answer) = l.feed(b, |_| Ok(())) else {
        panic!("refused")
    };
    // Without the secret, all one has is the listener's own proof.
    let stolen = message(Kind::Prove, 0, &answer[PREFIX_BYTES + 32..]);
    assert!(matches!(
        l.feed(&stolen[..PREFIX_BYTES], |_| Ok(())),
        Step::Continue(_)
    ));
    assert!(matches!(
        l.feed(&stolen[PREFIX_BYTES..], |_| Ok(())),
        Step::Refuse(_, Refused::Secret)
    ));
    assert!(matches!(
        d.feed(b"short", |_| Ok(())),
        Step::Refuse(_, Refused::NotHoldfast)
    ));
}

#[test]
fn a_key_does_not_print_itself() {
    assert_eq!(format!("{:?}", key("hunter2", CLUSTER)), "Key(..)");
}
