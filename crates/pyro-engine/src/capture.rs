//! Handling of a command's output.

use bytes::Bytes;
use pyro_supervisor::CommandEnd;

use crate::{Event, Events, OutputMode, OutputStream};

/// Maximum number of bytes of one stream that a result keeps.
pub(crate) const CAPTURE_LIMIT: usize = 16 * 1024 * 1024;

/// A command that ended, and its output.
#[derive(Debug)]
pub(crate) struct Captured {
    /// How it ended. The dropped bytes include those beyond the capture limit.
    pub(crate) end: CommandEnd,
    /// Kept output; empty if it was streamed.
    pub(crate) stdout: Vec<u8>,
    /// Kept output; empty if it was streamed.
    pub(crate) stderr: Vec<u8>,
}

impl Captured {
    /// Joins the end of a command with what the sinks kept of its output.
    pub(crate) fn new(mut end: CommandEnd, stdout: OutputSink, stderr: OutputSink) -> Self {
        let (stdout, stdout_over) = stdout.finish();
        let (stderr, stderr_over) = stderr.finish();
        end.stdout_dropped = end.stdout_dropped.saturating_add(stdout_over);
        end.stderr_dropped = end.stderr_dropped.saturating_add(stderr_over);
        Self { end, stdout, stderr }
    }
}

/// Receives one output stream of a command and either keeps it or passes it on.
#[derive(Debug)]
pub(crate) struct OutputSink {
    stream: OutputStream,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Capture { kept: Vec<u8>, limit: usize, dropped: u64, events: Events },
    Stream(Events),
}

impl Kind {
    fn capture(limit: usize, events: Events) -> Self {
        Self::Capture { kept: Vec::new(), limit, dropped: 0, events }
    }
}

async fn send(events: &Events, stream: OutputStream, bytes: &[u8]) {
    if events.are_heard() {
        events.send(Event::Output { stream, bytes: Bytes::copy_from_slice(bytes) }).await;
    }
}

impl OutputSink {
    /// Creates a sink for `stream`; `events` is used if the output is streamed.
    pub(crate) fn new(stream: OutputStream, mode: OutputMode, events: &Events) -> Self {
        let kind = match mode {
            OutputMode::Capture => Kind::capture(CAPTURE_LIMIT, Events::none()),
            OutputMode::CaptureAndStream => Kind::capture(CAPTURE_LIMIT, events.clone()),
            OutputMode::Stream => Kind::Stream(events.clone()),
        };
        Self { stream, kind }
    }

    /// Accepts the next bytes. Waits while the reader of the events lags behind.
    pub(crate) async fn accept(&mut self, bytes: &[u8]) {
        match &mut self.kind {
            Kind::Capture { kept, limit, dropped, events } => {
                let room = limit.saturating_sub(kept.len()).min(bytes.len());
                let (fits, rest) = bytes.split_at(room);
                kept.extend_from_slice(fits);
                *dropped += rest.len() as u64;
                send(events, self.stream, bytes).await;
            }
            Kind::Stream(events) => send(events, self.stream, bytes).await,
        }
    }

    /// Appends `line`, a message from pyro that ends with a newline, on a line of its own, even if that exceeds the
    /// limit.
    pub(crate) async fn note(&mut self, line: &str) {
        match &mut self.kind {
            Kind::Capture { kept, .. } => {
                if kept.last().is_some_and(|byte| *byte != b'\n') {
                    kept.push(b'\n');
                }
                kept.extend_from_slice(line.as_bytes());
            }
            Kind::Stream(_) => self.accept(line.as_bytes()).await,
        }
    }

    /// Returns the kept output and the number of bytes dropped.
    pub(crate) fn finish(self) -> (Vec<u8>, u64) {
        match self.kind {
            Kind::Capture { kept, dropped, .. } => (kept, dropped),
            Kind::Stream(_) => (Vec::new(), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;

    fn sink(limit: usize) -> OutputSink {
        OutputSink { stream: OutputStream::Stderr, kind: Kind::capture(limit, Events::none()) }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_note_stands_on_its_own_line_even_beyond_the_limit() {
        for (text, expected) in [("", "note\n"), ("half", "half\nnote\n"), ("line\n", "line\nnote\n")] {
            let mut sink = sink(text.len());
            block_on(async {
                sink.accept(text.as_bytes()).await;
                sink.note("note\n").await;
            });
            assert_eq!(sink.finish(), (expected.as_bytes().to_vec(), 0));
        }
    }

    #[tokio::test]
    async fn streamed_output_is_passed_on_and_not_kept() {
        let (sender, mut receiver) = mpsc::channel(4);
        let mut sink = OutputSink::new(OutputStream::Stderr, OutputMode::Stream, &Events::to(sender));
        sink.accept(b"\xff\0").await;
        sink.note("note\n").await;
        assert_eq!(sink.finish(), (Vec::new(), 0));
        for expected in [&b"\xff\0"[..], b"note\n"] {
            let bytes = Bytes::from_static(expected);
            assert_eq!(receiver.recv().await, Some(Event::Output { stream: OutputStream::Stderr, bytes }));
        }
        assert_eq!(receiver.recv().await, None);
    }

    proptest! {
        #[test]
        fn keeps_the_beginning_and_counts_the_rest(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..10),
            limit in 0usize..100,
        ) {
            let mut sink = sink(limit);
            block_on(async {
                for piece in &pieces {
                    sink.accept(piece).await;
                }
            });
            let whole = pieces.concat();
            let (kept, dropped) = sink.finish();
            prop_assert_eq!(&kept, &whole[..whole.len().min(limit)]);
            prop_assert_eq!(kept.len() as u64 + dropped, whole.len() as u64);
        }
    }
}
