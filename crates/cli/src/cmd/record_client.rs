//! `record-client`: drives a record server, then asks it for every record it acknowledged.

use crate::args::RecordClientArgs;
use crate::failure::Failure;
use crate::record::{ClientOptions, RecordClient};
use anyhow::Context;
use std::time::{Duration, Instant};

pub(super) fn run(args: &RecordClientArgs, json: bool) -> Result<(), Failure> {
    let start = Instant::now();
    let end = start + Duration::from_secs(args.seconds);
    let patience = Duration::from_secs(args.patience);
    let mut base = [0; 8];
    getrandom::fill(&mut base).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    // Room for the number of the client in the low byte.
    let base = u64::from_le_bytes(base) & !0xff;
    let threads: Vec<_> = (0..u64::from(args.clients))
        .map(|i| {
            let mut client = RecordClient::new(args.connect, base + i, ClientOptions::default());
            std::thread::spawn(move || {
                while Instant::now() < end {
                    client.append(Instant::now() + patience)?;
                }
                anyhow::Ok(client)
            })
        })
        .collect();
    let mut clients = Vec::new();
    for thread in threads {
        clients.push(
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a client thread failed"))??,
        );
    }
    let mut times: Vec<Instant> = clients
        .iter()
        .flat_map(|c| c.journal().iter().map(|a| a.at))
        .collect();
    times.sort();
    let pauses = std::iter::once(&start)
        .chain(&times)
        .zip(&times)
        .map(|(a, b)| *b - *a);
    let longest_pause_ms = pauses.max().unwrap_or(end - start).as_millis();
    let mut lost = 0;
    for client in &mut clients {
        lost += client.lost(Instant::now() + patience)?.len();
    }
    let first = clients.first_mut().context("at least one client")?;
    let checked = first.check(Instant::now() + patience)?;
    if json {
        println!(
            "{}",
            serde_json::json!({
                "acknowledged": times.len(),
                "lost": lost,
                "records": checked.as_ref().ok(),
                "check": checked.as_ref().err(),
                "longest_pause_ms": u64::try_from(longest_pause_ms).unwrap_or(u64::MAX),
            })
        );
    } else {
        println!(
            "{} records acknowledged, {lost} lost, longest pause {longest_pause_ms} ms",
            times.len()
        );
    }
    match checked {
        Err(answer) => Err(Failure::CheckFailed(format!(
            "the server's check of its log: {answer}"
        ))),
        Ok(_) if lost > 0 => Err(Failure::CheckFailed(format!(
            "{lost} acknowledged records are lost"
        ))),
        Ok(_) => Ok(()),
    }
}
