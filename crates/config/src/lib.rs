//! `cluster.toml`: what a cluster is made of, the same file on every node.
//!
//! Invariants
//! - a [`Config`] that exists is sound: names and numbers are unique, references resolve, timings
//!   are possible, voters are odd; nobody downstream checks these again;
//! - every refusal names file, line, column and what to write instead;
//! - the secret never appears in `Debug` output, in an error or in a serialised form.
//!
//! The way of a file: `raw` (its shape, by serde, with spans) then `check` (its meaning) then
//! `model` (what the rest of the program uses).

#![forbid(unsafe_code)]

mod check;
mod error;
mod model;
mod raw;
mod secret;
mod timing;
mod units;

pub use error::{ConfigErrors, Problem};
pub use model::{
    Acknowledge, Config, Frontend, Mount, Nbd, Node, OnNoQuorum, Ready, Resource, Resync, Scrub,
    Service, UncleanPromotion, Vip, Volume,
};
pub use secret::{SECRET_BYTES_MAX, SECRET_BYTES_MIN, Secret};
pub use timing::{Profile, Timing};
pub use units::parse_rate;
pub use units::parse_size;

use std::path::Path;

impl Config {
    /// Reads and checks `path`, and the secret it names.
    ///
    /// # Errors
    /// Everything that is wrong with the file, each with its place and the fix.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            ConfigErrors::whole_file(
                path,
                format!("cannot be read: {e}"),
                "give the path of the cluster's configuration with --config",
            )
        })?;
        check::check(&text, path, secret::Permissions::Enforced)
    }

    /// The same for a text at hand; `file` is its name in messages and the base of relative paths.
    /// The permissions of a secret inside the text are the caller's business.
    ///
    /// # Errors
    /// Like [`Config::load`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigErrors> {
        check::check(text, file, secret::Permissions::NotThisFile)
    }
}
