//! One thread owns the log; what all connections ask goes through its channel, and appends that
//! wait together are made durable together.

use super::log::{Append, Appended, BATCH_MAX, Log};
use std::sync::mpsc::{Receiver, SyncSender};

/// Requests that may wait at the most; beyond it connections wait to hand theirs in.
pub(super) const QUEUE_MAX: usize = 1024;

/// What a connection asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Append(Append),
    Count,
    Get(u64),
    Check,
}

/// A request and where its answer goes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) ask: Ask,
    pub(super) answer: SyncSender<String>,
}

/// Serves until every sender is gone or the medium fails.
///
/// # Errors
/// Any error of the medium. Requests not yet answered never will be.
pub(super) fn run(mut log: Log, requests: &Receiver<Request>) -> anyhow::Result<()> {
    while let Ok(first) = requests.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(next) = requests.try_recv()
        {
            batch.push(next);
        }
        serve(&mut log, &batch)?;
    }
    Ok(())
}

fn serve(log: &mut Log, batch: &[Request]) -> anyhow::Result<()> {
    let appends: Vec<Append> = batch
        .iter()
        .filter_map(|r| match r.ask {
            Ask::Append(append) => Some(append),
            Ask::Count | Ask::Get(_) | Ask::Check => None,
        })
        .collect();
    let mut appended = log.append(&appends)?.into_iter();
    for request in batch {
        let answer = match request.ask {
            // One result per append, in order.
            Ask::Append(_) => appended.next().map(append_line).unwrap_or_default(),
            Ask::Count => format!("OK {}", log.count()),
            Ask::Get(number) => match log.get(number)? {
                Some(record) => format!("OK {} {}", record.client, record.sequence),
                None if number > 0 && number <= log.count() => format!("ERR bad {number}"),
                None => "ERR none".into(),
            },
            Ask::Check => match log.check()? {
                None => format!("OK {}", log.count()),
                Some(number) => format!("ERR bad {number}"),
            },
        };
        // A connection that is gone wants no answer.
        let _ = request.answer.try_send(answer);
    }
    Ok(())
}

fn append_line(result: Appended) -> String {
    match result {
        Appended::Number(number) => format!("OK {number}"),
        Appended::Gap(last) => format!("ERR gap last {last}"),
        Appended::Full => "ERR full".into(),
    }
}
