//! Checks shared by the targets that decode frames, in addition to not crashing.

use std::fmt::Debug;

use bytes::BytesMut;
use pyro_wire::{
    ArchiveReply, ExecReply, Failure, Frame, FrameCodec, HaltReply, Hello, IdentifyReply, InputReply,
    MAX_CONTROL_BYTES, MAX_COUNT, MAX_EXAMPLE_BYTES, MAX_EXAMPLES, MAX_LABEL_BYTES, MAX_TEXT_BYTES,
    SetupReply, Status, SteerReply,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{Decoder, Encoder};

/// A message of a guest, whose values the decoder bounds.
pub trait FromGuest {
    /// Checks every number and text.
    ///
    /// # Panics
    /// If one is out of its bounds.
    fn check(&self);
}

impl FromGuest for Failure {
    fn check(&self) {
        assert!(self.step.len() <= MAX_TEXT_BYTES && self.cause.len() <= MAX_TEXT_BYTES);
        assert!(self.errno.is_none_or(|errno| (1..4096).contains(&errno)));
    }
}

impl FromGuest for Hello {
    fn check(&self) {
        for label in [&self.agent_version, &self.kernel_release] {
            assert!(
                label.len() <= MAX_LABEL_BYTES && label.bytes().all(|byte| (b' '..=b'~').contains(&byte))
            );
        }
    }
}

impl FromGuest for SetupReply {
    fn check(&self) {
        match self {
            Self::Done => {}
            Self::Failed(failure) => failure.check(),
        }
    }
}

impl FromGuest for ExecReply {
    fn check(&self) {
        match self {
            Self::Started => {}
            Self::Exited(exit) => {
                assert!(exit.duration_ms.max(exit.stdout_dropped).max(exit.stderr_dropped) <= MAX_COUNT);
                match exit.status {
                    Status::Code(code) => assert!((0..256).contains(&code)),
                    Status::Signal(signal) => assert!((1..65).contains(&signal)),
                }
            }
            Self::NotStarted(failure) => failure.check(),
        }
    }
}

impl FromGuest for InputReply {
    fn check(&self) {
        match self {
            Self::Taken | Self::Closed | Self::NotRunning | Self::Busy => {}
            Self::Failed(failure) => failure.check(),
        }
    }
}

impl FromGuest for SteerReply {
    fn check(&self) {
        match self {
            Self::Done | Self::NotRunning => {}
            Self::Failed(failure) => failure.check(),
        }
    }
}

impl FromGuest for ArchiveReply {
    fn check(&self) {
        match self {
            Self::Archived(report) => {
                assert!(report.entries.max(report.bytes).max(report.left_out) <= MAX_COUNT);
                assert!(report.examples.len() <= MAX_EXAMPLES);
                assert!(report.examples.iter().all(|name| name.len() <= MAX_EXAMPLE_BYTES));
            }
            Self::Failed(failure) => failure.check(),
        }
    }
}

impl FromGuest for IdentifyReply {
    fn check(&self) {
        match self {
            Self::Identified => {}
            Self::Failed(failure) => failure.check(),
        }
    }
}

impl FromGuest for HaltReply {
    fn check(&self) {
        match self {
            Self::Halted => {}
            Self::Failed(failure) => failure.check(),
        }
    }
}

/// Decodes `data` as [`decode_frames`] does and checks the bounds of every message.
///
/// # Panics
/// As [`decode_frames`], and if a value is out of its bounds.
pub fn decode_guest_frames<M>(data: &[u8])
where
    M: FromGuest + DeserializeOwned + Serialize + Clone + Debug + PartialEq,
{
    for frame in decode_frames::<M>(data) {
        if let Frame::Control(message) = frame {
            message.check();
        }
    }
}

/// Decodes `data` as a stream of frames with control messages `M`.
///
/// # Panics
/// If the result depends on how the bytes are split, if encoding and decoding a frame again changes it, or if the decoder asks for more memory than its largest frame needs.
pub fn decode_frames<M>(data: &[u8]) -> Vec<Frame<M>>
where
    M: DeserializeOwned + Serialize + Clone + Debug + PartialEq,
{
    let frames = decode::<M>(data, data.len().max(1));
    // The last byte decides the split, so that the fuzzer can choose it.
    let step = data.last().map_or(1, |byte| usize::from(*byte) % 32 + 1);
    assert_eq!(frames, decode(data, step), "the cut matters");

    for frame in &frames {
        let mut encoded = BytesMut::new();
        let mut codec = FrameCodec::<M, M>::default();
        if codec.encode(frame.clone(), &mut encoded).is_err() {
            // Encoded text can be longer: JSON allows characters without an escape where the encoder uses one.
            continue;
        }
        let again = codec.decode(&mut encoded).expect("what we encode we can decode");
        assert_eq!(again.as_ref(), Some(frame));
        assert!(encoded.is_empty(), "bytes are left over");
    }
    frames
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
