use std::pin::pin;

use bytes::Bytes;
use futures::poll;
use serde_json::Value;
use tokio::sync::watch;

use super::*;

const HALF: usize = (WINDOW_BYTES / 2) as usize;

struct World {
    acknowledged: watch::Sender<u64>,
    cancel: CancellationToken,
    closing: CancellationToken,
    events: mpsc::Sender<Event>,
    lines: mpsc::Receiver<Vec<u8>>,
    over: CancellationToken,
}

impl World {
    /// A call with room for so many lines to its client.
    fn new(lines_ahead: usize) -> (Self, EventSender, mpsc::Receiver<Event>) {
        let (acknowledged, consumed) = watch::channel(0);
        let (cancel, closing) = (CancellationToken::new(), CancellationToken::new());
        let (events, receiver) = mpsc::channel(64);
        let (sender, lines) = mpsc::channel(lines_ahead);
        let control = Control { cancel: cancel.clone(), acknowledged: consumed };
        let event_sender =
            EventSender { id: Id::Number(7), control, lines: sender, closing: closing.clone(), sent: 0 };
        let world = Self { acknowledged, cancel, closing, events, lines, over: CancellationToken::new() };
        (world, event_sender, receiver)
    }

    fn happens(&self, event: Event) {
        self.events.try_send(event).unwrap();
    }

    fn writes(&self, bytes: usize) {
        let bytes = Bytes::from(vec![b'x'; bytes]);
        self.happens(Event::Output { stream: OutputStream::Stdout, bytes });
    }

    /// The types of the events that were sent meanwhile.
    fn sent(&mut self) -> Vec<String> {
        let lines = std::iter::from_fn(|| self.lines.try_recv().ok());
        let values = lines.map(|line| serde_json::from_slice::<Value>(&line).unwrap());
        values.map(|line| line["params"]["event"]["type"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn output_waits_for_what_was_sent_to_be_consumed() {
    let (mut world, event_sender, receiver) = World::new(64);
    let over = world.over.clone();
    let mut sending = pin!(event_sender.run(receiver, &over));
    (0..4).for_each(|_| world.writes(HALF));
    world.happens(Event::FirstOfKind);
    assert!(poll!(&mut sending).is_pending());
    assert_eq!(world.sent(), ["output", "output"]);
    world.acknowledged.send_modify(|sum| *sum += HALF as u64 - 1);
    assert!(poll!(&mut sending).is_pending());
    assert_eq!(world.sent(), [""; 0], "a byte is missing");
    world.acknowledged.send_modify(|sum| *sum += 1);
    assert!(poll!(&mut sending).is_pending());
    assert_eq!(world.sent(), ["output"]);
    // The end of the call changes nothing about that.
    world.over.cancel();
    assert!(poll!(&mut sending).is_pending());
    world.acknowledged.send_modify(|sum| *sum += HALF as u64);
    assert!(poll!(&mut sending).is_ready());
    assert_eq!(world.sent(), ["output", "first_of_kind"]);
}

#[tokio::test]
async fn a_piece_that_is_larger_than_the_window_is_cut() {
    let (mut world, event_sender, receiver) = World::new(64);
    let over = world.over.clone();
    let mut sending = pin!(event_sender.run(receiver, &over));
    world.writes(5 * HALF);
    for _ in 0..3 {
        assert!(poll!(&mut sending).is_pending());
        assert_eq!(world.sent(), ["output"]);
        world.acknowledged.send_modify(|sum| *sum += WINDOW_BYTES);
    }
}

#[tokio::test]
async fn a_call_that_is_cancelled_loses_its_output_and_nothing_else() {
    let (mut world, event_sender, receiver) = World::new(64);
    let over = world.over.clone();
    let mut sending = pin!(event_sender.run(receiver, &over));
    (0..4).for_each(|_| world.writes(HALF));
    world.happens(Event::FirstOfKind);
    assert!(poll!(&mut sending).is_pending());
    world.cancel.cancel();
    world.over.cancel();
    assert!(poll!(&mut sending).is_ready());
    assert_eq!(world.sent(), ["output", "output", "first_of_kind"]);
}

#[tokio::test]
async fn a_server_that_ends_does_not_wait_for_a_client_that_does_not_read() {
    let (mut world, event_sender, receiver) = World::new(1);
    let over = world.over.clone();
    let mut sending = pin!(event_sender.run(receiver, &over));
    (0..3).for_each(|_| world.happens(Event::FirstOfKind));
    world.over.cancel();
    assert!(poll!(&mut sending).is_pending());
    world.closing.cancel();
    assert!(poll!(&mut sending).is_ready());
    assert_eq!(world.sent(), ["first_of_kind"]);
}
