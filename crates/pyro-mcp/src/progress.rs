//! Telling a client that waits how far its call is.

use std::time::Duration;

use pyro_api::{Event, Events, PullEvent};
use rmcp::RoleServer;
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::Peer;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Longest silence while a call goes on: clients give up after 60 seconds without a word, some earlier.
const SILENCE: Duration = Duration::from_secs(4);
/// Shortest time between two messages: more would only cost.
const PAUSE: Duration = Duration::from_millis(250);
/// Events that may wait to be told before the engine has to wait.
const EVENTS_AHEAD: usize = 64;
/// Longest line of output in a message, in characters.
const LINE_CHARS: usize = 200;

/// Where a call sends its events, and where they are told to a client that asked for that.
pub(crate) fn channel(token: Option<ProgressToken>) -> (Events, Option<Listener>) {
    match token {
        None => (Events::none(), None),
        Some(token) => {
            let (sender, events) = mpsc::channel(EVENTS_AHEAD);
            (Events::to(sender), Some(Listener { token, events }))
        }
    }
}

/// The events of one call, on their way to a client.
pub(crate) struct Listener {
    token: ProgressToken,
    events: mpsc::Receiver<Event>,
}

/// Carries out `call` and tells `peer` of its events meanwhile.
pub(crate) async fn during<T>(
    call: impl Future<Output = T>,
    listener: Option<Listener>,
    peer: &Peer<RoleServer>,
) -> T {
    let Some(Listener { token, events }) = listener else { return call.await };
    let mut teller = Teller::new(peer, token);
    tokio::select! {
        result = call => result,
        never = teller.tell(events) => match never {},
    }
}

struct Teller<'a> {
    peer: &'a Peer<RoleServer>,
    token: ProgressToken,
    begun: Instant,
    told: Option<Instant>,
    message: String,
}

impl<'a> Teller<'a> {
    fn new(peer: &'a Peer<RoleServer>, token: ProgressToken) -> Self {
        Self { peer, token, begun: Instant::now(), told: None, message: "working".to_owned() }
    }

    async fn tell(&mut self, mut events: mpsc::Receiver<Event>) -> std::convert::Infallible {
        let mut open = true;
        loop {
            let silent = tokio::time::sleep_until(self.told.unwrap_or(self.begun) + SILENCE);
            tokio::select! {
                event = events.recv(), if open => match event {
                    Some(event) => if self.note(event) && self.may_speak() { self.speak().await },
                    None => open = false,
                },
                () = silent => self.speak().await,
            }
        }
    }

    /// Takes an event as what is to be told next. False: it says nothing.
    fn note(&mut self, event: Event) -> bool {
        self.message = match event {
            Event::Phase(phase) => phase.to_string(),
            Event::Pull(PullEvent::Started { environment }) => format!("installing {environment}"),
            Event::Pull(PullEvent::Ready { environment }) => format!("{environment} is installed"),
            Event::Pull(PullEvent::Step { text, done, total: 0 }) => format!("{text} {done}"),
            Event::Pull(PullEvent::Step { text, done, total }) => format!("{text} {done}/{total}"),
            Event::FirstOfKind => "starting the first VM of its kind; later ones start faster".to_owned(),
            Event::Warning(text) => text,
            Event::Output { bytes, .. } => match last_line(&bytes) {
                Some(line) => line,
                None => return false,
            },
        };
        true
    }

    fn may_speak(&self) -> bool {
        self.told.is_none_or(|told| told.elapsed() >= PAUSE)
    }

    async fn speak(&mut self) {
        self.told = Some(Instant::now());
        // Seconds: the one number that is known to grow.
        let progress = self.begun.elapsed().as_secs_f64();
        let told =
            ProgressNotificationParam::new(self.token.clone(), progress).with_message(self.message.clone());
        // A client that has gone away is noticed elsewhere.
        let _ = self.peer.notify_progress(told).await;
    }
}

/// The last line of output with something in it, fit for one line of a display.
fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|character| !character.is_control()).take(LINE_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_with_something_in_it_is_shown() {
        assert_eq!(last_line(b"one\n two \x1b[31m\n\n  \n").as_deref(), Some("two [31m"));
        assert_eq!(last_line(b"\n \n"), None);
        assert_eq!(last_line(&[b'x'; 500]).unwrap().len(), LINE_CHARS);
    }
}
