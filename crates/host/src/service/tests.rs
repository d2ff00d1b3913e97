use std::net::TcpListener;
use std::path::Path;

use super::*;

fn shell(script: &str) -> Spec {
    Spec::new("job", ["sh", "-c", script].map(String::from).to_vec())
}

fn start(spec: Spec, dir: &Path) -> Service {
    Service::start(Plan::new(spec, dir).expect("plan"), None).expect("start")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
}

#[test]
fn probes_are_read_and_written() {
    for text in [
        "none",
        "tcp:127.0.0.1:5432",
        "tcp:[::1]:80",
        "file:/run/x",
        "command:pg_isready -q",
    ] {
        assert_eq!(
            text.parse::<Readiness>().expect("a probe").to_string(),
            text
        );
    }
    for text in [
        "tcp:localhost",
        "file:x",
        "command: ",
        "udp:127.0.0.1:1",
        "nonsense",
    ] {
        assert!(text.parse::<Readiness>().is_err(), "{text}");
    }
}

#[test]
fn a_plan_without_sense_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for (name, argv) in [
        ("a", vec![]),
        ("a/b", vec!["true".to_string()]),
        ("", vec!["true".to_string()]),
    ] {
        let refused = Plan::new(Spec::new(name, argv), dir.path());
        assert!(matches!(refused, Err(Error::BadService { .. })), "{name}");
    }
    let plan = Plan::new(
        Spec::new("a", vec!["/nonexistent/program".into()]),
        dir.path(),
    )
    .expect("plausible");
    let cgroup = plan.cgroup.as_ref().map(|c| c.path().to_path_buf());
    let error = Service::start(plan, None).expect_err("no such program");
    assert!(
        error.to_string().contains("/nonexistent/program"),
        "{error}"
    );
    assert!(
        cgroup.is_none_or(|c| !c.exists()),
        "the cgroup is taken back"
    );
    let spec = Spec {
        user: Some("no-such-user".into()),
        ..shell("true")
    };
    let error = Service::start(Plan::new(spec, dir.path()).expect("plausible"), None)
        .expect_err("no such user");
    assert!(error.to_string().contains("no-such-user"), "{error}");
}

#[test]
fn the_end_is_noticed_with_its_status() {
    let dir = tempfile::tempdir().expect("temporary directory");
    runtime().block_on(async {
        let mut service = start(shell("echo $WORD; exit 7"), dir.path());
        assert_eq!(service.exited().await.expect("exit").code(), Some(7));
        assert_eq!(service.exited().await.expect("known").code(), Some(7));
        assert_eq!(
            service.stop(Duration::ZERO).await.expect("gone").code(),
            Some(7)
        );
        // Output is appended, and variables arrive.
        let spec = Spec {
            env: vec![("WORD".into(), "second".into())],
            ..shell("echo $WORD")
        };
        start(spec, dir.path()).exited().await.expect("exit");
    });
    assert_eq!(
        std::fs::read_to_string(dir.path().join("job.log")).expect("log"),
        "\nsecond\n"
    );
}

#[test]
fn readiness_waits_for_what_was_asked() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let flag = dir.path().join("flag");
    let patience = Duration::from_secs(20);
    runtime().block_on(async {
        let spec = Spec {
            ready: Readiness::File(flag.clone()),
            ..shell(&format!("sleep 0.1; touch {}; sleep 1000", flag.display()))
        };
        let mut service = start(spec, dir.path());
        service.ready(patience).await.expect("the file appears");
        assert!(flag.exists());
        service.kill().expect("killed");

        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let addr = listener.local_addr().expect("address");
        let mut service = start(
            Spec {
                ready: Readiness::Tcp(addr),
                ..shell("sleep 1000")
            },
            dir.path(),
        );
        service.ready(patience).await.expect("it listens");
        service.kill().expect("killed");

        let probe = Readiness::Command(format!("test -e {}", flag.display()));
        let mut service = start(
            Spec {
                ready: probe,
                ..shell("sleep 1000")
            },
            dir.path(),
        );
        service.ready(patience).await.expect("the command succeeds");
        service.kill().expect("killed");

        let never = Readiness::File(dir.path().join("never"));
        let mut service = start(
            Spec {
                ready: never.clone(),
                ..shell("sleep 1000")
            },
            dir.path(),
        );
        let error = service
            .ready(Duration::from_millis(50))
            .await
            .expect_err("never");
        assert!(matches!(error, Error::NotReady { .. }), "{error}");
        service.kill().expect("killed");
        let mut service = start(
            Spec {
                ready: never,
                ..shell("exit 3")
            },
            dir.path(),
        );
        let error = service.ready(patience).await.expect_err("it ends");
        assert!(matches!(error, Error::ServiceEnded { .. }), "{error}");
    });
}

#[test]
fn a_polite_service_ends_by_its_own_signal() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let ready = dir.path().join("ready");
    let script = format!(
        "trap 'echo bye; exit 0' INT; touch {}; while :; do sleep 0.01; done",
        ready.display()
    );
    let spec = Spec {
        stop_signal: Some(libc::SIGINT),
        ready: Readiness::File(ready),
        ..shell(&script)
    };
    let status = runtime().block_on(async {
        let mut service = start(spec, dir.path());
        service
            .ready(Duration::from_secs(20))
            .await
            .expect("trap set");
        service
            .stop(Duration::from_secs(20))
            .await
            .expect("stopped")
    });
    assert_eq!(status.code(), Some(0));
    assert_eq!(
        std::fs::read_to_string(dir.path().join("job.log")).expect("log"),
        "bye\n"
    );
}

#[test]
fn a_service_runs_as_its_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skip: a service as another user: only root can start one");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let spec = Spec {
        user: Some("nobody".into()),
        ..shell("id -un; id -G | wc -w; echo $USER")
    };
    runtime()
        .block_on(async { start(spec, dir.path()).exited().await })
        .expect("exit");
    assert_eq!(
        std::fs::read_to_string(dir.path().join("job.log")).expect("log"),
        "nobody\n1\nnobody\n"
    );
}

#[test]
fn leftovers_are_found_by_the_home_they_carry() {
    let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let of = |home: &Path| {
        let mut spec = shell("sleep 1000 & sleep 1000");
        spec.env = vec![(HOME_VARIABLE.into(), home.display().to_string())];
        start(spec, home)
    };
    let (mut left, mut foreign) = (of(mine.path()), of(other.path()));
    assert!(end_leftovers(mine.path()).expect("ended") >= 1);
    assert!(!left.stop_blocking(Duration::ZERO).expect("gone").success());
    assert!(foreign.try_wait().is_none(), "another daemon's");
    assert_eq!(end_leftovers(mine.path()).expect("looked"), 0);
    assert!(end_leftovers(other.path()).expect("ended") >= 1);
    foreign.kill().expect("gone");
}
