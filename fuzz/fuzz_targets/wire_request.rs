//! Written by the host and decoded by the guest: the request of a stream, and what may follow it.
#![no_main]

use pyro_fuzz::decode_frames;
use pyro_wire::{ExecInput, InputEnd, Request};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    decode_frames::<Request>(data);
    decode_frames::<ExecInput>(data);
    decode_frames::<InputEnd>(data);
});
