//! Commands that ask the daemon one thing and show the answer.

use super::progress::Shown;
use crate::args::{
    Address, DaemonArgs, IsolateArgs, PromoteArgs, ReplicaCommand, ResizeArgs, ResourceArgs,
    ResyncArgs, RoleArgs,
};
use crate::client::{Client, unexpected};
use crate::failure::Failure;
use holdfast_node::api_types::{Answer, HistoryLine, Request};

pub(super) fn promote(args: PromoteArgs, json: bool) -> Result<(), Failure> {
    simple(
        &args.daemon,
        &Request::Promote {
            resource: args.resource,
            force: args.force,
        },
        json,
    )
}

pub(super) fn resolve(args: crate::args::ResolveArgs, json: bool) -> Result<(), Failure> {
    let a = args.address;
    simple(
        &args.daemon,
        &Request::Resolve {
            resource: a.resource,
            volume: a.volume,
            keep: args.keep,
            peer: a.node,
        },
        json,
    )
}

pub(super) fn demote(args: ResourceArgs, json: bool) -> Result<(), Failure> {
    simple(
        &args.daemon,
        &Request::Demote {
            resource: args.resource,
        },
        json,
    )
}

pub(super) fn create(args: ResourceArgs, json: bool) -> Result<(), Failure> {
    simple(
        &args.daemon,
        &Request::Create {
            resource: args.resource,
        },
        json,
    )
}

pub(super) fn resync(args: ResyncArgs, json: bool) -> Result<(), Failure> {
    let a = args.address;
    let bounds = args.pause || args.resume || args.min.is_some() || args.max.is_some();
    let request = if bounds {
        if let Some(node) = a.node {
            return Err(Failure::Usage {
                message: "bounds hold for all copies of a volume".into(),
                fix: format!("leave out `:{node}`"),
            });
        }
        Request::ResyncBounds {
            resource: a.resource,
            volume: a.volume,
            paused: (args.pause || args.resume).then_some(args.pause),
            min: args.min,
            max: args.max,
        }
    } else {
        Request::Resync {
            resource: a.resource,
            volume: a.volume,
            peer: a.node,
        }
    };
    simple(&args.daemon, &request, json)
}

pub(super) fn resize(args: ResizeArgs, json: bool) -> Result<(), Failure> {
    let (resource, volume) = of_volume(args.volume)?;
    let size_bytes = match &args.size {
        None => None,
        Some(text) => {
            let wrong = |message| Failure::Usage {
                message,
                fix: "a size like 512MiB or 2TiB".into(),
            };
            Some(holdfast_config::parse_size(text).map_err(wrong)?)
        }
    };
    let request = Request::Resize {
        resource,
        volume,
        size_bytes,
        shrink: args.force_shrink,
    };
    simple(&args.daemon, &request, json)
}

pub(super) fn replica(command: ReplicaCommand, json: bool) -> Result<(), Failure> {
    let (daemon, request) = match command {
        ReplicaCommand::Add {
            daemon,
            volume,
            node,
            backing,
        } => {
            let (resource, volume) = of_volume(volume)?;
            let request = Request::ReplicaAdd {
                resource,
                volume,
                node,
                backing,
            };
            (daemon, request)
        }
        ReplicaCommand::Remove {
            daemon,
            volume,
            node,
        } => {
            let (resource, volume) = of_volume(volume)?;
            let request = Request::ReplicaRemove {
                resource,
                volume,
                node,
            };
            (daemon, request)
        }
        ReplicaCommand::Move {
            daemon,
            volume,
            from,
            to,
            backing,
        } => {
            let (resource, volume) = of_volume(volume)?;
            let request = Request::ReplicaMove {
                resource,
                volume,
                from,
                to,
                backing,
            };
            (daemon, request)
        }
    };
    simple(&daemon, &request, json)
}

/// An address that names no node.
fn of_volume(address: Address) -> Result<(String, Option<String>), Failure> {
    match address.node {
        None => Ok((address.resource, address.volume)),
        Some(node) => Err(Failure::Usage {
            message: format!("{}:{node} names a copy, not a volume", address.resource),
            fix: "name the volume as RESOURCE/VOLUME; the node is an argument of its own".into(),
        }),
    }
}

pub(super) fn stop(args: &DaemonArgs, json: bool) -> Result<(), Failure> {
    simple(args, &Request::Shutdown, json)
}

pub(super) fn isolate(args: &IsolateArgs, json: bool) -> Result<(), Failure> {
    simple(
        &args.daemon,
        &Request::Isolate {
            on: args.state == "on",
        },
        json,
    )
}

pub(super) fn history(args: &RoleArgs, json: bool) -> Result<(), Failure> {
    let lines = match ask(&args.daemon, &Request::History, json)? {
        Answer::History(lines) => lines,
        other => return Err(unexpected(&other)),
    };
    let wanted = |line: &&HistoryLine| args.resource.as_ref().is_none_or(|r| *r == line.resource);
    let lines: Vec<&HistoryLine> = lines.iter().filter(wanted).collect();
    if json {
        println!("{}", serde_json::json!({ "history": lines }));
    } else {
        for line in lines {
            println!(
                "{} epoch:{} generation:{} {}",
                line.resource, line.epoch, line.generation, line.what
            );
        }
    }
    Ok(())
}

/// A request whose answer is a sentence.
fn simple(daemon: &DaemonArgs, request: &Request, json: bool) -> Result<(), Failure> {
    match ask(daemon, request, json)? {
        Answer::Done { message } if json => println!("{}", serde_json::json!({ "done": message })),
        Answer::Done { message } => println!("{message}"),
        other => return Err(unexpected(&other)),
    }
    Ok(())
}

pub(super) fn ask(daemon: &DaemonArgs, request: &Request, json: bool) -> Result<Answer, Failure> {
    let client = Client::find(daemon)?;
    let mut shown = Shown::new(json);
    client.ask(request, |progress| shown.show(progress))
}
