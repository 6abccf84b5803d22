//! The driver with a machine, a guest, a store and a clock that are not real: what takes minutes and luck with real ones
//! takes milliseconds here, in every order.
//!
//! Each case is a fresh driver on a paused clock. A failing one is printed in its shortest form with its seed, and kept
//! in `proptest-regressions`, from where it is tried again first. `PROPTEST_CASES` sets how many there are.

mod claims;
mod commands;
mod failures;
mod fake;
mod hostile_agent;
mod input;
mod interleavings;
mod mounts;
mod ports;
mod process;
mod races;
mod services;
mod shells;

pub(crate) use self::fake::{Conditions, Fact, FakeStore, Supervised, World, spec};
pub(crate) use self::races::started;
