//! Control requests: decoded by the supervisor, and possibly written by any program of the same user.
#![no_main]

use bytes::BytesMut;
use pyro_wire::{Frame, FrameCodec};
use serde_json::Value;
use tokio_util::codec::Decoder;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pyro_fuzz::decode_frames::<Value>(data);
    let mut codec = FrameCodec::<Value, ()>::default();
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = codec.decode(&mut buffer) {
        if let Frame::Control(message) = frame {
            pyro_supervisor::fuzzing::client(&message);
        }
    }
});
