//! Framing: `u32` little-endian payload length, one kind byte, payload.
//!
//! Control payloads are JSON (self-describing, readable in a trace, tolerant of added fields); output
//! payloads are raw bytes, so that what a command writes crosses unchanged and without encoding cost.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_util::codec::{Decoder, Encoder};

/// Maximum control payload in bytes. The text of a command has at most [`MAX_COMMAND_BYTES`](crate::MAX_COMMAND_BYTES), which
/// JSON escapes can make six times longer; variables come in addition.
pub const MAX_CONTROL_BYTES: usize = 8 * 1024 * 1024;
/// Maximum control payload of a reply in bytes. Guests send them and may be hostile. The longest holds two texts of 8 KiB, which
/// JSON escapes can make six times longer.
pub const MAX_REPLY_BYTES: usize = 128 * 1024;
/// Maximum output payload in bytes.
pub const MAX_OUTPUT_BYTES: usize = 128 * 1024;

const HEADER_BYTES: usize = 5;
/// Maximum number of bytes that are allocated for a frame before they arrive.
const RESERVED_BYTES: usize = MAX_OUTPUT_BYTES + HEADER_BYTES;
const KIND_CONTROL: u8 = 0;
const KIND_STDOUT: u8 = 1;
const KIND_STDERR: u8 = 2;

/// Which of a command's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// One unit on the channel; `M` is the control message type of the direction and phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<M> {
    /// A typed message.
    Control(M),
    /// Bytes a command wrote, in order within their stream.
    Output(OutputStream, Bytes),
}

/// A failure to decode or encode a frame. The channel is unusable afterwards.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length field exceeds the bound of its kind.
    #[error("frame of kind {kind} declares {len} bytes; the maximum is {max}")]
    TooLong {
        /// Kind byte.
        kind: u8,
        /// Declared payload length.
        len: usize,
        /// Bound for this kind.
        max: usize,
    },
    /// The kind byte is unknown.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// A control payload is not the JSON expected at this point.
    #[error("malformed control message")]
    Malformed(#[source] serde_json::Error),
    /// The channel failed below the framing.
    #[error("channel I/O failed")]
    Io(#[from] std::io::Error),
}

/// Encodes `Frame<Out>` and decodes `Frame<In>`.
#[derive(Debug)]
pub struct FrameCodec<In, Out> {
    /// Maximum control payload that is decoded, in bytes.
    max_control: usize,
    types: PhantomData<fn(Out) -> In>,
}

impl<In, Out> Default for FrameCodec<In, Out> {
    fn default() -> Self {
        Self { max_control: MAX_CONTROL_BYTES, types: PhantomData }
    }
}

impl<In, Out> FrameCodec<In, Out> {
    /// Decodes replies of guests, whose control messages have at most [`MAX_REPLY_BYTES`].
    #[must_use]
    pub fn of_replies() -> Self {
        Self { max_control: MAX_REPLY_BYTES, types: PhantomData }
    }
}

fn limit_of(kind: u8, max_control: usize) -> Result<usize, FrameError> {
    match kind {
        KIND_CONTROL => Ok(max_control),
        KIND_STDOUT | KIND_STDERR => Ok(MAX_OUTPUT_BYTES),
        other => Err(FrameError::UnknownKind(other)),
    }
}

/// Number of bytes that `buffer` lacks until it holds its first frame or at least its header; 0 when the frame is
/// complete. For readers that must not read beyond a frame.
///
/// # Errors
/// [`FrameError`] as for decoding.
pub fn bytes_missing(buffer: &[u8]) -> Result<usize, FrameError> {
    missing(buffer, MAX_CONTROL_BYTES)
}

fn missing(buffer: &[u8], max_control: usize) -> Result<usize, FrameError> {
    let Some(&[a, b, c, d, kind]) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(HEADER_BYTES - buffer.len());
    };
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let max = limit_of(kind, max_control)?;
    if len > max {
        return Err(FrameError::TooLong { kind, len, max });
    }
    Ok((HEADER_BYTES + len).saturating_sub(buffer.len()))
}

impl<In: DeserializeOwned, Out> Decoder for FrameCodec<In, Out> {
    type Item = Frame<In>;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, FrameError> {
        match missing(src, self.max_control)? {
            0 => {}
            missing => {
                src.reserve(missing.min(RESERVED_BYTES));
                return Ok(None);
            }
        }
        let mut header = src.split_to(HEADER_BYTES);
        let len = header.get_u32_le() as usize;
        let kind = header.get_u8();
        let payload = src.split_to(len).freeze();
        Ok(Some(match kind {
            KIND_STDOUT => Frame::Output(OutputStream::Stdout, payload),
            KIND_STDERR => Frame::Output(OutputStream::Stderr, payload),
            _ => Frame::Control(serde_json::from_slice(&payload).map_err(FrameError::Malformed)?),
        }))
    }
}

impl<In, Out: Serialize> Encoder<Frame<Out>> for FrameCodec<In, Out> {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame<Out>, dst: &mut BytesMut) -> Result<(), FrameError> {
        let (kind, payload) = match frame {
            Frame::Control(message) => {
                (KIND_CONTROL, Bytes::from(serde_json::to_vec(&message).map_err(FrameError::Malformed)?))
            }
            Frame::Output(OutputStream::Stdout, bytes) => (KIND_STDOUT, bytes),
            Frame::Output(OutputStream::Stderr, bytes) => (KIND_STDERR, bytes),
        };
        let (len, max) = (payload.len(), limit_of(kind, MAX_CONTROL_BYTES)?);
        if len > max {
            return Err(FrameError::TooLong { kind, len, max });
        }
        dst.reserve(HEADER_BYTES + len);
        // The bound above is far below u32::MAX.
        dst.put_u32_le(len as u32);
        dst.put_u8(kind);
        dst.put_slice(&payload);
        Ok(())
    }
}
