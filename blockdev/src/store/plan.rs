//! How a store shall misbehave: a small plan that travels as a string.
//!
//! `lost-cache,eio-write=0.01,delay-ms=5,seed=7`: words and `key=value`, separated by commas.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One as a probability: probabilities are integers, parts per million.
pub const PPM: u32 = 1_000_000;
/// Digits behind the point of a probability.
const PPM_DIGITS: usize = 6;
/// Longest delay, milliseconds.
const DELAY_MS_MAX: u32 = 3_600_000;

/// How a store shall misbehave. The default does nothing. All draws come from `seed`, in the
/// order of the operations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultPlan {
    /// `seed=N`: where all chance comes from.
    pub seed: u64,
    /// `delay-ms=N`: each operation begins so much later.
    pub delay_ms: u32,
    /// `jitter-ms=N`: and up to so much more, by chance.
    pub jitter_ms: u32,
    /// `eio-read=P`: chance of a read to fail, parts per million.
    pub eio_read: u32,
    /// `eio-write=P`: chance of a write or zero to fail, parts per million.
    pub eio_write: u32,
    /// `eio-flush=P`: chance of a flush to fail, parts per million. It is final: the store fails ever after.
    pub eio_flush: u32,
    /// `nospace-write=P`: chance of a write to fail for want of space, parts per million.
    pub nospace_write: u32,
    /// `eio-range=START+LEN`: only operations that touch these bytes fail (flushes have no range).
    pub eio_range: Option<(u64, u64)>,
    /// `eio-after=N`: the first N operations do not fail.
    pub eio_after: u64,
    /// `hang-after=N`: after N operations nothing ends any more.
    pub hang_after: Option<u64>,
    /// `lost-cache`: writes stay in this process until a flush, or until they are durable themselves;
    /// when it dies, they are gone.
    pub lost_cache: bool,
    /// `keep=P`: chance that a block of the lost cache reaches the disk before any flush, parts per million.
    pub keep: u32,
    /// `torn=P`: chance that such a block, or one of a failed write, reaches the disk only in some of its
    /// 512-byte sectors, parts per million.
    pub torn: u32,
}

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No such word.
    #[error(
        "unknown fault \"{0}\"; known: lost-cache, keep=P, torn=P, eio-read=P, eio-write=P, eio-flush=P, nospace-write=P, \
         eio-range=START+LEN, eio-after=N, hang-after=N, delay-ms=N, jitter-ms=N, seed=N (P from 0 to 1)"
    )]
    Unknown(String),
    /// A value that cannot be.
    #[error("fault \"{word}\": the value must be {wanted}")]
    Value {
        /// The word.
        word: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// A word without effect.
    #[error("fault \"{0}\" has no effect without {1}")]
    Idle(&'static str, &'static str),
}

fn probability(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > PPM_DIGITS {
        return None;
    }
    let whole: u32 = whole.parse().ok()?;
    let fraction: u32 = format!("{fraction:0<PPM_DIGITS$}").parse().ok()?;
    whole
        .checked_mul(PPM)?
        .checked_add(fraction)
        .filter(|ppm| *ppm <= PPM)
}

impl FromStr for FaultPlan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let mut plan = Self::default();
        for word in text
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            let (key, value) = word
                .split_once('=')
                .map_or((word, None), |(key, value)| (key, Some(value)));
            let bad = |wanted| PlanError::Value {
                word: word.to_owned(),
                wanted,
            };
            let chance = || {
                value.and_then(probability).ok_or_else(|| {
                    bad("a probability from 0 to 1, at most 6 digits behind the point")
                })
            };
            let number = || {
                value
                    .and_then(|v| v.parse::<u64>().ok())
                    .ok_or_else(|| bad("a whole number"))
            };
            let millis = || {
                let ms = number()?;
                u32::try_from(ms)
                    .ok()
                    .filter(|ms| *ms <= DELAY_MS_MAX)
                    .ok_or_else(|| bad("at most 3600000 (an hour)"))
            };
            match key {
                "lost-cache" if value.is_none() => plan.lost_cache = true,
                "lost-cache" => return Err(bad("left out")),
                "seed" => plan.seed = number()?,
                "delay-ms" => plan.delay_ms = millis()?,
                "jitter-ms" => plan.jitter_ms = millis()?,
                "eio-read" => plan.eio_read = chance()?,
                "eio-write" => plan.eio_write = chance()?,
                "eio-flush" => plan.eio_flush = chance()?,
                "nospace-write" => plan.nospace_write = chance()?,
                "eio-after" => plan.eio_after = number()?,
                "hang-after" => plan.hang_after = Some(number()?),
                "keep" => plan.keep = chance()?,
                "torn" => plan.torn = chance()?,
                "eio-range" => {
                    let range = value.and_then(|v| v.split_once('+'));
                    let range = range
                        .and_then(|(start, len)| Some((start.parse().ok()?, len.parse().ok()?)));
                    let range = range.filter(|(start, len): &(u64, u64)| {
                        *len > 0 && start.checked_add(*len).is_some()
                    });
                    plan.eio_range =
                        Some(range.ok_or_else(|| bad("START+LEN in bytes, LEN above 0"))?);
                }
                _ => return Err(PlanError::Unknown(word.to_owned())),
            }
        }
        plan.check()?;
        Ok(plan)
    }
}

impl FaultPlan {
    /// Refuses words that would do nothing: a test with them would prove nothing.
    fn check(&self) -> Result<(), PlanError> {
        let fails =
            self.eio_read > 0 || self.eio_write > 0 || self.eio_flush > 0 || self.nospace_write > 0;
        if self.eio_range.is_some()
            && self.eio_read == 0
            && self.eio_write == 0
            && self.nospace_write == 0
        {
            return Err(PlanError::Idle(
                "eio-range",
                "eio-read, eio-write or nospace-write",
            ));
        }
        if self.eio_after > 0 && !fails {
            return Err(PlanError::Idle(
                "eio-after",
                "eio-read, eio-write, eio-flush or nospace-write",
            ));
        }
        if self.keep > 0 && !self.lost_cache {
            return Err(PlanError::Idle("keep", "lost-cache"));
        }
        if self.torn > 0 && self.keep == 0 && (self.lost_cache || self.eio_write == 0) {
            return Err(PlanError::Idle(
                "torn",
                "keep (with lost-cache) or eio-write (without)",
            ));
        }
        Ok(())
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chance = |key: &str, ppm: u32| {
            (ppm > 0).then(|| {
                format!(
                    "{key}={}.{:0width$}",
                    ppm / PPM,
                    ppm % PPM,
                    width = PPM_DIGITS
                )
            })
        };
        let number = |key: &str, value: u64| (value > 0).then(|| format!("{key}={value}"));
        let words = [
            self.lost_cache.then(|| "lost-cache".to_owned()),
            chance("keep", self.keep),
            chance("torn", self.torn),
            chance("eio-read", self.eio_read),
            chance("eio-write", self.eio_write),
            chance("eio-flush", self.eio_flush),
            chance("nospace-write", self.nospace_write),
            self.eio_range
                .map(|(start, len)| format!("eio-range={start}+{len}")),
            number("eio-after", self.eio_after),
            self.hang_after.map(|n| format!("hang-after={n}")),
            number("delay-ms", self.delay_ms.into()),
            number("jitter-ms", self.jitter_ms.into()),
            number("seed", self.seed),
        ];
        f.write_str(&words.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

/// SplitMix64: small, and the same for ever, so that a seed means the same in every version.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True with this chance; no draw for the certain cases, so that what is switched off changes nothing.
    pub(super) fn hits(&mut self, ppm: u32) -> bool {
        match ppm {
            0 => false,
            PPM.. => true,
            _ => self.next() % u64::from(PPM) < u64::from(ppm),
        }
    }

    /// From 0 to `max`.
    pub(super) fn up_to(&mut self, max: u32) -> u64 {
        if max == 0 {
            0
        } else {
            self.next() % (u64::from(max) + 1)
        }
    }
}
