//! Telling the segment that a VIP has moved: at once, a few times soon after, and for ever from time to time, because
//! a switch or router that missed it keeps the dead node's hardware address for hours.

use std::time::Duration;

use super::{Place, links, open, packet};
use crate::{Error, Result};

/// Announcements of the first burst.
const BURST: usize = 5;
/// Time between two of the burst.
const BURST_GAP: Duration = Duration::from_millis(200);
/// Gaps after the burst, in seconds.
const LATER_SECONDS: [u64; 4] = [1, 2, 5, 10];
/// Gap for ever after.
const REFRESH: Duration = Duration::from_secs(60);

/// The waits before each announcement: none before the first, then 200 ms, then 1, 2, 5, 10 s, then 60 s without end.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    done: usize,
}

impl Iterator for Schedule {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let at = self.done;
        self.done += 1;
        Some(match at {
            0 => Duration::ZERO,
            _ if at < BURST => BURST_GAP,
            _ => LATER_SECONDS
                .get(at - BURST)
                .map_or(REFRESH, |s| Duration::from_secs(*s)),
        })
    }
}

/// Announces the VIP once, in every form. Returns false when its interface has nobody to tell.
pub fn announce(place: &Place) -> Result<bool> {
    announce_while(place, &|| true)
}

/// [`announce`], asking before each packet whether it may still be sent.
fn announce_while(place: &Place, may_announce: &impl Fn() -> bool) -> Result<bool> {
    if place.is_loopback() {
        return Ok(false);
    }
    let link = links(&mut open()?)?
        .into_iter()
        .find(|l| l.index == place.ifindex);
    let link = link.ok_or_else(|| Error::NoSuchDevice {
        name: place.device.clone(),
    })?;
    let Some(mac) = link.mac.filter(|_| link.has_neighbours() && link.is_up()) else {
        return Ok(false);
    };
    let fail = |e| {
        Error::system(
            "announce the virtual IP",
            format!("{} on {}", place.addr, place.device),
            e,
        )
    };
    let packets = packet::Packets::open(&link, place.addr).map_err(fail)?;
    for frame in packet::announcements(place.addr, mac) {
        if !may_announce() {
            break;
        }
        packets.send(&frame).map_err(fail)?;
    }
    Ok(true)
}

/// Announces by the schedule until dropped or aborted; a failure (a link that is down for a while) is logged and the
/// schedule goes on. While `may_announce` says no, nothing is sent: a process that was stopped and wakes without its
/// lease would lead the clients to itself before anybody takes its address away.
pub async fn keep_announcing(place: Place, may_announce: impl Fn() -> bool) {
    for wait in Schedule::default() {
        tokio::time::sleep(wait).await;
        if !may_announce() {
            continue;
        }
        match announce_while(&place, &may_announce) {
            Ok(true) => {}
            // Nobody will ever be told on this interface.
            Ok(false) if place.is_loopback() => return,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the virtual IP could not be announced"),
        }
    }
}
