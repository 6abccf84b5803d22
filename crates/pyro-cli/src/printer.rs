//! The one writer to stdout and stderr.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use pyro_engine::OutputStream;
use serde::Serialize;

use crate::error_report::CliError;
use crate::exit::Exit;
use crate::json;

/// Writes results to stdout and everything else to stderr.
pub(crate) struct Printer {
    sink: Arc<dyn Sink>,
    stderr_is_terminal: bool,
}

/// Where the bytes of the two streams end up.
pub(crate) trait Sink: Send + Sync {
    /// Writes all of `bytes` at once, so that the reader sees them now.
    fn write(&self, stream: OutputStream, bytes: &[u8]) -> io::Result<()>;
}

/// The streams of this process.
struct ProcessStreams;

impl Sink for ProcessStreams {
    fn write(&self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        match stream {
            OutputStream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            OutputStream::Stderr => io::stderr().lock().write_all(bytes),
        }
    }
}

/// Our output could not be written.
#[derive(Debug)]
pub(crate) struct OutputError {
    stream: OutputStream,
    source: io::Error,
}

impl OutputError {
    pub(crate) fn new(stream: OutputStream, source: io::Error) -> Self {
        Self { stream, source }
    }

    /// Nobody reads any more, which is their right and no fault.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.source.kind() == io::ErrorKind::BrokenPipe
    }
}

impl std::fmt::Display for OutputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.stream {
            OutputStream::Stdout => "standard output",
            OutputStream::Stderr => "standard error",
        };
        write!(f, "cannot write to {name}")
    }
}

impl std::error::Error for OutputError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl Printer {
    pub(crate) fn new() -> Self {
        Self { sink: Arc::new(ProcessStreams), stderr_is_terminal: io::stderr().is_terminal() }
    }

    /// One that writes elsewhere, and not to a terminal.
    #[cfg(test)]
    pub(crate) fn to(sink: Arc<dyn Sink>) -> Self {
        Self { sink, stderr_is_terminal: false }
    }

    fn write(&self, stream: OutputStream, bytes: &[u8]) -> Result<(), OutputError> {
        self.sink.write(stream, bytes).map_err(|source| OutputError::new(stream, source))
    }

    /// Whether a person is likely to watch stderr.
    pub(crate) fn stderr_is_terminal(&self) -> bool {
        self.stderr_is_terminal
    }

    /// A result as text for people.
    pub(crate) fn text(&self, text: &str) -> Result<(), OutputError> {
        self.write(OutputStream::Stdout, printable(text).as_bytes())
    }

    /// A result as bytes, such as a script for a shell.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), OutputError> {
        self.write(OutputStream::Stdout, bytes)
    }

    /// What a command once wrote to its standard error, on lines of their own.
    pub(crate) fn recorded_stderr(&self, bytes: &[u8]) -> Result<(), OutputError> {
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.write(OutputStream::Stderr, printable(&text).as_bytes())
    }

    /// A result as the one JSON document of `--json`.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), OutputError> {
        let document = json::document(value)
            .map_err(|error| OutputError::new(OutputStream::Stdout, io::Error::other(error)))?;
        self.write(OutputStream::Stdout, &document)
    }

    /// A line on stderr. Best effort: there is nowhere to tell that it failed.
    pub(crate) fn note(&self, line: &str) {
        note(&*self.sink, line);
    }

    /// Bytes of the guest, exactly as they are. The write happens on another thread, because a pipe that
    /// nobody empties must not keep pyro from seeing a signal.
    pub(crate) async fn guest(&self, stream: OutputStream, bytes: Bytes) -> Result<(), OutputError> {
        let sink = Arc::clone(&self.sink);
        let written = match tokio::task::spawn_blocking(move || sink.write(stream, &bytes)).await {
            Ok(written) => written,
            Err(join_error) => Err(io::Error::other(join_error)),
        };
        written.map_err(|source| OutputError::new(stream, source))
    }

    /// As [`Self::note`], but from another thread and without waiting, for the same reason.
    pub(crate) fn note_aside(&self, line: String) {
        let sink = Arc::clone(&self.sink);
        drop(tokio::task::spawn_blocking(move || note(&*sink, &line)));
    }

    /// A failure, in the shape that was asked for.
    pub(crate) fn failure(&self, error: &CliError, json: bool) {
        let Some(report) = error.report() else { return };
        if json && self.json(&report.json()).is_ok() {
            return;
        }
        let _ = self.write(OutputStream::Stderr, report.human().as_bytes());
    }

    /// A failure as part of what is on standard output, for a command that writes nowhere else.
    pub(crate) fn failure_as_result(&self, error: &CliError) {
        let Some(report) = error.report() else { return };
        let text = report.human();
        match self.text(&text) {
            // A full disk must not hide it; a reader that went away does not want it.
            Err(failed) if !failed.is_broken_pipe() => {
                let _ = self.write(OutputStream::Stderr, text.as_bytes());
            }
            _ => {}
        }
    }

    /// What clap has to say: help and the version on stdout, usage errors on stderr.
    pub(crate) fn clap_message(&self, message: &clap::Error) -> Exit {
        // A reader that went away needs no help text.
        let _ = message.print();
        if message.use_stderr() { Exit::Usage } else { Exit::Success }
    }
}

fn note(sink: &dyn Sink, line: &str) {
    let _ = sink.write(OutputStream::Stderr, format!("{}\n", printable(line)).as_bytes());
}

/// Text with its control characters, newline and tab aside, made visible: names and messages may come from
/// a registry or a guest, and must not steer the terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if steers(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_control_is_made_visible() {
        assert_eq!(printable("plain ü\n\ttext"), "plain ü\n\ttext");
        assert_eq!(printable("a\u{1b}[2Jb\rc\u{9b}d"), "a\\u{1b}[2Jb\\rc\\u{9b}d");
    }
}
