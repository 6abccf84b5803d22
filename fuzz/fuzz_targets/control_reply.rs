//! Replies and events of a supervisor: decoded by its clients.
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
            pyro_supervisor::fuzzing::supervisor(&message);
        }
    }
});
