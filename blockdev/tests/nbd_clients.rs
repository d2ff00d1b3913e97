//! Our NBD server under its own client and under the ones people use: libnbd's tools, qemu-img,
//! fio. A tool that is not installed makes its test print `SKIP` with the Debian package it is in.

#[path = "../examples/support/mod.rs"]
#[allow(dead_code)]
mod support;

use holdfast_blockdev::frontend::nbd::client::{Client, ClientError, ClientOp, ClientOptions};
use holdfast_blockdev::frontend::nbd::{Export, ExportTable, NbdError, proto};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Size of the disk served.
const SIZE: u64 = 64 << 20;
/// A tool that takes longer than this hangs.
const TOOL_SECONDS: &str = "60";

struct Server {
    dir: tempfile::TempDir,
    tcp: SocketAddr,
    counts: Arc<support::Counts>,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (port, counts) = support::memory_disk(SIZE).expect("memory disk");
        let (odd, _) = support::memory_disk(1_000_003).expect("memory disk");
        let mut first = Export::new("db/data", SIZE);
        first.description = "under test".to_owned();
        let mut second = Export::new("odd", 1_000_003);
        second.read_only = true;
        let exports = Arc::new(ExportTable::new(vec![first, second]).expect("distinct names"));
        let unix = UnixListener::bind(dir.path().join("nbd")).expect("bind");
        let accept = move || Ok(OwnedFd::from(unix.accept()?.0));
        let ports = vec![port, odd];
        support::serve_all(accept, Arc::clone(&exports), ports.clone());
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let tcp = listener.local_addr().expect("bound");
        let accept = move || {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            Ok(OwnedFd::from(stream))
        };
        support::serve_all(accept, exports, ports);
        Self { dir, tcp, counts }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd")
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    fn client(&self, export: &str, structured: bool) -> Client {
        let options = options(export, structured);
        Client::connect_unix(&self.socket(), &options).expect("connect")
    }
}

fn options(export: &str, structured: bool) -> ClientOptions {
    ClientOptions {
        export: export.to_owned(),
        structured,
        timeout: Some(Duration::from_secs(60)),
    }
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// True if every program is there; else says which is missing.
fn have(test: &str, programs: &[(&str, &str)]) -> bool {
    for (program, package) in programs {
        let found = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists());
        if !found {
            println!("SKIP {test}: {program} not found (Debian package {package})");
            return false;
        }
    }
    true
}

/// Run a tool with a limit on its time; what it printed.
fn tool(args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("timeout")
        .arg(TOOL_SECONDS)
        .args(args)
        // nbdsh needs the distribution's python, not another one in the way.
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/usr/local/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("coreutils' timeout");
    let mut stdin = child.stdin.take().expect("piped");
    // A tool that does not read its input may be gone already.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("the tool was started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

fn good(args: &[&str]) -> String {
    let (success, text) = tool(args, "");
    assert!(success, "{args:?}: {text}");
    text
}

#[test]
fn own_client_reads_what_it_wrote() {
    let server = Server::start();
    let tcp = Client::connect_tcp(server.tcp, &options("db/data", true)).expect("connect");
    for mut client in [
        server.client("", true),
        server.client("db/data", false),
        tcp,
    ] {
        assert_eq!(client.size(), SIZE);
        assert_ne!(client.flags() & proto::tflag::CAN_MULTI_CONN, 0);
        for (offset, len) in [(0, 1), (4095, 2), (777, 100_000), (SIZE - 5, 5)] {
            let data = pattern(len, len as u32);
            client.write_at(offset, &data, len == 1).expect("write");
            assert!(client.read_at(offset, len as u32).expect("read") == data);
        }
        client.zero(1000, 500, false).expect("zero");
        assert_eq!(client.read_at(1000, 500).expect("read"), vec![0; 500]);
        client.trim(2000, 500).expect("trim");
        assert_eq!(client.read_at(2000, 500).expect("read"), vec![0; 500]);
        client.flush().expect("flush");
        client.disconnect().expect("disconnect");
    }
    assert_eq!(server.counts.fua.load(Ordering::Relaxed), 3);
    assert_eq!(server.counts.flushes.load(Ordering::Relaxed), 3);
}

#[test]
fn own_client_hears_errors_and_goes_on() {
    let server = Server::start();
    for structured in [true, false] {
        let mut client = server.client("", structured);
        let error = client.read_at(SIZE, 1).expect_err("past the end");
        assert!(
            matches!(error, ClientError::Server(NbdError::Invalid)),
            "{error}"
        );
        let error = client
            .write_at(SIZE - 1, b"ab", false)
            .expect_err("past the end");
        assert!(
            matches!(error, ClientError::Server(NbdError::NoSpace)),
            "{error}"
        );
        assert_eq!(client.read_at(0, 4).expect("in step"), [0; 4]);
        let mut client = server.client("odd", structured);
        let error = client.write_at(0, b"a", false).expect_err("read-only");
        assert!(
            matches!(error, ClientError::Server(NbdError::Perm)),
            "{error}"
        );
        assert_eq!(client.read_at(1_000_000, 3).expect("in step"), [0; 3]);
    }
    let error =
        Client::connect_unix(&server.socket(), &options("nope", true)).expect_err("no such");
    assert!(matches!(error, ClientError::Export { .. }), "{error}");
}

#[test]
fn own_client_keeps_many_requests_under_way() {
    let server = Server::start();
    for structured in [true, false] {
        let mut client = server.client("", structured);
        let mut expected = BTreeMap::new();
        for index in 0..32u64 {
            let data = pattern(70_000, index as u32);
            client
                .write_at(index * 100_000, &data, false)
                .expect("write");
            let op = ClientOp::Read {
                offset: index * 100_000,
                len: 70_000,
            };
            expected.insert(client.send(op).expect("send"), data);
            // Plain calls would take answers of others: receive them first.
            while client.outstanding() > 0 {
                let answer = client.receive().expect("receive");
                let data = expected.remove(&answer.handle).expect("sent before");
                assert!(answer.result.expect("read") == data);
            }
        }
        let handles: Vec<_> = (0..64u64)
            .map(|index| {
                let op = ClientOp::Read {
                    offset: index * 4096,
                    len: 4096,
                };
                client.send(op).expect("send")
            })
            .collect();
        assert_eq!(client.outstanding(), 64);
        let mut answered: Vec<_> = handles
            .iter()
            .map(|_| client.receive().expect("receive").handle)
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, handles);
    }
}

#[test]
fn own_client_writes_the_largest_request() {
    let server = Server::start();
    let mut client = server.client("", true);
    let data = pattern(32 << 20, 5);
    client.write_at(3, &data, true).expect("32 MiB");
    assert!(client.read_at(3, 32 << 20).expect("32 MiB") == data);
}

#[test]
fn a_vanished_client_takes_nothing_along() {
    let server = Server::start();
    let mut stays = server.client("", true);
    for _ in 0..8 {
        let mut client = server.client("", true);
        for index in 0..16 {
            let op = ClientOp::Read {
                offset: index,
                len: 1 << 20,
            };
            client.send(op).expect("send");
        }
        // Dropped with megabytes of replies in flight.
    }
    assert_eq!(stays.read_at(5, 3).expect("still served"), [0; 3]);
}

#[test]
fn nbdinfo_describes_the_export() {
    let test = "nbdinfo_describes_the_export";
    if !have(test, &[("nbdinfo", "libnbd-bin")]) {
        return;
    }
    let server = Server::start();
    let text = good(&["nbdinfo", &server.uri("")]);
    for line in [
        "export-size: 67108864",
        "description: under test",
        "base:allocation",
        "can_multi_conn: true",
        "can_fua: true",
        "can_flush: true",
        "can_trim: true",
        "can_zero: true",
        "block_size_minimum: 1",
        "block_size_maximum: 33554432",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let list = good(&["nbdinfo", "--list", &server.uri("")]);
    assert!(
        list.contains("export=\"db/data\"") && list.contains("export=\"odd\""),
        "{list}"
    );
    let map = good(&["nbdinfo", "--map", &server.uri("")]);
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        ["0", "67108864", "0", "data"]
    );
    good(&["nbdinfo", "--is", "read-only", &server.uri("odd")]);
    let (success, text) = tool(&["nbdinfo", &server.uri("nope")], "");
    assert!(!success && text.contains("nope"), "{text}");
}

#[test]
fn nbdcopy_copies_both_ways() {
    let test = "nbdcopy_copies_both_ways";
    if !have(test, &[("nbdcopy", "libnbd-bin")]) {
        return;
    }
    let server = Server::start();
    let (from, to) = (server.dir.path().join("from"), server.dir.path().join("to"));
    let mut image = pattern(SIZE as usize, 1);
    image[5_000_000..9_000_000].fill(0);
    fs::write(&from, &image).expect("write image");
    let (from, to) = (from.display().to_string(), to.display().to_string());
    let tcp = format!("nbd://{}/db%2Fdata", server.tcp);
    for uri in [server.uri(""), tcp] {
        good(&["nbdcopy", "--flush", &from, &uri]);
        let _ = fs::remove_file(&to);
        good(&["nbdcopy", &uri, &to]);
        assert!(fs::read(&to).expect("copied back") == image);
    }
    assert!(server.counts.flushes.load(Ordering::Relaxed) >= 2);
}

#[test]
fn qemu_img_converts_and_compares() {
    let test = "qemu_img_converts_and_compares";
    if !have(test, &[("qemu-img", "qemu-utils")]) {
        return;
    }
    let server = Server::start();
    let mut image = pattern(SIZE as usize, 2);
    image[1_000_000..40_000_000].fill(0);
    let path = |name: &str| server.dir.path().join(name).display().to_string();
    fs::write(path("raw"), &image).expect("write image");
    let uri = server.uri("");
    // Content that has to be replaced by zeroes.
    server
        .client("", true)
        .write_at(2_000_000, &pattern(1_000_000, 3), false)
        .expect("write");
    good(&[
        "qemu-img",
        "convert",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        &path("raw"),
        &uri,
    ]);
    good(&[
        "qemu-img",
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        &path("raw"),
        &uri,
    ]);
    assert!(server.counts.zeroes.load(Ordering::Relaxed) > 0);
    good(&[
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        &uri,
        &path("qcow2"),
    ]);
    good(&[
        "qemu-img",
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        &path("qcow2"),
        &uri,
    ]);
    server
        .client("", true)
        .write_at(7, b"!", false)
        .expect("write");
    let (equal, _) = tool(
        &[
            "qemu-img",
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &path("raw"),
            &uri,
        ],
        "",
    );
    assert!(!equal, "a changed byte is found");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let test = "fio_verifies_what_it_wrote";
    if !have(test, &[("fio", "fio")]) {
        return;
    }
    let server = Server::start();
    let uri = format!("--uri={}", server.uri(""));
    for sizes in ["--bs=4k", "--bsrange=512-256k"] {
        let text = good(&[
            "fio",
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            sizes,
            "--iodepth=32",
            "--size=32m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--fsync=64",
        ]);
        assert!(text.contains("err= 0"), "{text}");
    }
    assert!(server.counts.flushes.load(Ordering::Relaxed) > 0);
}

/// Asks what no well-behaved client asks, and the ends of every range.
const NBDSH_SCRIPT: &str = r#"
import nbd
def expect(error, call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errno == error, (e.errno, error, e.string)
        return
    raise AssertionError("no " + error)
h.set_strict_mode(0)
size = h.get_size()
h.pwrite(b"A" * 1000, 333, nbd.CMD_FLAG_FUA)
assert h.pread(1000, 333) == b"A" * 1000
h.zero(100, 400, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
h.trim(67, 333)
assert h.pread(1000, 333) == bytes(167) + b"A" * 833
h.pwrite(b"end", size - 3)
assert h.pread(3, size - 3) == b"end"
expect("EINVAL", h.pread, 10, size - 5)
expect("EINVAL", h.pread, 1, (1 << 63) - 1)
expect("ENOSPC", h.pwrite, b"x" * 10, size - 5)
expect("ENOSPC", h.zero, 10, size)
expect("EINVAL", h.trim, 10, size)
expect("EINVAL", h.pread, 33 << 20, 0)
expect("ENOTSUP", h.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO)
expect("EINVAL", h.pread, 10, 0, 1 << 9)
h.cache(4096, 0)
h.flush()
big = b"zebra" * (6 << 20)
h.pwrite(big, 1)
assert h.pread(len(big), 1) == big
extents = []
h.block_status(1 << 20, 5, lambda c, o, e, err: extents.append((c, o, e)))
assert extents == [("base:allocation", 5, [1 << 20, 0])], extents
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i] * 4096)), i * 4096) for i in range(64)]
while h.aio_in_flight() > 0:
    h.poll(-1)
assert all(h.aio_command_completed(c) for c in cookies)
assert h.pread(64 * 4096, 0) == b"".join(bytes([i]) * 4096 for i in range(64))
assert h.get_structured_replies_negotiated() == STRUCTURED
h.shutdown()
print("all good")
"#;

#[test]
fn nbdsh_scripts_hear_the_right_errors() {
    let test = "nbdsh_scripts_hear_the_right_errors";
    if !have(test, &[("nbdsh", "python3-libnbd")]) {
        return;
    }
    let server = Server::start();
    let open = format!(
        "h.set_request_structured_replies(STRUCTURED)\nh.connect_uri({:?})\n",
        server.uri("")
    );
    let context = "h.add_meta_context(\"base:allocation\")\n";
    let script = format!("STRUCTURED = True\n{context}{open}{NBDSH_SCRIPT}");
    let (success, text) = tool(&["nbdsh", "-c", "-"], &script);
    assert!(success && text.contains("all good"), "{text}");
    // Without structured replies there are no extents to ask for.
    let plain: String = NBDSH_SCRIPT
        .lines()
        .filter(|line| !line.contains("extents") && !line.contains("block_status"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let script = format!("STRUCTURED = False\n{open}{plain}");
    let (success, text) = tool(&["nbdsh", "-c", "-"], &script);
    assert!(success && text.contains("all good"), "{text}");
}
