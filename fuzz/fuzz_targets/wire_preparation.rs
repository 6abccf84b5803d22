//! The guest decodes it, the host wrote it.
#![no_main]

use pyro_wire::Preparation;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pyro_fuzz::decode_frames::<Preparation>(data);
});
