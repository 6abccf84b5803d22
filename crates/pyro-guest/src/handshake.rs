//! The first phase of the channel. In strict alternation, with blocking I/O.

use std::io::{self, Read, Write};

use bytes::BytesMut;
use pyro_wire::{Failure, Frame, FrameCodec, FrameError, GENERATION, Hello, SetupReply, to_label};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{Decoder, Encoder};

use crate::Machine;

/// Why a machine was not set up.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The host closed the channel.
    #[error("the host closed the channel")]
    Closed,
    /// The host sent something other than the one expected message.
    #[error("unexpected message from the host")]
    Unexpected,
    /// The host sent no valid frame.
    #[error("invalid message from the host: {0}")]
    Frame(FrameError),
    /// The channel failed.
    #[error("the channel to the host failed: {0}")]
    Channel(io::Error),
    /// A step of the set-up failed, which was reported to the host.
    #[error(transparent)]
    Step(Failure),
}

/// Greets the host and sets the machine up as the host asks. Afterwards, requests follow on the channel.
///
/// # Errors
/// [`HandshakeError`]. The machine is then unusable.
pub async fn set_up<C: Read + Write, M: Machine>(
    channel: &mut C,
    machine: &mut M,
) -> Result<(), HandshakeError> {
    send(channel, hello())?;
    let preparation = receive(channel)?;
    answer(channel, machine.prepare(&preparation).await)?;
    // A restored machine wakes up here, with all that it has read and mounted so far.
    let bootstrap = receive(channel)?;
    answer(channel, machine.apply(&bootstrap).await)
}

fn hello() -> Hello {
    Hello {
        generation: GENERATION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: to_label(&rustix::system::uname().release().to_string_lossy()),
    }
}

/// Waits for the host's next message. Nothing may follow it before it is answered.
fn receive<M: DeserializeOwned>(channel: &mut impl Read) -> Result<M, HandshakeError> {
    let mut codec = FrameCodec::<M, ()>::default();
    let mut buffer = BytesMut::new();
    loop {
        match codec.decode(&mut buffer) {
            Ok(Some(Frame::Control(message))) if buffer.is_empty() => return Ok(message),
            Ok(Some(_)) => return Err(HandshakeError::Unexpected),
            Ok(None) => {}
            Err(error) => return Err(HandshakeError::Frame(error)),
        }
        let mut chunk = [0; 4096];
        match channel.read(&mut chunk) {
            Ok(0) => return Err(HandshakeError::Closed),
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(HandshakeError::Channel(error)),
        }
    }
}

/// Reports to the host how a step of the set-up went.
fn answer(channel: &mut impl Write, outcome: Result<(), Failure>) -> Result<(), HandshakeError> {
    match outcome {
        Ok(()) => send(channel, SetupReply::Done),
        Err(failure) => {
            send(channel, SetupReply::Failed(failure.clone()))?;
            Err(HandshakeError::Step(failure))
        }
    }
}

fn send<M: Serialize>(channel: &mut impl Write, message: M) -> Result<(), HandshakeError> {
    let mut bytes = BytesMut::new();
    FrameCodec::<(), M>::default()
        .encode(Frame::Control(message), &mut bytes)
        .map_err(HandshakeError::Frame)?;
    channel.write_all(&bytes).map_err(HandshakeError::Channel)
}
