//! The first bytes of a guest's connection, in which it names the server.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyro_network::fuzzing::first_bytes(data));
