//! Accepts clients' connections and reads their requests.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, FrameCodec};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::codec::Framed;

use super::driver::{Inbox, Message};
use super::state::Epoch;
use crate::dir;
use crate::protocol::{
    GENERATION, Greeting, Legacy, Opening, Reply, Request, ServerStream, VERSION, other_version,
};

/// Time limit for a client to send its request; clients are local pyro processes.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a client could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts clients of this epoch and passes on their requests, forever.
pub(super) async fn accept(listener: UnixListener, epoch: Epoch, inbox: Inbox) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let inbox = inbox.clone();
                tokio::task::spawn_local(async move {
                    if let Ok(Some((request, client))) =
                        tokio::time::timeout(REQUEST_LIMIT, receive(client)).await
                    {
                        inbox.post(Message::Client(epoch, Box::new(request), client));
                    }
                });
            }
            Err(error) => {
                dir::bound_log();
                tracing::error!(%error, "a client cannot be served");
                // The process has run out of descriptors, and no event reports when that changes.
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Greets a client and reads its request. `None`: no request can be served, and the client has been notified.
pub(super) async fn receive(stream: UnixStream) -> Option<(Request, ServerStream)> {
    let mut stream: Framed<_, FrameCodec<Value, Opening>> = Framed::new(stream, FrameCodec::default());
    let first = next(&mut stream).await?;
    let Ok(Opening::Hello(hello)) = serde_json::from_value(first.clone()) else {
        return receive_legacy(first, stream.map_codec(|_| FrameCodec::default())).await;
    };
    stream.send(Frame::Control(Opening::Hello(Greeting::own()))).await.ok()?;
    if hello.generation != GENERATION {
        return None;
    }
    let request = next(&mut stream).await?;
    let mut stream: ServerStream = stream.map_codec(|_| FrameCodec::default());
    match serde_json::from_value(request) {
        Ok(request) => Some((request, stream)),
        Err(_) => {
            let _ = stream.send(Frame::Control(Reply::Unknown(Greeting::own()))).await;
            None
        }
    }
}

async fn receive_legacy(first: Value, mut stream: ServerStream) -> Option<(Request, ServerStream)> {
    let legacy = serde_json::from_value::<Legacy>(first).ok();
    if let Some(request) = legacy.clone().and_then(Legacy::modern) {
        return Some((request, stream));
    }
    let cause = other_version(Some(VERSION));
    if let Some(Legacy::Guest) = legacy {
        // Such a client takes this for the guest's answer, in the format of its version.
        let answer = json!({ "not_started": { "step": "reaching the guest", "errno": 0, "cause": cause } });
        let mut stream: Framed<_, FrameCodec<(), Value>> = stream.map_codec(|_| FrameCodec::default());
        let _ = stream.send(Frame::Control(answer)).await;
    } else {
        let _ = stream.send(Frame::Control(Reply::Refused { cause })).await;
    }
    None
}

async fn next(stream: &mut Framed<UnixStream, FrameCodec<Value, Opening>>) -> Option<Value> {
    match stream.next().await? {
        Ok(Frame::Control(value)) => Some(value),
        _ => None,
    }
}
