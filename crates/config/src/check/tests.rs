//! Rules that need a file system, and the data-driven run over `fixtures/`.

use crate::{Config, Frontend, Profile};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/config")
}

fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(fixtures().join(folder))
        .expect("fixtures are part of the repository")
        .map(|entry| entry.expect("directory entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn good_examples_are_accepted() {
    for file in files("good") {
        let text = std::fs::read_to_string(&file).expect("fixture");
        if let Err(errors) = Config::parse(&text, &file) {
            panic!("{errors}");
        }
    }
}

/// Each bad example says in its last lines (`#! LINE:COLUMN: WHAT` and `#! fix: FIX`) what must be said of it.
#[test]
fn bad_examples_are_refused_with_place_and_fix() {
    for file in files("bad") {
        let text = std::fs::read_to_string(&file).expect("fixture");
        let expected: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("#! ")).collect();
        let errors =
            Config::parse(&text, &file).expect_err(&format!("{} was accepted", file.display()));
        let name = format!("{}:", file.display());
        let said = errors.to_string().replace(&name, "");
        let said: Vec<&str> = said.lines().map(str::trim).collect();
        assert_eq!(said, expected, "{}", file.display());
    }
}

#[test]
fn the_two_server_example_means_what_it_says() {
    let file = fixtures().join("good/two-servers.toml");
    let config =
        Config::parse(&std::fs::read_to_string(&file).expect("fixture"), &file).expect("sound");
    assert_eq!(config.nodes.len(), 3);
    assert_eq!(config.voters().len(), 3);
    let resource = config.resource("data").expect("resource");
    assert_eq!(resource.nodes.len(), 2);
    assert_eq!(
        resource.preferred,
        Some(config.node("alpha").expect("alpha").id)
    );
    let volume = resource.volume("main").expect("volume");
    assert_eq!(volume.size_bytes, 10 << 30);
    assert_eq!(volume.frontend, Frontend::Auto);
    assert_eq!(config.timing, Profile::Lan.timing());
    let alpha = config.node("alpha").expect("alpha");
    assert_eq!(
        volume.nbd_socket("data", alpha),
        Path::new("/var/lib/holdfast/data-main.nbd")
    );
}

/// A minimal sound file whose secret comes from `secret`.
fn with_secret(secret: &str) -> String {
    let mut text = format!("[cluster]\nname = \"c\"\n{secret}\n");
    for (i, name) in ["a", "b", "w"].iter().enumerate() {
        text += &format!(
            "[[node]]\nname = \"{name}\"\nid = {}\naddress = \"10.0.0.{}\"\n",
            i + 1,
            i + 1
        );
    }
    text
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).expect("write");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn the_secret_file_must_exist_be_long_enough_and_private() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("cluster.toml");
    let secret = dir.path().join("secret");
    write(&file, &with_secret("secret_file = \"secret\""), 0o644);
    let said = |errors: crate::ConfigErrors| errors.problems[0].what.clone();

    assert!(said(Config::load(&file).expect_err("absent")).contains("cannot be read"));
    write(&secret, "too short\n", 0o600);
    assert!(said(Config::load(&file).expect_err("short")).contains("has 9 characters"));
    write(&secret, "0123456789abcdef0123\n", 0o644);
    assert!(said(Config::load(&file).expect_err("world-readable")).contains("mode 0644"));
    write(&secret, "0123456789abcdef0123\n", 0o640);
    let config = Config::load(&file).expect("sound");
    assert_eq!(config.secret.bytes(), b"0123456789abcdef0123");
    assert!(!format!("{config:?}").contains("0123456789"));
}

#[test]
fn a_secret_inside_the_file_makes_the_file_private() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("cluster.toml");
    write(&file, &with_secret("secret = \"0123456789abcdef\""), 0o644);
    let errors = Config::load(&file).expect_err("world-readable");
    assert_eq!(
        (errors.problems[0].line, errors.problems[0].column),
        (3, 10)
    );
    assert!(!errors.to_string().contains("0123456789"));
    write(&file, &with_secret("secret = \"0123456789abcdef\""), 0o600);
    Config::load(&file).expect("sound");
}

#[test]
fn a_missing_file_is_named() {
    let errors = Config::load(Path::new("/nonexistent/cluster.toml")).expect_err("absent");
    assert!(
        errors
            .to_string()
            .starts_with("/nonexistent/cluster.toml: cannot be read")
    );
}

/// No input makes the parser panic: every prefix of every example, and every example without one line.
#[test]
fn cut_examples_never_panic() {
    for file in files("good").into_iter().chain(files("bad")) {
        let text = std::fs::read_to_string(&file).expect("fixture");
        for (end, _) in text.char_indices() {
            let _ = Config::parse(&text[..end], &file);
        }
        let lines: Vec<&str> = text.lines().collect();
        for skip in 0..lines.len() {
            let rest: Vec<&str> = lines
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != skip)
                .map(|(_, l)| *l)
                .collect();
            let _ = Config::parse(&rest.join("\n"), &file);
        }
    }
}
