//! Directories of the host in the guest: the request, and FUSE messages in frames.

use bytes::{Bytes, BytesMut};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Failure, MAX_OUTPUT_BYTES};

/// Maximum size of a FUSE message in bytes: 128 KiB of a file, and headers.
pub const MAX_FUSE_MESSAGE_BYTES: usize = (128 << 10) + (4 << 10);
/// Smallest message: the header of a reply.
const MIN_FUSE_MESSAGE_BYTES: usize = 16;

/// Mount a directory of the host. After [`MountReply::Mounted`], the messages of the guest's kernel and the replies of the host
/// follow in [`Frame::Output`](crate::Frame::Output) frames of the standard output, see [`FuseMessages`]. Closing the stream
/// fails what uses the directory; it stays mounted, so that nothing is written below it to the guest's own disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mount {
    /// Absolute path in the guest. A directory that does not exist is made.
    pub path: String,
    /// The guest may change the directory. The host's server decides that too.
    pub writable: bool,
}

/// What the host may send while a directory is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MountInput {
    /// Write everything out and unmount the directory.
    Unmount,
    /// No more messages are answered. The directory stays mounted, and everything that uses it fails, until it is unmounted.
    Lost,
}

/// Answers to [`Mount`]: one when it is mounted or cannot be, and one when it is unmounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MountReply {
    /// It is mounted.
    Mounted,
    /// It is not mounted.
    Failed(Failure),
    /// It is not mounted any more.
    Unmounted {
        /// Why the guest may have kept something that was written to the directory.
        not_written: Option<Failure>,
    },
}

/// A FUSE message does not have the size that it states, or is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid FUSE message: expected at most {MAX_FUSE_MESSAGE_BYTES} bytes, as many as it states")]
pub struct InvalidFuseMessage;

/// Puts FUSE messages together. Each begins with its size and has one frame, or more if it is larger than a frame; no frame has
/// parts of two messages.
#[derive(Debug, Default)]
pub struct FuseMessages {
    /// The beginning of a message.
    partial: BytesMut,
}

impl FuseMessages {
    /// Adds the content of a frame. Returns the message that it completes.
    ///
    /// # Errors
    /// [`InvalidFuseMessage`]. The stream is unusable then.
    pub fn add(&mut self, frame: Bytes) -> Result<Option<Bytes>, InvalidFuseMessage> {
        if self.partial.is_empty() && stated_size(&frame)? == frame.len() {
            return Ok(Some(frame));
        }
        self.partial.extend_from_slice(&frame);
        let size = stated_size(&self.partial)?;
        match self.partial.len() {
            length if length < size => Ok(None),
            length if length == size => Ok(Some(self.partial.split().freeze())),
            _ => Err(InvalidFuseMessage),
        }
    }

    /// Returns the contents of a message's frames.
    pub fn frames(mut message: Bytes) -> impl Iterator<Item = Bytes> {
        std::iter::from_fn(move || {
            let length = message.len().min(MAX_OUTPUT_BYTES);
            (length > 0).then(|| message.split_to(length))
        })
    }
}

fn stated_size(message: &[u8]) -> Result<usize, InvalidFuseMessage> {
    let size = message.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    size.filter(|size| (MIN_FUSE_MESSAGE_BYTES..=MAX_FUSE_MESSAGE_BYTES).contains(size))
        .ok_or(InvalidFuseMessage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(size: usize) -> Bytes {
        let mut bytes = vec![7; size];
        bytes[..4].copy_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
        bytes.into()
    }

    #[test]
    fn messages_of_every_size_pass_through_frames() {
        for size in [16, 40, MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES + 1, MAX_FUSE_MESSAGE_BYTES] {
            let mut messages = FuseMessages::default();
            for _ in 0..2 {
                let frames: Vec<_> = FuseMessages::frames(message(size)).collect();
                assert!(frames.iter().all(|frame| frame.len() <= MAX_OUTPUT_BYTES));
                let put: Vec<_> =
                    frames.into_iter().filter_map(|frame| messages.add(frame).unwrap()).collect();
                assert_eq!(put, [message(size)]);
            }
        }
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let stating = |size: u32, length: usize| {
            let mut bytes = vec![0; length];
            bytes[..4].copy_from_slice(&size.to_le_bytes());
            FuseMessages::default().add(bytes.into())
        };
        assert_eq!(FuseMessages::default().add(Bytes::new()), Err(InvalidFuseMessage));
        assert_eq!(FuseMessages::default().add(Bytes::from_static(b"abc")), Err(InvalidFuseMessage));
        for (size, length) in [(0, 16), (15, 15), (u32::MAX, 16), (MAX_FUSE_MESSAGE_BYTES as u32 + 1, 16)] {
            assert_eq!(stating(size, length), Err(InvalidFuseMessage), "{size}");
        }
        assert_eq!(stating(16, 17), Err(InvalidFuseMessage), "a frame has no parts of two messages");
        assert_eq!(stating(17, 16), Ok(None));
    }
}
