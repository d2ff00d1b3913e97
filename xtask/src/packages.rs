//! What the tests need from Debian: installed when root, and only what is missing.

use crate::report::{Reason, Report};
use crate::shell;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// A program and the package it is in.
const PROGRAMS: [(&str, &str); 12] = [
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("losetup", "mount"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("fio", "fio"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("qemu-img", "qemu-utils"),
    ("nbdkit", "nbdkit"),
    ("psql", "postgresql"),
];

pub(crate) fn install(report: &mut Report) -> Result<()> {
    let mut missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !shell::has_program(program))
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        println!("all programs are there");
        return Ok(());
    }
    if !shell::is_root() || !Path::new("/usr/bin/apt-get").exists() {
        println!(
            "missing, and not installed as this is not root on Debian: {}",
            missing.join(" ")
        );
        return Ok(());
    }
    println!("installing from Debian: {}", missing.join(" "));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-qq", "-y"])
            .args(args);
        shell::succeeds(&mut command)
    };
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(&missing);
    // An index that cannot be fetched may still be good enough.
    let updated = apt(&["update"])?;
    if !apt(&install)? {
        let detail = if updated {
            "apt-get install failed"
        } else {
            "the package index cannot be fetched"
        };
        report.skip("packages", Reason::Program, detail);
    }
    Ok(())
}
