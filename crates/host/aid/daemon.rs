//! A daemon reduced to its side effects: it registers and makes them, renews its deadline while it can, and says when
//! it finds itself fenced.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use holdfast_host::address::{self, Vip};
use holdfast_host::claim::{Claim, now_ns};
use holdfast_host::fencer::{FencerHandle, Slot, SlotState, Undo};
use holdfast_host::mount;
use holdfast_host::service::{self, Plan, Service, Spec};

/// How long one renewal lasts.
const LEASE: Duration = Duration::from_millis(400);
/// Wait between renewals.
const RENEWAL: Duration = Duration::from_millis(20);
/// Size of the disk that is mounted, in bytes.
const DISK_BYTES: u64 = 16 << 20;

/// Arguments: state directory, VIP, `disk` or `plain`.
pub fn run(args: &[String]) -> ! {
    let [dir, vip, kind] = args else {
        panic!("daemon STATE_DIR VIP disk|plain")
    };
    let dir = Path::new(dir);
    let claim = Claim::take_within(dir, Duration::from_secs(5)).expect("the state directory");
    service::become_subreaper().expect("subreaper");
    let exe = std::env::current_exe().expect("own path");
    let fencer = FencerHandle::spawn(&exe, &["fencer".into()], Some(&claim)).expect("fencer");
    let slot = Slot::new(0).expect("first slot");
    fencer.name(slot, "shop");
    assert!(fencer.set_deadline(slot, now_ns() + LEASE.as_nanos() as u64));

    let place =
        address::locate(&Vip::new(vip.parse().expect("address"))).expect("device for the VIP");
    let _vip = fencer
        .register(slot, &place.undo().expect("no loopback"))
        .expect("room");
    assert!(address::add(&place).expect("add"));

    let keep = (kind == "disk").then(|| disk(&fencer, slot, dir));

    // Grandchildren in another group, in another session, and one without a parent.
    let script =
        "sleep 1001 & setsid sleep 1002 & (setsid sh -c 'sleep 1003 & exit' &) ; exec sleep 1004";
    let mut spec = Spec::new("tree", ["sh", "-c", script].map(String::from).to_vec());
    if kind == "disk" {
        spec.cwd = Some(dir.join("mnt"));
    }
    let plan = Plan::new(spec, &dir.join("log")).expect("plan");
    let mut records = Vec::new();
    for undo in plan.undo() {
        records.push(fencer.register(slot, &undo).expect("room"));
    }
    let service = Service::start(plan, Some(fencer.pid_cell(&records[0]))).expect("start");
    fencer.service_started(&records[0], service.pid());

    say(&format!("up {} {}", service.pid(), fencer.pid()));
    loop {
        let until = now_ns() + LEASE.as_nanos() as u64;
        if !fencer.set_deadline(slot, until) {
            break;
        }
        std::thread::sleep(RENEWAL);
    }
    while fencer.state(slot) != SlotState::Fenced {
        std::thread::sleep(RENEWAL);
    }
    say("fenced");
    assert!(fencer.rearm(slot) && fencer.state(slot) == SlotState::Idle);
    if let Some((mut waiter, _connection)) = keep {
        waiter
            .wait()
            .expect("it goes on when the connection is aborted");
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .expect("the test reads this");
}

/// ext4 on a loop device, and a FUSE mount that nobody serves, with a process that waits in it.
fn disk(fencer: &FencerHandle, slot: Slot, dir: &Path) -> (Child, std::os::fd::OwnedFd) {
    let image = dir.join("disk");
    std::fs::File::create(&image)
        .and_then(|f| f.set_len(DISK_BYTES))
        .expect("image");
    mount::make(&image, mount::Fs::Ext4, "test").expect("mkfs");
    let out = Command::new("losetup")
        .args(["-f", "--show"])
        .arg(&image)
        .output()
        .expect("losetup");
    let device = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
    assert!(
        out.status.success(),
        "losetup: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let _device = fencer
        .register(
            slot,
            &Undo::Loop {
                path: device.clone(),
            },
        )
        .expect("room");
    assert_eq!(
        mount::check(&device, mount::Fs::Ext4).expect("fsck"),
        mount::Checked::Clean
    );
    let target = dir.join("mnt");
    let _mount = fencer
        .register(
            slot,
            &Undo::Mount {
                path: target.clone(),
            },
        )
        .expect("room");
    let spec = mount::Spec {
        source: device,
        target: target.clone(),
        fs: mount::Fs::Ext4,
        options: "noatime".into(),
    };
    mount::mount(&spec).expect("mount");
    mount::mount(&spec).expect("mounting again is nothing");
    std::fs::write(target.join("kept"), b"content").expect("writable");

    let fuse = dir.join("fuse");
    std::fs::create_dir_all(&fuse).expect("directory");
    let _fuse = fencer
        .register(slot, &Undo::Fuse { path: fuse.clone() })
        .expect("room");
    let connection = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .expect("/dev/fuse");
    let connection = std::os::fd::OwnedFd::from(connection);
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        std::os::fd::AsRawFd::as_raw_fd(&connection)
    );
    nix::mount::mount(
        Some("test"),
        &fuse,
        Some("fuse"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .expect("FUSE mount");
    // This one waits in the kernel for an answer that never comes, and ends when the connection is aborted.
    let mut waiter = Command::new("sh");
    waiter.arg("-c").arg(format!(
        "ls {}; echo $? > {}",
        fuse.display(),
        dir.join("waiter").display()
    ));
    (waiter.spawn().expect("waiter"), connection)
}
