//! Passes input on to a command, no faster than the command reads it.

use std::io;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, Input, InputEnd, InputReply, OutputStream};
use tokio::io::{AsyncRead, AsyncWrite};

use super::running::{InputTarget, Running, Steering};
use crate::failure::failed;
use crate::stream::CallStream;

/// Writes the stream's bytes to the command's input, and answers how that went.
pub(crate) async fn serve<S>(Input { command }: Input, running: &Running, mut stream: CallStream<S, Input>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let reply = match running.find(command).await {
        None => Some(InputReply::NotRunning),
        Some(steering) => feed(&steering, &mut stream).await,
    };
    let Some(reply) = reply else { return };
    if stream.send(Frame::Control(reply)).await.is_ok() && stream.close().await.is_ok() {
        // What the host has sent meanwhile must not reset the stream before it reads the reply.
        while let Some(Ok(_)) = stream.next().await {}
    }
}

/// Returns the reply, or `None` when the host has left before the end of the input.
async fn feed<S>(steering: &Steering, stream: &mut CallStream<S, Input>) -> Option<InputReply>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(mut target) = steering.input.try_lock() else { return Some(InputReply::Busy) };
    loop {
        let frame = tokio::select! {
            biased;
            () = steering.ended.cancelled() => return Some(InputReply::Closed),
            () = target.reader_gone() => {
                *target = InputTarget::Closed;
                return Some(InputReply::Closed);
            }
            frame = stream.next() => frame,
        };
        match frame {
            Some(Ok(Frame::Output(OutputStream::Stdout, bytes))) => {
                let written = tokio::select! {
                    biased;
                    written = target.write(&bytes) => written,
                    () = steering.ended.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
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
            Some(Ok(Frame::Control(InputEnd::Finished))) => {
                if let InputTarget::Pipe(_) = *target {
                    *target = InputTarget::Closed;
                }
                return Some(InputReply::Taken);
            }
            // A host that leaves, or does not follow the protocol.
            _ => return None,
        }
    }
}
