//! Status for people: the lines a DRBD user knows, and why things are as they are.
//!
//! Only what is not normal is shown, unless `verbose`: an empty place is good news.

pub(crate) mod units;
mod volume;

use holdfast_node::api_types::{ClusterStatus, Item, NodeInfo, Phase, ResourceInfo};
use holdfast_types::Role;
use std::fmt::Write;

/// The whole status.
pub(crate) fn status(status: &ClusterStatus, verbose: bool) -> String {
    let mut out = String::new();
    cluster(&mut out, status, verbose);
    if status.resources.is_empty() {
        line(&mut out, 0, "no resources in the configuration");
    }
    for r in &status.resources {
        resource(&mut out, status, r, verbose);
    }
    out
}

/// A role in one word.
pub(crate) const fn role(role: Option<Role>) -> &'static str {
    match role {
        Some(Role::Primary) => "Primary",
        Some(Role::Secondary) => "Secondary",
        None => "-",
    }
}

/// One line, indented by two spaces per level.
fn line(out: &mut String, level: usize, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{:width$}{text}", "", width = level * 2);
}

fn cluster(out: &mut String, status: &ClusterStatus, verbose: bool) {
    let mut head = format!("{} on {}", status.cluster, status.node);
    if !status.quorum {
        head += " quorum:no";
    }
    head += &match &status.leader {
        Some(leader) if verbose => format!(" leader:{leader}"),
        Some(_) => String::new(),
        None => " leader:none".into(),
    };
    if verbose {
        head += &format!(" version:{}", status.version);
    }
    line(out, 0, &head);
    for why in &status.why {
        line(out, 1, &format!("why: {why}"));
    }
    for n in status
        .nodes
        .iter()
        .filter(|n| verbose || !n.online || !n.votes)
    {
        line(out, 1, &node(n, verbose));
    }
}

fn node(node: &NodeInfo, verbose: bool) -> String {
    let mut text = node.name.clone();
    if verbose {
        text += &format!(" node-id:{} address:{}", node.id, node.address);
    }
    if node.witness {
        text += " witness";
    }
    text += if node.online { " online" } else { " offline" };
    if !node.votes {
        text += " votes:no";
    }
    text
}

fn resource(out: &mut String, status: &ClusterStatus, r: &ResourceInfo, verbose: bool) {
    let mut head = format!("{} role:{}", r.name, role(r.here.and_then(Phase::role)));
    if let Some(phase) = r.here.filter(|p| {
        matches!(
            p,
            Phase::Candidate | Phase::Leading | Phase::Starting | Phase::Stopping
        )
    }) {
        head += &format!(" phase:{phase:?}");
    }
    match &r.primary {
        Some(primary) if *primary != status.node => head += &format!(" primary:{primary}"),
        None if r.created => head += " primary:none",
        _ => {}
    }
    if !r.created {
        head += " created:no";
    }
    if r.stopped {
        head += " stopped:yes";
    }
    if verbose {
        head += &format!(" epoch:{} generation:{}", r.epoch, r.generation);
        if let Some(ms) = r.lease_left_ms {
            head += &format!(" lease:{ms}ms");
        }
    }
    line(out, 0, &head);
    for why in &r.why {
        line(out, 1, &format!("why: {why}"));
    }
    let several = r.volumes.len() > 1;
    for v in &r.volumes {
        volume::local(out, v, several, verbose);
    }
    for n in r.nodes.iter().filter(|n| n.node != status.node) {
        volume::peer(out, status, r, n, several, verbose);
    }
    items(out, "mount", &r.mounts);
    items(out, "service", &r.services);
    items(out, "vip", &r.vips);
}

fn items(out: &mut String, kind: &str, items: &[Item]) {
    for item in items {
        let state = if item.up { "up" } else { "down" };
        let note = item
            .note
            .as_ref()
            .map(|n| format!(" ({n})"))
            .unwrap_or_default();
        line(out, 1, &format!("{kind}:{} {state}{note}", item.name));
    }
}

#[cfg(test)]
pub(crate) mod tests;
