//! The ring on real files, sockets and an eventfd; the pool's promises.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};

use crate::*;

fn rings() -> [Ring; 2] {
    let plain = RingConfig {
        plain: true,
        ..RingConfig::default()
    };
    [
        Ring::new(RingConfig::default()).unwrap(),
        Ring::new(plain).unwrap(),
    ]
}

fn ring() -> Ring {
    Ring::new(RingConfig::default()).unwrap()
}

/// Waits for one answer, as long as it takes.
fn next(ring: &mut Ring) -> Completion {
    loop {
        if let Some(completion) = ring.pop() {
            return completion;
        }
        ring.wait(1, None).unwrap();
    }
}

fn buf(done: Done) -> AlignedBuf {
    match done {
        Done::Buf(buf) => buf,
        other => panic!("no buffer: {other:?}"),
    }
}

fn errno(completion: &Completion) -> Option<i32> {
    completion
        .result
        .as_ref()
        .err()
        .and_then(std::io::Error::raw_os_error)
}

fn file() -> File {
    tempfile::tempfile().unwrap()
}

#[test]
fn tokens_keep_tag_and_number() {
    let t = token(0xfe, (1 << 56) - 2);
    assert_eq!((token_tag(t), token_low(t)), (0xfe, (1 << 56) - 2));
    assert_eq!(token_tag(token(1, u64::MAX)), 1);
}

#[test]
fn buffers_are_aligned_recycled_and_bounded() {
    let pool = BufPool::new(8192);
    let mut first = pool.get(1).unwrap();
    assert_eq!((first.len(), first.capacity()), (1, 4096));
    assert_eq!(first.as_ptr() as usize % BUF_ALIGN, 0);
    first.set_len(4096);
    first.fill(7);
    let at = first.as_ptr();
    let frozen = first.freeze();
    assert_eq!(frozen.as_ptr(), at);
    let slice = frozen.slice(4000..);
    drop(frozen);
    assert_eq!((pool.in_use_bytes(), pool.retained_bytes()), (4096, 0));
    drop(slice);
    assert_eq!((pool.in_use_bytes(), pool.retained_bytes()), (0, 4096));
    assert_eq!(pool.get(4096).unwrap().as_ptr(), at);
    assert!(pool.get_zeroed(4096).unwrap().iter().all(|b| *b == 0));

    // Three more come back, only 8192 bytes stay.
    let many: Vec<_> = (0..3).map(|_| pool.get(4096).unwrap()).collect();
    drop(many);
    assert_eq!(pool.retained_bytes(), 8192);

    for (len, cap) in [
        (4097, 8192),
        (CLASS_BYTES_MAX, CLASS_BYTES_MAX),
        (CLASS_BYTES_MAX + 1, CLASS_BYTES_MAX + 4096),
        (BUF_BYTES_MAX, BUF_BYTES_MAX),
    ] {
        let big = pool.get(len).unwrap();
        assert_eq!((big.len(), big.capacity()), (len, cap));
        assert_eq!(big.as_ptr() as usize % BUF_ALIGN, 0);
    }
    assert_eq!(pool.in_use_bytes(), 0);
    assert_eq!(
        pool.get(BUF_BYTES_MAX + 1).unwrap_err(),
        BufError::TooLarge(BUF_BYTES_MAX + 1)
    );
}

#[test]
fn buffers_come_back_from_other_threads_and_outlive_the_pool_handle() {
    let pool = BufPool::default();
    let data = pool.copy_from(b"hello").unwrap().freeze();
    let other = pool.clone();
    thread::spawn(move || drop(data)).join().unwrap();
    assert_eq!(other.retained_bytes(), 4096);
    let last = pool.copy_from(b"last").unwrap().freeze();
    drop((pool, other));
    assert_eq!(&last[..], b"last");
}

#[test]
fn files_are_written_synced_punched_and_read() {
    for mut ring in rings() {
        let pool = BufPool::default();
        let file = file();
        file.set_len(64 << 10).unwrap();
        let fd = file.as_raw_fd();
        let data = Bytes::from(vec![0xab; 8192]);
        let write = Op::Write {
            fd,
            offset: 4096,
            data: data.clone(),
            dsync: true,
        };
        ring.submit(write, 1).unwrap();
        let c = next(&mut ring);
        assert_eq!((c.token, c.result.unwrap(), c.more), (1, 8192, false));
        assert!(matches!(c.done, Done::Data(d) if d.as_ptr() == data.as_ptr()));
        ring.submit(Op::Fsync { fd, datasync: true }, 2).unwrap();
        assert_eq!(next(&mut ring).result.unwrap(), 0);
        let punch = Op::Fallocate {
            fd,
            mode: FallocateMode::PunchHole,
            offset: 4096,
            len: 4096,
        };
        ring.submit(punch, 3).unwrap();
        assert_eq!(next(&mut ring).result.unwrap(), 0);
        let mut dest = pool.get(16384).unwrap();
        dest.fill(1);
        let read = Op::Read {
            fd,
            offset: 4096,
            buf: dest,
            range: 4096..12288,
        };
        ring.submit(read, 4).unwrap();
        let c = next(&mut ring);
        assert_eq!(c.result.unwrap(), 8192);
        let got = buf(c.done);
        assert!(got[..4096].iter().all(|b| *b == 1) && got[12288..].iter().all(|b| *b == 1));
        assert!(
            got[4096..8192].iter().all(|b| *b == 0) && got[8192..12288].iter().all(|b| *b == 0xab)
        );
        // Past the end: short, not an error.
        let read = Op::read(fd, 60 << 10, pool.get(8192).unwrap());
        ring.submit(read, 5).unwrap();
        assert_eq!(next(&mut ring).result.unwrap(), 4096);
    }
}

#[test]
fn what_cannot_be_is_refused_without_the_kernel() {
    let mut ring = ring();
    let buf = BufPool::default().get(4096).unwrap();
    let bad = Op::Read {
        fd: 0,
        offset: 0,
        buf,
        range: 1..4097,
    };
    ring.submit(bad, 1).unwrap();
    let c = ring.pop().unwrap();
    assert_eq!(errno(&c), Some(libc::EINVAL));
    assert!(matches!(c.done, Done::Buf(_)));
    let long = "x".repeat(200).into();
    ring.submit(
        Op::Connect {
            fd: 0,
            addr: Addr::Unix(long),
        },
        2,
    )
    .unwrap();
    assert_eq!(errno(&ring.pop().unwrap()), Some(libc::EINVAL));
    assert_eq!(ring.in_flight(), 0);
    ring.submit(
        Op::Fsync {
            fd: -1,
            datasync: true,
        },
        3,
    )
    .unwrap();
    assert_eq!(errno(&next(&mut ring)), Some(libc::EBADF));
}

#[test]
fn large_sends_arrive_whole_and_in_order() {
    for mut ring in rings() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        // More pieces than one sendmsg takes, more bytes than the socket's buffer.
        let piece: Vec<u8> = (0..1500u32).map(|i| i as u8).collect();
        let mut data = vec![Bytes::from(piece); 3000];
        data.insert(7, Bytes::new());
        let total: usize = data.iter().map(Bytes::len).sum();
        let want: Vec<u8> = data.concat();
        let reader = thread::spawn(move || {
            let mut got = vec![0; total];
            theirs.read_exact(&mut got).unwrap();
            (got, theirs)
        });
        let send = Op::Send {
            fd: ours.as_raw_fd(),
            data,
        };
        ring.submit(send, 9).unwrap();
        let c = next(&mut ring);
        assert_eq!((c.token, c.result.unwrap() as usize), (9, total));
        assert!(matches!(c.done, Done::List(list) if list.len() == 3001));
        let (got, theirs) = reader.join().unwrap();
        assert!(got == want);
        // Nothing to send, and nobody to send to.
        ring.submit(
            Op::Send {
                fd: ours.as_raw_fd(),
                data: vec![Bytes::new()],
            },
            10,
        )
        .unwrap();
        assert_eq!(next(&mut ring).result.unwrap(), 0);
        drop(theirs);
        ring.submit(
            Op::Send {
                fd: ours.as_raw_fd(),
                data: vec![Bytes::from_static(b"x")],
            },
            11,
        )
        .unwrap();
        assert_eq!(errno(&next(&mut ring)), Some(libc::EPIPE));
    }
}

#[test]
fn receive_into_a_part_whole_or_as_it_comes() {
    let mut ring = ring();
    let pool = BufPool::default();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let fd = ours.as_raw_fd();
    let recv = |buf, range, wait_all| Op::Recv {
        fd,
        buf,
        range,
        wait_all,
    };
    ring.submit(recv(pool.get_zeroed(4096).unwrap(), 100..200, false), 1)
        .unwrap();
    ring.wait(0, None).unwrap();
    theirs.write_all(b"abc").unwrap();
    let c = next(&mut ring);
    assert_eq!(c.result.unwrap(), 3);
    assert_eq!(&buf(c.done)[99..104], b"\0abc\0");
    ring.submit(recv(pool.get(4096).unwrap(), 0..4, true), 2)
        .unwrap();
    theirs.write_all(b"de").unwrap();
    ring.wait(0, None).unwrap();
    assert!(ring.pop().is_none(), "half of it does not answer");
    theirs.write_all(b"fg").unwrap();
    let c = next(&mut ring);
    assert_eq!(c.result.unwrap(), 4);
    assert_eq!(&buf(c.done)[..4], b"defg");
    drop(theirs);
    ring.submit(recv(pool.get(4096).unwrap(), 0..4, false), 3)
        .unwrap();
    assert_eq!(next(&mut ring).result.unwrap(), 0);
}

fn socket(domain: nix::sys::socket::AddressFamily) -> OwnedFd {
    use nix::sys::socket::{SockFlag, SockType, socket};
    socket(domain, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

#[test]
fn accept_connect_and_close() {
    use nix::sys::socket::AddressFamily;
    let mut ring = ring();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    ring.submit(
        Op::Accept {
            fd: listener.as_raw_fd(),
            multishot: true,
        },
        1,
    )
    .unwrap();
    let mut peers = Vec::new();
    for _ in 0..2 {
        let fd = socket(AddressFamily::Inet);
        let addr = Addr::Inet(listener.local_addr().unwrap());
        ring.submit(
            Op::Connect {
                fd: fd.as_raw_fd(),
                addr,
            },
            2,
        )
        .unwrap();
        let mut server = None;
        let mut connected = false;
        while server.is_none() || !connected {
            let c = next(&mut ring);
            match (c.token, c.done) {
                (1, Done::Fd(fd)) => {
                    assert!(c.more);
                    server = Some(TcpStream::from(fd));
                }
                (2, _) => connected = c.result.is_ok(),
                other => panic!("{other:?}"),
            }
        }
        let mut client = TcpStream::from(fd);
        client.write_all(b"hi").unwrap();
        let mut got = [0; 2];
        server.as_mut().unwrap().read_exact(&mut got).unwrap();
        peers.push((client, server));
    }
    assert_eq!(ring.cancel_fd(listener.as_raw_fd()), 1);
    let c = next(&mut ring);
    assert_eq!((errno(&c), c.more), (Some(libc::ECANCELED), false));

    let (client, server) = peers.pop().unwrap();
    ring.submit(Op::Close(client.into()), 4).unwrap();
    assert_eq!(next(&mut ring).result.unwrap(), 0);
    assert_eq!(server.unwrap().read(&mut [0; 1]).unwrap(), 0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let fd = socket(AddressFamily::Unix);
    ring.submit(
        Op::Accept {
            fd: listener.as_raw_fd(),
            multishot: false,
        },
        5,
    )
    .unwrap();
    ring.submit(
        Op::Connect {
            fd: fd.as_raw_fd(),
            addr: Addr::Unix(path),
        },
        6,
    )
    .unwrap();
    let answers = [next(&mut ring), next(&mut ring)];
    assert!(answers.iter().all(|c| c.result.is_ok() && !c.more));
    let nowhere = Addr::Unix(dir.path().join("nobody"));
    ring.submit(
        Op::Connect {
            fd: socket(AddressFamily::Unix).as_raw_fd(),
            addr: nowhere,
        },
        7,
    )
    .unwrap();
    assert!(next(&mut ring).result.is_err());
}

#[test]
fn an_eventfd_wakes_the_ring_from_another_thread() {
    let mut ring = ring();
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
    let poll = Op::Poll {
        fd: event.as_raw_fd(),
        events: libc::POLLIN as u32,
        multishot: true,
    };
    ring.submit(poll, 1).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| event.write(1).unwrap());
            let c = next(&mut ring);
            assert!(c.more);
            assert_eq!(c.result.unwrap() & libc::POLLIN as u32, libc::POLLIN as u32);
            assert_eq!(event.read().unwrap(), 1);
        }
    });
    assert_eq!(ring.cancel_token(1), 1);
    assert_eq!(errno(&next(&mut ring)), Some(libc::ECANCELED));
    assert_eq!(ring.cancel_token(1), 0);
}

fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

#[test]
fn timers_fire_not_before_their_time() {
    let mut ring = ring();
    let start = boottime_ns();
    ring.submit(Op::Timeout(Timer::BoottimeNs(start + 20_000_000)), 1)
        .unwrap();
    ring.submit(Op::Timeout(Timer::AfterNs(10_000_000)), 2)
        .unwrap();
    ring.submit(Op::Timeout(Timer::BoottimeNs(0)), 3).unwrap();
    for _ in 0..3 {
        let c = next(&mut ring);
        assert_eq!(c.result.unwrap(), 0);
        let due = start + [0, 20_000_000, 10_000_000, 0][c.token as usize];
        assert!(boottime_ns() >= due);
    }
    let id = ring
        .submit(Op::Timeout(Timer::AfterNs(u64::MAX / 2)), 4)
        .unwrap();
    assert!(ring.cancel(id));
    assert_eq!(errno(&next(&mut ring)), Some(libc::ECANCELED));
    assert!(!ring.cancel(id));
}

#[test]
fn waiting_ends_when_the_time_is_over() {
    let mut ring = ring();
    assert_eq!(ring.wait(1, Some(Duration::from_millis(1))).unwrap(), 0);
    assert_eq!(ring.wait(0, None).unwrap(), 0);
}

#[test]
fn more_operations_than_the_queues_hold() {
    let config = RingConfig {
        entries: 4,
        in_flight_max: 1000,
        plain: false,
    };
    let mut ring = Ring::new(config).unwrap();
    let pool = BufPool::default();
    let file = file();
    file.set_len(4096 * 1000).unwrap();
    for i in 0..1000u64 {
        file.write_all_at(&i.to_le_bytes(), i * 4096).unwrap();
    }
    for i in 0..1000u64 {
        let read = Op::read(file.as_raw_fd(), i * 4096, pool.get(4096).unwrap());
        // Some may have answered already, and are in flight no more.
        ring.submit(read, i).unwrap();
    }
    let mut seen = vec![false; 1000];
    for _ in 0..1000 {
        let c = next(&mut ring);
        assert_eq!(c.result.unwrap(), 4096);
        assert_eq!(buf(c.done)[..8], c.token.to_le_bytes());
        assert!(!std::mem::replace(&mut seen[c.token as usize], true));
    }
    assert_eq!((ring.in_flight(), pool.in_use_bytes()), (0, 0));
}

#[test]
fn the_limit_of_operations_in_flight_holds() {
    let config = RingConfig {
        in_flight_max: 2,
        ..RingConfig::default()
    };
    let mut ring = Ring::new(config).unwrap();
    let never = || Op::Timeout(Timer::AfterNs(u64::MAX / 2));
    ring.submit(never(), 1).unwrap();
    ring.submit(never(), 1).unwrap();
    let SubmitError::Full { limit, op } = ring.submit(never(), 1).unwrap_err();
    assert_eq!(limit, 2);
    assert!(matches!(*op, Op::Timeout(_)));
    assert_eq!(ring.cancel_token(1), 2);
    next(&mut ring);
    next(&mut ring);
    ring.submit(never(), 1).unwrap();
}

#[test]
fn a_dropped_ring_gives_its_buffers_back_and_closes_connections() {
    for mut ring in rings() {
        let pool = BufPool::default();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for entered in [false, true] {
            let recv = Op::Recv {
                fd: ours.as_raw_fd(),
                buf: pool.get(4096).unwrap(),
                range: 0..4096,
                wait_all: true,
            };
            ring.submit(recv, 1).unwrap();
            if entered {
                ring.wait(0, None).unwrap();
            }
        }
        ring.submit(
            Op::Accept {
                fd: listener.as_raw_fd(),
                multishot: true,
            },
            2,
        )
        .unwrap();
        ring.wait(0, None).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(pool.in_use_bytes(), 8192);
        drop(ring);
        assert_eq!(pool.in_use_bytes(), 0);
        drop(listener);
        // Accepted or not, nobody holds the other end now: end of stream or reset.
        assert!(matches!(client.read(&mut [0; 1]), Ok(0) | Err(_)));
        // And nobody takes what comes now.
        drop(theirs);
    }
}
