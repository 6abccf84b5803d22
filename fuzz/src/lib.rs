//! What every target that decodes frames checks, beyond not crashing.

use std::fmt::Debug;

use bytes::BytesMut;
use pyro_wire::{Frame, FrameCodec, MAX_CONTROL_BYTES};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{Decoder, Encoder};

/// Decodes `data` as a stream of frames with control messages `M`.
///
/// # Panics
/// If the result depends on how the bytes are cut up, if a frame does not survive being encoded and decoded
/// again, or if the decoder asks for more memory than its largest frame needs.
pub fn decode_frames<M>(data: &[u8])
where
    M: DeserializeOwned + Serialize + Clone + Debug + PartialEq,
{
    let frames = decode::<M>(data, data.len().max(1));
    // The last byte decides the cut, so that the fuzzer can choose it.
    let step = data.last().map_or(1, |byte| usize::from(*byte) % 32 + 1);
    assert_eq!(frames, decode(data, step), "the cut matters");

    for frame in frames {
        let mut encoded = BytesMut::new();
        let mut codec = FrameCodec::<M, M>::default();
        if codec.encode(frame.clone(), &mut encoded).is_err() {
            // Text can be longer when we write it: not every escape has to be used.
            continue;
        }
        let again = codec.decode(&mut encoded).expect("what we encode we can decode");
        assert_eq!(again, Some(frame));
        assert!(encoded.is_empty(), "bytes are left over");
    }
}

fn decode<M: DeserializeOwned>(data: &[u8], step: usize) -> Vec<Frame<M>> {
    let mut codec = FrameCodec::<M, ()>::default();
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for chunk in data.chunks(step) {
        buffer.extend_from_slice(chunk);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
        assert!(buffer.capacity() <= 2 * (MAX_CONTROL_BYTES + data.len()) + 64, "{}", buffer.capacity());
    }
    frames
}
