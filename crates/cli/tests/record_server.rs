//! The record server as a process: killed in the middle, filled up, asked from many sides.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server; killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    /// Records it found at its start.
    records: u64,
}

impl Server {
    fn start(log: &Path, listen: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(["record-server", "--listen", listen, "--file"])
            .arg(log)
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout"))
            .read_line(&mut line)
            .expect("first line");
        let rest = line
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("{line:?}"));
        let (address, records) = rest.split_once(", ").expect("address, records");
        let address = address.parse().expect("address");
        let records = records
            .split(' ')
            .next()
            .expect("number")
            .parse()
            .expect("number");
        Self {
            child,
            address,
            records,
        }
    }

    fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Lines(BufReader<TcpStream>);

impl Lines {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self(BufReader::new(stream))
    }
    /// `None`: the server is gone.
    fn ask(&mut self, line: &str) -> Option<String> {
        self.0
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
            .ok()?;
        let mut answer = String::new();
        self.0.read_line(&mut answer).ok()?;
        answer.strip_suffix('\n').map(ToOwned::to_owned)
    }
}

#[test]
fn answers() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = Server::start(&dir.path().join("log"), "127.0.0.1:0");
    let mut lines = Lines::connect(server.address);
    let mut say = |line: &str| lines.ask(line).expect("answer");
    assert_eq!(say("COUNT"), "OK 0");
    assert_eq!(say("CHECK"), "OK 0");
    assert_eq!(say("APPEND 7 1"), "OK 1");
    assert_eq!(say("APPEND 7 1"), "OK 1");
    assert_eq!(say("APPEND 7 3"), "ERR gap last 1");
    assert_eq!(say("APPEND 7 2"), "OK 2");
    assert_eq!(say("GET 2"), "OK 7 2");
    assert_eq!(say("GET 3"), "ERR none");
    assert_eq!(say("HELLO"), "ERR not understood");
    assert_eq!(say("CHECK"), "OK 2");
}

/// Killed again and again under load: nothing acknowledged is missing, nothing is there twice.
#[test]
fn nothing_acknowledged_is_missing_after_kill_9() {
    const ROUNDS: usize = 5;
    const CLIENTS: u64 = 4;
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join("log");
    // Per client: numbers acknowledged, in the order of its sequences.
    let mut acknowledged: Vec<Vec<u64>> = vec![Vec::new(); CLIENTS as usize];
    for round in 0..ROUNDS {
        let mut server = Server::start(&log, "127.0.0.1:0");
        let address = server.address;
        let total: u64 = acknowledged.iter().map(|a| a.len() as u64).sum();
        // An append may be durable and not answered: one per client at the most.
        assert!(
            (total..=total + CLIENTS).contains(&server.records),
            "{total} acknowledged, {} found",
            server.records
        );
        let threads: Vec<_> = (0..CLIENTS)
            .zip(std::mem::take(&mut acknowledged))
            .map(|(client, mut numbers)| {
                std::thread::spawn(move || {
                    let mut lines = Lines::connect(address);
                    while let Some(answer) =
                        lines.ask(&format!("APPEND {client} {}", numbers.len() + 1))
                    {
                        let number = answer
                            .strip_prefix("OK ")
                            .unwrap_or_else(|| panic!("{answer}"));
                        numbers.push(number.parse().expect("number"));
                    }
                    numbers
                })
            })
            .collect();
        let goal = server.records + 200 + 37 * round as u64;
        let mut observer = Lines::connect(address);
        let give_up = Instant::now() + PATIENCE;
        loop {
            let count = observer
                .ask("COUNT")
                .and_then(|a| a.strip_prefix("OK ")?.parse().ok())
                .unwrap_or(0u64);
            if count >= goal {
                break;
            }
            assert!(Instant::now() < give_up, "{count} of {goal} records");
        }
        server.kill();
        acknowledged = threads
            .into_iter()
            .map(|t| t.join().expect("client"))
            .collect();
    }
    let server = Server::start(&log, "127.0.0.1:0");
    let mut lines = Lines::connect(server.address);
    assert_eq!(lines.ask("CHECK"), Some(format!("OK {}", server.records)));
    for (client, numbers) in acknowledged.iter().enumerate() {
        for (i, number) in numbers.iter().enumerate() {
            assert_eq!(
                lines.ask(&format!("GET {number}")),
                Some(format!("OK {client} {}", i + 1))
            );
        }
    }
}

/// The client goes on through a kill and a restart at the same address, and finds everything.
#[test]
fn the_client_outlives_the_server() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join("log");
    let mut server = Server::start(&log, "127.0.0.1:0");
    let address = server.address.to_string();
    let client = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args([
            "record-client",
            "--seconds",
            "3",
            "--json",
            "--connect",
            &address,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let mut observer = Lines::connect(server.address);
    while observer.ask("COUNT") == Some("OK 0".into()) {}
    server.kill();
    server = Server::start(&log, &address);
    let output = client.wait_with_output().expect("client");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    assert!(output.status.success(), "{said}");
    assert_eq!(said["lost"], 0, "{said}");
    assert!(
        said["acknowledged"].as_u64().expect("number") > server.records,
        "{said}"
    );
}

/// A record that was acknowledged and is gone must be found out, or the proof proves nothing.
#[test]
fn the_client_finds_a_lost_record() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join("log");
    let mut server = Server::start(&log, "127.0.0.1:0");
    let address = server.address.to_string();
    let mut client = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args([
            "record-client",
            "--seconds",
            "60",
            "--json",
            "--connect",
            &address,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let mut observer = Lines::connect(server.address);
    loop {
        let count = observer
            .ask("COUNT")
            .and_then(|a| a.strip_prefix("OK ")?.parse().ok())
            .unwrap_or(0u64);
        if count > 20 {
            break;
        }
    }
    server.kill();
    std::fs::write(&log, []).expect("lose everything");
    let _server = Server::start(&log, &address);
    let status = client.wait().expect("client");
    assert!(!status.success());
}

#[test]
fn an_unusable_log_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["record-server", "--listen", "127.0.0.1:0", "--file"])
        .arg(dir.path())
        .output()
        .expect("start");
    assert_eq!(output.status.code(), Some(20));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the log"));
}
