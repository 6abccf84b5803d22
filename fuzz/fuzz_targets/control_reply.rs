//! Replies and events of a supervisor: decoded by its clients.
#![no_main]

use pyro_wire::Frame;
use serde_json::Value;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for frame in pyro_fuzz::decode_frames::<Value>(data) {
        if let Frame::Control(message) = frame {
            pyro_supervisor::fuzzing::supervisor(&message);
        }
    }
});
