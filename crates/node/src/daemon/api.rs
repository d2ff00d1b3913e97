//! The API socket: one connection, one request, lines of JSON (see [`crate::api_types`]).
//!
//! Only who may use the state directory can connect: the socket is in it, and is the owner's alone.

use super::{Context, requests};
use crate::api_types::{ApiError, ErrorCode, LINE_BYTES_MAX, Reply, Request};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// Connections at a time; more are closed at once.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send its request.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// Listens, and serves from then on, on the caller's runtime.
pub(super) fn serve(path: &Path, cx: Context) -> anyhow::Result<()> {
    // The claim rules out that a living daemon uses it.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            anyhow::bail!("cannot remove the old API socket {}: {e}", path.display())
        }
        _ => {}
    }
    let listener = UnixListener::bind(path)
        .map_err(|e| anyhow::anyhow!("cannot listen on the API socket {}: {e}", path.display()))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let open = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
                        open.fetch_sub(1, Ordering::AcqRel);
                        continue;
                    }
                    let (cx, open) = (cx.clone(), open.clone());
                    tokio::spawn(async move {
                        if let Err(e) = one(stream, cx).await {
                            tracing::debug!("API connection: {e}");
                        }
                        open.fetch_sub(1, Ordering::AcqRel);
                    });
                }
                Err(e) => {
                    tracing::warn!("API socket: cannot accept: {e}");
                    tokio::time::sleep(Duration::from_millis(crate::net::BACKOFF_MS_MIN)).await;
                }
            }
        }
    });
    Ok(())
}

async fn one(stream: UnixStream, cx: Context) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(LINE_BYTES_MAX as u64));
    match tokio::time::timeout(REQUEST_TIME_MAX, reader.read_line(&mut line)).await {
        Ok(read) => read?,
        Err(_) => return Ok(()),
    };
    let (tx, mut lines) = mpsc::unbounded_channel::<Reply>();
    // The request goes on if the client goes away.
    tokio::spawn(async move {
        let reply = reply(&cx, &line, &tx).await;
        // The connection may be closed.
        let _ = tx.send(reply);
    });
    while let Some(reply) = lines.recv().await {
        let last = !matches!(reply, Reply::Progress(_));
        let mut bytes = serde_json::to_vec(&reply)?;
        bytes.push(b'\n');
        write.write_all(&bytes).await?;
        if last {
            break;
        }
    }
    write.shutdown().await
}

/// The last line for a request in one line of JSON.
pub(super) async fn reply(
    cx: &Context,
    line: &str,
    progress: &mpsc::UnboundedSender<Reply>,
) -> Reply {
    let request: Request = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(e) => {
            return Reply::Error(ApiError {
                code: ErrorCode::BadRequest,
                message: format!("this is no request: {e}"),
                fix: Some("use a client of the daemon's version".into()),
            });
        }
    };
    match requests::perform(cx, request, progress).await {
        Ok(answer) => Reply::Ok(answer),
        Err(e) => Reply::Error(e),
    }
}
