//! Written by the host and decoded by the guest.
#![no_main]

use pyro_wire::Bootstrap;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pyro_fuzz::decode_frames::<Bootstrap>(data);
});
