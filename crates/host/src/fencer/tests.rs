use std::path::PathBuf;

use super::page::{Decoded, Mapping};
use super::*;
use crate::Error;

fn published(undo: &Undo) -> Decoded {
    let (_fd, mapping) = Mapping::create().expect("memory");
    let slot = &mapping.page().slots[3];
    assert!(slot.is_empty());
    let index = slot.publish(undo).expect("room");
    assert!(!slot.is_empty());
    let read = slot.records[index].read().expect("published");
    slot.records[index].free();
    assert!(slot.is_empty() && slot.records[index].read().is_none());
    read
}

#[test]
fn every_kind_of_record_survives_the_page() {
    assert!(matches!(
        published(&Undo::Service { marker: 77 }),
        Decoded::Service { marker: 77 }
    ));
    let path = PathBuf::from("/srv/some where");
    let same = |b: &super::page::Bytes| b.as_bytes() == b"/srv/some where";
    assert!(
        matches!(published(&Undo::Cgroup { path: path.clone() }), Decoded::Cgroup(b) if same(&b))
    );
    assert!(matches!(published(&Undo::Fuse { path: path.clone() }), Decoded::Fuse(b) if same(&b)));
    assert!(
        matches!(published(&Undo::Mount { path: path.clone() }), Decoded::Mount(b) if same(&b))
    );
    assert!(matches!(published(&Undo::Loop { path }), Decoded::Loop(b) if same(&b)));
    for text in ["192.0.2.7", "fd00::7"] {
        let addr = text.parse().expect("an address");
        let read = published(&Undo::Address {
            ip: addr,
            prefix: 24,
            ifindex: 70_000,
        });
        assert!(matches!(read, Decoded::Address { ip, prefix: 24, ifindex: 70_000 } if ip == addr));
        let target = std::net::SocketAddr::new(addr, 4711);
        let read = published(&Undo::Notice {
            to: target,
            bytes: vec![0, 1, 2],
        });
        assert!(
            matches!(read, Decoded::Notice { to, bytes } if to == target && bytes.as_bytes() == [0, 1, 2])
        );
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (_fd, mapping) = Mapping::create().expect("memory");
    let slot = &mapping.page().slots[0];
    let path = |n: usize| Undo::Mount {
        path: PathBuf::from(format!("/{}", "x".repeat(n - 1))),
    };
    assert!(matches!(
        slot.publish(&path(PATH_BYTES_MAX + 1)),
        Err(Error::FencerFull { .. })
    ));
    let index = slot.publish(&path(PATH_BYTES_MAX)).expect("fits");
    assert!(
        matches!(slot.records[index].read(), Some(Decoded::Mount(b)) if b.as_bytes().len() == PATH_BYTES_MAX)
    );
    for _ in 1..RECORDS_PER_SLOT {
        slot.publish(&Undo::Service { marker: 1 }).expect("room");
    }
    let error = slot
        .publish(&Undo::Service { marker: 1 })
        .expect_err("full");
    assert!(error.to_string().contains("32 side effects"), "{error}");
    assert!(Slot::new(SLOTS_MAX - 1).is_ok() && Slot::new(SLOTS_MAX).is_err());
}

#[test]
fn renewal_and_fencing_exclude_each_other() {
    let (_fd, mapping) = Mapping::create().expect("memory");
    let slot = &mapping.page().slots[0];
    assert!(slot.set_deadline(100));
    assert!(slot.set_deadline(200));
    assert!(!slot.begin_fencing(100), "it was renewed since it was read");
    assert!(slot.begin_fencing(200));
    assert!(
        !slot.set_deadline(300) && !slot.set_deadline(0),
        "fencing cannot be taken back"
    );
    let word = slot.deadline.load(std::sync::atomic::Ordering::Acquire);
    assert_eq!(SlotState::of(word), SlotState::Fencing);
}

#[test]
fn a_deadline_never_looks_like_a_state() {
    let (_fd, mapping) = Mapping::create().expect("memory");
    let slot = &mapping.page().slots[0];
    assert!(slot.set_deadline(u64::MAX));
    let word = slot.deadline.load(std::sync::atomic::Ordering::Acquire);
    assert_eq!(SlotState::of(word), SlotState::Held(u64::MAX - 2));
}

#[test]
fn two_threads_never_both_win() {
    let (_fd, mapping) = Mapping::create().expect("memory");
    let slot = &mapping.page().slots[0];
    for round in 1..2000_u64 {
        slot.deadline
            .store(round, std::sync::atomic::Ordering::Release);
        let (renewed, fenced) = std::thread::scope(|scope| {
            let fencer = scope.spawn(|| slot.begin_fencing(round));
            let renewed = slot.set_deadline(round + 10);
            (renewed, fencer.join().expect("no panic"))
        });
        assert_ne!(renewed, fenced, "round {round}");
    }
}

#[test]
fn another_process_attaches_only_to_a_page() {
    let (fd, mapping) = Mapping::create().expect("memory");
    mapping.page().slots[1].set_name("shop");
    let second = Mapping::attach(&fd).expect("the same page");
    assert_eq!(second.page().slots[1].name().as_bytes(), b"shop");
    let file: std::os::fd::OwnedFd = tempfile::tempfile().expect("a file").into();
    assert!(Mapping::attach(&file).is_err());
}
