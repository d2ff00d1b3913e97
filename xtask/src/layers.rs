//! Dependencies point downwards: the pure crates reach no runtime, no system call, no randomness.

use crate::report::Report;
use crate::shell;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Crates that only compute.
const PURE: [&str; 6] = [
    "holdfast-types",
    "holdfast-wire",
    "holdfast-meta",
    "holdfast-replicator",
    "holdfast-control",
    "holdfast-model",
];
/// What they must not reach, however far away.
const OUTSIDE: [&str; 8] = [
    "tokio",
    "libc",
    "nix",
    "rand",
    "getrandom",
    "tracing",
    "io-uring",
    "mio",
];
/// Own crates, lowest first: each may use only what stands before it.
const ORDER: [&str; 15] = [
    "holdfast-model",
    "holdfast-types",
    "holdfast-wire",
    "holdfast-meta",
    "holdfast-replicator",
    "holdfast-control",
    "holdfast-config",
    "holdfast-uring",
    "holdfast-host",
    "holdfast-blockdev",
    "holdfast-sim",
    "holdfast-node",
    "holdfast-fuzz",
    "holdfast",
    "holdfast-tests",
];

pub(crate) fn check(report: &mut Report) -> Result<()> {
    let graph = Graph::new(&shell::metadata()?)?;
    let mut findings = Vec::new();
    for pure in PURE {
        let reached = graph.reached(pure);
        for outside in OUTSIDE.iter().filter(|o| reached.contains(**o)) {
            findings.push(format!("{pure} reaches {outside}"));
        }
    }
    report.check(
        "pure crates reach no runtime, system call or randomness",
        &findings,
    );
    report.check("own crates depend downwards only", &graph.upward());
    Ok(())
}

/// Package names and what each needs in the built program (not in its tests or build scripts).
struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    fn new(metadata: &Value) -> Result<Self> {
        let packages = metadata["packages"].as_array().context("no packages")?;
        let names: BTreeMap<&str, &str> = packages
            .iter()
            .filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?)))
            .collect();
        let mut graph = BTreeMap::<String, BTreeSet<String>>::new();
        for node in metadata["resolve"]["nodes"]
            .as_array()
            .context("no resolved nodes")?
        {
            let name = node["id"]
                .as_str()
                .and_then(|id| names.get(id))
                .context("a node without a package")?;
            let needs = graph.entry((*name).to_owned()).or_default();
            for dependency in node["deps"].as_array().into_iter().flatten() {
                let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
                let built_in = kinds
                    .into_iter()
                    .any(|k| k["kind"].is_null() && for_linux(&k["target"]));
                if let (true, Some(to)) = (
                    built_in,
                    dependency["pkg"].as_str().and_then(|id| names.get(id)),
                ) {
                    needs.insert((*to).to_owned());
                }
            }
        }
        Ok(Self(graph))
    }

    fn reached(&self, from: &str) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut todo = vec![from];
        while let Some(name) = todo.pop() {
            for next in self.0.get(name).into_iter().flatten() {
                if reached.insert(next.as_str()) {
                    todo.push(next);
                }
            }
        }
        reached
    }

    fn upward(&self) -> Vec<String> {
        let place = |name: &str| ORDER.iter().position(|o| *o == name);
        let mut findings = Vec::new();
        for (name, needs) in &self.0 {
            for need in needs {
                match (place(name), place(need)) {
                    (Some(from), Some(to)) if to >= from => {
                        findings.push(format!("{name} uses {need}, which is above it"))
                    }
                    (None, Some(_)) if name != "xtask" => {
                        findings.push(format!("{name} has no place in the order"))
                    }
                    _ => {}
                }
            }
        }
        findings
    }
}

/// Does a platform condition hold here? Only conditions that rule Linux out are taken as such.
fn for_linux(target: &Value) -> bool {
    let Some(condition) = target.as_str() else {
        return true;
    };
    ![
        "windows", "wasm", "wasi", "redox", "macos", "apple", "android", "hermit",
    ]
    .iter()
    .any(|os| condition.contains(os) && !condition.contains("not("))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        let set = |needs: &[&str]| needs.iter().map(ToString::to_string).collect();
        Graph(
            edges
                .iter()
                .map(|(name, needs)| ((*name).to_owned(), set(needs)))
                .collect(),
        )
    }

    #[test]
    fn what_is_far_away_is_reached() {
        let graph = graph(&[
            ("holdfast-wire", &["a"]),
            ("a", &["b"]),
            ("b", &["libc", "a"]),
        ]);
        assert!(graph.reached("holdfast-wire").contains("libc"));
    }

    #[test]
    fn upward_and_placeless_dependencies_are_found() {
        assert_eq!(
            graph(&[("holdfast-types", &["holdfast-wire"])])
                .upward()
                .len(),
            1
        );
        assert_eq!(
            graph(&[("new-crate", &["holdfast-wire"])]).upward().len(),
            1
        );
        assert!(
            graph(&[("holdfast-wire", &["holdfast-types"])])
                .upward()
                .is_empty()
        );
    }
}
