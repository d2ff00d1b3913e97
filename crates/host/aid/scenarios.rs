//! Whole scenarios, run by the tests as root or as root of a user namespace.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_host::address::{self, Vip};
use holdfast_host::claim::Claim;
use holdfast_host::machine::{Lab, Machine};
use holdfast_host::service::{Plan, Service, Spec, cgroup_root};
use holdfast_host::{Error, mount};

/// How long anything here may take before the scenario has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Waits until `done`.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn two_machines(subnet: &str) -> (Lab, Machine, Machine, Vec<holdfast_host::machine::Port>) {
    let prefix = if subnet.contains(':') { 64 } else { 24 };
    let at = |n: &str| ip(&format!("{subnet}{n}"));
    let mut lab = Lab::new(at("1"), prefix).expect("segment");
    let a = Machine::new("a").expect("machine");
    let b = Machine::new("b").expect("machine");
    let ports = vec![
        lab.attach(&a, at("11"), prefix).expect("cable"),
        lab.attach(&b, at("12"), prefix).expect("cable"),
    ];
    (lab, a, b, ports)
}

/// The life of a VIP between two machines, for both address families.
pub fn vip() {
    for (subnet, vip) in [("10.77.0.", "10.77.0.100"), ("fd77::", "fd77::100")] {
        let (lab, a, b, _ports) = two_machines(subnet);
        let vip = Vip::new(ip(vip));
        let place = a
            .in_network(|| address::locate(&vip))
            .expect("network")
            .expect("device");
        assert_eq!(
            (place.device.as_str(), place.prefix),
            ("eth0", vip.prefix())
        );
        assert!(!place.is_loopback());
        let elsewhere = Vip::new(ip("192.0.2.1"));
        let error = a
            .in_network(|| address::locate(&elsewhere))
            .expect("network")
            .expect_err("not in this subnet");
        assert!(
            matches!(error, Error::NoDeviceFor { .. }) && error.to_string().contains("`device`"),
            "{error}"
        );

        // Nobody has it; then a has it, and is reached by it from the segment.
        let listen = time_to_probe();
        assert_eq!(
            b.in_network(|| address::probe(&place, listen))
                .expect("network")
                .expect("probe"),
            None
        );
        a.in_network(|| {
            assert!(address::add(&place).expect("add"));
            assert!(!address::add(&place).expect("adding again is nothing"));
            assert!(address::is_held(vip.addr).expect("list"));
            let ours = address::list_ours().expect("list");
            assert_eq!(ours.len(), 1);
            assert!(ours[0].marked && ours[0].place == place);
            assert!(address::announce(&place).expect("announce"));
        })
        .expect("network");
        reach(&lab, &a, vip.addr);

        // b hears of the conflict, and not a of its own.
        let place_b = b
            .in_network(|| address::locate(&vip))
            .expect("network")
            .expect("device");
        until("the conflict is seen", || {
            b.in_network(|| address::probe(&place_b, listen))
                .expect("network")
                .expect("probe")
                .is_some()
        });
        assert_eq!(
            a.in_network(|| address::probe(&place, listen))
                .expect("network")
                .expect("probe"),
            None
        );

        // Take-over: the segment has a's hardware address cached, and follows b's announcement.
        let moved = a.in_network(|| address::remove_leftovers(std::slice::from_ref(&vip)));
        assert_eq!(moved.expect("network").expect("leftovers").len(), 1);
        a.in_network(|| {
            assert!(!address::remove(&place).expect("removing again is nothing"));
            assert!(
                !address::is_held(vip.addr).expect("list")
                    && address::list_ours().expect("list").is_empty()
            );
        })
        .expect("network");
        b.in_network(|| address::add(&place_b))
            .expect("network")
            .expect("add");
        let announcing = || {
            b.in_network(|| address::announce(&place_b))
                .expect("network")
                .expect("announce")
        };
        announcing();
        reach(&lab, &b, vip.addr);

        // An address that somebody else put there is a leftover too, if it is a configured VIP; others stay.
        let other = Vip::new(ip(&format!("{subnet}12")));
        b.in_network(|| {
            assert!(
                address::remove_leftovers(&[])
                    .expect("none configured")
                    .is_empty()
            );
            assert_eq!(address::list_ours().expect("list").len(), 1);
            let found = address::remove_leftovers(&[other, vip.clone()]).expect("leftovers");
            assert_eq!(
                found
                    .iter()
                    .map(|h| h.marked)
                    .collect::<Vec<_>>()
                    .iter()
                    .filter(|m| **m)
                    .count(),
                1
            );
            assert_eq!(found.len(), 2);
        })
        .expect("network");
    }
    println!("ok");
}

fn time_to_probe() -> Duration {
    // Longer than by default: the machines running the tests may be busy.
    Duration::from_millis(600)
}

/// A connection from the bridge's machine to `addr` arrives in `machine`.
fn reach(lab: &Lab, machine: &Machine, addr: IpAddr) {
    let listener = machine
        .in_network(|| TcpListener::bind((addr, 4000)))
        .expect("network")
        .expect("listen");
    until("the VIP answers", || {
        lab.lan()
            .in_network(|| {
                TcpStream::connect_timeout(&(addr, 4000).into(), Duration::from_millis(300))
            })
            .expect("network")
            .is_ok()
    });
    drop(listener);
}

/// A cable that is cut and healed.
pub fn cable() {
    let (lab, a, b, ports) = two_machines("10.78.0.");
    let target = ip("10.78.0.12");
    let listener = b
        .in_network(|| TcpListener::bind((target, 4000)))
        .expect("network")
        .expect("listen");
    let connect = || {
        a.in_network(|| {
            TcpStream::connect_timeout(&(target, 4000).into(), Duration::from_millis(300))
        })
        .expect("network")
        .is_ok()
    };
    until("b answers", connect);
    lab.cut(&ports[0]).expect("cut");
    assert!(!connect());
    lab.heal(&ports[0]).expect("heal");
    until("b answers again", connect);
    drop(listener);
    println!("ok");
}

/// Boots machines with processes in them, says their numbers, and waits to be killed.
pub fn hold_lab(args: &[String]) {
    let [mark] = args else {
        panic!("hold-lab MARK")
    };
    let (lab, a, b, _ports) = two_machines("10.79.0.");
    let mut children = Vec::new();
    for machine in [lab.lan(), &a, &b] {
        let mut command = Command::new("sh");
        // One in a session of its own without a parent, and a mount.
        command.args([
            "-c",
            "mount -t tmpfs none /mnt; (setsid sh -c \"$0\" &) ; exec sh -c \"$0\"",
            mark,
        ]);
        children.push(machine.spawn(command).expect("start"));
    }
    println!("up {} {} {}", lab.lan().pid(), a.pid(), b.pid());
    std::io::stdout().flush().expect("the test reads this");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// A service with stubborn grandchildren: stopped without a trace. Arguments: directory, `cgroup` or `tree`.
pub fn service(args: &[String]) {
    let [dir, kind] = args else {
        panic!("service DIR cgroup|tree")
    };
    assert_eq!(
        cgroup_root().is_some(),
        kind == "cgroup",
        "cgroups are as the test thinks"
    );
    let dir = Path::new(dir);
    holdfast_host::service::become_subreaper().expect("subreaper");
    let pids = dir.join("pids");
    let _ = std::fs::remove_file(&pids);
    let script = "trap '' TERM; echo out; echo err >&2; echo $$ >> $PIDS; \
                  setsid sh -c 'trap \"\" TERM; echo $$ >> $PIDS; while :; do sleep 1; done' & \
                  (sh -c 'trap \"\" TERM; echo $$ >> $PIDS; while :; do sleep 1; done' &) ; \
                  while :; do sleep 1; done";
    let mut spec = Spec::new("stubborn", ["sh", "-c", script].map(String::from).to_vec());
    spec.env.push(("PIDS".into(), pids.display().to_string()));
    let plan = Plan::new(spec, dir).expect("plan");
    let cgroup = plan.undo().into_iter().find_map(|u| match u {
        holdfast_host::fencer::Undo::Cgroup { path } => Some(path),
        _ => None,
    });
    assert_eq!(cgroup.is_some(), kind == "cgroup");
    let mut service = Service::start(plan, None).expect("start");
    let read = || std::fs::read_to_string(&pids).unwrap_or_default();
    until("three processes run", || read().lines().count() == 3);
    assert!(service.try_wait().is_none());
    let log = service.log().to_path_buf();
    let status = service
        .stop_blocking(Duration::from_millis(200))
        .expect("stopped");
    assert!(!status.success());
    for pid in read().lines() {
        assert!(
            !alive(pid.parse().expect("a number")),
            "process {pid} is left"
        );
    }
    assert!(cgroup.is_none_or(|path| !path.exists()));
    assert_eq!(std::fs::read_to_string(log).expect("log"), "out\nerr\n");
    println!("ok");
}

fn alive(pid: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with(['Z', 'X']))
}

/// A daemon in a machine loses control in the way named; everything of it must go. Arguments: directory, `kill` or
/// `stop` or `fencer` (which is killed first, and must not be missed), `disk` or `plain`.
pub fn fencing(args: &[String]) {
    let [dir, fault, kind] = args else {
        panic!("fencing DIR kill|stop disk|plain")
    };
    let dir = PathBuf::from(dir);
    let mut lab = Lab::new(ip("10.80.0.1"), 24).expect("segment");
    let a = Machine::new("a").expect("machine");
    lab.attach(&a, ip("10.80.0.11"), 24).expect("cable");
    let vip = ip("10.80.0.100");
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command
        .arg("daemon")
        .arg(&dir)
        .args([vip.to_string().as_str(), kind.as_str()])
        .stdout(Stdio::piped());
    let mut daemon = a.spawn(command).expect("daemon");
    let mut lines = BufReader::new(daemon.stdout.take().expect("piped")).lines();
    let mut line = move || lines.next().expect("the daemon speaks").expect("text");
    let up = line();
    assert!(up.starts_with("up "), "{up}");
    let held = || {
        a.in_network(|| address::is_held(vip))
            .expect("network")
            .expect("list")
    };
    // The numbers of the machine's own pid namespace are not ours: the processes are known by what they run.
    let sleepers = || {
        (1001..=1004)
            .filter(|n| running(&format!("sleep\0{n}\0")))
            .count()
    };
    until("all grandchildren run", || sleepers() == 4);
    assert!(held());
    let loops = || loops_on(&dir.join("disk"));
    if kind == "disk" {
        assert_eq!(loops(), 1);
    }

    let signal = |child: &Child, signal| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal)
            .expect("the daemon is there");
    };
    match fault.as_str() {
        "kill" => signal(&daemon, nix::sys::signal::Signal::SIGKILL),
        "stop" => signal(&daemon, nix::sys::signal::Signal::SIGSTOP),
        other => panic!("{other} is no fault"),
    }
    until("the VIP is gone", || !held());
    until("the services are gone", || sleepers() == 0);
    if kind == "disk" {
        until("the loop device is gone", || loops() == 0);
        until("the one who waited for FUSE goes on", || {
            dir.join("waiter").exists()
        });
    }
    if fault == "stop" {
        signal(&daemon, nix::sys::signal::Signal::SIGCONT);
        assert_eq!(line(), "fenced");
        assert!(!held() && sleepers() == 0);
        signal(&daemon, nix::sys::signal::Signal::SIGKILL);
    }
    daemon.wait().expect("ended");
    // The state directory is free as soon as the fencer has ended, and that is what says that all is undone.
    let claim = Claim::take_within(&dir, PATIENCE).expect("released by the fencer");
    assert!(!held() && sleepers() == 0);
    drop(claim);
    if kind == "disk" {
        // What was written and synced before is on the disk: the image is a sound filesystem.
        mount::check(&dir.join("disk"), mount::Fs::Ext4).expect("fsck");
    }
    println!("ok");
}

/// A mount that processes keep busy, in a machine of its own. Argument: directory.
pub fn busy(args: &[String]) {
    let machine = Machine::new("busy").expect("machine");
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.arg("busy-inside").args(args);
    let mut child = machine.spawn(command).expect("start");
    assert!(child.wait().expect("ended").success());
    println!("ok");
}

/// What happens inside.
pub fn busy_inside(args: &[String]) {
    let [dir] = args else {
        panic!("busy-inside DIR")
    };
    let target = Path::new(dir).join("a place");
    std::fs::create_dir(&target).expect("directory");
    let tmpfs = || {
        let none = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), &target, Some("tmpfs"), none, None::<&str>).expect("tmpfs");
    };
    tmpfs();
    assert!(mount::is_mounted(&target).expect("list"));
    assert!(mount::holders(&target).expect("looked").is_empty());
    let file = target.join("file");
    std::fs::write(&file, "content").expect("writable");
    // Inherited descriptors count as much as a working directory.
    let mut by_cwd = Command::new("sleep")
        .arg("1000")
        .current_dir(&target)
        .spawn()
        .expect("start");
    let open = std::fs::File::open(&file).expect("open");
    let mut by_fd = Command::new("sleep")
        .arg("1000")
        .stdin(open)
        .spawn()
        .expect("start");
    let expected = [by_cwd.id() as i32, by_fd.id() as i32];
    until("both are seen", || {
        let holders = mount::holders(&target).expect("looked");
        let sees = |pid: i32, by: &str| {
            holders
                .iter()
                .any(|h| h.pid == pid && h.by == by && h.name == "sleep")
        };
        holders.len() == 2 && sees(expected[0], "cwd") && sees(expected[1], "fd 0")
    });

    let gently = mount::Policy {
        tries: 2,
        kill_holders: false,
        lazy: false,
    };
    let error = mount::unmount(&target, &gently).expect_err("it is busy");
    assert!(
        expected
            .iter()
            .all(|pid| error.to_string().contains(&pid.to_string())),
        "{error}"
    );
    let done = mount::unmount(&target, &mount::Policy::default()).expect("unmounted");
    assert!(!done.lazy && !mount::is_mounted(&target).expect("list"));
    assert_eq!(done.killed.len(), 2);
    by_cwd.wait().expect("killed");
    by_fd.wait().expect("killed");

    // This process is never killed for it: the last resort is to detach.
    tmpfs();
    let held = std::fs::File::create(target.join("mine")).expect("open");
    let lazily = mount::Policy {
        tries: 2,
        kill_holders: true,
        lazy: true,
    };
    let done = mount::unmount(&target, &lazily).expect("detached");
    assert!(done.lazy && done.killed.is_empty() && !mount::is_mounted(&target).expect("list"));
    drop(held);
}

/// Whether a process with this command line lives.
fn running(wanted: &str) -> bool {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    entries
        .filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok())
        .any(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted)
                && alive(pid)
        })
}

fn loops_on(image: &Path) -> usize {
    let out = Command::new("losetup")
        .arg("-j")
        .arg(image)
        .output()
        .expect("losetup");
    String::from_utf8_lossy(&out.stdout).lines().count()
}

/// The FUSE connections of a machine are cut, and only those. Argument: a directory.
pub fn cut_fuse(args: &[String]) {
    let machine = Machine::new("cut").expect("machine");
    assert_eq!(machine.abort_fuse().expect("nothing yet"), 0);
    let mut inside = Command::new(std::env::current_exe().expect("own path"));
    inside.arg("fuse-inside").args(args).stdout(Stdio::piped());
    let mut child = machine.spawn(inside).expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("readable");
    assert_eq!(next(), "mounted");
    assert_eq!(machine.abort_fuse().expect("aborted"), 1);
    assert_eq!(next(), "aborted");
    child.wait().expect("it ends");
    machine.power_off();
    println!("ok");
}

/// A FUSE mount at the given place; says when its connection has ended.
pub fn fuse_inside(args: &[String]) {
    use std::io::Read;
    let mut connection = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .expect("/dev/fuse");
    let fd = std::os::fd::AsRawFd::as_raw_fd(&connection);
    let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
    nix::mount::mount(
        Some("test"),
        Path::new(&args[0]),
        Some("fuse"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .expect("FUSE mount");
    println!("mounted");
    let mut request = vec![0; 1 << 20];
    // The first is the greeting, which is not answered.
    while connection.read(&mut request).is_ok() {}
    println!("aborted");
}
