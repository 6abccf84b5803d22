//! Requests of clients: how the state machine sees them, and how they are served.

use std::time::Duration;

use futures::SinkExt;
use pyro_wire::Frame;
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_util::codec::FramedParts;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::Driver;
use crate::mux::Streams;
use crate::protocol::{Reply, Request, ServerStream};
use crate::server::state::{self, ClientId, Refusal};
use crate::server::{Boot, Clock, Store};

/// Time limit for a client to take a reply of a few bytes.
const REPLY_LIMIT: Duration = Duration::from_secs(3);

impl<'a, B: Boot + 'a, S: Store + 'static, C: Clock> Driver<'a, B, S, C> {
    /// Serves the client's request.
    pub(super) fn admit(&mut self, client: ClientId) {
        let Some((request, client)) = self.clients.remove(&client) else { return };
        let Some(commands) = self.commands.clone() else { return };
        let streams = self.streams.clone();
        spawn_local(async move {
            match request {
                Request::Copy => {
                    if let Some(streams) = streams {
                        join_guest(client, &streams).await;
                    }
                }
                Request::Run { exec, journal, detach } => commands.run(exec, journal, detach, client).await,
                Request::Watch { sequence, output } => commands.watch(sequence, output, client).await,
                Request::Kill { sequence } => commands.kill(sequence, client).await,
                Request::Claim(_)
                | Request::Cancel
                | Request::Extend { .. }
                | Request::Stop
                | Request::Delete
                | Request::Expire => {}
            }
        });
    }

    pub(super) async fn refuse(&mut self, client: ClientId, refusal: Refusal) {
        self.reply(client, Reply::Refused { cause: refusal.text().to_owned() }).await;
    }

    /// Sends the last reply to a client.
    pub(super) async fn reply(&mut self, client: ClientId, message: Reply) {
        if let Some((_, client)) = self.clients.remove(&client) {
            reply(client, message).await;
        }
    }
}

/// Translates a request for the state machine; `None` if it belongs to another VM.
pub(super) fn kind(request: &Request) -> Option<state::Request> {
    Some(match request {
        Request::Copy | Request::Run { .. } => state::Request::Work,
        Request::Watch { .. } | Request::Kill { .. } => state::Request::Look,
        Request::Claim(_) => state::Request::Claim,
        Request::Extend { .. } => state::Request::Extend,
        Request::Stop => state::Request::Stop,
        Request::Delete => state::Request::Delete,
        Request::Expire => state::Request::Expire,
        Request::Cancel => return None,
    })
}

impl Refusal {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Starting => "the VM is still being started",
            Self::Stopping => "the VM is being stopped",
            Self::Unclaimed => "the VM waits to be claimed",
            Self::Claimed => "the VM has been claimed already",
        }
    }
}

/// Connects the client with the guest for one request.
async fn join_guest(mut client: ServerStream, streams: &Streams) {
    let (stream, _permit) = match streams.open().await {
        Ok(open) => open,
        Err(error) => return reply(client, Reply::Refused { cause: error.to_string() }).await,
    };
    let accepted = timeout(REPLY_LIMIT, client.send(Frame::Control(Reply::Done))).await;
    let Ok(Ok(())) = accepted else { return };
    let FramedParts { io: mut client, read_buf, .. } = client.into_parts();
    let mut guest = stream.compat();
    if guest.write_all(&read_buf).await.is_ok() {
        // Either side closing ends the request; both ends see what went wrong.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut guest).await;
    }
}

/// Sends a reply to a client, which may have disconnected or may not read.
async fn reply(mut client: ServerStream, reply: Reply) {
    let _ = timeout(REPLY_LIMIT, client.send(Frame::Control(reply))).await;
}
