//! The decisions of a run, written down: which faults strike when, what the application asks when.
//!
//! A run draws its decisions as it goes and records them here; played again they give the same run, event by event, because
//! whatever else is random (delays, torn sectors, order within an instant) comes from streams that no decision draws from.
//! A decision carries *dice*, from which its details are drawn when it is due (which node, how long): so a decision means
//! something also in a run from which others were taken out, and one whose target is missing does nothing.
//!
//! As a file (`.trace`), a line each: what the run was, what was found in it, and its decisions.

use crate::mutation::Mutation;
use crate::scenario::{Fault, Scenario};
use holdfast_replicator::Rule;
use std::fmt;

/// First line of a trace.
const HEAD: &str = "holdfast trace 1";

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A fault of this class strikes.
    Strike(Fault),
    /// The application asks something on this node, or wherever it runs.
    Ask(u8),
}

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// True time in nanoseconds.
    pub at: u64,
    /// What.
    pub what: What,
    /// What its details are drawn from.
    pub dice: u64,
}

/// Sizes that may differ from what the seed says, to make a run smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Nodes with replicas.
    pub data_nodes: u8,
    /// Nodes without.
    pub witnesses: u8,
    /// Blocks of the volume.
    pub blocks: u64,
    /// The faults stop after this long.
    pub safety_ns: u64,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The seed everything else is drawn from.
    pub seed: u64,
    /// See `Scenario::draw`.
    pub swarm: bool,
    /// A rule that is off.
    pub rule: Option<Rule>,
    /// A lie of the interpreters.
    pub lie: Option<Mutation>,
    /// Sizes.
    pub shape: Shape,
    /// What was found; empty if nothing.
    pub found: String,
    /// In order.
    pub steps: Vec<Step>,
}

impl Shape {
    /// The sizes of a scenario.
    pub fn of(scenario: &Scenario) -> Self {
        Self {
            data_nodes: scenario.data_nodes,
            witnesses: scenario.witnesses,
            blocks: scenario.geometry.blocks,
            safety_ns: scenario.safety_ns,
        }
    }

    /// Gives a scenario these sizes.
    pub fn apply(&self, scenario: &mut Scenario) {
        scenario.data_nodes = self.data_nodes;
        scenario.witnesses = self.witnesses;
        scenario.geometry.blocks = self.blocks;
        scenario.safety_ns = self.safety_ns;
    }
}

/// What kind of failure a text tells of: the checker that speaks.
pub fn kind(found: &str) -> &str {
    let first = found.split([':', ' ']).next().unwrap_or_default();
    first.split('/').next().unwrap_or_default()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}")?;
        writeln!(f, "seed {}", self.seed)?;
        writeln!(f, "swarm {}", self.swarm)?;
        if let Some(rule) = self.rule {
            writeln!(f, "rule {rule:?}")?;
        }
        if let Some(lie) = self.lie {
            writeln!(f, "lie {lie:?}")?;
        }
        let s = self.shape;
        writeln!(f, "nodes {} {}", s.data_nodes, s.witnesses)?;
        writeln!(f, "blocks {}", s.blocks)?;
        writeln!(f, "until {}", s.safety_ns)?;
        if let Some(line) = self.found.lines().next() {
            writeln!(f, "found {line}")?;
        }
        for step in &self.steps {
            match step.what {
                What::Strike(fault) => writeln!(f, "{} strike {fault:?} {:x}", step.at, step.dice)?,
                What::Ask(node) => writeln!(f, "{} ask {node} {:x}", step.at, step.dice)?,
            }
        }
        Ok(())
    }
}

/// Why a trace cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Not a trace, or of another version.
    #[error("this is no trace: its first line is not \"{HEAD}\"")]
    Head,
    /// A line makes no sense.
    #[error("line {line} of the trace makes no sense: {text:?}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// The line.
        text: String,
    },
}

impl std::str::FromStr for Plan {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let mut lines = text.lines().enumerate();
        if lines.next().map(|(_, l)| l.trim()) != Some(HEAD) {
            return Err(TraceError::Head);
        }
        let mut plan = Self {
            seed: 0,
            swarm: true,
            rule: None,
            lie: None,
            shape: Shape::of(&Scenario::draw(0, true)),
            found: String::new(),
            steps: Vec::new(),
        };
        for (number, line) in lines.filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#')) {
            plan.line(line).ok_or_else(|| TraceError::Line {
                line: number + 1,
                text: line.into(),
            })?;
        }
        Ok(plan)
    }
}

impl Plan {
    fn line(&mut self, line: &str) -> Option<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "seed" => self.seed = rest.parse().ok()?,
            "swarm" => self.swarm = rest.parse().ok()?,
            "rule" => self.rule = Some(crate::planted::find(rest)?),
            "lie" => self.lie = Some(Mutation::find(rest)?),
            "nodes" => {
                let (data, witnesses) = rest.split_once(' ')?;
                self.shape.data_nodes = data.parse().ok().filter(|n| (2..=5).contains(n))?;
                self.shape.witnesses = witnesses.parse().ok().filter(|n| *n <= 3)?;
            }
            "blocks" => {
                self.shape.blocks = rest.parse().ok().filter(|b| (8..=1 << 20).contains(b))?
            }
            "until" => self.shape.safety_ns = rest.parse().ok()?,
            "found" => self.found = rest.into(),
            at => {
                let words: Vec<&str> = rest.split(' ').collect();
                let [what, name, dice] = words[..] else {
                    return None;
                };
                let what = match what {
                    "strike" => What::Strike(Fault::find(name)?),
                    "ask" => What::Ask(name.parse().ok()?),
                    _ => return None,
                };
                self.steps.push(Step {
                    at: at.parse().ok()?,
                    what,
                    dice: u64::from_str_radix(dice, 16).ok()?,
                });
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            seed: 7,
            swarm: true,
            rule: crate::planted::ALL.first().map(|(r, _)| *r),
            lie: Some(Mutation::EarlyMeta),
            shape: Shape {
                data_nodes: 3,
                witnesses: 2,
                blocks: 32,
                safety_ns: 1_000_000,
            },
            found: "G1: something".into(),
            steps: vec![
                Step {
                    at: 5,
                    what: What::Strike(Fault::Kill),
                    dice: 0xabc,
                },
                Step {
                    at: 6,
                    what: What::Ask(1),
                    dice: 1,
                },
            ],
        }
    }

    #[test]
    fn a_trace_is_read_as_it_was_written() {
        let text = plan().to_string();
        assert_eq!(text.parse::<Plan>().unwrap(), plan());
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        assert_eq!("seed 1".parse::<Plan>(), Err(TraceError::Head));
        for bad in [
            "5 strike Nothing 1",
            "5 ask x 1",
            "5 ask 1 zz",
            "blocks 0",
            "nodes 9 0",
            "rule Nope",
            "what is this",
        ] {
            let text = format!("{HEAD}\nseed 1\n{bad}\n");
            let error = text.parse::<Plan>().unwrap_err();
            assert_eq!(
                error,
                TraceError::Line {
                    line: 3,
                    text: bad.into()
                }
            );
        }
    }

    #[test]
    fn the_checker_that_speaks_names_the_kind() {
        assert_eq!(kind("G1/G6: read of cell 3"), "G1");
        assert_eq!(kind("order: a write"), "order");
        assert_eq!(kind("panic at 3 ms: oh"), "panic");
    }
}
