//! The one writer to stdout and stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use pyro_engine::OutputStream;

use crate::text::printable;

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
#[derive(Debug, thiserror::Error)]
#[error("cannot write to {}", name(.stream))]
pub(crate) struct OutputError {
    stream: OutputStream,
    source: io::Error,
}

fn name(stream: &OutputStream) -> &'static str {
    match stream {
        OutputStream::Stdout => "standard output",
        OutputStream::Stderr => "standard error",
    }
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

    /// A result as bytes, such as a document or a script for a shell.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), OutputError> {
        self.write(OutputStream::Stdout, bytes)
    }

    /// Text for people on stderr.
    pub(crate) fn stderr_text(&self, text: &str) -> Result<(), OutputError> {
        self.write(OutputStream::Stderr, printable(text).as_bytes())
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

    /// Warns of what a guest with a network can reach, which no policy limits yet.
    pub(crate) fn warn_of_network(&self, network: bool) {
        if network {
            self.note(
                "[warning] a hostile guest with a network can reach all that you can reach, this host's loopback included",
            );
        }
    }

    /// What clap has to say: help and the version on stdout, usage errors on stderr.
    pub(crate) fn clap_message(&self, message: &clap::Error) {
        // A reader that went away needs no help text.
        let _ = message.print();
    }
}

fn note(sink: &dyn Sink, line: &str) {
    let _ = sink.write(OutputStream::Stderr, format!("{}\n", printable(line)).as_bytes());
}
