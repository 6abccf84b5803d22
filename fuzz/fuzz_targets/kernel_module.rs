//! A kernel module of the distribution, whose `.modinfo` section names its dependencies.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyro_env::fuzzing::module(data));
