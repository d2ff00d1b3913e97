//! The controller against synthetic applications and paths, in virtual time.

use super::*;

const MS: u64 = 1_000_000;

fn at(ms: u64) -> Now {
    Now(1_000 * MS + ms * MS)
}

fn bounds(min: u64, max: Option<u64>) -> ResyncBounds {
    ResyncBounds {
        min,
        max,
        paused: false,
    }
}

/// A path with a bandwidth and a delay, an application with a latency that grows with the load on it.
struct World {
    pace: Pace,
    now: u64,
    /// Bulk jobs under way: when each ends, and its bytes.
    jobs: Vec<(u64, u64)>,
    /// When the path is free.
    free_at: u64,
    bandwidth: u64,
    delay: u64,
    moved: u64,
    /// The application: requests per second, latency alone.
    app: Option<(u64, u64)>,
    app_next: u64,
    app_open: Vec<(u64, Now, bool)>,
    latencies: Vec<u64>,
    /// Of thousand requests so many take ten times as long, whatever else goes on.
    uneven: u64,
    dice: u64,
}

impl World {
    fn new(bandwidth: u64, delay: u64, bounds: ResyncBounds) -> Self {
        let now = at(0).0;
        Self {
            pace: Pace::new(Now(now), bounds),
            now,
            jobs: Vec::new(),
            free_at: now,
            bandwidth,
            delay,
            moved: 0,
            app: None,
            app_next: now,
            app_open: Vec::new(),
            latencies: Vec::new(),
            uneven: 0,
            dice: 7,
        }
    }

    fn pump(&mut self, bulk: bool) {
        let job = self.pace.job_bytes(Now(self.now)).min(1 << 20);
        while bulk && self.pace.grant(Now(self.now), job) {
            self.free_at = self.free_at.max(self.now) + job * 1_000_000_000 / self.bandwidth;
            self.jobs.push((self.free_at + self.delay, job));
        }
    }

    /// Runs for so many milliseconds in steps of 50 microseconds.
    fn run(&mut self, ms: u64, bulk: bool) {
        let end = self.now + ms * MS;
        while self.now < end {
            self.now += 50_000;
            let now = self.now;
            let (ended, left): (Vec<_>, Vec<_>) =
                self.jobs.drain(..).partition(|(at, _)| *at <= now);
            self.jobs = left;
            for (_, bytes) in ended {
                self.moved += bytes;
                self.pace.returned(Now(now), bytes);
            }
            let (done, open): (Vec<_>, Vec<_>) =
                self.app_open.drain(..).partition(|(at, ..)| *at <= now);
            self.app_open = open;
            for (_, since, away) in done {
                self.latencies.push(now - since.0);
                self.pace.request_ended(Now(now), Class::Write, since, away);
            }
            if let Some((per_second, alone)) = self.app
                && now >= self.app_next
            {
                self.app_next = now + 1_000_000_000 / per_second;
                let away = self.pace.request_began(Now(now));
                // It waits for what is before it in the path.
                let queue = self.free_at.saturating_sub(now);
                self.dice = self
                    .dice
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let slow = (self.dice >> 33) % 1000 < self.uneven;
                let own = if slow { alone * 10 } else { alone };
                self.app_open.push((now + own + queue, Now(now), away));
            }
            self.pump(bulk);
        }
    }

    fn p99(&mut self) -> u64 {
        self.latencies.sort_unstable();
        self.latencies[self.latencies.len() * 99 / 100]
    }
}

#[test]
fn an_idle_path_is_filled_and_not_overfilled() {
    // A gigabyte per second and two milliseconds: 2 MiB are in flight when it is full.
    let mut world = World::new(1 << 30, 2 * MS, ResyncBounds::default());
    world.run(2000, true);
    world.moved = 0;
    world.run(1000, true);
    assert!(world.moved > (1 << 30) * 9 / 10, "{} bytes", world.moved);
    assert!(world.pace.window <= 8 << 20, "window {}", world.pace.window);
}

#[test]
fn a_long_path_gets_a_larger_window() {
    let mut world = World::new(256 << 20, 40 * MS, ResyncBounds::default());
    world.run(5000, true);
    world.moved = 0;
    world.run(1000, true);
    assert!(world.moved > (256 << 20) * 8 / 10, "{} bytes", world.moved);
}

#[test]
fn an_application_keeps_its_latency_and_resync_goes_on() {
    let mut world = World::new(200 << 20, MS, ResyncBounds::default());
    world.app = Some((1000, MS));
    world.run(3000, false);
    let alone = world.p99();
    // It finds its rate, then is measured.
    world.run(20_000, true);
    (world.latencies, world.moved) = (Vec::new(), 0);
    world.run(20_000, true);
    let beside = world.p99();
    assert!(
        beside * 2 <= alone * 3,
        "p99 {beside} ns beside resync, {alone} ns without"
    );
    assert!(
        world.moved / 20 > 8 << 20,
        "resync got {} bytes per second",
        world.moved / 20
    );
}

#[test]
fn what_an_uneven_machine_does_is_not_blamed_on_resync() {
    // Now more than one in hundred waits long, now fewer, as if others had the machine.
    let mut world = World::new(400 << 20, MS, ResyncBounds::default());
    world.app = Some((1000, MS));
    for i in 0..40 {
        world.uneven = if i % 4 == 0 { 25 } else { 4 };
        if i == 20 {
            world.moved = 0;
        }
        world.run(1000, i > 3);
    }
    let rate = world.moved / 20;
    assert!(rate > 10 << 20, "resync got {rate} bytes per second");
}

#[test]
fn the_floor_holds_whatever_the_application_suffers() {
    // Any bulk work hurts: the path is slow.
    let mut world = World::new(20 << 20, MS, bounds(4 << 20, None));
    world.app = Some((500, MS));
    world.run(2000, false);
    world.run(10_000, true);
    world.moved = 0;
    world.run(10_000, true);
    let rate = world.moved / 10;
    assert!(rate > 3 << 20, "{rate} bytes per second");
}

#[test]
fn the_ceiling_holds_idle_or_not() {
    for app in [None, Some((1000, MS))] {
        let mut world = World::new(1 << 30, MS, bounds(1 << 20, Some(10 << 20)));
        world.app = app;
        world.run(10_000, true);
        let rate = world.moved / 10;
        assert!(rate <= 11 << 20, "{rate} bytes per second");
        assert!(rate > 5 << 20, "{rate} bytes per second");
    }
}

#[test]
fn a_refusal_says_when_to_ask_again() {
    let mut pace = Pace::new(at(0), bounds(1 << 20, Some(1 << 20)));
    assert!(pace.grant(at(1), 1 << 20));
    pace.returned(at(2), 1 << 20);
    assert!(!pace.grant(at(3), 1 << 20));
    let due = pace.due().expect("a time");
    assert!(due > at(900) && due < at(1100), "{due:?}");
    assert!(pace.grant(due, 1 << 20));
    // In flight: no time to wait for, but its end.
    let mut pace = Pace::new(at(0), ResyncBounds::default());
    while pace.grant(at(1), 1 << 20) {}
    assert_eq!(pace.due(), None);
    // An order may change what is paid for already.
    let mut pace = Pace::new(at(0), bounds(1, Some(1)));
    assert!(pace.grant(at(1), 1 << 20));
    pace.returned(at(2), 1 << 20);
    assert!(!pace.grant(at(2), 64 << 10));
    pace.set_bounds(bounds(1, None));
    assert!(pace.grant(at(2), 64 << 10));
}

#[test]
fn breaths_come_and_end() {
    let mut world = World::new(1 << 30, MS, ResyncBounds::default());
    world.app = Some((2000, MS));
    world.run(5000, true);
    let samples = world.pace.classes[Class::Write as usize].total;
    assert!(samples >= SAMPLES_MIN, "{samples} samples without resync");
    // The application gets faster: the limit follows.
    let before = world.pace.classes[Class::Write as usize].p99().unwrap();
    world.app = Some((2000, MS / 4));
    world.run(60_000, true);
    let after = world.pace.classes[Class::Write as usize].p99().unwrap();
    assert!(after < before / 2, "{after} ns, before {before} ns");
}

#[test]
fn buckets_hold_what_is_put_into_them() {
    for us in [1, 2, 3, 7, 8, 9, 15, 16, 100, 999, 1000, 12_345, 60_000_000] {
        let ns = us * 1000;
        let upper = Histogram::upper(Histogram::bucket(ns));
        assert!(upper >= ns, "{us} us is above its bucket's end, {upper} ns");
        assert!(
            us < 16 || upper <= ns + ns / 7,
            "{us} us: bucket ends at {upper} ns"
        );
    }
    assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
    assert_eq!(Histogram::bucket(0), 0);
    let mut h = Histogram::new();
    for _ in 0..99 {
        h.add(MS);
    }
    h.add(50 * MS);
    h.add(50 * MS);
    assert!(h.p99().unwrap() >= 50 * MS);
    for _ in 0..SAMPLES_FADE * 8 {
        h.add(MS);
    }
    assert!(h.p99().unwrap() < 2 * MS);
    assert!(h.total <= SAMPLES_FADE);
}

#[test]
fn a_meter_follows_and_forgets() {
    let mut meter = Meter::default();
    for ms in 0..10_000 {
        meter.add(at(ms), 1 << 20);
    }
    let rate = meter.rate(at(10_000));
    assert!(rate.abs_diff(1000 << 20) < 100 << 20, "{rate}");
    assert_eq!(meter.rate(at(20_000)), 0);
}
