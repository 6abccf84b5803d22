//! Control requests: decoded by the supervisor, and possibly written by any program of the same user.
#![no_main]

use pyro_wire::Frame;
use serde_json::Value;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for frame in pyro_fuzz::decode_frames::<Value>(data) {
        if let Frame::Control(message) = frame {
            pyro_supervisor::fuzzing::client(&message);
        }
    }
});
