//! Against a socket that plays the daemon's part.

use super::*;
use holdfast_node::api_types::{ApiError, ErrorCode};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

/// Answers one connection with `lines`; hands back what was asked.
fn daemon(socket: &Path, lines: &'static [&'static str]) -> JoinHandle<String> {
    let listener = UnixListener::bind(socket).expect("bind");
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accept");
        let mut asked = String::new();
        BufReader::new(&stream)
            .read_line(&mut asked)
            .expect("request");
        for line in lines {
            (&stream).write_all(line.as_bytes()).expect("answer");
        }
        asked
    })
}

#[test]
fn progress_comes_before_the_answer() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let socket = dir.path().join("s");
    let lines = &[
        "{\"progress\":{\"what\":\"draining\"}}\n",
        "{\"progress\":{\"what\":\"waiting\"}}\n{\"ok\":{\"done\":{\"message\":\"x\"}}}\n",
    ];
    let daemon = daemon(&socket, lines);
    let mut seen = Vec::new();
    let request = Request::Promote {
        resource: "r".into(),
        force: None,
    };
    let answer = Client::at(socket)
        .ask(&request, |p| seen.push(p.what.clone()))
        .expect("answer");
    assert_eq!(
        answer,
        Answer::Done {
            message: "x".into()
        }
    );
    assert_eq!(seen, ["draining", "waiting"]);
    let asked = daemon.join().expect("daemon");
    assert_eq!(
        serde_json::from_str::<Request>(&asked).expect("request"),
        request
    );
}

#[test]
fn an_error_carries_code_and_fix() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let socket = dir.path().join("s");
    let lines =
        &["{\"error\":{\"code\":\"no_up_to_date_data\",\"message\":\"m\",\"fix\":\"f\"}}\n"];
    let daemon = daemon(&socket, lines);
    let failure = Client::at(socket).status().expect_err("refused");
    assert_eq!(failure.exit_status(), 17);
    let expected = ApiError {
        code: ErrorCode::NoUpToDateData,
        message: "m".into(),
        fix: Some("f".into()),
    };
    assert!(matches!(failure, Failure::Api(error) if error == expected));
    daemon.join().expect("daemon");
}

#[test]
fn a_daemon_that_dies_is_not_an_answer() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for (name, lines) in [
        ("a", &[][..]),
        ("b", &["{\"progress\":{\"what\":\"x\"}}\n"][..]),
    ] {
        let socket = dir.path().join(name);
        let daemon = daemon(&socket, lines);
        let failure = Client::at(socket).status().expect_err("no answer");
        assert_eq!(failure.exit_status(), 12);
        daemon.join().expect("daemon");
    }
    assert_eq!(
        Client::at(dir.path().join("nobody"))
            .status()
            .expect_err("nobody")
            .exit_status(),
        12
    );
}

#[test]
fn nonsense_is_an_internal_error() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let socket = dir.path().join("s");
    let daemon = daemon(&socket, &["{\"maybe\":1}\n"]);
    assert_eq!(
        Client::at(socket)
            .status()
            .expect_err("nonsense")
            .exit_status(),
        20
    );
    daemon.join().expect("daemon");
}
