//! cargo-deny: licences, advisories, sources, bans (`deny.toml`).

use crate::report::{Reason, Report};
use crate::shell::{cargo, has_program, succeeds};
use anyhow::Result;

pub(crate) fn check(report: &mut Report) -> Result<()> {
    if !has_program("cargo-deny") {
        report.skip(
            "deny",
            Reason::CargoDeny,
            "`cargo install --locked cargo-deny` installs it",
        );
        return Ok(());
    }
    for what in ["licenses", "bans", "sources"] {
        if succeeds(cargo().args(["deny", "--offline", "check", "--hide-inclusion-graph", what]))? {
            report.pass(1);
        } else {
            report.fail(format!("deny {what}"));
        }
    }
    // The advisories are kept in a repository on the network; without it there is nothing to compare with.
    if !succeeds(cargo().args(["deny", "fetch", "db"]))? {
        report.skip(
            "deny advisories",
            Reason::Network,
            "the advisory database cannot be fetched",
        );
    } else if succeeds(cargo().args(["deny", "check", "advisories"]))? {
        report.pass(1);
    } else {
        report.fail("deny advisories".to_owned());
    }
    Ok(())
}
