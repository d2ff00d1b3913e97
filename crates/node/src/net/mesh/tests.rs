//! Meshes of one process over loopback.

use super::*;
use crate::net::handshake::{ClusterId, Key};
use std::time::Duration;

fn cred(me: u8, secret: &str) -> Credentials {
    let cluster = ClusterId::of_name("test");
    Credentials {
        me: NodeId(me),
        cluster,
        key: Key::new(secret.as_bytes(), cluster),
        boot: u64::from(me),
    }
}

fn listener() -> (std::net::TcpListener, SocketAddr) {
    let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let a = l.local_addr().unwrap();
    (l, a)
}

type Rx = mpsc::Receiver<MeshEvent<String>>;

async fn two(secrets: [&str; 2]) -> ([(Mesh<String>, Rx); 2], [Troubles; 2]) {
    let (la, aa) = listener();
    let (lb, ab) = listener();
    let peer = |id, name: &str, address| {
        vec![Peer {
            id: NodeId(id),
            name: name.into(),
            address,
        }]
    };
    let troubles = [Troubles::default(), Troubles::default()];
    let a = Mesh::start(
        cred(1, secrets[0]),
        la,
        None,
        peer(2, "b", ab),
        troubles[0].clone(),
    )
    .unwrap();
    let b = Mesh::start(
        cred(2, secrets[1]),
        lb,
        None,
        peer(1, "a", aa),
        troubles[1].clone(),
    )
    .unwrap();
    ([a, b], troubles)
}

async fn until_up(rx: &mut Rx) {
    loop {
        if let MeshEvent::Up { .. } = rx.recv().await.expect("the mesh lives") {
            return;
        }
    }
}

fn run(f: impl Future<Output = ()>) {
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // Only so that a defect ends as a failure: nothing is measured.
    rt.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), f)
            .await
            .expect("the mesh hangs")
    });
}

#[test]
fn messages_travel_both_ways_in_order() {
    run(async {
        let ([(a, mut ra), (b, mut rb)], _) = two(["s", "s"]).await;
        until_up(&mut ra).await;
        until_up(&mut rb).await;
        for i in 0..100 {
            assert!(a.send(NodeId(2), &format!("m{i}")));
        }
        assert!(b.send(NodeId(1), &"back".to_owned()));
        for i in 0..100 {
            let Some(MeshEvent::Message { from, message }) = rb.recv().await else {
                panic!("no message")
            };
            assert_eq!((from, message), (NodeId(1), format!("m{i}")));
        }
        let Some(MeshEvent::Message { message, .. }) = ra.recv().await else {
            panic!("no message")
        };
        assert_eq!(message, "back");
        assert!(!a.send(NodeId(3), &"nobody".to_owned()));
    });
}

#[test]
fn another_secret_is_refused_and_said_on_both_sides() {
    run(async {
        let ([(a, _ra), (b, _rb)], troubles) = two(["s", "t"]).await;
        loop {
            let dialler = troubles[0].get("control/b");
            let listener = troubles[1].get("from 127.0.0.1");
            if let (Some(d), Some(l)) = (dialler, listener) {
                assert!(d.contains("cluster secret"), "{d}");
                assert!(l.contains("cluster secret"), "{l}");
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!a.connected(NodeId(2)) && !b.connected(NodeId(1)));
    });
}

#[test]
fn an_isolated_node_is_silent_and_comes_back() {
    run(async {
        let ([(a, mut ra), (b, mut rb)], _) = two(["s", "s"]).await;
        until_up(&mut ra).await;
        until_up(&mut rb).await;
        b.isolate(true);
        assert!(!b.send(NodeId(1), &"lost".to_owned()));
        // The other side does not know yet: its message goes out and is not believed.
        assert!(a.send(NodeId(2), &"lost too".to_owned()));
        b.isolate(false);
        until_up(&mut ra).await;
        until_up(&mut rb).await;
        assert!(a.send(NodeId(2), &"here".to_owned()));
        let Some(MeshEvent::Message { message, .. }) = rb.recv().await else {
            panic!("no message")
        };
        assert_eq!(message, "here");
    });
}

#[test]
fn a_stranger_who_sends_rubbish_costs_nothing() {
    run(async {
        let (la, aa) = listener();
        let (_mesh, mut rx) = Mesh::<String>::start(
            cred(2, "s"),
            la,
            None,
            vec![Peer {
                id: NodeId(1),
                name: "a".into(),
                address: aa,
            }],
            Troubles::default(),
        )
        .unwrap();
        let mut s = TcpStream::connect(aa).await.unwrap();
        s.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        // It is told off and closed, whichever of the two arrives.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut s, &mut answer).await;
        assert!(rx.try_recv().is_err());
    });
}
