//! Three daemons in one process on loopback addresses: everything but the fencer, which is a process of its own.

use super::*;
use crate::api_types::{Answer as ApiAnswer, ClusterStatus, ErrorCode, Phase, Reply, Request};
use holdfast_blockdev::frontend::nbd::client::{Client, ClientOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Only so that a defect ends as a failure: nothing is measured.
const PATIENCE: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

struct Cluster {
    dir: tempfile::TempDir,
    config: PathBuf,
    daemons: BTreeMap<&'static str, std::thread::JoinHandle<anyhow::Result<()>>>,
}

/// Loopback addresses no other test of this process uses, and ports that depend on the process.
fn config_text(dir: &Path, secret: &str) -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let net = NEXT.fetch_add(1, Ordering::Relaxed);
    let low = (std::process::id() % 200 + 20) as u8;
    let mut text =
        format!("[cluster]\nname = \"test\"\nsecret = \"{secret}\"\nprofile = \"fast\"\n");
    for (id, name) in [(1, "a"), (2, "b"), (3, "w")] {
        text.push_str(&format!(
            "[[node]]\nname = \"{name}\"\nid = {id}\naddress = \"127.{low}.{net}.{id}\"\nstate_dir = \"{}/{name}\"\n{}",
            dir.display(),
            if name == "w" { "witness = true\n" } else { "" }
        ));
    }
    text.push_str(&format!(
        "[[resource]]\nname = \"data\"\nnodes = [\"a\", \"b\"]\n[[resource.volume]]\nname = \"vol\"\nsize = \"16MiB\"\n\
         frontend = \"none\"\nbacking = {{ a = \"{0}/a.img\", b = \"{0}/b.img\" }}\n",
        dir.display()
    ));
    text
}

impl Cluster {
    fn new() -> Self {
        use std::os::unix::fs::OpenOptionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("cluster.toml");
        let text = config_text(dir.path(), "0123456789abcdef");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&config)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut cluster = Self {
            dir,
            config,
            daemons: BTreeMap::new(),
        };
        for name in ["a", "b", "w"] {
            cluster.start(name);
        }
        cluster
    }

    fn options(&self, name: &str) -> NodeOptions {
        NodeOptions {
            fencer: None,
            allow_faults: true,
            ..NodeOptions::new(&self.config, name)
        }
    }

    fn start(&mut self, name: &'static str) {
        let options = self.options(name);
        self.daemons
            .insert(name, std::thread::spawn(move || run(options)));
    }

    fn stop(&mut self, name: &'static str) {
        self.ask(name, &Request::Shutdown).unwrap();
        self.daemons.remove(name).unwrap().join().unwrap().unwrap();
    }

    /// Asks a daemon, waiting for its socket.
    fn ask(&self, name: &str, request: &Request) -> Result<ApiAnswer, crate::api_types::ApiError> {
        let path = self.dir.path().join(name).join("api.sock");
        let until = std::time::Instant::now() + PATIENCE;
        let mut stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(e) => assert!(std::time::Instant::now() < until, "{name}: {e}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{}", serde_json::to_string(request).unwrap()).unwrap();
        for line in BufReader::new(stream).lines() {
            match serde_json::from_str(&line.unwrap()).unwrap() {
                Reply::Progress(_) => {}
                Reply::Ok(answer) => return Ok(answer),
                Reply::Error(e) => return Err(e),
            }
        }
        panic!("{name} closed the connection without an answer to {request:?}");
    }

    fn status(&self, name: &str) -> ClusterStatus {
        match self.ask(name, &Request::Status) {
            Ok(ApiAnswer::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn until(&self, name: &str, what: &str, done: impl Fn(&ClusterStatus) -> bool) {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let status = self.status(name);
            if done(&status) {
                return;
            }
            assert!(
                std::time::Instant::now() < until,
                "{name} waits in vain until {what}: {status:#?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn create(&self, name: &str) {
        self.until(name, "all nodes are there", |s| {
            s.quorum && s.nodes.iter().all(|n| n.online)
        });
        let told = self.ask(
            name,
            &Request::Create {
                resource: "data".into(),
            },
        );
        assert!(matches!(told, Ok(ApiAnswer::Done { .. })), "{told:?}");
    }

    fn until_primary(&self, name: &str) {
        self.until(name, "it is primary", |s| {
            s.resources[0].here == Some(Phase::Primary)
        });
    }

    fn until_synced(&self, name: &str) {
        self.until(name, "both copies are in sync", |s| {
            s.resources[0].volumes[0].in_sync.len() == 2
        });
    }

    fn nbd(&self, name: &str) -> Client {
        let path = self.dir.path().join(name).join("data-vol.nbd");
        let options = ClientOptions {
            timeout: Some(PATIENCE),
            ..ClientOptions::default()
        };
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            match Client::connect_unix(&path, &options) {
                Ok(client) => return client,
                Err(e) => assert!(std::time::Instant::now() < until, "{name}: {e}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The data areas of both backings.
    fn images(&self) -> [Vec<u8>; 2] {
        ["a.img", "b.img"]
            .map(|f| std::fs::read(self.dir.path().join(f)).unwrap()[..16 * MIB].to_vec())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for name in self.daemons.keys() {
            if let Ok(mut s) = UnixStream::connect(self.dir.path().join(name).join("api.sock")) {
                let _ = writeln!(
                    s,
                    "{}",
                    serde_json::to_string(&Request::Shutdown).unwrap_or_default()
                );
            }
        }
        for (name, daemon) in std::mem::take(&mut self.daemons) {
            let ended = daemon.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        }
    }
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[test]
fn a_cluster_is_created_serves_hands_over_and_restarts() {
    let mut c = Cluster::new();
    c.create("w");
    c.ask(
        "a",
        &Request::Promote {
            resource: "data".into(),
            force: None,
        },
    )
    .unwrap();
    c.until_primary("a");
    let mut client = c.nbd("a");
    client.write_at(0, &pattern(1, 2 * MIB), false).unwrap();
    client
        .write_at(5 * MIB as u64 + 512, &pattern(2, 1000), true)
        .unwrap();
    // A second creation changes nothing.
    let again = c
        .ask(
            "b",
            &Request::Create {
                resource: "data".into(),
            },
        )
        .unwrap_err();
    assert_eq!(again.code, ErrorCode::Refused, "{again}");
    // A planned switch-over, asked at the one that takes over.
    c.ask(
        "b",
        &Request::Promote {
            resource: "data".into(),
            force: None,
        },
    )
    .unwrap();
    c.until_primary("b");
    let mut client = c.nbd("b");
    assert_eq!(
        client.read_at(0, 2 * MIB as u32).unwrap(),
        pattern(1, 2 * MIB)
    );
    assert_eq!(
        client.read_at(5 * MIB as u64 + 512, 1000).unwrap(),
        pattern(2, 1000)
    );
    // The primary stops in order: the other takes over, and the restarted one is made equal.
    c.until_synced("b");
    c.stop("b");
    c.until_primary("a");
    c.nbd("a")
        .write_at(9 * MIB as u64, &pattern(3, MIB), true)
        .unwrap();
    c.start("b");
    c.until_synced("a");
    // Verify, asked at a node that holds no copy.
    let request = Request::Verify {
        resource: "data".into(),
        volume: None,
        peer: None,
        repair: None,
    };
    match c.ask("w", &request) {
        Ok(ApiAnswer::Verified {
            differing_bytes: 0, ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let [a, b] = c.images();
    assert!(a == b, "the two replicas differ");
    assert_eq!(&a[9 * MIB..10 * MIB], &pattern(3, MIB)[..]);
    // A second daemon on the same state directory is refused.
    let options = NodeOptions {
        state_dir: Some(c.dir.path().join("a")),
        ..c.options("a")
    };
    let e = run(options).unwrap_err().to_string();
    assert!(
        e.contains("state_dir") && e.contains(&std::process::id().to_string()),
        "{e}"
    );
    let timeline = c.ask("a", &Request::Timeline { after: 0 }).unwrap();
    let ApiAnswer::Timeline(entries) = timeline else {
        panic!("{timeline:?}")
    };
    let kinds: Vec<&str> = entries.iter().map(|e| e.kind.as_str()).collect();
    let at = |kind| {
        kinds
            .iter()
            .position(|k| *k == kind)
            .unwrap_or_else(|| panic!("no {kind} in {kinds:?}"))
    };
    assert!(
        at("promoted") < at("opened")
            && at("opened") < at("device-open")
            && at("device-open") < at("up")
    );
    assert!(entries.windows(2).all(|w| w[0].number < w[1].number));
    let history = c.ask("w", &Request::History).unwrap();
    let ApiAnswer::History(lines) = history else {
        panic!("{history:?}")
    };
    assert!(
        lines.iter().any(|l| l.what.contains("planned")),
        "{lines:?}"
    );
}

#[test]
fn an_isolated_primary_steps_down_and_its_place_is_taken() {
    let mut c = Cluster::new();
    c.create("a");
    c.ask(
        "a",
        &Request::Promote {
            resource: "data".into(),
            force: None,
        },
    )
    .unwrap();
    c.until_primary("a");
    let mut old = c.nbd("a");
    old.write_at(0, &pattern(7, 4096), true).unwrap();
    c.ask("a", &Request::Isolate { on: true }).unwrap();
    c.until_primary("b");
    c.until("a", "it has stepped down", |s| {
        s.resources[0].here == Some(Phase::Secondary)
    });
    // Whatever it is told now is not acknowledged.
    assert!(old.write_at(0, &pattern(8, 4096), false).is_err());
    let mut new = c.nbd("b");
    assert_eq!(new.read_at(0, 4096).unwrap(), pattern(7, 4096));
    new.write_at(4096, &pattern(9, 4096), true).unwrap();
    c.ask("a", &Request::Isolate { on: false }).unwrap();
    c.until_synced("b");
    c.until("a", "it knows", |s| {
        s.resources[0].volumes[0].in_sync.len() == 2
    });
    drop(new);
    // In order, so that nothing is in flight when the images are read.
    c.stop("a");
    c.stop("b");
    let [a, b] = c.images();
    assert!(a == b, "the two replicas differ");
    assert_eq!(&a[4096..8192], &pattern(9, 4096)[..]);
}

#[test]
fn a_node_with_another_secret_is_kept_out_and_status_says_why_on_both_sides() {
    let mut c = Cluster::new();
    c.until("a", "all nodes are there", |s| {
        s.quorum && s.nodes.iter().all(|n| n.online)
    });
    c.stop("b");
    let text = std::fs::read_to_string(&c.config).unwrap();
    // The file of the others stays as they have read it.
    std::fs::write(
        &c.config,
        text.replace("0123456789abcdef", "fedcba9876543210"),
    )
    .unwrap();
    c.start("b");
    let says = |s: &ClusterStatus| s.why.iter().any(|w| w.contains("cluster secret"));
    c.until("b", "it says why", says);
    c.until("a", "it says why", says);
    assert!(c.status("a").quorum && !c.status("b").quorum);
}

#[test]
fn refusals_change_nothing() {
    let c = Cluster::new();
    std::fs::write(c.dir.path().join("b.img"), vec![1; 32 * MIB]).unwrap();
    c.until("a", "all nodes are there", |s| {
        s.quorum && s.nodes.iter().all(|n| n.online)
    });
    let e = c
        .ask(
            "a",
            &Request::Create {
                resource: "data".into(),
            },
        )
        .unwrap_err();
    assert_eq!(e.code, ErrorCode::Refused);
    assert!(
        e.message.starts_with("b: ") && e.message.contains("b.img"),
        "{e}"
    );
    // The other node was not touched.
    assert!(!c.dir.path().join("a.img").exists());
    let e = c
        .ask(
            "a",
            &Request::Demote {
                resource: "nothing".into(),
            },
        )
        .unwrap_err();
    assert_eq!(e.code, ErrorCode::BadRequest);
    assert!(e.fix.unwrap().contains("data"));
}

#[test]
fn a_node_that_is_not_in_the_configuration_is_named_with_those_that_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut f = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    f.write_all(config_text(dir.path(), "0123456789abcdef").as_bytes())
        .unwrap();
    let e = run(NodeOptions::new(&path, "z")).unwrap_err().to_string();
    assert!(e.contains("its nodes are: a, b, w"), "{e}");
}
