//! What a program prints, read until it closes its end: it never waits for a reader, and what is kept is bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyro_wire::steers;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::task::JoinHandle;

/// Maximum lines kept from the beginning, and as many from the end. The first say why a program does not start, the
/// latest why it ended.
const KEPT_LINES: usize = 10;
/// Maximum length of a line in bytes. A longer one becomes several.
const MAX_LINE_BYTES: u64 = 400;
/// Maximum wait for output that was not read when the program ended. A child of the program may keep the pipe open.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// The messages of one program. Dropping it ends the reading.
#[derive(Debug)]
pub(super) struct Messages {
    kept: Arc<Mutex<Kept>>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Kept {
    first: Vec<String>,
    latest: VecDeque<String>,
}

impl Messages {
    /// Reads `source` in a task of its own. Lines for which `is_noise` holds are dropped.
    pub(super) fn read(
        source: impl AsyncRead + Unpin + Send + 'static,
        is_noise: impl Fn(&str) -> bool + Send + 'static,
    ) -> Self {
        let kept = Arc::<Mutex<Kept>>::default();
        let reader = tokio::spawn({
            let kept = Arc::clone(&kept);
            async move {
                let mut source = BufReader::new(source);
                let mut line = Vec::new();
                while let Ok(1..) = (&mut source).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await {
                    let text = printable(&line);
                    line.clear();
                    if !is_noise(&text) {
                        kept.lock().unwrap_or_else(PoisonError::into_inner).add(text);
                    }
                }
            }
        });
        Self { kept, reader: Some(reader) }
    }

    /// Returns the kept lines, joined by semicolons, once the output has ended, or after a second. Dropping the future
    /// loses nothing.
    pub(super) async fn of_ended_program(&mut self) -> String {
        if let Some(reader) = &mut self.reader {
            let _ = tokio::time::timeout(DRAIN_LIMIT, &mut *reader).await;
            reader.abort();
            self.reader = None;
        }
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).joined()
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

impl Kept {
    fn add(&mut self, line: String) {
        if self.first.len() < KEPT_LINES {
            self.first.push(line);
            return;
        }
        if self.latest.len() == KEPT_LINES {
            self.latest.pop_front();
        }
        self.latest.push_back(line);
    }

    fn joined(&self) -> String {
        let lines: Vec<&str> = self.first.iter().chain(&self.latest).map(String::as_str).collect();
        lines.join("; ")
    }
}

/// A guest can influence what the program prints; escape sequences must not reach a terminal.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim_end().replace(steers, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_and_the_latest_lines_are_kept_printable_and_short() {
        let mut text: String = (0..1000).map(|number| format!("line {number}\n")).collect();
        text.push_str("noise\n\x1b[31mred\n");
        text.push_str(&"x".repeat(10_000));
        let mut messages = Messages::read(std::io::Cursor::new(text), |line| line == "noise");
        let kept = messages.of_ended_program().await;
        let lines: Vec<&str> = kept.split("; ").collect();
        assert_eq!(lines.len(), 2 * KEPT_LINES);
        assert_eq!((lines[0], lines[KEPT_LINES - 1]), ("line 0", "line 9"));
        assert!(lines[KEPT_LINES..].iter().all(|line| line.len() <= MAX_LINE_BYTES as usize));
        let mut short = Messages::read(&b"\x1b[31mred"[..], |_| false);
        assert_eq!(short.of_ended_program().await, "\u{fffd}[31mred");
        assert_eq!(short.of_ended_program().await, "\u{fffd}[31mred", "it can be asked again");
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_does_not_end_is_waited_for_only_briefly() {
        let (reader, mut writer) = tokio::io::duplex(64);
        let mut messages = Messages::read(reader, |_| false);
        tokio::io::AsyncWriteExt::write_all(&mut writer, b"why\n").await.unwrap();
        assert_eq!(messages.of_ended_program().await, "why");
    }
}
