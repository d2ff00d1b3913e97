//! Two loops with real replicas over memory stores, joined by TCP on loopback; the test plays the control plane.

use super::*;
use crate::clock;
use crate::net::lanes::Pair;
use bytes::Bytes;
use holdfast_blockdev::frontend::Op;
use holdfast_blockdev::frontend::port::PortError;
use holdfast_blockdev::store::MemoryStore;
use holdfast_meta::{
    BitmapStart, Layout, PEERS_MAX, Superblock, initialise, locate, superblock_range,
};
use holdfast_replicator::{Config, FromControl, Replica, Timing, View};
use holdfast_types::{DiskState, Epoch, Gen, Incarnation, NodeSet, Run};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

const SIZE: u64 = 16 << 20;
const VOLUME: VolumeId = VolumeId(9);
const BOOT: u128 = 77;
/// Only so that a defect ends as a failure: nothing is measured.
const PATIENCE: Duration = Duration::from_secs(60);

fn both() -> NodeSet {
    [NodeId(1), NodeId(2)].into_iter().collect()
}

struct Side {
    volume: Volume,
    reports: std_mpsc::Receiver<Report>,
    me: NodeId,
}

/// A store with a new replica on it.
fn store(me: NodeId) -> MemoryStore {
    let geometry = Geometry::of_bytes(SIZE);
    let mut store = MemoryStore::new(Layout::bytes_needed(geometry, PEERS_MAX));
    let layout = Layout::new(geometry, store.size_bytes(), PEERS_MAX, 16).unwrap();
    let mut superblock = Superblock {
        version: holdfast_meta::FORMAT_VERSION,
        cluster: 1,
        volume: VOLUME,
        node: me,
        geometry,
        capacity: geometry.blocks,
        tail_unknown: false,
        page_bytes: layout.page_bytes,
        incarnation: Incarnation(u64::from(me.0)),
        run: Run(0),
        boot_id: BOOT,
        clean: true,
        promised: Epoch(0),
        epoch: Epoch(0),
        disk: DiskState::UpToDate,
        lineage: 1,
        log_slots: 16,
        log_floor: 0,
        peer_slots: [None; PEERS_MAX as usize],
        seen: Default::default(),
        found: Default::default(),
        update: 1,
    };
    for peer in both().without(me).iter() {
        superblock.give_slot(peer).unwrap();
    }
    for (offset, page) in initialise(&layout, &superblock, BitmapStart::Clean).unwrap() {
        store.write_region(offset, &page).unwrap();
    }
    store
}

fn side(me: u8) -> Side {
    let me = NodeId(me);
    let mut store = store(me);
    let (offset, len) = superblock_range(store.size_bytes()).unwrap();
    let tail = store.read_region(offset, len as usize).unwrap();
    let located = locate(store.size_bytes(), &tail).unwrap();
    let (offset, len) = located.layout.region();
    let region = store.read_region(offset, len as usize).unwrap();
    let config = Config {
        me,
        data_nodes: both(),
        volume: VOLUME,
        // Nobody commits a removal or connects anew here unless the test does: a slow machine must not look like
        // a lost peer.
        timing: Timing {
            silence_ms: 600_000,
            answer_ms: 600_000,
            collect_ms: 600_000,
            ..Timing::default()
        },
        distrust: None,
        off: None,
    };
    let mut first = Vec::new();
    let recovered = located.recover(&region).unwrap();
    let replica = Replica::start(config, recovered, BOOT, clock::now(), &mut first).unwrap();
    let (tx, reports) = std_mpsc::channel();
    let volume = Volume::spawn(VolumeOptions {
        machine: Box::new(replica),
        first,
        store: Box::new(store),
        pool: BufPool::default(),
        volume: VOLUME,
        geometry: Geometry::of_bytes(SIZE),
        size: std::sync::Arc::new(SIZE.into()),
        me,
        name: format!("pair/{}", me.0),
        lanes: None,
        stall_ms: 10_000,
        report: Box::new(move |r| {
            // The test may be over.
            let _ = tx.send(r);
        }),
    })
    .unwrap();
    let side = Side {
        volume,
        reports,
        me,
    };
    side.wait("started", |r| {
        matches!(
            r,
            Report::Control(ToControl::Started { unclean: false, .. })
        )
    });
    side
}

impl Side {
    fn tell(&self, message: FromControl) {
        assert!(self.volume.commands().send(Command::Control(message)));
    }
    /// The next report that fits; others are passed over.
    fn wait(&self, what: &str, fits: impl Fn(&Report) -> bool) -> Report {
        loop {
            let report = self
                .reports
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("{} waits in vain for {what}", self.me));
            if fits(&report) {
                return report;
            }
        }
    }
    fn lead(&self, view: View) {
        self.tell(FromControl::Promise { epoch: view.epoch });
        self.wait("promised", |r| {
            matches!(r, Report::Control(ToControl::Promised { .. }))
        });
        self.tell(FromControl::Lead(view));
        // Only a primary has one.
        self.tell(FromControl::Lease {
            until: clock::now().plus_ms(3_600_000),
        });
    }
    fn opened(&self) {
        self.wait("opened", |r| {
            matches!(r, Report::Control(ToControl::Opened { .. }))
        });
    }
    fn write(&self, block: u64, byte: u8) {
        let data = Bytes::from(vec![byte; 4096]);
        self.volume
            .port()
            .call(Op::Write {
                offset: block * 4096,
                data,
                fua: true,
            })
            .unwrap();
    }
    fn read(&self, block: u64) -> Bytes {
        self.volume
            .port()
            .call(Op::Read {
                offset: block * 4096,
                len: 4096,
            })
            .unwrap()
    }
}

fn view(generation: u64, epoch: u64, primary: u8, in_sync: NodeSet) -> View {
    View {
        generation: Gen(generation),
        epoch: Epoch(epoch),
        primary: Some(NodeId(primary)),
        in_sync,
        data_nodes: both(),
        suspect: NodeSet::EMPTY,
        lineage: 1,
        doubtful: NodeSet::EMPTY,
    }
}

fn sockets() -> (TcpStream, TcpStream) {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(l.local_addr().unwrap()).unwrap();
    (a, l.accept().unwrap().0)
}

/// Joins the two; the returned sockets cut the connection when they are shut down.
fn join(a: &Side, b: &Side, connection: u64) -> TcpStream {
    let ((wa, wb), (ba, bb)) = (sockets(), sockets());
    let scissors = wa.try_clone().unwrap();
    a.volume.commands().send(Command::Lanes(Pair {
        peer: b.me,
        connection,
        write: wa,
        bulk: ba,
    }));
    b.volume.commands().send(Command::Lanes(Pair {
        peer: a.me,
        connection,
        write: wb,
        bulk: bb,
    }));
    scissors
}

#[test]
fn what_one_acknowledges_the_other_serves_after_a_takeover() {
    let (a, b) = (side(1), side(2));
    let _wire = join(&a, &b, 1);
    let first = view(1, 1, 1, both());
    b.tell(FromControl::View(first));
    a.lead(first);
    a.opened();
    for i in 0..200 {
        a.write(i, i as u8);
    }
    let refused = b.volume.port().call(Op::Read {
        offset: 0,
        len: 4096,
    });
    assert_eq!(refused, Err(PortError::NotPrimary));
    // Planned: drained here, then the other leads.
    a.tell(FromControl::Drain);
    a.wait("drained", |r| {
        matches!(r, Report::Control(ToControl::Drained { .. }))
    });
    a.tell(FromControl::StepDown);
    let second = view(2, 2, 2, both());
    a.tell(FromControl::View(second));
    b.lead(second);
    b.opened();
    for i in 0..200 {
        assert_eq!(b.read(i), vec![i as u8; 4096]);
    }
    b.write(3, 99);
    assert_eq!(b.read(3), vec![99; 4096]);
}

#[test]
fn writes_wait_for_a_lost_member_until_its_removal_is_committed_and_it_is_resynced() {
    let (a, b) = (side(1), side(2));
    let wire = join(&a, &b, 1);
    let first = view(1, 1, 1, both());
    b.tell(FromControl::View(first));
    a.lead(first);
    a.opened();
    a.write(0, 1);
    wire.shutdown(std::net::Shutdown::Both).unwrap();
    let (tx, rx) = std_mpsc::channel();
    let data = Bytes::from(vec![2; 4096]);
    a.volume.port().submit(
        Op::Write {
            offset: 4096,
            data,
            fua: false,
        },
        move |r| {
            let _ = tx.send(r);
        },
    );
    let proposal = a.wait("a proposal", |r| {
        matches!(r, Report::Control(ToControl::ProposeSet { .. }))
    });
    // Not committed yet: not acknowledged.
    assert!(
        rx.try_recv().is_err(),
        "acknowledged before the removal was committed ({proposal:?})"
    );
    let alone = view(2, 1, 1, NodeSet::only(NodeId(1)));
    a.tell(FromControl::View(alone));
    rx.recv_timeout(PATIENCE).unwrap().unwrap();
    for i in 2..50 {
        a.write(i, 7);
    }
    // It comes back, and is made equal before it is proposed as a member.
    b.tell(FromControl::View(alone));
    let _wire = join(&a, &b, 2);
    a.wait("the other's return", |r| {
        matches!(r, Report::Control(ToControl::ProposeSet { in_sync, .. }) if *in_sync == both())
    });
    let again = view(3, 1, 1, both());
    a.tell(FromControl::View(again));
    b.tell(FromControl::View(again));
    a.tell(FromControl::Drain);
    a.wait("drained", |r| {
        matches!(r, Report::Control(ToControl::Drained { .. }))
    });
    a.tell(FromControl::StepDown);
    let second = view(4, 2, 2, both());
    a.tell(FromControl::View(second));
    b.lead(second);
    b.opened();
    assert_eq!(b.read(1), vec![2; 4096]);
    assert_eq!(b.read(49), vec![7; 4096]);
}

#[test]
fn an_orderly_stop_is_answered() {
    let a = side(1);
    a.tell(FromControl::Stop);
    a.wait("stopped", |r| {
        matches!(r, Report::Control(ToControl::Stopped))
    });
    a.volume.end();
}
