//! What a caller sends to a command while it runs.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::TerminalSize;

/// One thing that a caller sends to a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputEvent {
    /// Bytes for its standard input; any bytes, cut anywhere.
    Data(Bytes),
    /// Its standard input ends. Without this, it stays open when the sender goes, for a later `input_task`.
    Finished,
    /// Its terminal has this size now.
    Resize(TerminalSize),
}

/// Where a call gets the input of its command.
///
/// The channel is bounded, so a command that does not read slows the sender down. The call that uses the input takes
/// it; clones share it, so it is used once.
#[derive(Debug, Clone, Default)]
pub struct Input(Option<Arc<Mutex<Option<mpsc::Receiver<InputEvent>>>>>);

impl Input {
    /// The caller sends nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// The caller sends through the sender of `events`. [`mpsc::Sender::closed`] tells it that the command takes no more.
    pub fn from(events: mpsc::Receiver<InputEvent>) -> Self {
        Self(Some(Arc::new(Mutex::new(Some(events)))))
    }

    /// Takes the receiver. `None` if the caller sends nothing, or another call took it.
    pub fn take(&self) -> Option<mpsc::Receiver<InputEvent>> {
        let shared = self.0.as_ref()?;
        shared.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_input_is_taken_once_and_its_sender_sees_that_it_is_dropped() {
        let (sender, receiver) = mpsc::channel(1);
        let input = Input::from(receiver);
        let mut taken = input.clone().take().unwrap();
        assert!(input.take().is_none() && Input::none().take().is_none());
        sender.send(InputEvent::Finished).await.unwrap();
        assert_eq!(taken.recv().await, Some(InputEvent::Finished));
        drop(taken);
        sender.closed().await;
    }
}
