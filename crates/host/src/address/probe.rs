//! The question asked before a VIP is claimed: does anybody else have it (RFC 5227, RFC 4862)?
//!
//! A conflict is reported, never decided upon: the holder of a lease claims the address anyway and raises an alarm.

use std::fmt;
use std::time::{Duration, Instant};

use super::{Place, links, open, packet};
use crate::{Error, Result};

/// How long to listen at the most for an answer, by default. RFC 5227 takes seconds because hosts boot at their
/// leisure; a failover does not.
pub const PROBE_TIME: Duration = Duration::from_millis(200);
/// Questions asked in that time.
const QUESTIONS: u32 = 3;

/// Somebody else has the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The hardware address that claims it.
    pub mac: [u8; 6],
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.mac;
        write!(
            f,
            "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
            m[0], m[1], m[2], m[3], m[4], m[5]
        )
    }
}

/// Asks the segment for the address and listens for `time`; `Ok(None)` when nobody answered or the interface has no
/// neighbours to ask.
pub fn probe(place: &Place, time: Duration) -> Result<Option<Conflict>> {
    if place.is_loopback() {
        return Ok(None);
    }
    let link = links(&mut open()?)?
        .into_iter()
        .find(|l| l.index == place.ifindex);
    let link = link.ok_or_else(|| Error::NoSuchDevice {
        name: place.device.clone(),
    })?;
    let Some(mac) = link.mac.filter(|_| link.has_neighbours() && link.is_up()) else {
        return Ok(None);
    };
    let fail = |e| {
        Error::system(
            "probe for the virtual IP",
            format!("{} on {}", place.addr, place.device),
            e,
        )
    };
    let packets = packet::Packets::open(&link, place.addr).map_err(fail)?;
    let question = packet::question(place.addr, mac);
    let mut buffer = [0; packet::FRAME_BYTES_MAX];
    for _ in 0..QUESTIONS {
        packets.send(&question).map_err(fail)?;
        let until = Instant::now() + time / QUESTIONS;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let frame = packets.receive(&mut buffer, left).map_err(fail)?;
            if let Some(mac) = packet::claimant(frame, place.addr, mac) {
                return Ok(Some(Conflict { mac }));
            }
            if left.is_zero() {
                break;
            }
        }
    }
    Ok(None)
}

/// [`probe`] for a task: waits on a thread of its own.
pub async fn probe_async(place: Place, time: Duration) -> Result<Option<Conflict>> {
    let name = place.device.clone();
    tokio::task::spawn_blocking(move || probe(&place, time))
        .await
        .unwrap_or_else(|e| {
            Err(Error::system(
                "probe for the virtual IP",
                name,
                std::io::Error::other(e),
            ))
        })
}
