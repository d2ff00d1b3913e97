//! Pairs of lanes between two lane threads of one process.

use super::*;
use crate::net::handshake::{ClusterId, Key};
use std::io::{Read as _, Write as _};
use std::sync::mpsc as std_mpsc;

const VOLUME: VolumeId = VolumeId(77);
/// Only so that a defect ends as a failure: nothing is measured.
const PATIENCE: Duration = Duration::from_secs(60);

fn cred(me: u8, secret: &str) -> Credentials {
    let cluster = ClusterId::of_name("test");
    Credentials {
        me: NodeId(me),
        cluster,
        key: Key::new(secret.as_bytes(), cluster),
        boot: 1,
    }
}

struct Side {
    lanes: Lanes,
    address: SocketAddr,
    troubles: Troubles,
    pairs: std_mpsc::Receiver<Pair>,
    tx: std_mpsc::Sender<Pair>,
}

fn side(me: u8, secret: &str) -> Side {
    let troubles = Troubles::default();
    let (lanes, address) = Lanes::start(
        cred(me, secret),
        "127.0.0.1:0".parse().unwrap(),
        None,
        troubles.clone(),
    )
    .unwrap();
    let (tx, pairs) = std_mpsc::channel();
    Side {
        lanes,
        address,
        troubles,
        pairs,
        tx,
    }
}

fn serve(s: &Side, peer: u8, to: SocketAddr) {
    let tx = s.tx.clone();
    s.lanes.tell(Command::Serve {
        volume: VOLUME,
        name: "r/v".into(),
        peers: vec![(NodeId(peer), format!("n{peer}"), to)],
        sink: Box::new(move |pair| tx.send(pair).is_ok()),
    });
}

fn pair(s: &Side) -> Pair {
    let p = s.pairs.recv_timeout(PATIENCE).expect("a pair of lanes");
    p.write.set_nonblocking(false).unwrap();
    p.bulk.set_nonblocking(false).unwrap();
    p
}

#[test]
fn both_lanes_come_together_and_are_not_mixed_up() {
    let (a, b) = (side(1, "s"), side(2, "s"));
    serve(&a, 2, b.address);
    // The listener does not serve the volume yet: the dialler keeps trying.
    std::thread::sleep(Duration::from_millis(20));
    serve(&b, 1, a.address);
    let (mut pa, mut pb) = (pair(&a), pair(&b));
    assert_eq!(pa.connection, pb.connection);
    assert_eq!((pa.peer, pb.peer), (NodeId(2), NodeId(1)));
    assert!(pa.write.nodelay().unwrap() && pb.bulk.nodelay().unwrap());
    pa.write.write_all(b"w").unwrap();
    pa.bulk.write_all(b"b").unwrap();
    let mut byte = [0];
    pb.write.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"w");
    pb.bulk.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"b");
}

#[test]
fn a_lost_pair_is_dialled_again_and_an_old_loss_is_ignored() {
    let (a, b) = (side(1, "s"), side(2, "s"));
    serve(&b, 1, a.address);
    serve(&a, 2, b.address);
    let first = pair(&a);
    pair(&b);
    a.lanes.tell(Command::Lost {
        volume: VOLUME,
        peer: NodeId(2),
        connection: first.connection ^ 1,
    });
    a.lanes.tell(Command::Lost {
        volume: VOLUME,
        peer: NodeId(2),
        connection: first.connection,
    });
    let second = pair(&a);
    assert_ne!(first.connection, second.connection);
    assert_eq!(pair(&b).connection, second.connection);
    assert!(a.pairs.try_recv().is_err());
}

#[test]
fn a_wrong_secret_is_refused_and_said_on_both_sides() {
    let (a, b) = (side(1, "s"), side(2, "t"));
    serve(&b, 1, a.address);
    serve(&a, 2, b.address);
    loop {
        if let (Some(d), Some(l)) = (a.troubles.get("r/v/n2"), b.troubles.get("from 127.0.0.1")) {
            assert!(
                d.contains("cluster secret") && l.contains("cluster secret"),
                "{d} / {l}"
            );
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(a.pairs.try_recv().is_err() && b.pairs.try_recv().is_err());
}

#[test]
fn nothing_is_dialled_while_isolated() {
    let (a, b) = (side(1, "s"), side(2, "s"));
    a.lanes.tell(Command::Isolate(true));
    serve(&b, 1, a.address);
    serve(&a, 2, b.address);
    std::thread::sleep(Duration::from_millis(100));
    assert!(a.pairs.try_recv().is_err());
    a.lanes.tell(Command::Isolate(false));
    pair(&a);
}
