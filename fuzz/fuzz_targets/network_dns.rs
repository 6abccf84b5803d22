//! DNS messages: a guest's questions, and the answers of the network's resolvers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyro_network::fuzzing::dns(data));
