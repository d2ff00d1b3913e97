//! `node`: the daemon.

use crate::args::NodeArgs;
use crate::failure::Failure;
use anyhow::{Context, ensure};
use holdfast_config::Config;
use holdfast_node::NodeOptions;
use nix::sys::signal::Signal;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Environment variable that says what is logged.
const LOG: &str = "HOLDFAST_LOG";

pub(super) fn run(args: NodeArgs) -> Result<(), Failure> {
    if let Some(parent) = args.parent {
        die_with(parent)?;
    }
    let filter =
        EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new("info,fuser=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // Refused here and not in the daemon, so that a mistake has its own exit status.
    let config = Config::load(&args.config)?;
    if config.node(&args.name).is_none() {
        let names: Vec<&str> = config.nodes.iter().map(|n| n.name.as_str()).collect();
        return Err(Failure::Usage {
            message: format!("{} has no node `{}`", args.config.display(), args.name),
            fix: format!("one of {}", names.join(", ")),
        });
    }
    let options = NodeOptions {
        state_dir: args.state_dir,
        fault_plan: args.fault_plan,
        boot_id: args.boot_id,
        allow_faults: args.allow_faults,
        ..NodeOptions::new(args.config, args.name)
    };
    Ok(holdfast_node::run(options)?)
}

/// Has the kernel kill this process when its parent ends.
fn die_with(parent: i32) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("asking to die with the parent")?;
    // It may have ended before that.
    ensure!(
        nix::unistd::getppid().as_raw() == parent,
        "process {parent} is not this one's parent"
    );
    Ok(())
}
