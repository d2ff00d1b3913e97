//! Making a failing run small: the shortest list of decisions, the fewest nodes and the smallest volume that still fail
//! in the same way (the same checker speaks).
//!
//! In this order, because each step makes the next cheaper: nothing after the failure; whole classes of faults; single faults;
//! what the application asks; nodes; the volume. Then once more.

use crate::plan::{Plan, What, kind};
use crate::scenario::{Fault, S};
use std::collections::BTreeSet;

/// How a candidate fared: what was found, and when.
pub type Verdict = Option<(String, u64)>;

struct Shrinker<'a> {
    best: Plan,
    runs_left: u32,
    run: &'a mut dyn FnMut(&Plan) -> Verdict,
}

/// The smallest plan found within so many runs that fails as `plan` does. `run` plays a plan.
pub fn shrink(plan: &Plan, runs_max: u32, run: &mut dyn FnMut(&Plan) -> Verdict) -> Plan {
    let mut shrinker = Shrinker {
        best: plan.clone(),
        runs_left: runs_max,
        run,
    };
    loop {
        let before = (shrinker.best.steps.len(), shrinker.best.shape);
        shrinker.round();
        let after = (shrinker.best.steps.len(), shrinker.best.shape);
        if after == before || shrinker.runs_left == 0 {
            return shrinker.best;
        }
    }
}

impl Shrinker<'_> {
    /// Plays a candidate; keeps it if it still fails in the same way.
    fn keeps(&mut self, mut candidate: Plan) -> bool {
        if self.runs_left == 0 {
            return false;
        }
        self.runs_left -= 1;
        let Some((found, at)) = (self.run)(&candidate) else {
            return false;
        };
        if kind(&found) != kind(&self.best.found) {
            return false;
        }
        candidate.found = found;
        candidate.steps.retain(|s| s.at <= at);
        self.best = candidate;
        true
    }

    fn round(&mut self) {
        // As it is: drops everything after the failure.
        self.keeps(self.best.clone());
        self.fewer_classes();
        self.fewer(|what| matches!(what, What::Strike(_)));
        self.fewer(|what| matches!(what, What::Ask(_)));
        self.smaller();
    }

    fn fewer_classes(&mut self) {
        let class = |what: What| match what {
            What::Strike(fault) => Some(fault),
            What::Ask(_) => None,
        };
        let classes: BTreeSet<Fault> = self
            .best
            .steps
            .iter()
            .filter_map(|s| class(s.what))
            .collect();
        for gone in classes {
            let mut candidate = self.best.clone();
            candidate.steps.retain(|s| class(s.what) != Some(gone));
            self.keeps(candidate);
        }
    }

    /// Takes out ever smaller parts of the steps of one kind.
    fn fewer(&mut self, of: impl Fn(What) -> bool) {
        let count = |plan: &Plan| plan.steps.iter().filter(|s| of(s.what)).count();
        let mut size = count(&self.best).div_ceil(2);
        while size > 0 && self.runs_left > 0 {
            let mut from = 0;
            while from < count(&self.best) {
                let mut candidate = self.best.clone();
                let mut index = 0;
                candidate.steps.retain(|s| {
                    let mine = of(s.what);
                    index += usize::from(mine);
                    !(mine && (from..from + size).contains(&(index - 1)))
                });
                // What is gone makes room for what came after it.
                if !self.keeps(candidate) {
                    from += size;
                }
                if self.runs_left == 0 {
                    return;
                }
            }
            size /= 2;
        }
    }

    fn smaller(&mut self) {
        for (data_nodes, witnesses) in [(2, 1), (3, 0)] {
            let s = self.best.shape;
            if data_nodes + witnesses < s.data_nodes + s.witnesses && data_nodes <= s.data_nodes {
                let mut candidate = self.best.clone();
                (candidate.shape.data_nodes, candidate.shape.witnesses) = (data_nodes, witnesses);
                if self.keeps(candidate) {
                    break;
                }
            }
        }
        while self.best.shape.blocks > 32 {
            let mut candidate = self.best.clone();
            candidate.shape.blocks /= 2;
            if !self.keeps(candidate) {
                break;
            }
        }
        let last = self.best.steps.iter().map(|s| s.at).max().unwrap_or(0);
        let mut candidate = self.best.clone();
        candidate.shape.safety_ns = last.saturating_sub(2 * S).max(S / 2);
        if candidate.shape.safety_ns < self.best.shape.safety_ns {
            self.keeps(candidate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Shape, Step};

    #[test]
    fn only_what_the_failure_needs_is_left() {
        let step = |i: u64| Step {
            at: i * 10,
            what: if i.is_multiple_of(3) {
                What::Strike(Fault::ALL[(i / 3) as usize % Fault::ALL.len()])
            } else {
                What::Ask((i % 2) as u8)
            },
            dice: i,
        };
        let plan = Plan {
            seed: 1,
            swarm: true,
            rule: None,
            lie: None,
            shape: Shape {
                data_nodes: 5,
                witnesses: 0,
                blocks: 256,
                safety_ns: 20 * S,
            },
            found: "G1: long".into(),
            steps: (0..200).map(step).collect(),
        };
        // Fails if decisions 33 (a fault) and 70 (a request) are there; with other ones in another way.
        let mut run = |p: &Plan| {
            let has = |dice| p.steps.iter().any(|s| s.dice == dice);
            match (has(33), has(70)) {
                (true, true) => Some(("G1: short".to_string(), 700)),
                (true, false) => Some(("G4: other".to_string(), 330)),
                _ => None,
            }
        };
        let small = shrink(&plan, 500, &mut run);
        let dice: Vec<u64> = small.steps.iter().map(|s| s.dice).collect();
        assert_eq!(dice, [33, 70]);
        assert_eq!((small.shape.data_nodes, small.shape.witnesses), (2, 1));
        assert_eq!(small.shape.blocks, 32);
        assert_eq!(small.found, "G1: short");
        let untouched = shrink(&plan, 0, &mut run);
        assert_eq!(untouched, plan);
    }
}
