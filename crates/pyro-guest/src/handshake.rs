//! The first phase of the channel: hello, bootstrap, ready. Strictly in turn, with blocking I/O.

use std::fs::File;
use std::io::{Read, Write};

use bytes::BytesMut;
use pyro_wire::{Bootstrap, BootstrapReply, Frame, FrameCodec, GENERATION, Hello};
use serde::Serialize;
use tokio_util::codec::{Decoder, Encoder};

use crate::fault::{During, Fault};

/// Greets the host and waits for its answer.
pub(crate) fn greet(channel: &mut File) -> Result<Bootstrap, Fault> {
    let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
    let agent_version = env!("CARGO_PKG_VERSION").to_owned();
    send(channel, Hello { generation: GENERATION, agent_version, kernel_release })?;

    let step = "receiving the bootstrap message";
    let mut codec = FrameCodec::<Bootstrap, ()>::default();
    let mut buffer = BytesMut::new();
    loop {
        match codec.decode(&mut buffer) {
            Ok(Some(Frame::Control(bootstrap))) if buffer.is_empty() => return Ok(bootstrap),
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

/// Tells the host whether requests may follow.
pub(crate) fn answer(channel: &mut File, reply: BootstrapReply) -> Result<(), Fault> {
    send(channel, reply)
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
