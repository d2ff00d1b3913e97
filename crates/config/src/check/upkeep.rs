//! How a volume is cared for: bounds of resync, scrubs by the calendar.

use crate::error::Collector;
use crate::model::{Resync, Scrub};
use crate::{raw, units};
use toml::Spanned;

/// Lowest rate that can be set, in bytes per second: below it a resync would never end.
const RATE_MIN: u64 = 64 << 10;
/// Shortest time between two scrubs, in milliseconds (one hour).
const EVERY_MS_MIN: u64 = 3_600_000;
/// Longest (a year).
const EVERY_MS_MAX: u64 = 366 * 24 * EVERY_MS_MIN;

fn rate(raw: &Spanned<String>, problems: &mut Collector<'_>) -> Option<u64> {
    let refusal = match units::parse_rate(raw.get_ref()) {
        Ok(rate) if rate >= RATE_MIN => return Some(rate),
        Ok(_) => "it is too slow ever to end".to_owned(),
        Err(what) => what,
    };
    let fix = "bytes per second, at least 64K, for example \"100M\"";
    problems.at(raw.span(), refusal, fix);
    None
}

pub(super) fn resync(raw: &raw::Volume, problems: &mut Collector<'_>) -> Resync {
    let mut bound =
        |given: &Option<Spanned<String>>| given.as_ref().and_then(|r| rate(r, problems));
    let resync = Resync {
        min: bound(&raw.resync_min),
        max: bound(&raw.resync_max),
    };
    if let (Some(min), Some(max), Some(at)) = (resync.min, resync.max, &raw.resync_max)
        && min > max
    {
        problems.at(
            at.span(),
            "resync_max is below resync_min",
            "raise resync_max or lower resync_min",
        );
    }
    resync
}

pub(super) fn scrub(raw: &raw::Volume, problems: &mut Collector<'_>) -> Option<Scrub> {
    let raw = raw.scrub.as_ref()?;
    let refusal = match units::parse_duration_ms(raw.every.get_ref()) {
        Ok(ms) if (EVERY_MS_MIN..=EVERY_MS_MAX).contains(&ms) => None,
        Ok(_) => Some("scrubs come at least an hour and at most a year apart".to_owned()),
        Err(what) => Some(what),
    };
    if let Some(what) = refusal {
        problems.at(raw.every.span(), what, "for example every = \"7d\"");
        return None;
    }
    let repair = match raw.repair.as_ref().map(|r| (r, r.get_ref().as_str())) {
        None | Some((_, "no")) => false,
        Some((_, "majority")) => true,
        Some((at, _)) => {
            problems.at(
                at.span(),
                "a scrub repairs nothing, or what more than half of the copies say is wrong",
                "repair = \"no\" or \"majority\"",
            );
            false
        }
    };
    Some(Scrub {
        every_ms: units::parse_duration_ms(raw.every.get_ref()).ok()?,
        max_rate: raw.max_rate.as_ref().and_then(|r| rate(r, problems)),
        repair,
    })
}
