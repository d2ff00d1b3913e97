//! What a former life of this node may have left on the host is removed before anything else happens:
//! a side effect without a lease must not be there.
//!
//! The fencer does this within a fraction of a second when a daemon dies; what is done here is for the
//! cases where the fencer was killed too.

use super::device_root;
use super::effects::unit_name;
use holdfast_blockdev::frontend::{fuse, loopdev};
use holdfast_config::{Config, Node};
use holdfast_host::address::{self, Vip};
use holdfast_host::mount::{self, Policy};
use std::path::Path;

/// Removes virtual IPs, service cgroups, mounts, loop devices and FUSE mounts of the resources this node can
/// run; says what was found. What cannot be looked at (no rights) cannot have been made either.
pub fn remove(config: &Config, node: &Node, state_dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mine = || config.resources.iter().filter(|r| r.nodes.has(node.id));
    let vips: Vec<Vip> = mine()
        .flat_map(|r| &r.vips)
        .map(|v| Vip {
            addr: v.address,
            prefix: Some(v.prefix),
            device: v.device.clone(),
        })
        .collect();
    if !vips.is_empty() {
        match address::remove_leftovers(&vips) {
            Ok(held) => found.extend(
                held.iter()
                    .map(|h| format!("virtual IP {} on {}", h.place.addr, h.place.device)),
            ),
            Err(e) => tracing::warn!("leftover virtual IPs: {e}"),
        }
    }
    for r in mine() {
        for s in &r.services {
            found.extend(kill_cgroups(&unit_name(&node.name, &r.name, &s.name)));
        }
    }
    let devices = device_root(state_dir);
    // Only mounts of our own loop devices: what the operator mounted at the place is his.
    let loops = loopdev::find_under(&devices).unwrap_or_default();
    for m in mine().flat_map(|r| &r.mounts).rev() {
        let Ok(Some(source)) = mount::mounted_source(&m.path) else {
            continue;
        };
        if loops.iter().any(|l| l.path == source) {
            let policy = Policy {
                tries: 3,
                kill_holders: true,
                lazy: true,
            };
            match mount::unmount(&m.path, &policy) {
                Ok(_) => found.push(format!("mount {}", m.path.display())),
                Err(e) => tracing::warn!("leftover mount: {e}"),
            }
        }
    }
    if let Ok(entries) = std::fs::read_dir(&devices) {
        for entry in entries.flatten() {
            if fuse::clear_leftover(&entry.path()) {
                found.push(format!("FUSE mount {}", entry.path().display()));
            }
        }
    }
    if !loops.is_empty() {
        match loopdev::detach_under(&devices) {
            Ok(detached) => found.extend(
                detached
                    .iter()
                    .map(|l| format!("loop device {}", l.path.display())),
            ),
            Err(e) => tracing::warn!("leftover loop devices: {e}"),
        }
    }
    found
}

/// Kills and removes the cgroups of a service (`holdfast-NAME-MARKER` beside our own processes).
fn kill_cgroups(service: &str) -> Vec<String> {
    let mut found = Vec::new();
    let Some(entries) =
        holdfast_host::service::cgroup_root().and_then(|root| std::fs::read_dir(root).ok())
    else {
        return found;
    };
    let prefix = format!("holdfast-{service}-");
    for entry in entries.flatten() {
        let name = entry.file_name();
        let marker = name.to_str().and_then(|n| n.strip_prefix(&prefix));
        if marker.is_none_or(|m| m.len() != 16 || !m.bytes().all(|b| b.is_ascii_hexdigit())) {
            continue;
        }
        // Where the kernel is too old for this file, the process tree was the fencer's to find.
        let _ = std::fs::write(entry.path().join("cgroup.kill"), "1");
        let _ = std::fs::remove_dir(entry.path());
        found.push(format!("cgroup {}", entry.path().display()));
    }
    found
}
