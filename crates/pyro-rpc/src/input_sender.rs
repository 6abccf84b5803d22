//! Sends the input of a call on to its command, and tells the client how much more it may send.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use pyro_api::InputEvent;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::limits::WINDOW_BYTES;
use crate::message::{self, Id};

/// Returns the two ends of a queue for the input of one call.
pub(crate) fn queue() -> (Queue, Queued) {
    let (sender, events) = mpsc::unbounded_channel();
    let unread = Arc::new(AtomicU64::new(0));
    (Queue { sender, unread: Arc::clone(&unread) }, Queued { events, unread })
}

/// Where the session puts what the client sends. The window bounds it.
#[derive(Debug)]
pub(crate) struct Queue {
    sender: mpsc::UnboundedSender<InputEvent>,
    unread: Arc<AtomicU64>,
}

/// What the client sent more than it may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WindowExceeded;

impl Queue {
    /// Adds bytes, none or some, and the end of the input. Input for a call that is over is dropped.
    pub(crate) fn put(&self, data: Bytes, finished: bool) -> Result<(), WindowExceeded> {
        let length = data.len() as u64;
        if self.unread.fetch_add(length, Ordering::AcqRel) + length > WINDOW_BYTES {
            return Err(WindowExceeded);
        }
        if !data.is_empty() {
            let _ = self.sender.send(InputEvent::Data(data));
        }
        if finished {
            let _ = self.sender.send(InputEvent::Finished);
        }
        Ok(())
    }
}

/// The call's end of a [`Queue`].
#[derive(Debug)]
pub(crate) struct Queued {
    events: mpsc::UnboundedReceiver<InputEvent>,
    unread: Arc<AtomicU64>,
}

/// Sends the input of one call.
pub(crate) struct InputSender {
    pub(crate) id: Id,
    pub(crate) queued: Queued,
    pub(crate) lines: mpsc::Sender<Vec<u8>>,
}

impl InputSender {
    /// Sends input to `command` until it ends, the command takes no more, or the call is `over`. The client gets credit for what
    /// the command has taken; without more credit it waits, as on a full pipe.
    pub(crate) async fn run(self, command: mpsc::Sender<InputEvent>, over: &CancellationToken) {
        tokio::select! {
            biased;
            () = over.cancelled() => {}
            () = self.forward(command) => {}
        }
    }

    async fn forward(mut self, command: mpsc::Sender<InputEvent>) {
        while let Some(event) = self.queued.events.recv().await {
            let length = match &event {
                InputEvent::Data(data) => data.len() as u64,
                _ => 0,
            };
            let is_last = event == InputEvent::Finished;
            if command.send(event).await.is_err() || is_last {
                return;
            }
            if length > 0 {
                self.queued.unread.fetch_sub(length, Ordering::AcqRel);
                // A closed output is handled by the session.
                let _ = self.lines.send(message::credit(&self.id, length)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    struct Sending {
        queue: Queue,
        lines: mpsc::Receiver<Vec<u8>>,
        command: mpsc::Receiver<InputEvent>,
        over: CancellationToken,
        sender: tokio::task::JoinHandle<()>,
    }

    fn sending() -> Sending {
        let (queue, queued) = queue();
        let (to_client, lines) = mpsc::channel(8);
        let (to_command, command) = mpsc::channel(1);
        let over = CancellationToken::new();
        let sender = InputSender { id: Id::Number(7), queued, lines: to_client };
        let sender = tokio::spawn({
            let over = over.clone();
            async move { sender.run(to_command, &over).await }
        });
        Sending { queue, lines, command, over, sender }
    }

    #[tokio::test]
    async fn input_arrives_in_order_and_gives_credit() {
        let Sending { queue, mut lines, mut command, sender, .. } = sending();
        queue.put(Bytes::from_static(b"one"), false).unwrap();
        queue.put(Bytes::from_static(b"two!"), true).unwrap();
        for expected in ["one", "two!"] {
            assert_eq!(command.recv().await, Some(InputEvent::Data(Bytes::from_static(expected.as_bytes()))));
            let credit: Value = serde_json::from_slice(&lines.recv().await.unwrap()).unwrap();
            assert_eq!(credit["method"], "credit");
            assert_eq!(credit["params"], json!({ "id": 7, "bytes": expected.len() }));
        }
        assert_eq!(command.recv().await, Some(InputEvent::Finished));
        sender.await.unwrap();
        assert_eq!((command.recv().await, lines.recv().await), (None, None));
    }

    #[tokio::test]
    async fn a_client_without_credit_is_refused() {
        let Sending { queue, mut lines, mut command, over, sender } = sending();
        let half = Bytes::from(vec![0; WINDOW_BYTES as usize / 2]);
        for _ in 0..2 {
            queue.put(half.clone(), false).unwrap();
        }
        command.recv().await.unwrap();
        lines.recv().await.unwrap();
        command.recv().await.unwrap();
        lines.recv().await.unwrap();
        for _ in 0..2 {
            queue.put(half.clone(), false).unwrap();
        }
        assert_eq!(queue.put(Bytes::from_static(b"x"), false), Err(WindowExceeded));
        // The command reads no more; the end of the call ends the sender.
        over.cancel();
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn a_command_that_takes_no_more_ends_it() {
        let Sending { queue, mut lines, command, sender, .. } = sending();
        drop(command);
        queue.put(Bytes::from_static(b"x"), false).unwrap();
        sender.await.unwrap();
        assert_eq!(lines.recv().await, None);
    }
}
