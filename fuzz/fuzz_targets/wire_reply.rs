//! Written by the guest and decoded by the host. The first byte chooses the request that it answers.
#![no_main]

use pyro_fuzz::decode_guest_frames;
use pyro_wire::{ArchiveReply, ExecReply, HaltReply, IdentifyReply, InputReply, SteerReply};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((request, data)) = data.split_first() else { return };
    match request % 6 {
        0 => decode_guest_frames::<ExecReply>(data),
        1 => decode_guest_frames::<ArchiveReply>(data),
        2 => decode_guest_frames::<IdentifyReply>(data),
        3 => decode_guest_frames::<InputReply>(data),
        4 => decode_guest_frames::<SteerReply>(data),
        _ => decode_guest_frames::<HaltReply>(data),
    }
});
