//! Connections: lines in, lines out.

use super::committer::{self, Ask, QUEUE_MAX, Request};
use super::log::{Append, Log};
use super::medium::{FileMedium, Medium, NbdMedium};
use anyhow::Context;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// Connections at a time at the most.
const CONNECTIONS_MAX: usize = 256;
/// Longest line of a client, in bytes.
const LINE_BYTES_MAX: u64 = 128;
/// Pause after a failed accept (out of descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until killed; prints `listening on ADDRESS, N records` when ready.
///
/// # Errors
/// Any error of the medium, or of listening.
pub(crate) fn serve(
    listen: SocketAddr,
    file: Option<&Path>,
    nbd_unix: Option<&Path>,
) -> anyhow::Result<()> {
    let medium: Box<dyn Medium> = match (file, nbd_unix) {
        (Some(path), None) => Box::new(FileMedium::open(path)?),
        (None, Some(socket)) => Box::new(NbdMedium::connect(socket)?),
        _ => anyhow::bail!("exactly one of --file and --nbd-unix is needed"),
    };
    let log = Log::open(medium)?;
    let listener = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
    println!(
        "listening on {}, {} records",
        listener.local_addr()?,
        log.count()
    );
    let (sender, requests) = sync_channel(QUEUE_MAX);
    std::thread::Builder::new()
        .name("accept".into())
        .spawn(move || accept(&listener, &sender))?;
    committer::run(log, &requests)
}

fn accept(listener: &TcpListener, requests: &SyncSender<Request>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(ACCEPT_PAUSE);
            continue;
        };
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        let (counted, requests) = (Arc::clone(&open), requests.clone());
        counted.fetch_add(1, Ordering::Relaxed);
        let spawned = std::thread::Builder::new()
            .name("connection".into())
            .spawn(move || {
                // An error here is a client that left.
                let _ = connection(&stream, &requests);
                counted.fetch_sub(1, Ordering::Relaxed);
            });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn connection(stream: &TcpStream, requests: &SyncSender<Request>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match parse(&line) {
            Some(ask) => {
                let (sender, receiver) = sync_channel(1);
                // The committer is gone only when the process is about to end: say nothing then.
                if requests
                    .send(Request {
                        ask,
                        answer: sender,
                    })
                    .is_err()
                {
                    return Ok(());
                }
                let Ok(answer) = receiver.recv() else {
                    return Ok(());
                };
                answer
            }
            None => "ERR not understood".into(),
        };
        let mut writer = stream;
        writer.write_all(format!("{answer}\n").as_bytes())?;
    }
}

/// A whole line, or nothing.
fn parse(line: &str) -> Option<Ask> {
    let line = line.strip_suffix('\n')?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words.as_slice() {
        ["APPEND", client, sequence] => Some(Ask::Append(Append {
            client: client.parse().ok()?,
            sequence: sequence.parse().ok()?,
        })),
        ["COUNT"] => Some(Ask::Count),
        ["GET", number] => Some(Ask::Get(number.parse().ok()?)),
        ["CHECK"] => Some(Ask::Check),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(
            parse("APPEND 7 1\n"),
            Some(Ask::Append(Append {
                client: 7,
                sequence: 1
            }))
        );
        assert_eq!(parse("COUNT\n"), Some(Ask::Count));
        assert_eq!(parse("GET 12\n"), Some(Ask::Get(12)));
        assert_eq!(parse("CHECK\n"), Some(Ask::Check));
        for bad in [
            "APPEND 7\n",
            "APPEND 7 x\n",
            "APPEND 7 12",
            "GET -1\n",
            "\n",
            "count\n",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
