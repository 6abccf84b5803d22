//! The supervisor decodes it, any program of the same user may have written it.
#![no_main]

use pyro_vm::supervisor::control::ControlRequest;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pyro_fuzz::decode_frames::<ControlRequest>(data);
});
