//! Golden tests: `fixtures/status/NAME.json` must read as `NAME.txt` (and `NAME.verbose.txt`).
//!
//! `HOLDFAST_REWRITE=1 cargo test -p holdfast` writes the expected texts anew; look at the difference.

use super::status;
use holdfast_node::api_types::{ClusterStatus, LocalStatus};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/status")
}

/// A sample status.
pub(crate) fn sample(name: &str) -> ClusterStatus {
    let text =
        std::fs::read_to_string(folder().join(name).with_extension("json")).expect("fixture");
    serde_json::from_str(&text).expect("a status")
}

fn check(name: &str, verbose: bool) {
    let file = folder().join(format!(
        "{name}{}.txt",
        if verbose { ".verbose" } else { "" }
    ));
    let said = status(&sample(name), verbose);
    if std::env::var_os("HOLDFAST_REWRITE").is_some() {
        std::fs::write(&file, &said).expect("write");
    }
    let expected = std::fs::read_to_string(&file).expect("fixture");
    assert_eq!(said, expected, "{}", file.display());
}

#[test]
fn samples_read_as_expected() {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .expect("fixtures")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() >= 4);
    for name in names {
        check(&name, false);
        check(&name, true);
    }
}

/// What `--json` prints can be read again, and nothing is lost on the way.
#[test]
fn json_round_trip() {
    let status = sample("resync");
    let text = serde_json::to_string(&status).expect("json");
    assert_eq!(
        serde_json::from_str::<ClusterStatus>(&text).expect("status"),
        status
    );
    let local: &LocalStatus = status.resources[0].volumes[0]
        .local
        .as_ref()
        .expect("local");
    assert!(local.open);
}

#[test]
fn every_reason_is_shown() {
    for name in ["stale", "resync", "isolated", "witness"] {
        let sample = sample(name);
        let said = status(&sample, false);
        for why in sample
            .why
            .iter()
            .chain(sample.resources.iter().flat_map(|r| &r.why))
        {
            assert!(said.contains(why.as_str()), "{name}: {why}");
        }
    }
}
