//! The first phase of the channel. Strictly in turn, with blocking I/O.

use std::fs::File;
use std::io::{Read, Write};

use bytes::BytesMut;
use pyro_wire::{Frame, FrameCodec, GENERATION, Hello, SetupReply};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{Decoder, Encoder};

use crate::fault::{During, Fault};

/// Greets the host.
pub(crate) fn greet(channel: &mut File) -> Result<(), Fault> {
    let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
    let agent_version = env!("CARGO_PKG_VERSION").to_owned();
    send(channel, Hello { generation: GENERATION, agent_version, kernel_release })
}

/// Waits for the host's next message.
pub(crate) fn receive<M: DeserializeOwned>(channel: &mut File) -> Result<M, Fault> {
    let step = "receiving the host's message";
    let mut codec = FrameCodec::<M, ()>::default();
    let mut buffer = BytesMut::new();
    loop {
        match codec.decode(&mut buffer) {
            Ok(Some(Frame::Control(message))) if buffer.is_empty() => return Ok(message),
            Ok(Some(_)) => return Err(Fault { step: step.into(), cause: "out of turn".into(), errno: 0 }),
            Ok(None) => {}
            Err(error) => return Err(Fault { step: step.into(), cause: error.to_string(), errno: 0 }),
        }
        let mut chunk = [0; 4096];
        let count = channel.read(&mut chunk).during(step)?;
        if count == 0 {
            return Err(Fault { step: step.into(), cause: "the host closed the channel".into(), errno: 0 });
        }
        buffer.extend_from_slice(&chunk[..count]);
    }
}

/// Tells the host how a step of the set-up went, and hands the outcome on.
pub(crate) fn answer<T>(channel: &mut File, outcome: Result<T, Fault>) -> Result<T, Fault> {
    let reply = match &outcome {
        Ok(_) => SetupReply::Done,
        Err(fault) => SetupReply::Refused { step: fault.step.clone(), cause: fault.cause.clone() },
    };
    send(channel, reply)?;
    outcome
}

fn send<M: Serialize>(channel: &mut File, message: M) -> Result<(), Fault> {
    let mut bytes = BytesMut::new();
    FrameCodec::<(), M>::default().encode(Frame::Control(message), &mut bytes).map_err(|error| Fault {
        step: "encoding".into(),
        cause: error.to_string(),
        errno: 0,
    })?;
    channel.write_all(&bytes).during("writing to the host")
}
