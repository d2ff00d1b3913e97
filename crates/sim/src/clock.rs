//! A node's clock: true time with an offset and a drift.

use holdfast_replicator::Now;

/// CLOCK_BOOTTIME of one boot of one node.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// True time at which it showed zero (a boot).
    pub zero_at: u64,
    /// It shows so much more than it should.
    pub ahead_ns: u64,
    /// How much it runs fast (positive) or slow, in parts per million.
    pub drift_ppm: i32,
}

const MILLION: i128 = 1_000_000;
/// No run comes near this.
const NEVER_NS: u64 = u64::MAX / 2;
/// Spans up to this can be reckoned in 64 bits (some hours; runs are minutes).
const SHORT_NS: u64 = u64::MAX / 2_000_000;

impl Clock {
    /// What it shows at true time `now`.
    pub fn local(&self, now: u64) -> Now {
        Now(self.passed(now).0 + self.ahead_ns)
    }

    fn passed(&self, now: u64) -> Now {
        let past = now.saturating_sub(self.zero_at);
        if self.drift_ppm == 0 {
            return Now(past);
        }
        if past <= SHORT_NS {
            return Now(past * (1_000_000 + i64::from(self.drift_ppm)) as u64 / 1_000_000);
        }
        let past = i128::from(past);
        Now((past * (MILLION + i128::from(self.drift_ppm)) / MILLION) as u64)
    }

    /// The first true time at which it shows `local` or later.
    pub fn true_time(&self, local: Now) -> u64 {
        let local = Now(local.0.saturating_sub(self.ahead_ns));
        if self.drift_ppm == 0 {
            return self.zero_at.saturating_add(local.0);
        }
        if local.0 >= NEVER_NS {
            return u64::MAX;
        }
        if local.0 <= SHORT_NS {
            let rate = (1_000_000 + i64::from(self.drift_ppm)) as u64;
            let at = self.zero_at + (local.0 * 1_000_000).div_ceil(rate);
            return if self.passed(at) < local { at + 1 } else { at };
        }
        let rate = MILLION + i128::from(self.drift_ppm);
        let past = (i128::from(local.0) * MILLION + rate - 1) / rate;
        let at = u64::try_from(i128::from(self.zero_at) + past).unwrap_or(u64::MAX);
        // Integer division may land one short: the timer must not fire early.
        if self.passed(at) < local {
            at.saturating_add(1)
        } else {
            at
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_never_fire_early() {
        for drift_ppm in [-2000, -7, 0, 1, 500, 2000] {
            let clock = Clock {
                zero_at: 1_000_003,
                ahead_ns: 77,
                drift_ppm,
            };
            for local in [77, 78, 999, 1_000_000_007, 123_456_789_012] {
                let at = clock.true_time(Now(local));
                assert!(clock.local(at) >= Now(local));
                assert!(at == clock.zero_at || clock.local(at - 1) < Now(local));
            }
        }
    }
}
