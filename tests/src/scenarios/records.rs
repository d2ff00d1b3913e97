//! The record server over NBD, with a server of somebody else's under it.

use super::Scenario;
use crate::cluster::PATIENCE;
use crate::needs::Need::Program;
use crate::process::{Daemon, holdfast, run, tail, wait};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "records-over-nbd",
        needs: &[Program("nbdkit")],
        run: over_nbd,
    },
    Scenario {
        name: "records-error-ends-the-server",
        needs: &[Program("nbdkit")],
        run: error_ends_the_server,
    },
];

/// An nbdkit whose volume is `arguments`.
fn nbdkit(folder: &Path, arguments: &[&str]) -> Result<Daemon> {
    let socket = folder.join("volume");
    let mut command = Command::new("nbdkit");
    command
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(&socket)
        .args(arguments);
    let daemon = Daemon::start(&mut command, &folder.join("nbdkit.log"))?;
    wait("nbdkit", PATIENCE, || Ok(socket.exists())).with_context(|| daemon.tail())?;
    Ok(daemon)
}

/// A record server over it, and its address.
fn server(folder: &Path, listen: &str) -> Result<(Daemon, String)> {
    let log = folder.join("server.log");
    let _ = std::fs::remove_file(&log);
    let mut command = Command::new(holdfast()?);
    command
        .args(["record-server", "--listen", listen, "--nbd-unix"])
        .arg(folder.join("volume"));
    let daemon = Daemon::start(&mut command, &log)?;
    let mut address = None;
    wait("the record server", PATIENCE, || {
        let said = tail(&log);
        address = said.lines().find_map(|l| {
            l.strip_prefix("listening on ")?
                .split(',')
                .next()
                .map(ToOwned::to_owned)
        });
        Ok(address.is_some())
    })
    .with_context(|| tail(&log))?;
    Ok((daemon, address.context("an address")?))
}

fn client(address: &str, seconds: &str) -> Result<Command> {
    let mut command = Command::new(holdfast()?);
    command.args([
        "record-client",
        "--json",
        "--patience",
        "30",
        "--connect",
        address,
        "--seconds",
        seconds,
    ]);
    Ok(command)
}

/// Killed and started anew in the middle: everything acknowledged is there.
fn over_nbd() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let _nbdkit = nbdkit(folder.path(), &["memory", "512M"])?;
    let (daemon, address) = server(folder.path(), "127.0.0.1:0")?;
    let mut command = client(&address, "3")?;
    let clients = std::thread::spawn(move || run(&mut command));
    std::thread::sleep(std::time::Duration::from_secs(1));
    daemon.kill()?;
    let (_daemon, _) = server(folder.path(), &address)?;
    let said = clients
        .join()
        .map_err(|_| anyhow::anyhow!("the client's thread failed"))??;
    let said: Value = serde_json::from_str(&said)?;
    ensure!(
        said["lost"] == 0 && said["acknowledged"].as_u64() > Some(0),
        "{said}"
    );
    Ok(())
}

/// A volume that begins to fail: the server ends, not with status 0, and acknowledges nothing more.
fn error_ends_the_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let trigger = folder.path().join("fail");
    let error_file = format!("error-pwrite-file={}", trigger.display());
    let arguments = [
        "--filter=error",
        "memory",
        "512M",
        "error-pwrite=EIO",
        "error-pwrite-rate=100%",
        &error_file,
    ];
    let _nbdkit = nbdkit(folder.path(), &arguments)?;
    let (mut daemon, address) = server(folder.path(), "127.0.0.1:0")?;
    run(&mut client(&address, "1")?)?;
    std::fs::write(&trigger, "")?;
    let mut command = client(&address, "60")?;
    let _clients = Daemon::start(&mut command, &folder.path().join("client.log"))?;
    let status = daemon.ended(PATIENCE)?;
    ensure!(status.code() == Some(20), "{status}");
    ensure!(
        daemon.tail().contains("writing the volume"),
        "{}",
        daemon.tail()
    );
    Ok(())
}
