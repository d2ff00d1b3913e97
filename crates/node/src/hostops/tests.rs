//! Host steps that need no rights: services, and what is refused.

use super::*;
use std::sync::mpsc::{Receiver, channel};

/// Only so that a defect ends as a failure: nothing is measured.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    host: HostThread,
    ends: Receiver<(u64, HostStep, Result<(), String>)>,
    dir: tempfile::TempDir,
    _runtime: Arc<tokio::runtime::Runtime>,
}

fn bench(services: &str) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        r#"
[cluster]
name = "t"
secret = "0123456789abcdef"
[[node]]
name = "a"
id = 1
address = "127.0.0.1"
state_dir = "{dir}"
[[node]]
name = "b"
id = 2
address = "127.0.0.2"
[[node]]
name = "w"
id = 3
address = "127.0.0.3"
witness = true
[[resource]]
name = "r"
nodes = ["a", "b"]
[[resource.volume]]
name = "v"
size = "1MiB"
frontend = "fuse"
backing = "{dir}/v"
{services}
"#,
        dir = dir.path().display()
    );
    let config = holdfast_config::Config::parse(&text, Path::new("t.toml"))
        .unwrap_or_else(|e| panic!("{e}"));
    let runtime = Arc::new(
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap(),
    );
    let (tx, ends) = channel();
    let settings = Settings {
        resource: config.resources[0].clone(),
        node: config.nodes[0].clone(),
        state_dir: dir.path().to_owned(),
        fencer: None,
        runtime: runtime.handle().clone(),
        timeline: Timeline::default(),
    };
    let host = HostThread::start(
        settings,
        Box::new(move |n, s, r| {
            // The test may be over.
            let _ = tx.send((n, s, r));
        }),
    )
    .unwrap();
    Bench {
        host,
        ends,
        dir,
        _runtime: runtime,
    }
}

impl Bench {
    fn run(&mut self, step: HostStep) -> Result<(), String> {
        let number = self.host.step(step);
        loop {
            let (n, s, result) = self.ends.recv_timeout(PATIENCE).expect("an end");
            if n == number {
                assert_eq!(s, step);
                return result;
            }
        }
    }
}

fn service(name: &str, script: &str, more: &str) -> String {
    format!(
        "[[resource.service]]\nname = \"{name}\"\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\n{more}\n"
    )
}

#[test]
fn services_start_in_order_and_stop_and_every_step_may_be_repeated() {
    let mut b = bench(&service("one", "echo up; exec sleep 1000", ""));
    b.run(HostStep::StartServices).unwrap();
    let first = b.host.facts().services;
    assert!(
        first[0].up
            && first[0]
                .note
                .as_ref()
                .is_some_and(|n| n.starts_with("process ")),
        "{first:?}"
    );
    b.run(HostStep::StartServices).unwrap();
    assert_eq!(b.host.facts().services, first);
    let log = b.dir.path().join("log/a.r.one.log");
    while !std::fs::read_to_string(&log).unwrap().contains("up") {
        std::thread::yield_now();
    }
    for _ in 0..2 {
        b.run(HostStep::StopServices { forced: false }).unwrap();
        assert!(!b.host.facts().services[0].up);
    }
    b.run(HostStep::StartServices).unwrap();
    b.run(HostStep::StopServices { forced: true }).unwrap();
}

#[test]
fn a_stop_calls_off_a_start_that_waits() {
    // Nobody listens there: it never becomes ready.
    let mut b = bench(&service(
        "never",
        "exec sleep 1000",
        "ready = \"tcp:127.0.0.1:1\"",
    ));
    let start = b.host.step(HostStep::StartServices);
    b.run(HostStep::StopServices { forced: true }).unwrap();
    // Its end came before the stop's, and `run` went past it; the service is gone.
    assert!(b.ends.try_recv().is_err());
    assert!(!b.host.facts().services[0].up);
    assert!(start < b.host.step(HostStep::RemoveVips { forced: true }));
}

#[test]
fn a_service_that_ends_is_started_again() {
    // It lives until it counts as started.
    let go = tempfile::tempdir().unwrap();
    let script = format!(
        "echo again; until [ -e {}/go ]; do sleep 0.01; done; exit 3",
        go.path().display()
    );
    let mut b = bench(&service("brief", &script, ""));
    b.run(HostStep::StartServices).unwrap();
    std::fs::write(go.path().join("go"), "").unwrap();
    let log = b.dir.path().join("log/a.r.brief.log");
    while std::fs::read_to_string(&log)
        .unwrap_or_default()
        .matches("again")
        .count()
        < 2
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    b.run(HostStep::StopServices { forced: false }).unwrap();
}

#[test]
fn a_mount_without_a_device_is_refused_in_words() {
    let mut b = bench(
        "[[resource.mount]]\nvolume = \"v\"\npath = \"/nowhere/at/all\"\nfstype = \"ext4\"\n",
    );
    let e = b.run(HostStep::Mount).unwrap_err();
    assert!(e.contains("no block device"), "{e}");
    b.run(HostStep::Unmount { forced: false }).unwrap();
    let e = b.run(HostStep::OpenDevice).unwrap_err();
    assert!(e.contains("not open on this node"), "{e}");
    b.run(HostStep::CloseDevice { forced: true }).unwrap();
}

#[test]
fn the_next_daemon_finds_a_service_by_its_environment() {
    let mut b = bench(&service("left", "sleep 1000 & exec sleep 1000", ""));
    b.run(HostStep::StartServices).unwrap();
    assert!(holdfast_host::service::end_leftovers(b.dir.path()).unwrap() >= 1);
    b.run(HostStep::StopServices { forced: true }).unwrap();
}

#[test]
fn leftovers_that_cannot_be_looked_at_refuse_the_start() {
    let b = bench("");
    let text = format!(
        "[cluster]\nname = \"t\"\nsecret = \"0123456789abcdef\"\n\
         [[node]]\nname = \"a\"\nid = 1\naddress = \"127.0.0.1\"\nstate_dir = \"{}\"\n\
         [[node]]\nname = \"b\"\nid = 2\naddress = \"127.0.0.2\"\n\
         [[node]]\nname = \"w\"\nid = 3\naddress = \"127.0.0.3\"\nwitness = true\n",
        b.dir.path().display()
    );
    let config = holdfast_config::Config::parse(&text, Path::new("t.toml"))
        .unwrap_or_else(|e| panic!("{e}"));
    let node = &config.nodes[0];
    let none: Vec<String> = Vec::new();
    assert_eq!(leftovers::remove(&config, node, b.dir.path()), Ok(none));
    std::fs::write(device_root(b.dir.path()), "not a directory").unwrap();
    let e = leftovers::remove(&config, node, b.dir.path()).unwrap_err();
    assert!(
        e.contains(&device_root(b.dir.path()).display().to_string())
            && e.contains("start the node"),
        "{e}"
    );
}
