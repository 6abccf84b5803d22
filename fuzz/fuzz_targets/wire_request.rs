//! Written by the host and decoded by the guest: the request of a stream, and the input of a command.
#![no_main]

use pyro_fuzz::decode_frames;
use pyro_wire::{ExecInput, Request};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    decode_frames::<Request>(data);
    decode_frames::<ExecInput>(data);
});
