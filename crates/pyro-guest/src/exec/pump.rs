//! Copies one output pipe to the host, up to the limit, and counts the bytes beyond it.

use std::io;

use bytes::{Bytes, BytesMut};
use pyro_wire::{Frame, OutputStream};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::Frames;

/// Maximum number of bytes that are read at a time.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// Runs until the pipe ends, or until the shell has ended and the rest of its output is read. A background child may
/// hold the pipe open forever; its later output is read and discarded, so that it does not die of a broken pipe. Returns
/// the number of bytes that were not sent.
pub(super) async fn run(
    mut pipe: pipe::Receiver,
    stream: OutputStream,
    limit: Option<u64>,
    frames: Frames,
    shell_ended: CancellationToken,
) -> u64 {
    let mut quota = Quota::new(stream, limit, frames);
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        tokio::select! {
            // Check for the end first: a background child that keeps writing must not delay it.
            biased;
            () = shell_ended.cancelled() => break,
            read = pipe.read_buf(&mut chunk) => match read {
                Ok(0) | Err(_) => return quota.dropped,
                Ok(_) => quota.send(chunk.freeze()).await,
            },
        }
    }
    let _ = drain(&pipe, &mut quota).await;
    tokio::spawn(async move { tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await });
    quota.dropped
}

/// Reads the bytes that are in the pipe now, and none that are added meanwhile.
async fn drain(pipe: &pipe::Receiver, quota: &mut Quota) -> io::Result<()> {
    let mut remaining = usize::try_from(rustix::io::ioctl_fionread(pipe)?).unwrap_or(usize::MAX);
    while remaining > 0 {
        let mut chunk = BytesMut::zeroed(remaining.min(CHUNK_BYTES));
        // The descriptor itself, not tokio's idea of its readiness, which may be stale.
        let count = rustix::io::read(pipe, &mut chunk[..])?;
        if count == 0 {
            break;
        }
        chunk.truncate(count);
        remaining -= count;
        quota.send(chunk.freeze()).await;
    }
    Ok(())
}

/// Sends the output of one stream up to its limit.
pub(super) struct Quota {
    stream: OutputStream,
    remaining: Option<u64>,
    dropped: u64,
    frames: Frames,
}

impl Quota {
    pub(super) fn new(stream: OutputStream, limit: Option<u64>, frames: Frames) -> Self {
        Self { stream, remaining: limit, dropped: 0, frames }
    }

    /// Returns the number of bytes that were not sent.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) async fn send(&mut self, mut bytes: Bytes) {
        let count = bytes.len() as u64;
        if let Some(remaining) = &mut self.remaining {
            let kept = count.min(*remaining);
            *remaining -= kept;
            self.dropped += count - kept;
            // At most `count`, which came from a usize.
            bytes.truncate(kept as usize);
        }
        if !bytes.is_empty() {
            // A closed queue means that the host is gone; the watcher is about to kill the command.
            let _ = self.frames.send(Frame::Output(self.stream, bytes)).await;
        }
    }
}
