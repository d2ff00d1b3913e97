//! The host crate against the real kernel: every scenario runs in machines made of namespaces, as root where this
//! process is root, and as an ordinary user in a user namespace.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_host::machine::{Mode, capability, into_user_namespace};

/// User id of an ordinary user, for tests that run as root.
const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(20);
/// Scenarios look for processes by their command lines, so they run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn aid() -> Command {
    Command::new(env!("CARGO_BIN_EXE_holdfast-host-aid"))
}

fn expect_ok(mut command: Command) {
    let out = command.output().expect("the aid runs");
    let said = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success() && said.trim_end().ends_with("ok"),
        "{}\n{said}\n{errors}",
        out.status
    );
    eprint!("{errors}");
}

/// A directory that any user can write.
fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777))
        .expect("own directory");
    dir
}

/// Runs the scenario with machines as this user, and as an ordinary one; says what is skipped and why.
fn everywhere(args: impl Fn(&Path) -> Vec<String>) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let possible = capability();
    if possible.mode == Mode::Root || (possible.mode == Mode::Userns && !possible.must_enter) {
        let dir = open_dir();
        let mut command = aid();
        command.args(args(dir.path()));
        expect_ok(command);
    } else {
        eprintln!(
            "skip: {args:?} as root: {reason}",
            args = args(Path::new("DIR")),
            reason = possible.reason
        );
    }
    if let Some(reason) = no_ordinary_user() {
        eprintln!(
            "skip: {args:?} in a user namespace: {reason}",
            args = args(Path::new("DIR"))
        );
        return;
    }
    let dir = open_dir();
    let mut command = aid();
    command.args(args(dir.path()));
    as_ordinary_user(&mut command);
    into_user_namespace(&mut command);
    expect_ok(command);
}

fn as_ordinary_user(command: &mut Command) {
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

/// Why nothing can be run as an ordinary user with user namespaces, if so.
fn no_ordinary_user() -> Option<String> {
    let mut command = aid();
    command.arg("capability");
    as_ordinary_user(&mut command);
    match command.output() {
        Err(error) => Some(format!(
            "the ordinary user cannot run the test's program: {error}"
        )),
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            (!said.contains("mode: Userns")).then_some(said)
        }
    }
}

#[test]
fn a_vip_moves_between_machines() {
    everywhere(|_| vec!["vip".into()]);
}

#[test]
fn a_cable_is_cut_and_healed() {
    everywhere(|_| vec!["cable".into()]);
}

#[test]
fn a_killed_daemon_leaves_nothing() {
    everywhere(|dir| {
        vec![
            "fencing".into(),
            dir.display().to_string(),
            "kill".into(),
            "plain".into(),
        ]
    });
}

#[test]
fn a_stopped_daemon_holds_nothing_past_its_deadline() {
    everywhere(|dir| {
        vec![
            "fencing".into(),
            dir.display().to_string(),
            "stop".into(),
            "plain".into(),
        ]
    });
}

#[test]
fn a_busy_mount_is_freed_of_its_holders() {
    everywhere(|dir| vec!["busy".into(), dir.display().to_string()]);
}

#[test]
fn the_fuse_connections_of_a_machine_are_cut() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let possible = capability();
    if possible.mode != Mode::Root {
        eprintln!("skip: cutting FUSE: {}", possible.reason);
        return;
    }
    let dir = open_dir();
    let mut command = aid();
    command.arg("cut-fuse").arg(dir.path());
    expect_ok(command);
}

fn with_disk(fault: &str) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let possible = capability();
    if possible.mode != Mode::Root {
        eprintln!("skip: fencing a disk: {}", possible.reason);
        return;
    }
    let dir = open_dir();
    let mut command = aid();
    command.arg("fencing").arg(dir.path()).args([fault, "disk"]);
    expect_ok(command);
}

#[test]
fn a_killed_daemon_leaves_no_mount() {
    with_disk("kill");
}

#[test]
fn a_stopped_daemon_keeps_no_mount_and_nobody_waiting() {
    with_disk("stop");
}

#[test]
fn a_stubborn_service_is_stopped_without_a_cgroup() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(reason) = no_ordinary_user() {
        eprintln!("skip: services without a cgroup: {reason}");
        return;
    }
    let dir = open_dir();
    let mut command = aid();
    command.arg("service").arg(dir.path()).arg("tree");
    as_ordinary_user(&mut command);
    expect_ok(command);
}

#[test]
fn a_stubborn_service_is_stopped_by_its_cgroup() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if holdfast_host::service::cgroup_root().is_none() {
        eprintln!("skip: services in a cgroup: there is no writable cgroup v2 hierarchy");
        return;
    }
    let dir = open_dir();
    let mut command = aid();
    command.arg("service").arg(dir.path()).arg("cgroup");
    expect_ok(command);
}

#[test]
fn machines_vanish_with_their_maker() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let possible = capability();
    let mut kinds = Vec::new();
    if possible.mode != Mode::Loopback && !possible.must_enter {
        kinds.push(false);
    }
    match no_ordinary_user() {
        Some(reason) => eprintln!("skip: machines in a user namespace: {reason}"),
        None => kinds.push(true),
    }
    if kinds.is_empty() {
        eprintln!("skip: machines: {}", possible.reason);
    }
    for ordinary in kinds {
        let mark = format!("sleep 77{}", std::process::id());
        let mut command = aid();
        command.args(["hold-lab", &mark]).stdout(Stdio::piped());
        if ordinary {
            as_ordinary_user(&mut command);
            into_user_namespace(&mut command);
        }
        let mut maker = command.spawn().expect("the aid runs");
        let mut line = String::new();
        BufReader::new(maker.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("text");
        let holders: Vec<i32> = line
            .split_whitespace()
            .skip(1)
            .map(|n| n.parse().expect("a number"))
            .collect();
        assert_eq!(holders.len(), 3, "{line}");
        // Sorted by nothing: every process inside has the mark in its command line.
        let inside = || {
            let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
            let wanted = mark.replace(' ', "\0") + "\0";
            entries
                .filter(|e| {
                    std::fs::read_to_string(e.path().join("cmdline"))
                        .is_ok_and(|line| line.contains(&wanted))
                })
                .count()
        };
        until("six processes run inside", || inside() == 6);
        maker.kill().expect("kill");
        maker.wait().expect("wait");
        until("the holders are gone", || {
            holders
                .iter()
                .all(|p| !Path::new(&format!("/proc/{p}/ns/net")).exists())
        });
        until("nothing runs inside", || inside() == 0);
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
