//! The fencer process as the daemon sees it: deadlines, its own death, the release, its end.

use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_host::claim::now_ns;
use holdfast_host::fencer::{FencerHandle, Slot, SlotState, Undo};
use holdfast_host::service::{Plan, Service, Spec};

const PATIENCE: Duration = Duration::from_secs(20);
/// A deadline that does not come.
const NEVER: u64 = 1 << 62;

fn spawn() -> FencerHandle {
    let exe = Path::new(env!("CARGO_BIN_EXE_holdfast-host-aid"));
    FencerHandle::spawn(exe, &["fencer".into()], None).expect("fencer")
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A service that runs on, registered.
fn service(fencer: &FencerHandle, slot: Slot, dir: &Path) -> Service {
    let spec = Spec::new(
        "job",
        ["sh", "-c", "sleep 1000 & sleep 1000"]
            .map(String::from)
            .to_vec(),
    );
    let plan = Plan::new(spec, dir).expect("plan");
    let records: Vec<_> = plan
        .undo()
        .iter()
        .map(|u| fencer.register(slot, u).expect("room"))
        .collect();
    let service = Service::start(plan, Some(fencer.pid_cell(&records[0]))).expect("start");
    fencer.service_started(&records[0], service.pid());
    service
}

#[test]
fn a_passed_deadline_fences_its_slot_alone_and_sends_the_release() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let fencer = spawn();
    let (first, second) = (Slot::new(0).expect("slot"), Slot::new(63).expect("slot"));
    let ear = UdpSocket::bind("127.0.0.1:0").expect("socket");
    ear.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let to = ear.local_addr().expect("address");
    assert!(fencer.set_deadline(first, NEVER) && fencer.set_deadline(second, NEVER));
    let _release = fencer
        .register(
            first,
            &Undo::Notice {
                to,
                bytes: b"released".to_vec(),
            },
        )
        .expect("room");
    let mut a = service(&fencer, first, dir.path());
    let mut b = service(&fencer, second, dir.path());
    // Renewed a few times, then not.
    for _ in 0..5 {
        assert!(fencer.set_deadline(first, now_ns() + 10_000_000_000));
    }
    assert!(matches!(fencer.state(first), SlotState::Held(_)) && !fencer.is_fenced(first));
    assert!(a.try_wait().is_none());
    assert!(fencer.set_deadline(first, now_ns()));
    until("the slot is fenced", || {
        fencer.state(first) == SlotState::Fenced
    });
    let mut heard = [0; 64];
    let got = ear.recv(&mut heard).expect("the release");
    assert_eq!(&heard[..got], b"released");
    assert!(a.try_wait().is_some_and(|s| !s.success()));
    assert!(fencer.is_fenced(first) && !fencer.set_deadline(first, NEVER) && !fencer.clear(first));
    let refused = fencer.register(first, &Undo::Service { marker: 1 });
    assert!(refused.expect_err("fenced").to_string().contains("fenced"));
    // The other one goes on, and the first can be used again.
    assert!(b.try_wait().is_none() && !fencer.is_fenced(second));
    assert!(
        fencer.rearm(first)
            && fencer.state(first) == SlotState::Idle
            && fencer.set_deadline(first, NEVER)
    );
    let record = fencer
        .register(first, &Undo::Service { marker: 1 })
        .expect("room");
    fencer.unregister(record);
    assert!(fencer.clear(first));
    b.kill().expect("killed");
}

#[test]
fn a_side_effect_made_after_the_fencing_is_undone_too() {
    // A daemon that was stopped between registering and starting goes on after its slot has been fenced.
    let dir = tempfile::tempdir().expect("temporary directory");
    let fencer = spawn();
    let slot = Slot::new(2).expect("slot");
    let spec = Spec::new("late", ["sleep", "1000"].map(String::from).to_vec());
    let plan = Plan::new(spec, dir.path()).expect("plan");
    // The record of the process alone: a fenced cgroup is removed, and starting in it fails by itself.
    let undo = plan
        .undo()
        .into_iter()
        .find(|u| matches!(u, Undo::Service { .. }))
        .expect("always there");
    assert!(fencer.set_deadline(slot, NEVER));
    let record = fencer.register(slot, &undo).expect("room");
    assert!(fencer.set_deadline(slot, now_ns()));
    until("the slot is fenced", || {
        fencer.state(slot) == SlotState::Fenced
    });
    let mut late = Service::start(plan, Some(fencer.pid_cell(&record))).expect("start");
    until("the late one is killed", || late.try_wait().is_some());
    late.kill().expect("gone");
    assert!(fencer.rearm(slot));
    fencer.quit().expect("it ends");
}

#[test]
fn nothing_is_registered_without_a_deadline_that_lasts() {
    let fencer = spawn();
    let slot = Slot::new(4).expect("slot");
    let undo = Undo::Service { marker: 1 };
    let refused = fencer.register(slot, &undo).expect_err("no lease");
    assert!(refused.to_string().contains("no lease"), "{refused}");
    assert!(!fencer.may_hold(slot) && !fencer.has_records(slot));
    assert!(fencer.set_deadline(slot, NEVER) && fencer.may_hold(slot));
    let record = fencer.register(slot, &undo).expect("room");
    assert!(fencer.has_records(slot));
    fencer.unregister(record);
    // A machine that was paused: the deadline is over before the fencer has looked.
    assert!(fencer.set_deadline(slot, 1) && !fencer.may_hold(slot));
    assert!(fencer.register(slot, &undo).is_err());
    until("the slot is fenced", || {
        fencer.rearm(slot) && !fencer.is_fenced(slot) && fencer.clear(slot)
    });
    assert!(fencer.register(slot, &undo).is_err() && !fencer.has_records(slot));
    fencer.quit().expect("it ends");
}

#[test]
fn a_dead_fencer_is_noticed_and_its_successor_goes_on() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let fencer = spawn();
    let slot = Slot::new(5).expect("slot");
    assert!(fencer.set_deadline(slot, NEVER) && fencer.is_alive());
    let mut held = service(&fencer, slot, dir.path());
    let first = fencer.pid();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(first as i32),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("the fencer is there");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, fencer.died()).await })
        .expect("in time")
        .expect("watched");
    assert!(!fencer.is_alive());
    assert!(
        held.try_wait().is_none(),
        "nothing is undone by the fencer's death"
    );
    fencer.respawn().expect("a new one");
    assert!(fencer.is_alive() && fencer.pid() != first);
    assert!(fencer.set_deadline(slot, now_ns()));
    until("the new one fences what the old one knew", || {
        fencer.state(slot) == SlotState::Fenced
    });
    assert!(held.try_wait().is_some());
    assert!(fencer.rearm(slot));
    fencer.quit().expect("it ends");
}

#[test]
fn signals_of_a_terminal_do_not_end_it() {
    let fencer = spawn();
    let pid = nix::unistd::Pid::from_raw(fencer.pid() as i32);
    assert_ne!(
        nix::unistd::getsid(Some(pid)).expect("session"),
        nix::unistd::getsid(None).expect("session")
    );
    for signal in [
        nix::sys::signal::Signal::SIGTERM,
        nix::sys::signal::Signal::SIGINT,
        nix::sys::signal::Signal::SIGHUP,
    ] {
        nix::sys::signal::kill(pid, signal).expect("the fencer is there");
    }
    // It still works: a slot is fenced.
    let slot = Slot::new(1).expect("slot");
    assert!(fencer.set_deadline(slot, now_ns()));
    until("the slot is fenced", || {
        fencer.state(slot) == SlotState::Fenced
    });
    assert!(fencer.is_alive());
    fencer.quit().expect("it ends");
}

#[test]
fn a_fencer_without_a_daemon_says_so() {
    let exe = env!("CARGO_BIN_EXE_holdfast-host-aid");
    let out = std::process::Command::new(exe)
        .arg("fencer")
        .output()
        .expect("runs");
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("started by the daemon"));
    let error = FencerHandle::spawn(Path::new("/bin/true"), &[], None).expect_err("no fencer");
    assert!(error.to_string().contains("/bin/true"), "{error}");
}
