//! One file per command, or per few that only ask the daemon one thing.

mod admin;
mod demo;
mod fencer;
mod node;
mod progress;
mod record_client;
mod record_server;
mod saved;
mod sim;
mod status;
mod verify;
mod wait;

use crate::args::{Args, Command};
use crate::failure::Failure;

/// Does what the command line says.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let json = args.json;
    match args.command {
        Command::Node(args) => node::run(args),
        Command::Status(args) => status::status(&args, json),
        Command::Role(args) => status::role(&args, json),
        Command::Promote(args) => admin::promote(args, json),
        Command::Demote(args) => admin::demote(args, json),
        Command::Resolve(args) => admin::resolve(args, json),
        Command::Saved(command) => saved::run(&command, json),
        Command::Create(args) => admin::create(args, json),
        Command::Verify(args) => verify::run(args, json),
        Command::Resync(args) => admin::resync(args, json),
        Command::Resize(args) => admin::resize(args, json),
        Command::Replica(command) => admin::replica(command, json),
        Command::Wait(args) => wait::run(&args, json),
        Command::History(args) => admin::history(&args, json),
        Command::Stop(args) => admin::stop(&args, json),
        Command::Isolate(args) => admin::isolate(&args, json),
        Command::Demo(args) => demo::run(&args, json),
        Command::Sim(args) => sim::run(&args, json),
        Command::Fencer => fencer::run(),
        Command::RecordClient(args) => record_client::run(&args, json),
        Command::RecordServer(args) => record_server::run(&args),
    }
}
