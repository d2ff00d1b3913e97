//! Talks to a daemon on this machine: one connection, one request, JSON lines.

use crate::args::DaemonArgs;
use crate::failure::Failure;
use anyhow::Context;
use holdfast_config::Config;
use holdfast_node::api_types::{
    API_SOCKET, Answer, ClusterStatus, LINE_BYTES_MAX, Progress, Reply, Request,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a daemon's socket is if there is no configuration to say so.
const SOCKET: &str = "/var/lib/holdfast/api.sock";

/// A daemon.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    /// How long any piece of an answer may take.
    patience: Option<Duration>,
}

impl Client {
    /// The daemon at this socket.
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self {
            socket,
            patience: None,
        }
    }

    /// The same with a limit to how long it may be silent: a stopped daemon accepts and never answers.
    pub(crate) fn within(self, patience: Duration) -> Self {
        Self {
            patience: Some(patience),
            ..self
        }
    }

    /// The daemon the command line means.
    pub(crate) fn find(args: &DaemonArgs) -> Result<Self, Failure> {
        if let Some(socket) = &args.socket {
            return Ok(Self::at(socket.clone()));
        }
        if args.name.is_none() && !args.config.exists() && Path::new(SOCKET).exists() {
            return Ok(Self::at(SOCKET.into()));
        }
        let config = Config::load(&args.config)?;
        let known = || {
            config
                .nodes
                .iter()
                .map(|n| n.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        if let Some(name) = &args.name {
            let node = config.node(name).ok_or_else(|| Failure::Usage {
                message: format!("{} has no node `{name}`", args.config.display()),
                fix: format!("one of {}", known()),
            })?;
            return Ok(Self::at(node.state_dir.join(API_SOCKET)));
        }
        let mut sockets: Vec<PathBuf> = config
            .nodes
            .iter()
            .map(|n| n.state_dir.join(API_SOCKET))
            .collect();
        sockets.sort();
        sockets.dedup();
        let alive: Vec<&PathBuf> = sockets.iter().filter(|s| s.exists()).collect();
        match (alive.as_slice(), sockets.as_slice()) {
            ([one], _) => Ok(Self::at((*one).clone())),
            // A daemon that is down: connecting says so.
            ([], [one]) => Ok(Self::at(one.clone())),
            ([], _) => Err(Failure::Unreachable {
                socket: sockets[0].clone(),
                reason: "no node of this cluster has its socket on this machine".into(),
            }),
            _ => Err(Failure::Usage {
                message: "several nodes of this cluster run on this machine".into(),
                fix: format!("say which with --name: one of {}", known()),
            }),
        }
    }

    /// Asks, hands progress to `progress`, returns the answer.
    pub(crate) fn ask(
        &self,
        request: &Request,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Answer, Failure> {
        let unreachable = |e: std::io::Error| Failure::Unreachable {
            socket: self.socket.clone(),
            reason: e.to_string(),
        };
        let mut stream = UnixStream::connect(&self.socket).map_err(unreachable)?;
        stream
            .set_read_timeout(self.patience)
            .map_err(unreachable)?;
        let mut line =
            serde_json::to_string(request).context("a request cannot be written as JSON")?;
        line.push('\n');
        stream.write_all(line.as_bytes()).map_err(unreachable)?;
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            // One byte more than may come, so that a line that is too long is seen as such.
            let limit = LINE_BYTES_MAX as u64 + 1;
            let read = reader
                .by_ref()
                .take(limit)
                .read_until(b'\n', &mut line)
                .map_err(unreachable)?;
            if read == 0 {
                return Err(unreachable(std::io::Error::other(
                    "it closed the connection without an answer",
                )));
            }
            if read > LINE_BYTES_MAX {
                return Err(anyhow::anyhow!(
                    "the daemon's answer is longer than {LINE_BYTES_MAX} bytes"
                )
                .into());
            }
            let reply: Reply = serde_json::from_slice(&line)
                .context("the daemon's answer is not understood: is it of another version?")?;
            match reply {
                Reply::Progress(p) => progress(&p),
                Reply::Ok(answer) => return Ok(answer),
                Reply::Error(error) => return Err(Failure::Api(error)),
            }
        }
    }

    /// How things are.
    pub(crate) fn status(&self) -> Result<ClusterStatus, Failure> {
        match self.ask(&Request::Status, |_| {})? {
            Answer::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }
}

/// An answer to another question.
pub(crate) fn unexpected(answer: &Answer) -> Failure {
    anyhow::anyhow!("the daemon answered something else than it was asked: {answer:?}").into()
}

#[cfg(test)]
mod tests;
