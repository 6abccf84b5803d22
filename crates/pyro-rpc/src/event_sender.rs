//! Sends the events of a call to the client, no faster than the client acknowledges output.

use pyro_api::{CallEvent, Event, OutputStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::in_flight::Control;
use crate::limits::WINDOW_BYTES;
use crate::message::{self, Id};

/// Sends the events of one call.
pub(crate) struct EventSender {
    pub(crate) id: Id,
    pub(crate) control: Control,
    pub(crate) lines: mpsc::Sender<Vec<u8>>,
    /// Cancelled when the server ends, whether the client reads or not.
    pub(crate) closing: CancellationToken,
    /// Number of bytes of output that were sent.
    pub(crate) sent: u64,
}

impl EventSender {
    /// Sends events until the call is `over` and all of its events are sent.
    ///
    /// Output waits until the client has acknowledged earlier output, also after the end of the call. Later events wait
    /// behind it, so that the engine's channel fills and the command blocks, as on a full pipe. Cancelling the call drops the
    /// rest of its output; other events then wait only for the client's pipe, and for nothing once the server ends.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>, over: &CancellationToken) {
        loop {
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some(Event::Output { stream, bytes }) => self.output(stream, &bytes).await,
                    Some(event) => self.send(event.into()).await,
                    None => return,
                },
                () = over.cancelled(), if !events.is_closed() => events.close(),
            }
        }
    }

    async fn output(&mut self, stream: OutputStream, bytes: &[u8]) {
        for piece in bytes.chunks(WINDOW_BYTES as usize) {
            let after = self.sent + piece.len() as u64;
            let fits = |acknowledged: &u64| after.saturating_sub(*acknowledged) <= WINDOW_BYTES;
            tokio::select! {
                biased;
                () = self.control.cancel.cancelled() => return,
                // The sender exists as long as the call is in flight.
                _ = self.control.acknowledged.wait_for(fits) => {}
            }
            self.sent = after;
            self.send(CallEvent::output(stream, piece)).await;
        }
    }

    async fn send(&self, event: CallEvent) {
        tokio::select! {
            biased;
            // A closed output is handled by the session.
            _ = self.lines.send(message::event(&self.id, event)) => {}
            () = self.closing.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests;
