//! When a service counts as started.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::Service;
use crate::{Error, Result};

/// Wait between two looks.
const LOOK_GAP: Duration = Duration::from_millis(20);
/// What one connection attempt or one probe command may take.
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// The probe that says a service is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// Ready once started.
    #[default]
    None,
    /// Something accepts connections at the address.
    Tcp(SocketAddr),
    /// The file exists.
    File(PathBuf),
    /// The shell command succeeds.
    Command(String),
}

impl FromStr for Readiness {
    type Err = String;
    /// `tcp:ADDRESS:PORT`, `file:PATH`, `command:...` or `none`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':') {
            None if text == "none" || text.is_empty() => Ok(Self::None),
            Some(("tcp", addr)) => addr.parse().map(Self::Tcp).map_err(|_| {
                format!("`{addr}` is not an address with a port: write `tcp:127.0.0.1:5432`")
            }),
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            Some(("file", path)) => Err(format!("`{path}` is not an absolute path")),
            Some(("command", line)) if !line.trim().is_empty() => Ok(Self::Command(line.into())),
            _ => Err(format!(
                "`{text}` is no readiness probe: use `tcp:ADDR:PORT`, `file:/PATH`, `command:...` or `none`"
            )),
        }
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Tcp(addr) => write!(f, "tcp:{addr}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Command(line) => write!(f, "command:{line}"),
        }
    }
}

/// Whether the probe succeeds now.
async fn look(probe: &Readiness, left: Duration) -> bool {
    let within = left.min(LOOK_TIME_MAX);
    match probe {
        Readiness::None => true,
        Readiness::Tcp(addr) => {
            matches!(
                tokio::time::timeout(within, tokio::net::TcpStream::connect(addr)).await,
                Ok(Ok(_))
            )
        }
        Readiness::File(path) => path.exists(),
        Readiness::Command(line) => {
            let mut command = tokio::process::Command::new("/bin/sh");
            command
                .args(["-c", line])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.kill_on_drop(true);
            let Ok(mut child) = command.spawn() else {
                return false;
            };
            matches!(tokio::time::timeout(within, child.wait()).await, Ok(Ok(status)) if status.success())
        }
    }
}

pub(super) async fn wait(service: &mut Service, deadline: Duration) -> Result<()> {
    let probe = service.spec.ready.clone();
    let until = Instant::now() + deadline;
    loop {
        if let Some(status) = service.try_wait() {
            return Err(Error::ServiceEnded {
                service: service.spec.name.clone(),
                status: status.to_string(),
                log: service.log.clone(),
            });
        }
        let left = until.saturating_duration_since(Instant::now());
        if look(&probe, left).await {
            return Ok(());
        }
        if left.is_zero() {
            return Err(Error::NotReady {
                service: service.spec.name.clone(),
                probe: probe.to_string(),
                millis: deadline.as_millis() as u64,
                log: service.log.clone(),
            });
        }
        tokio::time::sleep(LOOK_GAP).await;
    }
}
