//! Reproducible randomness.

#![expect(clippy::disallowed_methods, reason = "the seed to replay is set by the person who runs the tests")]

use std::env;
use std::hash::{BuildHasher as _, RandomState};

/// Environment variable that decides the seed.
const VARIABLE: &str = "PYRO_TEST_SEED";

/// Pseudo-random numbers for one test. The seed is printed, so that the report of a failed test has it;
/// `PYRO_TEST_SEED` brings the same numbers again.
#[derive(Debug)]
pub struct Seed(u64);

impl Seed {
    /// A new seed, or the one that `PYRO_TEST_SEED` names.
    ///
    /// # Panics
    /// The variable is set and not a number.
    #[expect(clippy::print_stdout, reason = "the test runner shows it if the test fails")]
    pub fn of_test() -> Self {
        let seed = match env::var(VARIABLE) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{VARIABLE} is `{text}`; expected a number")),
            Err(_) => RandomState::new().hash_one(VARIABLE),
        };
        println!("{VARIABLE}={seed}");
        Self(seed)
    }

    /// The next number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64: every seed is a good one, 0 included.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let numbers = |seed| {
            let mut seed = Seed(seed);
            [(); 6].map(|()| seed.below(1000))
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
        assert_ne!(numbers(0), [0; 6]);
    }
}
