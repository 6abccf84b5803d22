//! Sends the input of a call on to its command, and gives the client credit for more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use pyro_api::InputEvent;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::limits::WINDOW_BYTES;
use crate::message::{self, Id};

/// Returns the two ends of a queue for the input of one call.
pub(crate) fn queue() -> (Queue, Queued) {
    let shared = Arc::new(Shared::default());
    (Queue(Arc::clone(&shared)), Queued(shared))
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

/// Input that the command has not taken. Pieces are joined, so that many small ones take no more memory than a large one.
#[derive(Debug, Default)]
struct Waiting {
    bytes: BytesMut,
    /// Number of bytes without credit: those that wait, and those that the command is taking.
    unread: u64,
    is_finished: bool,
}

impl Shared {
    /// A panic cannot leave the queue inconsistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the session puts what the client sends. The window bounds it.
#[derive(Debug)]
pub(crate) struct Queue(Arc<Shared>);

/// Why input is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The client has no credit for these bytes.
    #[error("more input than the client may send")]
    WindowExceeded,
    /// The client has ended the input.
    #[error("input after its end")]
    Finished,
}

impl Queue {
    /// Adds bytes, none or some, and the end of the input. Input for a call that is over is dropped.
    pub(crate) fn put(&self, data: &[u8], finished: bool) -> Result<(), Refused> {
        let mut waiting = self.0.lock();
        if waiting.is_finished {
            return Err(Refused::Finished);
        }
        let unread = waiting.unread + data.len() as u64;
        if unread > WINDOW_BYTES {
            return Err(Refused::WindowExceeded);
        }
        waiting.unread = unread;
        waiting.bytes.extend_from_slice(data);
        waiting.is_finished = finished;
        self.0.changed.notify_one();
        Ok(())
    }
}

/// The call's end of a [`Queue`].
#[derive(Debug)]
pub(crate) struct Queued(Arc<Shared>);

impl Queued {
    /// Waits for input and returns all that there is, or else its end.
    async fn next(&self) -> InputEvent {
        loop {
            {
                let mut waiting = self.0.lock();
                if !waiting.bytes.is_empty() {
                    return InputEvent::Data(waiting.bytes.split().freeze());
                }
                if waiting.is_finished {
                    return InputEvent::Finished;
                }
            }
            self.0.changed.notified().await;
        }
    }

    /// The command has taken `length` bytes.
    fn acknowledge(&self, length: u64) {
        self.0.lock().unread -= length;
    }
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

    async fn forward(self, command: mpsc::Sender<InputEvent>) {
        loop {
            let event = self.queued.next().await;
            let length = match &event {
                InputEvent::Data(data) => data.len() as u64,
                _ => 0,
            };
            let is_last = event == InputEvent::Finished;
            if command.send(event).await.is_err() || is_last {
                return;
            }
            if length > 0 {
                self.queued.acknowledge(length);
                // A closed output is handled by the session.
                let _ = self.lines.send(message::credit(&self.id, length)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
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
        for (piece, is_last) in [("one", false), ("two!", true)] {
            queue.put(piece.as_bytes(), is_last).unwrap();
            assert_eq!(command.recv().await, Some(InputEvent::Data(Bytes::from_static(piece.as_bytes()))));
            let credit: Value = serde_json::from_slice(&lines.recv().await.unwrap()).unwrap();
            assert_eq!(credit["method"], "credit");
            assert_eq!(credit["params"], json!({ "id": 7, "bytes": piece.len() }));
        }
        assert_eq!(command.recv().await, Some(InputEvent::Finished));
        sender.await.unwrap();
        assert_eq!((command.recv().await, lines.recv().await), (None, None));
    }

    #[tokio::test]
    async fn a_client_without_credit_is_refused() {
        let Sending { queue, mut lines, mut command, over, sender } = sending();
        let half = vec![0; WINDOW_BYTES as usize / 2];
        for _ in 0..2 {
            queue.put(&half, false).unwrap();
        }
        // It has taken nothing yet.
        assert_eq!(queue.put(b"x", false), Err(Refused::WindowExceeded));
        command.recv().await.unwrap();
        lines.recv().await.unwrap();
        for _ in 0..2 {
            queue.put(&half, false).unwrap();
        }
        assert_eq!(queue.put(b"x", false), Err(Refused::WindowExceeded));
        // The command reads no more; the end of the call ends the sender.
        over.cancel();
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn small_pieces_are_joined_and_the_input_ends_once() {
        let (queue, queued) = queue();
        for _ in 0..1000 {
            queue.put(b"x", false).unwrap();
            queue.put(b"", false).unwrap();
        }
        queue.put(b"", true).unwrap();
        for (data, is_last) in [(&b""[..], true), (b"x", false), (b"", false)] {
            assert_eq!(queue.put(data, is_last), Err(Refused::Finished));
        }
        assert_eq!(queued.next().await, InputEvent::Data(vec![b'x'; 1000].into()));
        assert_eq!(queued.next().await, InputEvent::Finished);
    }

    #[tokio::test]
    async fn a_command_that_takes_no_more_ends_it() {
        let Sending { queue, mut lines, command, sender, .. } = sending();
        drop(command);
        queue.put(b"x", false).unwrap();
        sender.await.unwrap();
        assert_eq!(lines.recv().await, None);
    }
}
