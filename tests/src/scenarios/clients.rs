//! Real NBD clients against the primary's socket.

use super::Scenario;
use crate::cluster::{Cluster, Shape};
use crate::nbd::Volume;
use crate::needs::Need::Program;
use crate::process::run;
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "client-nbdinfo",
        needs: &[Program("nbdinfo")],
        run: nbdinfo,
    },
    Scenario {
        name: "client-nbdcopy",
        needs: &[Program("nbdcopy")],
        run: nbdcopy,
    },
    Scenario {
        name: "client-qemu-img",
        needs: &[Program("qemu-img")],
        run: qemu_img,
    },
    Scenario {
        name: "client-fio",
        needs: &[Program("fio")],
        run: fio,
    },
    Scenario {
        name: "client-nbdsh",
        needs: &[Program("nbdsh")],
        run: nbdsh,
    },
    Scenario {
        name: "client-several-connections",
        needs: &[],
        run: several_connections,
    },
    Scenario {
        name: "client-malformed-input",
        needs: &[],
        run: malformed_input,
    },
];

/// A served cluster and the URI of its volume.
fn served() -> Result<(Cluster, String)> {
    let cluster = Cluster::started(Shape::default())?;
    let uri = format!(
        "nbd+unix:///?socket={}",
        cluster.nbd_socket("alpha").display()
    );
    Ok((cluster, uri))
}

fn nbdinfo() -> Result<()> {
    let (cluster, uri) = served()?;
    let text = run(Command::new("nbdinfo").args(["--json", &uri]))?;
    let info: serde_json::Value = serde_json::from_str(&text)?;
    let export = &info["exports"][0];
    ensure!(export["export-size"] == cluster.size_bytes(), "{text}");
    for flag in [
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_multi_conn",
    ] {
        ensure!(export[flag] == true, "{flag}: {text}");
    }
    ensure!(export["is_read_only"] == false, "{text}");
    run(Command::new("nbdinfo").args(["--list", &uri]))?;
    run(Command::new("nbdinfo").args(["--map", &uri]))?;
    Ok(())
}

fn nbdcopy() -> Result<()> {
    let (cluster, uri) = served()?;
    let (there, back) = (cluster.path("there"), cluster.path("back"));
    // Data, holes and data again.
    let mut image = random(8 << 20)?;
    image.resize(usize::try_from(cluster.size_bytes())?, 0);
    let tail = image.len() - (1 << 20);
    image[tail..].copy_from_slice(&random(1 << 20)?);
    std::fs::write(&there, &image)?;
    run(Command::new("nbdcopy").arg("--flush").arg(&there).arg(&uri))?;
    run(Command::new("nbdcopy").arg(&uri).arg(&back))?;
    ensure!(
        std::fs::read(&back)? == image,
        "what came back is not what went there"
    );
    Ok(())
}

fn qemu_img() -> Result<()> {
    let (cluster, uri) = served()?;
    let image = cluster.path("image");
    let mut bytes = random(4 << 20)?;
    bytes.resize(usize::try_from(cluster.size_bytes())?, 0);
    std::fs::write(&image, &bytes)?;
    let formats = ["-f", "raw", "-O", "raw"];
    run(Command::new("qemu-img")
        .args(["convert", "-n"])
        .args(formats)
        .arg(&image)
        .arg(&uri))?;
    run(Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(&image)
        .arg(&uri))?;
    Ok(())
}

fn fio() -> Result<()> {
    let (_cluster, uri) = served()?;
    let job = |name: &str, more: &[&str]| {
        let mut command = Command::new("fio");
        command.args([
            "--ioengine=nbd",
            "--bs=4k-256k",
            "--size=48m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ]);
        run(command
            .arg(format!("--uri={uri}"))
            .arg(format!("--name={name}"))
            .args(more))
    };
    job(
        "random",
        &[
            "--rw=randwrite",
            "--iodepth=32",
            "--io_size=32m",
            "--verify_backlog=256",
        ],
    )?;
    job(
        "sync",
        &["--rw=randwrite", "--iodepth=8", "--io_size=4m", "--fsync=8"],
    )?;
    job("sequential", &["--rw=write", "--iodepth=4", "--bs=1m"])?;
    Ok(())
}

fn nbdsh() -> Result<()> {
    let (_cluster, uri) = served()?;
    let script = r#"
import nbd
size = h.get_size()
# Unaligned writes, and a write of 32 MiB.
h.pwrite(b"holdfast", 4090)
assert h.pread(8, 4090) == b"holdfast"
big = bytes(range(256)) * (32 * 1024 * 1024 // 256)
h.pwrite(big, 1 << 20, nbd.CMD_FLAG_FUA)
assert h.pread(len(big), 1 << 20) == big
h.zero(65536, (1 << 20) + 4096)
assert h.pread(65536, (1 << 20) + 4096) == bytes(65536)
h.trim(65536, 8 << 20)
assert h.pread(65536, 8 << 20) == bytes(65536)
h.flush()
# Many at a time, answered in any order.
for i in range(64):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 4096), (40 << 20) + i * 4096)
while h.aio_in_flight() > 0:
    h.poll(-1)
for i in range(64):
    assert h.pread(4096, (40 << 20) + i * 4096) == bytes([i]) * 4096
# Beyond the end: the server's answer, not the library's, and the connection goes on.
h.set_strict_mode(0)
for bad in (lambda: h.pread(4096, size), lambda: h.pwrite(bytes(4096), size - 1)):
    try:
        bad()
    except nbd.Error as e:
        assert e.errnum != 0
    else:
        raise AssertionError("beyond the end")
assert h.pread(8, 4090) == b"holdfast"
"#;
    // The system's Python has the module; another one first in PATH may not.
    let mut command = Command::new("nbdsh");
    command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    run(command.args(["--base-allocation", "-u", &uri, "-c", script]))?;
    Ok(())
}

/// What one connection has flushed, all others see, as multi-conn promises.
fn several_connections() -> Result<()> {
    const CONNECTIONS: u64 = 8;
    let (cluster, _) = served()?;
    let mut volumes = Vec::new();
    for _ in 0..CONNECTIONS {
        volumes.push(Volume::connect(&cluster.nbd_socket("alpha"))?);
    }
    ensure!(
        volumes.iter().all(|v| v.size() == cluster.size_bytes()),
        "all see the same size"
    );
    for (i, volume) in (0..).zip(&mut volumes) {
        volume.write(i * 100, 50, i)?;
    }
    volumes.first_mut().context("a connection")?.flush()?;
    for volume in &mut volumes {
        for i in 0..CONNECTIONS {
            volume.check(i * 100, 50, i)?;
        }
    }
    Ok(())
}

/// Whatever comes in at the socket, the daemon serves on.
fn malformed_input() -> Result<()> {
    let (mut cluster, _) = served()?;
    let mut volume = Volume::connect(&cluster.nbd_socket("alpha"))?;
    volume.write(0, 8, 1)?;
    for length in [0, 1, 4, 15, 16, 28, 1000, 100_000] {
        let mut socket = UnixStream::connect(cluster.nbd_socket("alpha"))?;
        // The daemon may hang up while we write: that is its right.
        let _ = socket.write_all(&random(length)?);
    }
    // A correct beginning, then nonsense.
    let mut socket = UnixStream::connect(cluster.nbd_socket("alpha"))?;
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend_from_slice(b"IHAVEOPT");
    bytes.extend_from_slice(&[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]);
    let _ = socket.write_all(&bytes);
    ensure!(cluster.daemon("alpha")?.alive()?, "the daemon has ended");
    volume.check(0, 8, 1)?;
    Volume::connect(&cluster.nbd_socket("alpha"))?.check(0, 8, 1)
}

/// Incompressible bytes.
fn random(length: usize) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
