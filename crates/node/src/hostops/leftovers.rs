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
use holdfast_host::service;
use std::fmt::Display;
use std::io::ErrorKind;
use std::path::Path;

/// What is left cannot be removed, so the node must not start.
fn refuse(what: &str, why: &dyn Display, fix: &str) -> String {
    format!(
        "{what} of a former life of this node cannot be removed ({why}), and without a lease it must not be there: {fix}, \
         then start the node again"
    )
}

/// Removes virtual IPs, services, mounts, loop devices and FUSE mounts of the resources this node can run; says what
/// was found. An error when something is there and cannot be removed. What needs rights that this process lacks is
/// not tried unless something was found.
pub fn remove(config: &Config, node: &Node, state_dir: &Path) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    // It may have been given a replica of any.
    let mine = || config.resources.iter().filter(|_| !node.witness);
    let vips: Vec<Vip> = mine()
        .flat_map(|r| &r.vips)
        .map(|v| Vip {
            addr: v.address,
            prefix: Some(v.prefix),
            device: v.device.clone(),
        })
        .filter(|v| !v.is_loopback())
        .collect();
    if !vips.is_empty() {
        let held = address::remove_leftovers(&vips).map_err(|e| {
            refuse(
                "a virtual IP",
                &e,
                "remove it as root (`ip address del ADDRESS dev DEVICE`)",
            )
        })?;
        found.extend(
            held.iter()
                .map(|h| format!("virtual IP {} on {}", h.place.addr, h.place.device)),
        );
    }
    for r in mine() {
        for s in &r.services {
            found.extend(kill_cgroups(&unit_name(&node.name, &r.name, &s.name))?);
        }
    }
    match service::end_leftovers(state_dir) {
        Ok(0) => {}
        Ok(ended) => found.push(format!("{ended} process(es) of services")),
        // Where there is no service, or all have cgroups, a foreign /proc does no harm.
        Err(holdfast_host::Error::ForeignProc)
            if service::cgroup_root().is_some() || mine().all(|r| r.services.is_empty()) => {}
        Err(e) => return Err(refuse("a service", &e, "end its processes")),
    }
    let devices = device_root(state_dir);
    // Only mounts of our own loop devices: what the operator mounted at the place is his.
    let loops = match loopdev::find_under(&devices) {
        Ok(loops) => loops,
        // Without /sys no loop device can have been attached.
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(refuse("a loop device", &e, "make /sys/block readable")),
    };
    for m in mine().flat_map(|r| &r.mounts).rev() {
        let fail = |e| {
            let what = format!("the mount at {}", m.path.display());
            refuse(&what, &e, "unmount it as root (`umount`)")
        };
        let Some(source) = mount::mounted_source(&m.path).map_err(fail)? else {
            continue;
        };
        if loops.iter().any(|l| l.path == source) {
            let policy = Policy {
                tries: 3,
                kill_holders: true,
                lazy: true,
            };
            mount::unmount(&m.path, &policy).map_err(fail)?;
            found.push(format!("mount {}", m.path.display()));
        }
    }
    found.extend(clear_fuse(&devices)?);
    if !loops.is_empty() {
        let detached = loopdev::detach_under(&devices).map_err(|e| {
            refuse(
                "a loop device",
                &e,
                "detach it as root (`losetup -d DEVICE`)",
            )
        })?;
        found.extend(
            detached
                .iter()
                .map(|l| format!("loop device {}", l.path.display())),
        );
    }
    Ok(found)
}

/// Aborts and unmounts the FUSE mounts of volumes.
fn clear_fuse(devices: &Path) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(devices) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(found),
        Err(e) => {
            let what = format!("a FUSE mount in {}", devices.display());
            return Err(refuse(&what, &e, "make the directory readable"));
        }
    };
    for entry in entries {
        let place = || format!("the FUSE mount in {}", devices.display());
        let path = entry
            .map_err(|e| refuse(&place(), &e, "unmount it as root (`umount -f`)"))?
            .path();
        let fail = |why: &dyn Display| {
            let what = format!("the FUSE mount at {}", path.display());
            refuse(&what, why, "unmount it as root (`umount -f`)")
        };
        if !mount::is_mounted(&path).map_err(|e| fail(&e))? {
            continue;
        }
        fuse::clear_leftover(&path);
        if mount::is_mounted(&path).map_err(|e| fail(&e))? {
            return Err(fail(&"it is still mounted"));
        }
        found.push(format!("FUSE mount {}", path.display()));
    }
    Ok(found)
}

/// Ends and removes the cgroups of a service (`holdfast-NAME-MARKER` beside our own processes).
fn kill_cgroups(name: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let Some(root) = service::cgroup_root() else {
        return Ok(found);
    };
    let fail = |why: &dyn Display| {
        let what = format!("a cgroup of service {name} in {}", root.display());
        refuse(&what, why, "end the processes in it")
    };
    let prefix = format!("holdfast-{name}-");
    for entry in std::fs::read_dir(&root).map_err(|e| fail(&e))? {
        let entry = entry.map_err(|e| fail(&e))?;
        let file = entry.file_name();
        let marker = file.to_str().and_then(|n| n.strip_prefix(&prefix));
        if marker.is_none_or(|m| m.len() != 16 || !m.bytes().all(|b| b.is_ascii_hexdigit())) {
            continue;
        }
        service::end_cgroup(&entry.path()).map_err(|e| fail(&e))?;
        found.push(format!("cgroup {}", entry.path().display()));
    }
    Ok(found)
}
