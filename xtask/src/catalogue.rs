//! `docs/SCENARIOS.md` and the sources agree: every test, scenario of real processes and rule it names exists, and it
//! names every scenario of the simulator.

use std::collections::BTreeSet;

/// The catalogue.
const CATALOGUE: &str = "docs/SCENARIOS.md";
/// Tests that the catalogue has to name begin like this.
const NAMED: [&str; 5] = ["schedule_", "rule_", "drbd_", "sweep_", "f"];
/// Where they are.
const SCENARIOS: [&str; 3] = [
    "crates/sim/src/schedules/",
    "crates/sim/src/matrix/",
    "crates/control/src/tests/schedules.rs",
];

/// What the catalogue and the sources say of each other; `files` are names and texts.
pub(crate) fn findings(files: &[(&str, String)]) -> Vec<String> {
    let Some((_, catalogue)) = files.iter().find(|(name, _)| *name == CATALOGUE) else {
        return vec![format!("{CATALOGUE} is missing")];
    };
    let sources = || files.iter().filter(|(name, _)| name.ends_with(".rs"));
    let functions: BTreeSet<&str> = sources().flat_map(|(_, text)| functions(text)).collect();
    let processes: String = sources()
        .filter(|(name, _)| name.starts_with("tests/src/scenarios/"))
        .map(|(_, text)| text.as_str())
        .collect();
    let rules = files
        .iter()
        .find(|(name, _)| *name == "replicator/src/rules.rs")
        .map_or("", |(_, text)| text.as_str());
    let words = words(catalogue);
    let mut findings: Vec<String> = words
        .iter()
        .filter(|word| match kind(word) {
            Kind::Test => !functions.contains(*word),
            Kind::Process => !processes.contains(&format!("\"{word}\"")),
            Kind::Rule(rule) => !rules.contains(&format!("    {rule},\n")),
            Kind::Other => false,
        })
        .map(|word| format!("{CATALOGUE} names {word}, which does not exist"))
        .collect();
    for (name, text) in sources().filter(|(name, _)| SCENARIOS.iter().any(|s| name.starts_with(s)))
    {
        findings.extend(
            tests(text)
                .filter(|test| NAMED.iter().any(|start| test.starts_with(start)))
                .filter(|test| !words.contains(test))
                .map(|test| format!("{name}: {test} is not in {CATALOGUE}")),
        );
    }
    findings
}

enum Kind<'w> {
    Test,
    Process,
    Rule(&'w str),
    Other,
}

fn kind(word: &str) -> Kind<'_> {
    let of = |more: char| {
        word.contains(more)
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == more)
    };
    match word.strip_prefix("Rule::") {
        Some(rule) => Kind::Rule(rule),
        None if of('_') => Kind::Test,
        None if of('-') => Kind::Process,
        None => Kind::Other,
    }
}

/// What stands in backquotes.
fn words(text: &str) -> BTreeSet<&str> {
    text.lines()
        .flat_map(|l| l.split('`').skip(1).step_by(2))
        .collect()
}

/// Names of all functions.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.split("fn ")
        .skip(1)
        .filter_map(|rest| rest.split(['(', '<']).next())
}

/// Names of the tests.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[test]\n")
        .skip(1)
        .filter_map(|rest| functions(rest).next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_looked_at() {
        let file = "crates/sim/src/matrix/a.rs";
        let look = |catalogue: &str, source: &str| {
            findings(&[
                (CATALOGUE, catalogue.to_owned()),
                (file, source.to_owned()),
                ("replicator/src/rules.rs", "    ReadLock,\n".to_owned()),
                ("tests/src/scenarios/b.rs", "name: \"kill-it\",".to_owned()),
            ])
        };
        let source = "#[test]\nfn f01_kill() {}\n";
        assert!(look("| `f01_kill` | `Rule::ReadLock` | `kill-it` |", source).is_empty());
        assert_eq!(look("nothing", source).len(), 1);
        assert_eq!(look("`f01_kill`, `f02_cut`", source).len(), 1);
        assert_eq!(look("`f01_kill`, `Rule::Nothing`", source).len(), 1);
        assert_eq!(look("`f01_kill`, `cut-it`", source).len(), 1);
        assert_eq!(findings(&[]).len(), 1);
    }
}
