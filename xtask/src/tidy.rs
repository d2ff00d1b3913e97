//! Rules for files, over everything git knows of.

use crate::catalogue;
use crate::report::Report;
use crate::shell;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// Lines of a source file at the most.
const LINES_MAX: usize = 800;
/// Bytes of any file at the most: what is larger is generated or does not belong here.
const FILE_BYTES_MAX: usize = 1 << 20;

/// A rule: its name, and what it has against a file.
type Rule = (&'static str, fn(&str, &str) -> Option<String>);

const RULES: [Rule; 8] = [
    ("source files have a head comment", head),
    ("source files have at most 800 lines", length),
    ("nothing is left over", leftovers),
    ("no test is ignored", ignored),
    ("no path of one machine", machine_paths),
    ("lines end cleanly", endings),
    ("files are small", size),
    (
        "pure crates have no clock, thread, file, environment or hash order",
        impure,
    ),
];

/// Where the pure crates are.
const PURE: [&str; 6] = [
    "crates/types/src/",
    "crates/wire/src/",
    "crates/meta/src/",
    "crates/control/src/",
    "crates/model/src/",
    "replicator/src/",
];

pub(crate) fn check(report: &mut Report) -> Result<()> {
    let list = shell::output(Command::new("git").args(["ls-files", "-z"]))?;
    let mut files = Vec::new();
    // What git knows of and is not there was just removed.
    for name in list
        .split('\0')
        .filter(|name| !name.is_empty() && Path::new(name).is_file())
    {
        let bytes = std::fs::read(name)?;
        files.push((name, String::from_utf8_lossy(&bytes).into_owned()));
    }
    for (what, rule) in RULES {
        let findings: Vec<String> = files
            .iter()
            .filter_map(|(name, text)| rule(name, text).map(|f| format!("{name}: {f}")))
            .collect();
        report.check(what, &findings);
    }
    report.check(
        "the catalogue of scenarios names what exists",
        &catalogue::findings(&files),
    );
    Ok(())
}

fn is_source(name: &str) -> bool {
    name.ends_with(".rs")
}

/// Test code beside the code it tests.
fn is_test(name: &str) -> bool {
    name.ends_with("tests.rs") || name.contains("/tests/")
}

/// Files whose bytes are data, not text that we wrote.
fn is_data(name: &str) -> bool {
    name == "Cargo.lock"
        || name.ends_with(".bin")
        || name.ends_with(".png")
        || name.ends_with(".hex")
}

/// The first line of the text that has one of these, and which.
fn find<'w>(text: &str, words: &[&'w str]) -> Option<(usize, &'w str)> {
    text.lines()
        .enumerate()
        .find_map(|(i, line)| Some((i + 1, *words.iter().find(|w| line.contains(**w))?)))
}

fn head(name: &str, text: &str) -> Option<String> {
    (is_source(name) && !is_test(name) && !text.starts_with("//!"))
        .then(|| "does not begin with what it is for".into())
}

fn length(name: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (is_source(name) && lines > LINES_MAX).then(|| format!("{lines} lines"))
}

fn leftovers(name: &str, text: &str) -> Option<String> {
    if is_data(name) {
        return None;
    }
    if [".orig", ".rej", ".swp", ".bak", "~"]
        .iter()
        .any(|end| name.ends_with(end))
    {
        return Some("a left-over file".into());
    }
    // Put together here so that this file does not find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
        concat!("(in ", "work)"),
        concat!("<<<<", "<<< "),
        concat!(">>>>", ">>> "),
    ];
    find(text, &words).map(|(line, word)| format!("line {line}: {word}"))
}

fn ignored(name: &str, text: &str) -> Option<String> {
    if !is_source(name) {
        return None;
    }
    find(text, &[concat!("#[ig", "nore")]).map(|(line, _)| format!("line {line}"))
}

fn machine_paths(name: &str, text: &str) -> Option<String> {
    if is_data(name) {
        return None;
    }
    let words = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/Us", "ers/"),
    ];
    find(text, &words).map(|(line, word)| format!("line {line}: {word}"))
}

fn endings(name: &str, text: &str) -> Option<String> {
    if is_data(name) || text.is_empty() {
        return None;
    }
    if !text.ends_with('\n') {
        return Some("no newline at the end".into());
    }
    if let Some((line, _)) = find(text, &["\r"]) {
        return Some(format!("line {line}: a carriage return"));
    }
    let trailing = text.lines().position(|line| line.ends_with([' ', '\t']));
    trailing
        .filter(|_| !name.ends_with(".txt"))
        .map(|i| format!("line {}: white space at the end", i + 1))
}

fn size(name: &str, text: &str) -> Option<String> {
    (!is_data(name) && text.len() > FILE_BYTES_MAX).then(|| format!("{} bytes", text.len()))
}

fn impure(name: &str, text: &str) -> Option<String> {
    if !PURE.iter().any(|folder| name.starts_with(folder)) || is_test(name) {
        return None;
    }
    let words = [
        "Instant::now",
        "SystemTime",
        "std::thread",
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "HashMap",
        "HashSet",
        "println!",
    ];
    let code = |line: &str| !line.trim_start().starts_with("//");
    let (i, word) = text
        .lines()
        .enumerate()
        .filter(|(_, line)| code(line))
        .find_map(|(i, line)| Some((i + 1, words.iter().find(|w| line.contains(**w))?)))?;
    Some(format!("line {i}: {word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_finds_what_it_is_for() {
        let bad = [
            ("a.rs", "fn x() {}\n".to_owned()),
            ("a.rs", "//! a\n".repeat(LINES_MAX + 1)),
            ("a.md", format!("{}\n", concat!("TO", "DO"))),
            ("a.rs", format!("{}]\n", concat!("#[ig", "nore"))),
            ("a.toml", format!("x = \"{}me/x\"\n", "/ho")),
            ("a.rs", "//! a \n".to_owned()),
            ("a.md", "x\n".repeat(FILE_BYTES_MAX)),
            (
                "crates/wire/src/a.rs",
                "use std::collections::HashMap;\n".to_owned(),
            ),
        ];
        for ((what, rule), (name, text)) in RULES.iter().zip(&bad) {
            assert!(rule(name, text).is_some(), "{what}");
            assert!(rule("a.rs", "//! What it is for.\n").is_none(), "{what}");
        }
    }
}
