//! A volume through FUSE and a loop device with a real filesystem on it. Needs root and /dev/fuse;
//! without them each test prints `SKIP` with the reason.

#[path = "../examples/support/mod.rs"]
#[allow(dead_code)]
mod support;

use holdfast_blockdev::frontend::Op;
use holdfast_blockdev::frontend::fuse::FuseMount;
use holdfast_blockdev::frontend::loopdev::{self, LoopDevice};
use holdfast_blockdev::frontend::port;
use nix::mount::{MsFlags, mount, umount};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;

/// Size of the volume: enough for a small ext4 with a journal.
const SIZE: u64 = 64 << 20;

fn can_mount(test: &str) -> bool {
    let reason = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if !Path::new("/dev/fuse").exists() {
        "no /dev/fuse"
    } else if !Path::new("/dev/loop-control").exists() {
        "no /dev/loop-control"
    } else {
        return true;
    };
    println!("SKIP {test}: {reason}");
    false
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_volume_is_a_file() {
    if !can_mount("the_volume_is_a_file") {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let (port, counts) = support::memory_disk(SIZE).expect("memory disk");
    let mut mounted = FuseMount::mount(dir.path(), port, SIZE).expect("mount");
    let names: Vec<_> = fs::read_dir(dir.path())
        .expect("list")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(names, ["volume"]);
    assert_eq!(mounted.file().metadata().expect("stat").len(), SIZE);

    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mounted.file())
        .expect("open");
    // Bytes at odd places, and more than one FUSE request holds.
    let data: Vec<u8> = (0..3_000_001u32).map(|i| (i * 7) as u8).collect();
    file.write_all_at(&data, 12_345).expect("write");
    let mut back = vec![0; data.len()];
    file.read_exact_at(&mut back, 12_345).expect("read");
    assert!(back == data);
    file.sync_all().expect("fsync");
    assert_eq!(counts.flushes.load(Ordering::Relaxed), 1);

    let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
        | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(&file, punch, 12_345, 1_000_000).expect("punch");
    file.read_exact_at(&mut back, 12_345).expect("read");
    assert!(back[..1_000_000].iter().all(|byte| *byte == 0));
    assert!(back[1_000_000..] == data[1_000_000..]);
    assert_eq!(counts.zeroes.load(Ordering::Relaxed), 1);

    // The end is the end, and truncation changes nothing, as with a block device.
    assert_eq!(file.read_at(&mut back[..10], SIZE - 4).expect("read"), 4);
    assert_eq!(file.read_at(&mut back[..10], SIZE).expect("read"), 0);
    assert!(file.write_at(b"x", SIZE).is_err());
    file.set_len(0).expect("truncate");
    assert_eq!(mounted.file().metadata().expect("stat").len(), SIZE);

    let fua = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DSYNC)
        .open(mounted.file())
        .expect("open");
    fua.write_all_at(b"stable", 0).expect("write");
    assert_eq!(counts.fua.load(Ordering::Relaxed), 1);

    let busy = mounted.unmount().expect_err("in use");
    assert_eq!(busy.kind(), std::io::ErrorKind::ResourceBusy);
    drop((file, fua));
    mounted.unmount().expect("unmount");
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
}

#[test]
fn many_requests_are_under_way_at_once() {
    if !can_mount("many_requests_are_under_way_at_once") {
        return;
    }
    const READERS: usize = 8;
    let dir = tempfile::tempdir().expect("temporary directory");
    let (sender, receiver) = port::port().expect("port");
    let mut mounted = FuseMount::mount(dir.path(), sender, SIZE).expect("mount");
    let readers: Vec<_> = (0..READERS)
        .map(|index| {
            let path = mounted.file();
            thread::spawn(move || {
                let file = File::open(path).expect("open");
                let mut buf = [0; 4096];
                file.read_exact_at(&mut buf, index as u64 * 4096)
                    .expect("read");
                assert_eq!(buf, [index as u8; 4096]);
            })
        })
        .collect();
    // All of them wait here before the first is answered, and they are answered backwards.
    let mut held = Vec::new();
    while held.len() < READERS {
        held.push(receiver.recv().expect("the mount holds the sender"));
    }
    for request in held.into_iter().rev() {
        let Op::Read { offset, len } = request.op else {
            panic!("only reads were made")
        };
        let data = vec![(offset / 4096) as u8; len as usize];
        request.reply.send(Ok(data.into()));
    }
    for reader in readers {
        reader.join().expect("reader");
    }
    mounted.unmount().expect("unmount");
}

#[test]
fn writes_to_the_loop_device_are_under_way_at_once() {
    if !can_mount("writes_to_the_loop_device_are_under_way_at_once") {
        return;
    }
    const WRITERS: usize = 8;
    let dir = tempfile::tempdir().expect("temporary directory");
    let (sender, receiver) = port::port().expect("port");
    let (disk, _) = support::memory_disk(SIZE).expect("memory disk");
    let serving = thread::spawn(move || {
        // The writes wait here until all of them have come; everything else is answered at once.
        let mut held = Vec::new();
        while let Some(request) = receiver.recv() {
            let write = matches!(request.op, Op::Write { .. });
            if write && held.len() < WRITERS {
                held.push(request);
            } else {
                let reply = request.reply;
                disk.submit(request.op, |result| reply.send(result));
            }
            if held.len() == WRITERS {
                for request in held.drain(..).rev() {
                    let reply = request.reply;
                    disk.submit(request.op, |result| reply.send(result));
                }
                return receiver;
            }
        }
        receiver
    });
    let mut fuse = FuseMount::mount(dir.path(), sender, SIZE).expect("mount");
    let device = LoopDevice::attach(&fuse.file()).expect("attach");
    let writers: Vec<_> = (0..WRITERS)
        .map(|index| {
            let path = device.path().to_owned();
            thread::spawn(move || {
                let file = OpenOptions::new()
                    .write(true)
                    .custom_flags(libc::O_DIRECT)
                    .open(path)
                    .expect("open");
                let pool = holdfast_uring::BufPool::default();
                let buf = pool.copy_from(&[index as u8; 4096]).expect("buffer");
                file.write_all_at(&buf, index as u64 * 4096).expect("write");
            })
        })
        .collect();
    let receiver = serving.join().expect("all writes came together");
    // What closing the device still sends is not of interest: it fails, which harms nobody here.
    drop(receiver);
    for writer in writers {
        writer.join().expect("writer");
    }
    device.detach().expect("detach");
    fuse.unmount().expect("unmount");
}

#[test]
fn abort_fails_what_is_held() {
    if !can_mount("abort_fails_what_is_held") {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let (sender, receiver) = port::port().expect("port");
    let mounted = FuseMount::mount(dir.path(), sender, SIZE).expect("mount");
    let path = mounted.file();
    let (send, ended) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut file = File::open(path).expect("open");
        let result = file.read(&mut [0; 4096]);
        send.send(result.map_err(|error| error.raw_os_error()))
            .expect("test waits");
    });
    let held = receiver.recv().expect("the read");
    assert!(ended.try_recv().is_err(), "a held request is not answered");
    drop(mounted);
    let result = ended.recv().expect("the read ended");
    assert!(
        matches!(
            result,
            Err(Some(libc::ECONNABORTED | libc::ENOTCONN | libc::EINTR))
        ),
        "{result:?}"
    );
    // Answering too late does no harm.
    held.reply.send(Ok(vec![0; 4096].into()));
    reader.join().expect("reader");
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
}

#[test]
fn ext4_on_a_loop_device_is_clean() {
    let test = "ext4_on_a_loop_device_is_clean";
    if !can_mount(test) {
        return;
    }
    let missing = |program: &str| Command::new(program).arg("-V").output().is_err();
    if missing("mkfs.ext4") || missing("e2fsck") {
        println!("SKIP {test}: mkfs.ext4 or e2fsck not found (Debian package e2fsprogs)");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let (volume, mountpoint) = (dir.path().join("volume"), dir.path().join("mnt"));
    fs::create_dir(&volume).expect("mkdir");
    fs::create_dir(&mountpoint).expect("mkdir");
    let (port, counts) = support::memory_disk(SIZE).expect("memory disk");
    let mut fuse = FuseMount::mount(&volume, port, SIZE).expect("mount");
    let device = LoopDevice::attach(&fuse.file()).expect("attach");
    let path = device.path().to_owned();
    let name = path
        .file_name()
        .expect("name")
        .to_string_lossy()
        .into_owned();
    let sysfs = Path::new("/sys/block").join(&name);
    let read = |what: &str| fs::read_to_string(sysfs.join(what)).expect("sysfs");
    assert_eq!(read("loop/dio").trim(), "1", "direct I/O");
    assert_eq!(read("loop/autoclear").trim(), "1");
    assert_eq!(read("size").trim(), (SIZE / 512).to_string());
    assert_eq!(
        read("queue/logical_block_size").trim(),
        device.block_bytes().to_string()
    );
    println!(
        "{} with sectors of {} bytes",
        path.display(),
        device.block_bytes()
    );

    let device_name = path.to_string_lossy().into_owned();
    run("mkfs.ext4", &["-q", "-F", &device_name]);
    let none: Option<&str> = None;
    mount(
        Some(&path),
        &mountpoint,
        Some("ext4"),
        MsFlags::empty(),
        none,
    )
    .expect("mount ext4");
    let flushes = counts.flushes.load(Ordering::Relaxed);
    let mut file = File::create(mountpoint.join("data")).expect("create");
    let data: Vec<u8> = (0..8_000_000u32).map(|i| (i * 13) as u8).collect();
    file.write_all(&data).expect("write");
    file.sync_all().expect("fsync");
    assert!(
        counts.flushes.load(Ordering::Relaxed) > flushes,
        "fsync reaches the volume"
    );
    drop(file);
    fs::remove_file(mountpoint.join("data")).expect("remove");
    fs::write(mountpoint.join("kept"), &data).expect("write");
    // fstrim by ioctl: freed space becomes zeroes of the volume.
    let zeroes = counts.zeroes.load(Ordering::Relaxed);
    trim(&mountpoint);
    assert!(
        counts.zeroes.load(Ordering::Relaxed) > zeroes,
        "trim reaches the volume"
    );
    umount(&mountpoint).expect("umount ext4");
    run("e2fsck", &["-fn", &device_name]);

    device.detach().expect("detach");
    fuse.unmount().expect("nobody holds the file any more");

    // A second device on the same bytes would see the same filesystem; here: nothing is left behind.
    assert_eq!(loopdev::find_under(dir.path()).expect("sysfs"), []);
}

#[test]
fn a_filesystem_over_an_aborted_volume_can_be_cleared_away() {
    let test = "a_filesystem_over_an_aborted_volume_can_be_cleared_away";
    if !can_mount(test) {
        return;
    }
    if Command::new("mkfs.ext4").arg("-V").output().is_err() {
        println!("SKIP {test}: mkfs.ext4 not found (Debian package e2fsprogs)");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let (volume, mountpoint) = (dir.path().join("volume"), dir.path().join("mnt"));
    fs::create_dir(&volume).expect("mkdir");
    fs::create_dir(&mountpoint).expect("mkdir");
    let (port, _) = support::memory_disk(SIZE).expect("memory disk");
    let mut fuse = FuseMount::mount(&volume, port, SIZE).expect("mount");
    let device = LoopDevice::attach(&fuse.file()).expect("attach");
    let path = device.path().to_owned();
    run("mkfs.ext4", &["-q", "-F", &path.to_string_lossy()]);
    let none: Option<&str> = None;
    mount(
        Some(&path),
        &mountpoint,
        Some("ext4"),
        MsFlags::empty(),
        none,
    )
    .expect("mount ext4");
    fs::write(mountpoint.join("lost"), vec![1; 100_000]).expect("write");
    // What a fencer does: the volume goes first, the filesystem above cannot write any more.
    fuse.abort().expect("abort");
    assert_eq!(fs::read_dir(&volume).expect("list").count(), 0);
    let name = path.file_name().expect("name");
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    // The kernel names the file without the mount that is gone; no other test's file is named so.
    let named = fs::read_to_string(&backing).expect("still attached");
    assert!(!named.contains(&*dir.path().to_string_lossy()), "{named}");
    nix::mount::umount2(&mountpoint, nix::mount::MntFlags::MNT_DETACH).expect("umount ext4");
    device.detach().expect("detach");
    assert_ne!(fs::read_to_string(&backing).ok(), Some(named), "detached");
}

fn trim(mountpoint: &Path) {
    /// `struct fstrim_range`: start, length, shortest extent.
    #[repr(C)]
    struct Range(u64, u64, u64);
    const FITRIM: libc::Ioctl = 0xc018_5879_u32 as libc::Ioctl;
    let dir = File::open(mountpoint).expect("open");
    let mut range = Range(0, u64::MAX, 0);
    let fd = std::os::fd::AsRawFd::as_raw_fd(&dir.as_fd());
    // SAFETY: FITRIM reads and writes one fstrim_range, which `range` is.
    let result = unsafe { libc::ioctl(fd, FITRIM, &mut range) };
    assert_eq!(result, 0, "FITRIM: {}", std::io::Error::last_os_error());
}

#[test]
fn leftover_devices_are_found_and_detached() {
    if !can_mount("leftover_devices_are_found_and_detached") {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let (port, _) = support::memory_disk(SIZE).expect("memory disk");
    let mut fuse = FuseMount::mount(dir.path(), port, SIZE).expect("mount");
    let device = LoopDevice::attach(&fuse.file()).expect("attach");
    let found = loopdev::find_under(dir.path()).expect("sysfs");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].path, device.path());
    assert_eq!(found[0].backing, fuse.file());
    let elsewhere = tempfile::tempdir().expect("temporary directory");
    assert_eq!(loopdev::find_under(elsewhere.path()).expect("sysfs"), []);
    assert_eq!(loopdev::detach_under(dir.path()).expect("detach"), found);
    // The kernel lets go when the last holder, `device`, closes it.
    drop(device);
    assert_eq!(loopdev::find_under(dir.path()).expect("sysfs"), []);
    fuse.unmount().expect("unmount");
}
