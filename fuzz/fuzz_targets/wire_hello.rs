//! Written by the guest and decoded by the host.
#![no_main]

use pyro_wire::Hello;

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyro_fuzz::decode_guest_frames::<Hello>(data));
