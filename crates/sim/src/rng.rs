//! Randomness of a run: independent named streams from one seed.
//!
//! Every decision is drawn from the stream named for its kind, so that a new draw in one place does not
//! reshuffle the others. Integers only: probabilities are [`Ratio`]s, never floats. The generators are
//! our own (SplitMix64 to seed, xoshiro256++ to draw), because a seed has to outlive library upgrades.

/// A probability as a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    /// Times it happens ...
    pub num: u32,
    /// ... out of so many.
    pub den: u32,
}

impl Ratio {
    /// Never.
    pub const NEVER: Self = Self { num: 0, den: 1 };

    /// `num` out of `den`.
    pub const fn new(num: u32, den: u32) -> Self {
        assert!(den > 0);
        assert!(num <= den);
        Self { num, den }
    }
}

/// SplitMix64: one step of the generator that only seeds others.
pub const fn split_mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One stream (xoshiro256++).
#[derive(Clone, Debug)]
pub struct Rng {
    s: [u64; 4],
}

impl Rng {
    /// The stream called `name` of run `seed`.
    pub fn stream(seed: u64, name: &str) -> Self {
        let mut state = split_mix(seed);
        for byte in name.bytes() {
            state = split_mix(state ^ u64::from(byte));
        }
        let mut s = [0; 4];
        for word in &mut s {
            state = split_mix(state);
            *word = state;
        }
        Self { s }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.s;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// A number below `n` (which is not zero).
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0);
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high);
        low + self.below(high - low + 1)
    }

    /// Does something of this probability happen?
    pub fn happens(&mut self, ratio: Ratio) -> bool {
        self.below(u64::from(ratio.den)) < u64::from(ratio.num)
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.bits() >> 63 == 1
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_stable_and_independent() {
        // Seeds are printed in bug reports: the numbers behind them must never change.
        assert_eq!(split_mix(0), 0xe220_a839_7b1d_cdaf);
        let mut a = Rng::stream(7, "disk");
        let mut b = Rng::stream(7, "disk");
        let mut c = Rng::stream(7, "net");
        let first: Vec<u64> = (0..4).map(|_| a.bits()).collect();
        assert_eq!(first, (0..4).map(|_| b.bits()).collect::<Vec<_>>());
        assert_ne!(first, (0..4).map(|_| c.bits()).collect::<Vec<_>>());
    }

    #[test]
    fn draws_stay_in_their_bounds() {
        let mut rng = Rng::stream(1, "t");
        let mut seen = [false; 5];
        for _ in 0..1000 {
            seen[rng.below(5) as usize] = true;
            assert!((3..=9).contains(&rng.between(3, 9)));
            assert!(!rng.happens(Ratio::NEVER));
            assert!(rng.happens(Ratio::new(3, 3)));
        }
        assert_eq!(seen, [true; 5]);
    }
}
