//! Progress notifications for a client that waits for a call.

use std::time::Duration;

use pyro_api::{Event, Events, PullEvent, text};
use rmcp::RoleServer;
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::Peer;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Maximum time between notifications: clients give up after 60 seconds without one, some earlier.
const SILENCE: Duration = Duration::from_secs(4);
/// Minimum time between two notifications, to limit their number.
const PAUSE: Duration = Duration::from_millis(250);
/// Number of events that can be queued before the engine has to wait.
const EVENTS_AHEAD: usize = 64;
/// Maximum length of a line of output in a notification, in characters.
const LINE_CHARS: usize = 200;

/// Returns the sender of a call's events, and their receiver if the client asked for progress.
pub(crate) fn channel(token: Option<ProgressToken>) -> (Events, Option<Listener>) {
    match token {
        None => (Events::none(), None),
        Some(token) => {
            let (sender, events) = mpsc::channel(EVENTS_AHEAD);
            (Events::to(sender), Some(Listener { token, events }))
        }
    }
}

/// The events of one call, for a client.
pub(crate) struct Listener {
    token: ProgressToken,
    events: mpsc::Receiver<Event>,
}

/// Awaits `call` and sends its events to `peer` meanwhile.
pub(crate) async fn during<T>(
    call: impl Future<Output = T>,
    listener: Option<Listener>,
    peer: &Peer<RoleServer>,
) -> T {
    let Some(Listener { token, events }) = listener else { return call.await };
    let mut notifier = Notifier::new(peer, token);
    tokio::select! {
        result = call => result,
        never = notifier.run(events) => match never {},
    }
}

struct Notifier<'a> {
    peer: &'a Peer<RoleServer>,
    token: ProgressToken,
    begun: Instant,
    sent: Option<Instant>,
    message: String,
}

impl<'a> Notifier<'a> {
    fn new(peer: &'a Peer<RoleServer>, token: ProgressToken) -> Self {
        Self { peer, token, begun: Instant::now(), sent: None, message: "working".to_owned() }
    }

    async fn run(&mut self, mut events: mpsc::Receiver<Event>) -> std::convert::Infallible {
        let mut open = true;
        loop {
            let silent = tokio::time::sleep_until(self.sent.unwrap_or(self.begun) + SILENCE);
            tokio::select! {
                event = events.recv(), if open => match event {
                    Some(event) => if self.note(event) && self.may_send() { self.send().await },
                    None => open = false,
                },
                () = silent => self.send().await,
            }
        }
    }

    /// Takes an event as the next message. Returns false if it has no text.
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

    fn may_send(&self) -> bool {
        self.sent.is_none_or(|sent| sent.elapsed() >= PAUSE)
    }

    async fn send(&mut self) {
        self.sent = Some(Instant::now());
        // Elapsed seconds: progress must increase, and the total is unknown.
        let progress = self.begun.elapsed().as_secs_f64();
        let notification =
            ProgressNotificationParam::new(self.token.clone(), progress).with_message(self.message.clone());
        // A lost connection is handled by the server.
        let _ = self.peer.notify_progress(notification).await;
    }
}

/// The last line of output with something in it, fit for one line of a display.
fn last_line(bytes: &[u8]) -> Option<String> {
    let output = String::from_utf8_lossy(bytes);
    let line = output.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|character| !text::steers(*character)).take(LINE_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_with_something_in_it_is_shown() {
        assert_eq!(last_line(b"one\n two \x1b[31m\n\n  \n").as_deref(), Some("two [31m"));
        assert_eq!(last_line("a\u{202e}b\u{2066}c\u{200b}d".as_bytes()).as_deref(), Some("abcd"));
        assert_eq!(last_line(b"\n \n"), None);
        assert_eq!(last_line(&[b'x'; 500]).unwrap().len(), LINE_CHARS);
    }
}
