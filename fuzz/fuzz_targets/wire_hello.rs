//! The host decodes it, the guest wrote it.
#![no_main]

use pyro_wire::Hello;

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyro_fuzz::decode_guest_frames::<Hello>(data));
