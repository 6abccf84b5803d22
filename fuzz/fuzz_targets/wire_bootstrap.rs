//! The guest decodes it, the host wrote it.
#![no_main]

use pyro_wire::Bootstrap;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pyro_fuzz::decode_frames::<Bootstrap>(data);
});
