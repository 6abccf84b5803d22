//! Frames of a guest, handed to the stack that carries its network.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyro_network::fuzzing::frames(data));
