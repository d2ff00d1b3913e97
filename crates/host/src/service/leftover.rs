//! Services of a daemon that died together with its fencer: nobody knows their processes any more, but every one of
//! them carries the state directory of its daemon in its environment, and a state directory has one daemon at a time.

use std::collections::BTreeSet;
use std::path::Path;

use super::Cgroup;
use crate::procs::{self, Hunt, Suspects};
use crate::{Error, Result};

/// Environment variable that tells whose service a process belongs to: the state directory of the daemon.
pub const HOME_VARIABLE: &str = "HOLDFAST_SERVICE_HOME";

/// Kills every process of the services that carry `home` and waits until all are gone. Returns how many there were.
/// Only for the daemon that has claimed that state directory, before it starts anything.
pub fn end_leftovers(home: &Path) -> Result<usize> {
    if !procs::proc_is_ours() {
        return Err(Error::ForeignProc);
    }
    let fail = |e| Error::system("find leftover services", "/proc", e);
    let own = std::process::id() as i32;
    let mut markers = BTreeSet::new();
    let wanted = format!("{HOME_VARIABLE}={}", home.display());
    procs::each_pid(|pid| {
        // One that ends meanwhile, or is another user's, is not a service of ours.
        if pid > 1
            && pid != own
            && let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ"))
        {
            markers.extend(marker_of(&environment, wanted.as_bytes()));
        }
    })
    .map_err(fail)?;
    let mut ended = 0;
    for marker in markers {
        let mut hunt = Box::new(Hunt::new(Suspects {
            root: 0,
            root_started: 0,
            marker,
            spare: 0,
        }));
        let left = hunt.finish().map_err(fail)?;
        if left > 0 {
            return Err(Error::Unkillable {
                service: format!("{}={marker:016x}", procs::MARKER),
                left,
            });
        }
        ended += hunt.members().len();
    }
    Ok(ended)
}

/// The service's number in an environment that has the entry `wanted`.
fn marker_of(environment: &[u8], wanted: &[u8]) -> Option<u64> {
    let mut entries = environment.split(|b| *b == 0);
    if !entries.clone().any(|e| e == wanted) {
        return None;
    }
    entries.find_map(|e| {
        let text = std::str::from_utf8(e).ok()?;
        let value = text.strip_prefix(procs::MARKER)?.strip_prefix('=')?;
        u64::from_str_radix(value, 16).ok().filter(|m| *m != 0)
    })
}

/// Kills everything in a leftover cgroup, waits until it is empty and removes it.
pub fn end_cgroup(path: &Path) -> Result<()> {
    let cgroup = Cgroup {
        path: path.to_owned(),
    };
    match cgroup.kill() {
        0 => Ok(()),
        left => Err(Error::Unkillable {
            service: path.display().to_string(),
            left,
        }),
    }
}
