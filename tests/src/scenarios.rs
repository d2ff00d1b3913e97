//! All scenarios, by room.

mod clients;
mod demo;
mod demo_ends;
mod failover;
mod members;
mod records;
mod refusals;
mod resize;
mod resync;
mod served;
mod storm;

use crate::needs::Need;
use anyhow::Result;

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    /// Its name, unique.
    pub(crate) name: &'static str,
    /// What it needs from the machine.
    pub(crate) needs: &'static [Need],
    /// What it does; it is alone in its process.
    pub(crate) run: fn() -> Result<()>,
}

/// All, in the order they are run: what is small first.
pub(crate) fn all() -> Vec<Scenario> {
    [
        records::ALL,
        refusals::ALL,
        clients::ALL,
        resync::ALL,
        members::ALL,
        resize::ALL,
        failover::ALL,
        served::ALL,
        demo::ALL,
        demo_ends::ALL,
        storm::ALL,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let all = super::all();
        let names: BTreeSet<&str> = all.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), all.len());
    }
}
