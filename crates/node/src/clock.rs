//! The only places where the daemon reads a clock or draws a random number.

use holdfast_replicator::Now;

/// CLOCK_BOOTTIME: counts while the machine sleeps and is never stepped, so a lease cannot be
/// stretched by either.
pub fn now() -> Now {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .expect("CLOCK_BOOTTIME exists on every kernel this program runs on");
    let (s, ns) = (t.tv_sec().max(0) as u64, t.tv_nsec().max(0) as u64);
    Now(s * 1_000_000_000 + ns)
}

/// Milliseconds since 1970, for people only: nothing is decided by it.
pub fn wall_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

/// A random number, never zero.
pub fn random_u64() -> u64 {
    loop {
        let n = u64::from_le_bytes(random_bytes());
        if n != 0 {
            return n;
        }
    }
}

/// Random bytes of the kernel.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut b = [0; N];
    getrandom::fill(&mut b).expect("the kernel has random numbers");
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_does_not_go_back_and_random_numbers_differ() {
        let a = now();
        assert!(now() >= a);
        assert_ne!(random_u64(), random_u64());
    }
}
