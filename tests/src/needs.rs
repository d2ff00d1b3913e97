//! What a scenario needs from the machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A program in PATH.
    Program(&'static str),
    /// The superuser of this machine.
    Root,
    /// FUSE and loop devices.
    BlockDevice,
}

/// Why it cannot be had: the reason's word, and a detail.
pub(crate) type Lack = (&'static str, String);

impl Need {
    /// `None`: it is met.
    pub(crate) fn lacking(self) -> Option<Lack> {
        match self {
            Self::Program(name) if find(name).is_none() => {
                Some(("no-program", format!("{name} is not installed")))
            }
            Self::Root if !nix::unistd::geteuid().is_root() => {
                Some(("no-root", "this is an ordinary user".into()))
            }
            Self::BlockDevice => ["/dev/fuse", "/dev/loop-control"]
                .into_iter()
                .find(|device| !usable(device))
                .map(|device| ("no-device", format!("{device} cannot be opened"))),
            Self::Program(_) | Self::Root => None,
        }
    }
}

/// A program by its name.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Administrative programs are not in an ordinary user's PATH.
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|folder| folder.join(name))
        .find(|p| p.is_file())
}

fn usable(device: &str) -> bool {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(device))
        .is_ok()
}

/// Can an ordinary user make namespaces here?
pub(crate) fn user_namespaces() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "true"]);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}
