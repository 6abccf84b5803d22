//! Progress notifications for a client that waits for a call.

use std::pin::Pin;
use std::time::Duration;

use pyro_api::{Event, Events, OutputStream, PullEvent, text};
use rmcp::RoleServer;
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::Peer;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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

/// Awaits `call` and sends its events to `peer` meanwhile. All of them are written before this returns, because clients ignore
/// progress after the answer. Once the client has `cancelled` the call, it is sent nothing.
pub(crate) async fn during<T>(
    call: impl Future<Output = T>,
    listener: Option<Listener>,
    peer: &Peer<RoleServer>,
    cancelled: &CancellationToken,
) -> T {
    let Some(Listener { token, events }) = listener else { return call.await };
    let send = async |notification| {
        tokio::select! {
            biased;
            () = cancelled.cancelled() => {}
            // A lost connection is handled by the server.
            _ = peer.notify_progress(notification) => {}
        }
    };
    Notifier::new(token).during(call, events, &send).await
}

struct Notifier {
    token: ProgressToken,
    begun: Instant,
    sent: Option<Instant>,
    message: String,
    /// The message was not sent yet.
    is_new: bool,
    /// Incomplete characters at the ends of the two streams.
    stdout: Characters,
    stderr: Characters,
}

impl Notifier {
    fn new(token: ProgressToken) -> Self {
        Self {
            token,
            begun: Instant::now(),
            sent: None,
            message: "working".to_owned(),
            is_new: false,
            stdout: Characters::default(),
            stderr: Characters::default(),
        }
    }

    async fn during<T, S: AsyncFn(ProgressNotificationParam)>(
        mut self,
        call: impl Future<Output = T>,
        mut events: mpsc::Receiver<Event>,
        send: &S,
    ) -> T {
        let mut call = std::pin::pin!(call);
        // Never dropped before its end: rmcp may already have the notification, and would then write it after the answer.
        let mut sending = None;
        let mut open = true;
        let result = loop {
            tokio::select! {
                result = &mut call => break result,
                () = end_of(&mut sending) => {}
                event = events.recv(), if open => match event {
                    Some(event) => self.note(event),
                    None => open = false,
                },
                () = tokio::time::sleep_until(self.due()), if sending.is_none() => {
                    sending = Some(Box::pin(send(self.next())));
                }
            }
        };
        // What the call reported just before its end.
        while let Ok(event) = events.try_recv() {
            self.note(event);
        }
        if sending.is_some() {
            end_of(&mut sending).await;
        }
        if self.is_new {
            send(self.next()).await;
        }
        result
    }

    /// Returns when to send the next notification.
    fn due(&self) -> Instant {
        match (self.is_new, self.sent) {
            (true, None) => self.begun,
            (true, Some(sent)) => sent + PAUSE,
            (false, sent) => sent.unwrap_or(self.begun) + SILENCE,
        }
    }

    /// Takes an event as the next message, if it has a text.
    fn note(&mut self, event: Event) {
        self.message = match event {
            Event::Phase(phase) => phase.to_string(),
            Event::Pull(PullEvent::Started { environment }) => format!("installing {environment}"),
            Event::Pull(PullEvent::Ready { environment }) => format!("{environment} is installed"),
            Event::Pull(PullEvent::Step { text, done, total: 0 }) => format!("{text} {done}"),
            Event::Pull(PullEvent::Step { text, done, total }) => format!("{text} {done}/{total}"),
            Event::FirstOfKind => "starting the first VM of its kind; later ones start faster".to_owned(),
            Event::Starting { step, seconds } => format!("{step} ({seconds} s)"),
            Event::Watching => "watching".to_owned(),
            Event::FileChange(change) => format!("{} {}", change.change, change.path)
                .chars()
                .filter(|character| !text::steers(*character))
                .take(LINE_CHARS)
                .collect(),
            Event::Warning(text) => text,
            Event::Output { stream, bytes } => {
                let characters = match stream {
                    OutputStream::Stdout => &mut self.stdout,
                    OutputStream::Stderr => &mut self.stderr,
                };
                match last_line(&characters.decode(&bytes)) {
                    Some(line) => line,
                    None => return,
                }
            }
        };
        self.is_new = true;
    }

    /// Returns the notification to send now.
    fn next(&mut self) -> ProgressNotificationParam {
        self.sent = Some(Instant::now());
        self.is_new = false;
        // Elapsed seconds: progress must increase, and the total is unknown.
        let progress = self.begun.elapsed().as_secs_f64();
        ProgressNotificationParam::new(self.token.clone(), progress).with_message(self.message.clone())
    }
}

/// Awaits the future, if there is one, and removes it. Without one, this never ends.
async fn end_of<F: Future<Output = ()>>(future: &mut Option<Pin<Box<F>>>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
    *future = None;
}

/// Turns the pieces of an output stream into text. A piece can end within a character, which then belongs to the next one.
#[derive(Debug, Default)]
struct Characters {
    /// The beginning of a character.
    rest: Vec<u8>,
}

impl Characters {
    fn decode(&mut self, piece: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.rest);
        bytes.extend_from_slice(piece);
        let is_incomplete = |length: &usize| {
            let end = bytes.len().checked_sub(*length).map(|start| std::str::from_utf8(&bytes[start..]));
            matches!(end, Some(Err(error)) if error.valid_up_to() == 0 && error.error_len().is_none())
        };
        let incomplete = (1..=3).find(is_incomplete).unwrap_or(0);
        self.rest = bytes.split_off(bytes.len() - incomplete);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The last line of output with something in it, fit for one line of a display.
fn last_line(output: &str) -> Option<String> {
    let line = output.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|character| !text::steers(*character)).take(LINE_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;
    use rmcp::model::NumberOrString;

    use super::*;

    /// Returns what a client is sent during a call, in seconds since its start.
    async fn reported(call: impl AsyncFnOnce(mpsc::Sender<Event>)) -> Vec<(f64, String)> {
        reported_slowly(Duration::ZERO, call).await
    }

    /// The same for a client that takes some time to read a notification. What it reads after the call's end is left out.
    async fn reported_slowly(
        time: Duration,
        call: impl AsyncFnOnce(mpsc::Sender<Event>),
    ) -> Vec<(f64, String)> {
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let sent = RefCell::new(Vec::new());
        let send = async |notification: ProgressNotificationParam| {
            tokio::time::sleep(time).await;
            sent.borrow_mut().push((notification.progress, notification.message.unwrap()));
        };
        let notifier = Notifier::new(ProgressToken(NumberOrString::Number(7)));
        notifier.during(call(sender), events, &send).await;
        sent.into_inner()
    }

    fn output(bytes: &'static [u8]) -> Event {
        Event::Output { stream: OutputStream::Stdout, bytes: bytes.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_just_before_the_end_is_reported() {
        let sent = reported(async |events| {
            for bytes in [&b"first\n"[..], b"\xe2"] {
                events.send(output(bytes)).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            events.send(output(b"\x82\xac")).await.unwrap();
        });
        let messages: Vec<_> = sent.await.into_iter().map(|(_, message)| message).collect();
        assert_eq!(messages, ["first", "\u{20ac}"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_gets_the_last_messages_before_the_answer() {
        let one = reported_slowly(Duration::from_secs(1), async |events| {
            events.send(output(b"only")).await.unwrap();
            // The notification is being sent when the call ends.
            tokio::time::sleep(Duration::from_millis(1)).await;
        });
        assert_eq!(one.await, [(0.0, "only".to_owned())]);
        let sent = reported_slowly(Duration::from_secs(1), async |events| {
            events.send(output(b"first")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            // Meanwhile the call does not wait for the client.
            tokio::time::timeout(Duration::from_millis(1), async {
                for _ in 0..=EVENTS_AHEAD {
                    events.send(output(b"middle")).await.unwrap();
                    tokio::task::yield_now().await;
                }
                events.send(output(b"last")).await.unwrap();
            })
            .await
            .unwrap();
        });
        let sent = sent.await;
        let messages: Vec<_> = sent.iter().map(|(_, message)| message.as_str()).collect();
        assert_eq!(messages, ["first", "last"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_message_is_sent_after_a_pause_and_again_in_silence() {
        let sent = reported(async |events| {
            for bytes in [&b"1"[..], b"2", b"3"] {
                events.send(output(bytes)).await.unwrap();
                tokio::time::sleep(PAUSE / 5).await;
            }
            tokio::time::sleep(SILENCE + PAUSE).await;
        });
        let sent: Vec<_> =
            sent.await.into_iter().map(|(seconds, text)| format!("{seconds:.2} {text}")).collect();
        assert_eq!(sent, ["0.00 1", "0.25 3", "4.25 3"]);
    }

    #[test]
    fn the_last_line_with_something_in_it_is_shown() {
        assert_eq!(last_line("one\n two \x1b[31m\n\n  \n").as_deref(), Some("two [31m"));
        assert_eq!(last_line("a\u{202e}b\u{2066}c\u{200b}d").as_deref(), Some("abcd"));
        assert_eq!(last_line("\n \n"), None);
        assert_eq!(last_line(&"x".repeat(500)).unwrap().len(), LINE_CHARS);
    }

    #[test]
    fn pieces_do_not_cut_characters() {
        let mut characters = Characters::default();
        assert_eq!(characters.decode(b"\xe2"), "");
        assert_eq!(characters.decode(b"\x82\xac!"), "\u{20ac}!");
        // What cannot become a character is not kept.
        assert_eq!(characters.decode(b"\xff"), "\u{fffd}");
        assert_eq!(characters.decode(b"\xf0\x9f"), "");
        assert_eq!(characters.decode(b"x"), "\u{fffd}x");
    }

    proptest! {
        #[test]
        fn text_in_pieces_is_the_whole_text(text in "\\PC{0,40}", sizes in prop::collection::vec(1usize..5, 1..20)) {
            let (mut characters, mut decoded) = (Characters::default(), String::new());
            let mut rest = text.as_bytes();
            for size in sizes.iter().cycle() {
                let (piece, after) = rest.split_at(rest.len().min(*size));
                decoded.push_str(&characters.decode(piece));
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(decoded, text);
        }
    }
}
