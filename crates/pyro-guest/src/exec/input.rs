//! Passes input on to a command, no faster than the command reads it.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, Input, InputEnd, InputReply, OutputStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::running::{CommandInput, InputTarget, Running, Steering};
use crate::failure::failed;
use crate::stream::CallStream;

/// Maximum number of bytes that are read from the host while the command does not take them. Reading on is the only way to
/// find out that the host has left.
const MAX_BYTES_AHEAD: usize = 512 * 1024;
/// Time limit for a request whose client has left to make way for another. Its end may arrive after the other one.
const HANDOVER_LIMIT: Duration = Duration::from_secs(1);

/// Writes the stream's bytes to the command's input, and answers how that went.
pub(crate) async fn serve<S>(Input { command }: Input, running: &Running, mut stream: CallStream<S, Input>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut source = Source { stream: &mut stream, ahead: VecDeque::new(), bytes: 0, is_complete: false };
    let steering = tokio::select! {
        biased;
        steering = running.find(command) => steering,
        () = source.host_gone() => return,
    };
    let reply = match steering {
        None => Some(InputReply::NotRunning),
        Some(steering) => feed(&steering, &mut source).await,
    };
    let Some(reply) = reply else { return };
    if stream.send(Frame::Control(reply)).await.is_ok() && stream.close().await.is_ok() {
        // What the host has sent meanwhile must not reset the stream before it reads the reply.
        while let Some(Ok(_)) = stream.next().await {}
    }
}

/// Returns the reply, or `None` when the host has left before the end of the input.
async fn feed<S>(steering: &Steering, source: &mut Source<'_, S>) -> Option<InputReply>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let locked = tokio::select! {
        biased;
        locked = timeout(HANDOVER_LIMIT, steering.input.lock()) => locked,
        () = steering.ended.cancelled() => return Some(InputReply::Closed),
        () = source.host_gone() => return None,
    };
    let Ok(mut target) = locked else { return Some(InputReply::Busy) };
    loop {
        let piece = tokio::select! {
            biased;
            () = steering.ended.cancelled() => return Some(InputReply::Closed),
            () = target.reader_gone() => {
                *target = InputTarget::Closed;
                return Some(InputReply::Closed);
            }
            piece = source.next() => piece,
        };
        match piece? {
            Piece::Bytes(bytes) => {
                let written = tokio::select! {
                    biased;
                    written = target.write(&bytes) => written,
                    () = steering.ended.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
                    () = source.host_gone_or_replaced(&steering.input) => return None,
                };
                match written {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        *target = InputTarget::Closed;
                        return Some(InputReply::Closed);
                    }
                    Err(error) => {
                        return Some(InputReply::Failed(failed("writing to the standard input", error)));
                    }
                }
            }
            Piece::End => {
                if let InputTarget::Pipe(_) = *target {
                    *target = InputTarget::Closed;
                }
                return Some(InputReply::Taken);
            }
        }
    }
}

/// A part of the input.
enum Piece {
    Bytes(Bytes),
    End,
}

/// The host's end of the input.
struct Source<'a, S> {
    stream: &'a mut CallStream<S, Input>,
    /// What was read and not returned.
    ahead: VecDeque<Piece>,
    /// Number of bytes ahead.
    bytes: usize,
    /// Whether the end of the input was read.
    is_complete: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Source<'_, S> {
    /// Returns the next part. `None`: the host has left, or does not follow the protocol.
    async fn next(&mut self) -> Option<Piece> {
        if self.ahead.is_empty() {
            self.read().await?;
        }
        let piece = self.ahead.pop_front()?;
        if let Piece::Bytes(bytes) = &piece {
            self.bytes -= bytes.len();
        }
        Some(piece)
    }

    /// Reads ahead and returns when the host has left before the end of the input. Never returns when it has sent the end, or
    /// more than may be read ahead.
    async fn host_gone(&mut self) {
        if !self.read_ahead().await {
            std::future::pending().await
        }
    }

    /// The same, and returns if another request waits while this one may not read on: the host sends one at a time, so the client
    /// of this one has left.
    async fn host_gone_or_replaced(&mut self, input: &CommandInput) {
        match self.read_ahead().await {
            true => {}
            false if self.is_complete => std::future::pending().await,
            false => input.wanted().await,
        }
    }

    /// Reads as far as this may be. Returns whether the host has left before the end of the input.
    async fn read_ahead(&mut self) -> bool {
        while !self.is_complete && self.bytes < MAX_BYTES_AHEAD {
            if self.read().await.is_none() {
                return true;
            }
        }
        false
    }

    async fn read(&mut self) -> Option<()> {
        let piece = match self.stream.next().await {
            Some(Ok(Frame::Output(OutputStream::Stdout, bytes))) => {
                self.bytes += bytes.len();
                Piece::Bytes(bytes)
            }
            Some(Ok(Frame::Control(InputEnd::Finished))) => {
                self.is_complete = true;
                Piece::End
            }
            _ => return None,
        };
        self.ahead.push_back(piece);
        Some(())
    }
}
