//! How fast resync, verify and repair may go: all the bandwidth when the application is idle, and so much that
//! its latency stays near what it is without when it is not. Pure: time is an argument.
//!
//! - *Idle* (no request for [`IDLE_AFTER_MS`]): a window of bytes in flight that grows as long as a larger one
//!   brings more through, so that it settles near the path's bandwidth times its delay.
//! - *Busy*: a rate. The latency of requests that met no bulk work is kept in a histogram per class of request; its
//!   99th percentile times [`LIMIT_PERCENT`] is the limit. A request that met bulk work and took longer cuts
//!   the rate, one that did not raises it by a 99th of that: the rate comes to rest where one request in
//!   hundred is over the limit, which is what the promise says, and no target has to be guessed. Where the machine
//!   makes that many wait by itself, it rests where a few more do.
//! - Now and then bulk work holds its *breath*, so that the histogram knows today's application.
//!
//! DRBD steers by the fill level of its own queue and knows nothing of the application; its floor of
//! 250 KiB/s makes a resync of 100 GiB under load last for days. Here the floor is a setting.
//!
//! Invariants
//! - bulk work always goes on at the floor, unless it is paused, and never faster than the ceiling;
//! - bytes in flight never exceed [`WINDOW_MAX`], but for a single job;
//! - the histograms have a fixed size, and old samples fade.

use crate::{Now, ResyncBounds};

/// Bytes in flight before anything is known of the path.
const WINDOW_START: u64 = 1 << 20;
/// Bytes in flight at the most, over all peers of a volume.
pub(super) const WINDOW_MAX: u64 = 16 << 20;
/// Windows that go through before a larger one is tried again: paths change.
const ROUNDS_REST: u32 = 64;
/// Rate beside an application before anything is known of it, in bytes per second.
const RATE_START: u64 = 16 << 20;
/// Rate at the most, so that arithmetic cannot overflow, in bytes per second.
const RATE_MAX: u64 = 1 << 40;
/// Longest run of bulk work a pause of the bucket may make up for, in nanoseconds.
const BURST_NS: u64 = 5_000_000;
/// An application without a request for this long is idle.
const IDLE_AFTER_MS: u64 = 2000;
/// Latency beside bulk work above this share of its 99th percentile without cuts the rate. Below the promised 150
/// by what a bucket of the histogram is wide.
const LIMIT_PERCENT: u64 = 135;
/// Requests of a thousand that may be over the limit.
const OVER_PERMILLE: u64 = 10;
/// The same where a machine is so uneven that many are without bulk work.
const OVER_PERMILLE_MAX: u64 = 50;
/// Samples without which a class of requests has no limit.
const SAMPLES_MIN: u32 = 20;
/// Samples after which the older ones are halved.
const SAMPLES_FADE: u32 = 2000;
/// Between two breaths.
const BREATH_EVERY_MS: u64 = 2000;
/// Length of a breath.
const BREATH_MS: u64 = 100;
/// A breath ends early when it has brought this many samples.
const BREATH_SAMPLES: u32 = 200;
/// Without a request over its limit for this long the rate grows with time too.
const CALM_MS: u64 = 10_000;
/// Shortest job beside an application, in bytes: what it may have to wait for.
const JOB_BYTES_MIN: u64 = 64 << 10;

/// Classes of requests whose latencies have nothing to do with one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Read,
    Write,
    Flush,
}

/// Latencies in buckets of an eighth of an octave, from a microsecond up.
#[derive(Clone, Debug)]
struct Histogram {
    counts: [u32; Self::BUCKETS],
    total: u32,
}

impl Histogram {
    /// Eight per octave, 26 octaves: 1 us to 67 s.
    const BUCKETS: usize = 26 * 8;

    const fn new() -> Self {
        Self {
            counts: [0; Self::BUCKETS],
            total: 0,
        }
    }

    fn bucket(ns: u64) -> usize {
        let us = (ns / 1000).max(1);
        let octave = u64::from(us.ilog2());
        // The three bits after the leading one.
        let eighth = if octave >= 3 {
            (us >> (octave - 3)) & 7
        } else {
            (us << (3 - octave)) & 7
        };
        ((octave * 8 + eighth) as usize).min(Self::BUCKETS - 1)
    }

    /// The longest latency of a bucket, in nanoseconds.
    fn upper(bucket: usize) -> u64 {
        let (octave, eighth) = (bucket as u64 / 8, bucket as u64 % 8);
        ((1000 << octave) * (9 + eighth)) / 8
    }

    fn add(&mut self, ns: u64) {
        if self.total >= SAMPLES_FADE {
            self.fade();
        }
        self.counts[Self::bucket(ns)] += 1;
        self.total += 1;
    }

    fn fade(&mut self) {
        for count in &mut self.counts {
            *count /= 2;
        }
        self.total = self.counts.iter().sum();
    }

    /// Ninety-nine of hundred samples were no longer than this; `None` if there are too few to say.
    fn p99(&self) -> Option<u64> {
        if self.total < SAMPLES_MIN {
            return None;
        }
        let mut over = self.total / 100;
        for (bucket, &count) in self.counts.iter().enumerate().rev() {
            if count > over {
                return Some(Self::upper(bucket));
            }
            over -= count;
        }
        None
    }
}

/// Bytes per second of late, smoothed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    since: Option<Now>,
    bytes: u64,
    rate: u64,
}

impl Meter {
    /// One sample.
    const SLOT_MS: u64 = 250;
    /// After this long without a byte nothing goes on.
    const FORGET_MS: u64 = 5000;

    pub(super) fn add(&mut self, now: Now, bytes: u64) {
        let since = *self.since.get_or_insert(now);
        self.bytes += bytes;
        let ms = now.ms_since(since);
        if ms < Self::SLOT_MS {
            return;
        }
        let sample = self.bytes.saturating_mul(1000) / ms;
        self.rate = if self.rate == 0 || ms >= Self::FORGET_MS {
            sample
        } else {
            (self.rate * 3).saturating_add(sample) / 4
        };
        (self.since, self.bytes) = (Some(now), 0);
    }

    /// Bytes per second; zero if nothing has moved for a while or nothing is known yet.
    pub(super) fn rate(&self, now: Now) -> u64 {
        let Some(since) = self.since else { return 0 };
        let ms = now.ms_since(since);
        if ms >= Self::FORGET_MS {
            0
        } else if ms >= 4 * Self::SLOT_MS {
            self.rate.min(self.bytes.saturating_mul(1000) / ms)
        } else {
            self.rate
        }
    }
}

/// A ceiling in bytes per second: work is let through when what went before is paid for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    paid_at: Now,
}

impl Bucket {
    pub(super) fn due(&self) -> Now {
        Now(self.paid_at.0.saturating_sub(BURST_NS))
    }
    pub(super) fn take(&mut self, now: Now, bytes: u64, rate: u64) {
        let price = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let price = u64::try_from(price).unwrap_or(u64::MAX);
        self.paid_at = Now(self.paid_at.0.max(now.0).saturating_add(price));
    }
}

/// See the head of the file.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    bounds: ResyncBounds,
    classes: [Histogram; 3],
    /// Bytes of bulk work in flight.
    in_flight: u64,
    /// Since when there is none.
    quiet_since: Option<Now>,
    /// The application's requests in flight, and when it last had one.
    requests: u32,
    last_request: Option<Now>,
    /// Requests that ended since then, for their rate.
    ended: u32,
    counted_since: Now,
    per_second: u32,

    window: u64,
    round_bytes: u64,
    round_since: Now,
    /// Bytes per second with half the window, while a larger one is tried.
    smaller: Option<u64>,
    /// Rounds until a larger one is tried again.
    rest: u32,

    /// Requests that met no bulk work, and how many of these took longer than the limit all the same: what the machine
    /// does to the application by itself is not blamed on resync.
    clean: u32,
    clean_over: u32,

    rate: u64,
    bucket: Bucket,
    meter: Meter,
    last_over: Option<Now>,
    grown_at: Now,
    breath_until: Option<Now>,
    breath_at: Now,
    breath_samples: u32,
    /// When a refusal should be asked again; none: when something in flight ends.
    due: Option<Now>,
}

impl Pace {
    pub(super) fn new(now: Now, bounds: ResyncBounds) -> Self {
        Self {
            bounds,
            classes: [const { Histogram::new() }; 3],
            in_flight: 0,
            quiet_since: Some(now),
            requests: 0,
            last_request: None,
            ended: 0,
            counted_since: now,
            per_second: 0,
            window: WINDOW_START,
            round_bytes: 0,
            round_since: now,
            smaller: Some(0),
            rest: 0,
            clean: 0,
            clean_over: 0,
            rate: RATE_START,
            bucket: Bucket::default(),
            meter: Meter::default(),
            last_over: None,
            grown_at: now,
            breath_until: None,
            breath_at: now,
            breath_samples: 0,
            due: None,
        }
    }

    pub(super) fn bounds(&self) -> ResyncBounds {
        self.bounds
    }

    pub(super) fn set_bounds(&mut self, bounds: ResyncBounds) {
        self.bounds = bounds;
        self.bucket = Bucket::default();
        self.clamp();
    }

    fn floor(&self) -> u64 {
        let min = self.bounds.min.max(1);
        self.bounds.max.map_or(min, |max| min.min(max.max(1)))
    }

    fn clamp(&mut self) {
        // No further above what gets through than a second or so of growth: what lies there has not been tried.
        let tried = (self.meter.rate(self.grown_at) * 2).max(RATE_START);
        let top = self.bounds.max.unwrap_or(RATE_MAX).clamp(1, RATE_MAX);
        self.rate = self.rate.min(tried).min(top).max(self.floor());
    }

    // ---- the application

    /// A request begins. True: away from bulk work, during a breath or when there has been none for as long. That is
    /// settled here and not by what it meets until its end: a slow one meets bulk work for being slow.
    pub(super) fn request_began(&mut self, now: Now) -> bool {
        self.requests += 1;
        self.last_request = Some(now);
        let breath = self.breath_until.is_some_and(|until| now < until);
        self.quiet_since
            .is_some_and(|quiet| breath || now.ms_since(quiet) >= BREATH_MS)
    }

    /// A request ended that began at `since`, `away` from bulk work or not.
    pub(super) fn request_ended(&mut self, now: Now, class: Class, since: Now, away: bool) {
        self.requests = self.requests.saturating_sub(1);
        self.last_request = Some(now);
        self.ended += 1;
        let counted = now.ms_since(self.counted_since);
        if counted >= 250 {
            self.per_second = (u64::from(self.ended) * 1000 / counted) as u32;
            (self.ended, self.counted_since) = (0, now);
        }
        let ns = now.0.saturating_sub(since.0);
        let histogram = &mut self.classes[class as usize];
        let limit = histogram
            .p99()
            .map(|usual| usual.saturating_mul(LIMIT_PERCENT) / 100);
        if away {
            histogram.add(ns);
            self.breath_samples += 1;
            if self.clean >= SAMPLES_FADE {
                (self.clean, self.clean_over) = (self.clean / 2, self.clean_over / 2);
            }
            self.clean += 1;
            self.clean_over += u32::from(limit.is_some_and(|limit| ns > limit));
            return;
        }
        let Some(limit) = limit else { return };
        // A cut of a twentieth at a thousand requests per second; less at more of them, for there are more cuts then.
        let cut = (self.rate / 20).saturating_mul(1000) / u64::from(self.per_second.max(250));
        if ns > limit {
            self.last_over = Some(now);
            self.rate = self.rate.saturating_sub(cut.max(1));
        } else {
            let over = self.over_permille();
            self.rate = self.rate.saturating_add(cut * over / (1000 - over));
        }
        self.clamp();
    }

    /// How many of thousand requests beside bulk work may be over the limit: ten; where more than half as many are
    /// without it, five more than those.
    fn over_permille(&self) -> u64 {
        let alone =
            u64::from(self.clean_over) * 1000 / u64::from(self.clean.max(SAMPLES_FADE / 10));
        (alone + OVER_PERMILLE / 2).clamp(OVER_PERMILLE, OVER_PERMILLE_MAX)
    }

    pub(super) fn is_busy(&self, now: Now) -> bool {
        self.requests > 0
            || self
                .last_request
                .is_some_and(|at| now.ms_since(at) < IDLE_AFTER_MS)
    }

    // ---- bulk work

    /// May work of so many bytes begin? If so it is in flight until [`Self::returned`].
    pub(super) fn grant(&mut self, now: Now, bytes: u64) -> bool {
        self.due = None;
        let busy = self.is_busy(now);
        let mut window = self.window;
        if busy {
            if let Some(wait) = self.breathe(now) {
                self.due = Some(wait);
                return false;
            }
            if now.ms_since(self.grown_at) >= 100 {
                self.grown_at = now;
                if self.last_over.is_none_or(|at| now.ms_since(at) >= CALM_MS) {
                    self.rate = self.rate.saturating_add(self.rate / 64);
                }
                self.clamp();
            }
            // What may be ahead of the application in a queue: a hundredth of a second's worth.
            window = window.min((self.rate / 100).max(JOB_BYTES_MIN));
        }
        if self.in_flight > 0 && self.in_flight + bytes > window {
            return false;
        }
        let ceiling = if busy {
            Some(self.rate)
        } else {
            self.bounds.max
        };
        if let Some(rate) = ceiling {
            if self.bucket.due() > now {
                self.due = Some(self.bucket.due());
                return false;
            }
            self.bucket.take(now, bytes, rate);
        }
        if self.in_flight == 0 {
            (self.round_since, self.round_bytes) = (now, 0);
        }
        self.in_flight += bytes;
        self.quiet_since = None;
        true
    }

    /// Work ended, or was given up.
    pub(super) fn returned(&mut self, now: Now, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        if self.in_flight == 0 {
            self.quiet_since = Some(now);
        }
        self.meter.add(now, bytes);
        if self.is_busy(now) {
            (self.round_since, self.round_bytes) = (now, 0);
            return;
        }
        self.round_bytes += bytes;
        if self.round_bytes >= self.window {
            self.round_ended(now);
        }
    }

    /// A window's worth is through: is a larger one of use?
    fn round_ended(&mut self, now: Now) {
        let ns = now.0.saturating_sub(self.round_since.0).max(1);
        let rate = u128::from(self.round_bytes) * 1_000_000_000 / u128::from(ns);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        match self.smaller {
            Some(before) if rate > before.saturating_add(before / 8) => self.widen(rate),
            // It only waits somewhere.
            Some(_) => {
                self.window = (self.window / 2).max(WINDOW_START);
                (self.smaller, self.rest) = (None, ROUNDS_REST);
            }
            None if self.rest == 0 => self.widen(rate),
            None => self.rest -= 1,
        }
        (self.round_since, self.round_bytes) = (now, 0);
    }

    fn widen(&mut self, rate: u64) {
        if self.window < WINDOW_MAX {
            self.window *= 2;
            self.smaller = Some(rate);
        } else {
            (self.smaller, self.rest) = (None, ROUNDS_REST);
        }
    }

    /// Holds bulk work back now and then; until when, if it is now.
    fn breathe(&mut self, now: Now) -> Option<Now> {
        if let Some(until) = self.breath_until {
            if now < until && self.breath_samples < BREATH_SAMPLES {
                return Some(until);
            }
            self.breath_until = None;
            self.breath_at = now.plus_ms(BREATH_EVERY_MS);
        } else if now >= self.breath_at {
            for histogram in &mut self.classes {
                if histogram.total > BREATH_SAMPLES * 2 {
                    histogram.fade();
                }
            }
            self.breath_samples = 0;
            self.breath_until = Some(now.plus_ms(BREATH_MS));
            return self.breath_until;
        }
        None
    }

    /// Bytes a job may have: small beside an application, so that none waits long for a range.
    pub(super) fn job_bytes(&self, now: Now) -> u64 {
        let share = if self.is_busy(now) {
            self.rate / 200
        } else {
            self.window / 8
        };
        share.max(JOB_BYTES_MIN)
    }

    /// When work that was refused should be offered again at the latest.
    pub(super) fn due(&self) -> Option<Now> {
        self.due
    }

    /// Nothing waits any more.
    pub(super) fn clear_due(&mut self) {
        self.due = None;
    }

    /// The rate beside the application, if it holds now.
    pub(super) fn held_to(&self, now: Now) -> Option<u64> {
        if self.is_busy(now) {
            Some(self.rate)
        } else {
            self.bounds.max
        }
    }
}

#[cfg(test)]
mod tests;
