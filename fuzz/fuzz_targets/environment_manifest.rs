//! The `environment.json` of an installed environment, which may be damaged in any way.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyro_env::fuzzing::manifest(data));
