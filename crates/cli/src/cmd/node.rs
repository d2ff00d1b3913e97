//! `node`: the daemon.

use crate::args::NodeArgs;
use crate::failure::Failure;
use holdfast_node::NodeOptions;
use tracing_subscriber::EnvFilter;

/// Environment variable that says what is logged.
const LOG: &str = "HOLDFAST_LOG";

pub(super) fn run(args: NodeArgs) -> Result<(), Failure> {
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    // Refused here and not in the daemon, so that a bad configuration has its own exit status.
    holdfast_config::Config::load(&args.config)?;
    let NodeArgs {
        config,
        name,
        state_dir,
        fault_plan,
    } = args;
    Ok(holdfast_node::run(NodeOptions {
        state_dir,
        fault_plan,
        ..NodeOptions::new(config, name)
    })?)
}
