//! Telling a client what happens during its call, no faster than it listens.

use pyro_api::{CallEvent, Event, OutputStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::limits::WINDOW_BYTES;
use crate::message::{self, Id};
use crate::under_way::Control;

/// Tells the events of one call.
pub(crate) struct Teller {
    pub(crate) id: Id,
    pub(crate) control: Control,
    pub(crate) lines: mpsc::Sender<Vec<u8>>,
    /// The server ends, whether the client reads or not.
    pub(crate) closing: CancellationToken,
    /// Bytes of output that were sent.
    pub(crate) sent: u64,
}

impl Teller {
    /// Tells events until the call is `over` and what it had sent is told.
    ///
    /// Output waits for the client to acknowledge earlier output, also after the end of the call, and meanwhile all that
    /// comes after it waits too, so that the engine's channel fills and the command waits as it would for a full pipe. Cancelling the
    /// call drops the rest of its output; then nothing waits for the client but its pipe, and not even that when the server ends.
    pub(crate) async fn tell(mut self, mut events: mpsc::Receiver<Event>, over: &CancellationToken) {
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
                // The other end is kept as long as the call is under way.
                _ = self.control.acknowledged.wait_for(fits) => {}
            }
            self.sent = after;
            self.send(CallEvent::output(stream, piece)).await;
        }
    }

    async fn send(&self, event: CallEvent) {
        tokio::select! {
            biased;
            // Nobody reads any more: that is noticed elsewhere.
            _ = self.lines.send(message::event(&self.id, event)) => {}
            () = self.closing.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests;
