//! `holdfast verify`: compare copies, and make them equal if that is asked for.

use super::admin::ask;
use crate::args::VerifyArgs;
use crate::client::unexpected;
use crate::failure::Failure;
use crate::render::units;
use holdfast_node::api_types::{Answer, Request, VerifiedPeer};

/// Differing ranges shown to people.
const RANGES_SHOWN: usize = 10;

pub(super) fn run(args: VerifyArgs, json: bool) -> Result<(), Failure> {
    let a = args.address;
    let request = Request::Verify {
        resource: a.resource,
        volume: a.volume,
        peer: a.node,
        repair: args.repair.then_some(args.source),
    };
    let (differing_bytes, differing, peers) = match ask(&args.daemon, &request, json)? {
        Answer::Verified {
            differing_bytes,
            differing,
            peers,
        } => (differing_bytes, differing, peers),
        other => return Err(unexpected(&other)),
    };
    if json {
        println!(
            "{}",
            serde_json::json!({
                "differing_bytes": differing_bytes, "differing": differing, "peers": peers
            })
        );
    }
    if differing_bytes == 0 {
        if !json {
            println!("the copies are equal");
        }
        return Ok(());
    }
    let text = peers.iter().map(|p| found(p, args.repair));
    let text = text.collect::<Vec<_>>().join("\n");
    let left: u64 = peers
        .iter()
        .map(|p| p.differing_bytes.saturating_sub(p.repaired_bytes))
        .sum();
    if left > 0 {
        return Err(Failure::CheckFailed(text));
    }
    if !json {
        println!("{text}");
    }
    Ok(())
}

/// What was found on one copy, in a line and one per range.
fn found(peer: &VerifiedPeer, repair: bool) -> String {
    let mut text = format!(
        "{}: {} differ",
        peer.node,
        units::bytes(peer.differing_bytes)
    );
    if repair {
        text += &format!(", {} repaired", units::bytes(peer.repaired_bytes));
        if peer.undecided_bytes > 0 {
            text += &format!(
                ", {} undecided: no copy has a majority, name one with --source",
                units::bytes(peer.undecided_bytes)
            );
        }
    }
    text += ":";
    for (offset, length) in peer.differing.iter().take(RANGES_SHOWN) {
        text += &format!("\n  {} at byte {offset}", units::bytes(*length));
    }
    if peer.differing.len() > RANGES_SHOWN {
        text += &format!(
            "\n  and {} more ranges (--json lists them)",
            peer.differing.len() - RANGES_SHOWN
        );
    }
    text
}
