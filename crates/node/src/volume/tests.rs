//! The loop with a memory store and a machine that only passes requests on to the disk.

use super::*;
use crate::net::lanes::Pair;
use bytes::Bytes;
use holdfast_blockdev::frontend::Op;
use holdfast_blockdev::frontend::nbd::NbdError;
use holdfast_blockdev::frontend::nbd::client::{Client, ClientError, ClientOp, ClientOptions};
use holdfast_blockdev::store::MemoryStore;
use holdfast_replicator::{
    DiskOp, Event, FromControl, IoId, Now, ReqId, Request, RequestError, Status,
};
use holdfast_types::{DiskState, Epoch, Incarnation, NodeSet, Role, Run};
use holdfast_wire::Frame;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

const SIZE: u64 = 8 << 20;
/// Only so that a defect ends as a failure: nothing is measured.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads and writes go straight to the disk, pings are answered; a write to block 0 of all ones is held.
#[derive(Default)]
struct PassOn {
    open: bool,
    io: u64,
    waiting: BTreeMap<IoId, ReqId>,
    held: BTreeSet<ReqId>,
    ticks: Option<Now>,
}

impl Machine for PassOn {
    fn handle(&mut self, now: Now, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => {
                if self.ticks.take_if(|at| *at <= now).is_some() {
                    actions.push(Action::Control(ToControl::Drained { epoch: Epoch(1) }));
                }
            }
            Event::Room { store_bytes } => {
                // Says what it was given.
                actions.push(Action::Control(ToControl::NoRoom {
                    store_bytes: store_bytes.unwrap_or(0),
                }));
            }
            Event::Request { req, .. } if !self.open => {
                actions.push(Action::Complete {
                    req,
                    result: Err(RequestError::NotPrimary),
                });
            }
            Event::Request { req, request } => {
                let op = match request {
                    Request::Read { offset, len } => DiskOp::Read { offset, len },
                    Request::Write {
                        offset: 0, data, ..
                    } if data.iter().all(|&b| b == 1) => {
                        self.held.insert(req);
                        return;
                    }
                    Request::Write { offset, data, fua } => DiskOp::Write {
                        offset,
                        data,
                        durable: fua,
                    },
                    Request::Zero { offset, len, fua } => DiskOp::Zero {
                        offset,
                        len,
                        durable: fua,
                    },
                    Request::Flush => DiskOp::Flush,
                };
                self.io += 1;
                self.waiting.insert(IoId(self.io), req);
                actions.push(Action::Disk {
                    io: IoId(self.io),
                    op,
                });
            }
            Event::DiskDone { io, result } => {
                let req = self.waiting.remove(&io).expect("answered once");
                actions.push(Action::Complete {
                    req,
                    result: result.map_err(|_| RequestError::Io),
                });
            }
            Event::Frame {
                peer,
                frame: Frame::Ping { token: 666 },
            } => actions.push(Action::Disconnect { peer }),
            Event::Frame {
                peer,
                frame: Frame::Ping { token },
            } => {
                actions.push(Action::Send {
                    peer,
                    frame: Frame::Pong { token },
                });
            }
            Event::Frame {
                peer,
                frame: Frame::Pong { token },
            } => {
                actions.push(Action::Note(Note::Attached {
                    peer,
                    member: true,
                    dirty_blocks: token,
                }));
            }
            Event::Frame { .. } => panic!("no other frame is sent"),
            Event::PeerUp { peer } => {
                for token in 1..=100 {
                    actions.push(Action::Send {
                        peer,
                        frame: Frame::Ping { token },
                    });
                }
            }
            Event::Saved { .. } => {}
            Event::PeerDown { peer } => actions.push(Action::Note(Note::Detached { peer })),
            Event::Control(FromControl::Lead(view)) => {
                self.open = true;
                actions.push(Action::Control(ToControl::Opened { epoch: view.epoch }));
            }
            Event::Control(FromControl::Lease { until }) => self.ticks = Some(until),
            Event::Control(FromControl::StepDown) => {
                self.open = false;
                for req in std::mem::take(&mut self.held) {
                    actions.push(Action::Complete {
                        req,
                        result: Err(RequestError::NotPrimary),
                    });
                }
            }
            Event::Control(FromControl::Invalidate { peer }) => {
                actions.push(Action::Send {
                    peer,
                    frame: Frame::Ping { token: 666 },
                });
            }
            Event::Control(other) => panic!("not told in these tests: {other:?}"),
        }
    }
    fn deadline(&self) -> Option<Now> {
        self.ticks
    }
    fn status(&self) -> Status {
        Status {
            role: if self.open {
                Role::Primary
            } else {
                Role::Secondary
            },
            open: self.open,
            held: None,
            disk: DiskState::UpToDate,
            trouble: None,
            reads_from: None,
            read_errors: 0,
            epoch: Epoch(1),
            in_sync: NodeSet::EMPTY,
            incarnation: Incarnation(1),
            run: Run(1),
            size_bytes: SIZE,
            requests: (self.waiting.len() + self.held.len()) as u32,
            open_writes: 0,
            written_bytes: 0,
            read_bytes: 0,
            log_writes: 0,
            resync: holdfast_replicator::ResyncStatus::default(),
            verify: None,
            peers: Vec::new(),
        }
    }
}

struct Bench {
    volume: Volume,
    reports: std_mpsc::Receiver<Report>,
    dir: tempfile::TempDir,
}

fn bench(me: u8) -> Bench {
    let (tx, reports) = std_mpsc::channel();
    let volume = Volume::spawn(VolumeOptions {
        machine: Box::new(PassOn::default()),
        first: Vec::new(),
        store: Box::new(MemoryStore::new(SIZE)),
        pool: BufPool::default(),
        volume: VolumeId(5),
        geometry: Geometry::of_bytes(SIZE),
        size: std::sync::Arc::new(SIZE.into()),
        me: NodeId(me),
        name: "r/v".into(),
        lanes: None,
        stall_ms: 1000,
        report: Box::new(move |r| {
            // The test may be over.
            let _ = tx.send(r);
        }),
    })
    .unwrap();
    Bench {
        volume,
        reports,
        dir: tempfile::tempdir().unwrap(),
    }
}

impl Bench {
    fn tell(&self, message: FromControl) {
        assert!(self.volume.commands().send(Command::Control(message)));
    }
    fn lead(&self) {
        self.tell(FromControl::Lead(holdfast_replicator::View {
            generation: holdfast_types::Gen(1),
            epoch: Epoch(1),
            primary: Some(NodeId(1)),
            in_sync: NodeSet::EMPTY,
            data_nodes: NodeSet::EMPTY,
            suspect: NodeSet::EMPTY,
            lineage: 1,
            doubtful: NodeSet::EMPTY,
        }));
        assert!(matches!(
            self.report(),
            Report::Control(ToControl::Opened { .. })
        ));
    }
    fn report(&self) -> Report {
        self.reports.recv_timeout(PATIENCE).expect("a report")
    }
    fn listen(&self) -> PathBuf {
        let path = self.dir.path().join("nbd.sock");
        let listener = UnixListener::bind(&path).unwrap();
        self.volume
            .commands()
            .send(Command::Listen(vec![listener.into()]));
        path
    }
    fn status(&self) -> VolumeStatus {
        let (tx, rx) = std_mpsc::channel();
        self.volume
            .commands()
            .send(Command::Status(Box::new(move |s| tx.send(s).unwrap())));
        rx.recv_timeout(PATIENCE).unwrap()
    }
}

fn client(path: &Path) -> Client {
    let options = ClientOptions {
        timeout: Some(PATIENCE),
        ..ClientOptions::default()
    };
    Client::connect_unix(path, &options).unwrap()
}

#[test]
fn nbd_clients_read_what_they_wrote() {
    let b = bench(1);
    b.lead();
    let path = b.listen();
    let mut c = client(&path);
    let big: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
    c.write_at(4096, &big[..1 << 20], true).unwrap();
    c.write_at(4096 + (1 << 20), &big[1 << 20..(1 << 20) + 8192], false)
        .unwrap();
    c.zero(4096 * 3, 4096, false).unwrap();
    c.flush().unwrap();
    let mut expected = big[..1 << 20].to_vec();
    expected[8192..12288].fill(0);
    let mut d = client(&path);
    assert_eq!(d.read_at(4096, 1 << 20).unwrap(), expected);
    assert_eq!(b.status().clients, 2);
    // Many at once, answered in any order.
    let handles: BTreeSet<u64> = (0..200_u64)
        .map(|i| {
            d.send(ClientOp::Write {
                offset: i * 4096,
                data: &[i as u8; 4096],
                fua: false,
            })
            .unwrap()
        })
        .collect();
    let mut answered = BTreeSet::new();
    for _ in 0..200 {
        let answer = d.receive().unwrap();
        answer.result.unwrap();
        answered.insert(answer.handle);
    }
    assert_eq!(handles, answered);
    assert_eq!(c.read_at(199 * 4096, 4096).unwrap(), [199; 4096]);
    c.disconnect().unwrap();
    b.volume.end();
}

#[test]
fn clients_are_refused_before_the_replica_is_open() {
    let b = bench(1);
    let path = b.listen();
    let options = ClientOptions {
        timeout: Some(PATIENCE),
        ..ClientOptions::default()
    };
    assert!(Client::connect_unix(&path, &options).is_err());
    b.lead();
    client(&path).flush().unwrap();
}

#[test]
fn a_step_down_fails_what_is_held_and_cuts_the_clients_off() {
    let b = bench(1);
    b.lead();
    let path = b.listen();
    let mut c = client(&path);
    c.flush().unwrap();
    c.send(ClientOp::Write {
        offset: 0,
        data: &[1; 4096],
        fua: false,
    })
    .unwrap();
    while b.status().replica.requests == 0 {
        std::thread::yield_now();
    }
    b.tell(FromControl::StepDown);
    let answer = c.receive().unwrap();
    assert_eq!(answer.result, Err(NbdError::Shutdown));
    assert!(matches!(c.flush(), Err(ClientError::Io(_))));
    let options = ClientOptions {
        timeout: Some(PATIENCE),
        ..ClientOptions::default()
    };
    assert!(Client::connect_unix(&path, &options).is_err());
}

#[test]
fn closing_the_frontend_cuts_clients_off_and_forgets_their_requests() {
    let b = bench(1);
    b.lead();
    let path = b.listen();
    let mut c = client(&path);
    c.send(ClientOp::Write {
        offset: 0,
        data: &[1; 4096],
        fua: false,
    })
    .unwrap();
    while b.status().replica.requests == 0 {
        std::thread::yield_now();
    }
    let (tx, rx) = std_mpsc::channel();
    b.volume
        .commands()
        .send(Command::Unlisten(Box::new(move |()| tx.send(()).unwrap())));
    rx.recv_timeout(PATIENCE).unwrap();
    assert!(c.receive().is_err());
    assert_eq!(b.status().clients, 0);
    // Its answer finds nobody, and that is all.
    b.tell(FromControl::StepDown);
    assert_eq!(b.status().replica.requests, 0);
    b.lead();
    let again = b.dir.path().join("again.sock");
    b.volume.commands().send(Command::Listen(vec![
        UnixListener::bind(&again).unwrap().into(),
    ]));
    client(&again).flush().unwrap();
}

#[test]
fn rubbish_from_a_client_costs_only_its_connection() {
    use std::io::{Read as _, Write as _};
    let b = bench(1);
    b.lead();
    let path = b.listen();
    let mut s = UnixStream::connect(&path).unwrap();
    s.write_all(&[0xff; 4096]).unwrap();
    let mut all = Vec::new();
    // The greeting may come before the end; the end comes.
    let _ = s.read_to_end(&mut all);
    client(&path).flush().unwrap();
}

#[test]
fn the_port_serves_other_threads() {
    let b = bench(1);
    b.lead();
    let port = b.volume.port();
    port.call(Op::Write {
        offset: 4096,
        data: Bytes::from(vec![9; 8192]),
        fua: true,
    })
    .unwrap();
    assert_eq!(
        port.call(Op::Read {
            offset: 8192,
            len: 4096
        })
        .unwrap(),
        vec![9; 4096]
    );
    b.volume.end();
    assert!(port.call(Op::Flush).is_err());
}

#[test]
fn more_requests_than_the_limits_allow_at_once_are_all_answered() {
    let b = bench(1);
    b.lead();
    let (tx, rx) = std_mpsc::channel();
    let submitters: Vec<_> = (0..4_u64)
        .map(|n| {
            let (port, tx) = (b.volume.port(), tx.clone());
            std::thread::spawn(move || {
                for i in 0..REQUESTS_MAX as u64 {
                    let (offset, tx) = ((n * 512 + i % 512) * 4096, tx.clone());
                    port.submit(Op::Read { offset, len: 4096 }, move |r| tx.send(r).unwrap());
                }
            })
        })
        .collect();
    for _ in 0..4 * REQUESTS_MAX {
        rx.recv_timeout(PATIENCE).expect("an answer").unwrap();
    }
    submitters.into_iter().for_each(|s| s.join().unwrap());
    assert_eq!(b.status().replica.requests, 0);
}

#[test]
fn deadlines_become_ticks() {
    let b = bench(1);
    b.tell(FromControl::Lease {
        until: crate::clock::now().plus_ms(20),
    });
    assert!(matches!(
        b.report(),
        Report::Control(ToControl::Drained { .. })
    ));
}

#[test]
fn the_end_is_reported() {
    let b = bench(1);
    let Bench {
        volume, reports, ..
    } = b;
    volume.end();
    assert!(matches!(
        reports.recv_timeout(PATIENCE).unwrap(),
        Report::Ended(Ok(()))
    ));
}

/// Two connected TCP sockets.
fn sockets() -> (TcpStream, TcpStream) {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(l.local_addr().unwrap()).unwrap();
    (a, l.accept().unwrap().0)
}

fn connect(a: &Bench, b: &Bench, connection: u64) {
    let ((wa, wb), (ba, bb)) = (sockets(), sockets());
    a.volume.commands().send(Command::Lanes(Pair {
        peer: NodeId(2),
        connection,
        write: wa,
        bulk: ba,
    }));
    b.volume.commands().send(Command::Lanes(Pair {
        peer: NodeId(1),
        connection,
        write: wb,
        bulk: bb,
    }));
}

fn pongs(b: &Bench) {
    for token in 1..=100 {
        match b.report() {
            Report::Note(Note::Attached { dirty_blocks, .. }) => assert_eq!(dirty_blocks, token),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn frames_travel_in_order_and_a_disconnect_is_seen_on_both_sides() {
    let (a, b) = (bench(1), bench(2));
    connect(&a, &b, 1);
    pongs(&a);
    pongs(&b);
    // B is told to hang up by A's frame.
    a.tell(FromControl::Invalidate { peer: NodeId(2) });
    assert!(matches!(
        b.report(),
        Report::Note(Note::Detached { peer: NodeId(1) })
    ));
    assert!(matches!(
        a.report(),
        Report::Note(Note::Detached { peer: NodeId(2) })
    ));
    connect(&a, &b, 2);
    pongs(&a);
    pongs(&b);
}

#[test]
fn a_new_pair_replaces_the_old_one() {
    let (a, b) = (bench(1), bench(2));
    connect(&a, &b, 1);
    pongs(&a);
    pongs(&b);
    connect(&a, &b, 2);
    for side in [&a, &b] {
        assert!(matches!(side.report(), Report::Note(Note::Detached { .. })));
    }
}

#[test]
fn an_isolated_volume_is_silent_and_then_hangs_up() {
    let (a, b) = (bench(1), bench(2));
    connect(&a, &b, 1);
    pongs(&a);
    pongs(&b);
    a.volume.commands().send(Command::Isolate(true));
    a.tell(FromControl::Invalidate { peer: NodeId(2) });
    a.status();
    assert!(b.reports.try_recv().is_err());
    a.volume.commands().send(Command::Isolate(false));
    assert!(matches!(a.report(), Report::Note(Note::Detached { .. })));
    assert!(matches!(b.report(), Report::Note(Note::Detached { .. })));
}
