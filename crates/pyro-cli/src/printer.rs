//! The one writer to stdout and stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use pyro_engine::OutputStream;
use rustix::io::Errno;

use crate::terminal;
use crate::text::printable;

/// Writes results to stdout and everything else to stderr.
pub(crate) struct Printer {
    sink: Arc<dyn Sink>,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
}

/// The destination of both streams.
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

/// Output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to {}", name(.stream))]
pub(crate) struct OutputError {
    stream: OutputStream,
    source: io::Error,
    on_terminal: bool,
}

fn name(stream: &OutputStream) -> &'static str {
    match stream {
        OutputStream::Stdout => "standard output",
        OutputStream::Stderr => "standard error",
    }
}

impl OutputError {
    pub(crate) fn new(stream: OutputStream, source: io::Error) -> Self {
        Self { stream, source, on_terminal: false }
    }

    /// Returns whether the reader closed its end, which is not a failure.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.source.kind() == io::ErrorKind::BrokenPipe
    }

    /// Returns whether the terminal that was written to is gone.
    pub(crate) fn is_hangup(&self) -> bool {
        self.on_terminal && self.source.raw_os_error() == Some(Errno::IO.raw_os_error())
    }
}

impl Printer {
    pub(crate) fn new() -> Self {
        Self {
            sink: Arc::new(ProcessStreams),
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
        }
    }

    /// Returns a printer that writes to `sink`, and not to a terminal.
    #[cfg(test)]
    pub(crate) fn to(sink: Arc<dyn Sink>) -> Self {
        Self { sink, stdout_is_terminal: false, stderr_is_terminal: false }
    }

    /// The same for a terminal.
    #[cfg(test)]
    pub(crate) fn to_terminal(sink: Arc<dyn Sink>) -> Self {
        Self { sink, stdout_is_terminal: true, stderr_is_terminal: true }
    }

    fn write(&self, stream: OutputStream, bytes: &[u8]) -> Result<(), OutputError> {
        self.sink.write(stream, bytes).map_err(|source| self.failed(stream, source))
    }

    fn failed(&self, stream: OutputStream, source: io::Error) -> OutputError {
        OutputError { on_terminal: self.is_terminal(stream), ..OutputError::new(stream, source) }
    }

    /// Returns whether a stream is a terminal.
    pub(crate) fn is_terminal(&self, stream: OutputStream) -> bool {
        match stream {
            OutputStream::Stdout => self.stdout_is_terminal,
            OutputStream::Stderr => self.stderr_is_terminal,
        }
    }

    /// Returns whether a person is likely to watch stderr.
    pub(crate) fn stderr_is_terminal(&self) -> bool {
        self.stderr_is_terminal
    }

    /// Prints a result as text for people.
    pub(crate) fn text(&self, text: &str) -> Result<(), OutputError> {
        self.write(OutputStream::Stdout, printable(text).as_bytes())
    }

    /// Prints a result as bytes, such as a document or a script for a shell.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), OutputError> {
        self.write(OutputStream::Stdout, bytes)
    }

    /// Prints text for people on stderr.
    pub(crate) fn stderr_text(&self, text: &str) -> Result<(), OutputError> {
        self.write(OutputStream::Stderr, printable(text).as_bytes())
    }

    /// Prints kept output of the guest as it is, or escaped for a terminal, which it could control. A line feed ends its last line.
    pub(crate) fn kept(&self, stream: OutputStream, bytes: &[u8]) -> Result<(), OutputError> {
        match self.is_terminal(stream) {
            true => self.write(stream, printable(&String::from_utf8_lossy(bytes)).as_bytes())?,
            false => self.write(stream, bytes)?,
        }
        match bytes.last() {
            None | Some(b'\n') => Ok(()),
            Some(_) => self.write(stream, b"\n"),
        }
    }

    /// Prints a line on stderr. Errors are ignored: there is nowhere to report them.
    pub(crate) fn note(&self, line: &str) {
        note(&*self.sink, line);
    }

    /// Prints bytes of the guest unchanged. Writes on another thread, because pyro must react to signals while a full pipe
    /// blocks the write.
    pub(crate) async fn guest(&self, stream: OutputStream, bytes: Bytes) -> Result<(), OutputError> {
        let sink = Arc::clone(&self.sink);
        let written = match tokio::task::spawn_blocking(move || sink.write(stream, &bytes)).await {
            Ok(written) => written,
            Err(join_error) => Err(io::Error::other(join_error)),
        };
        written.map_err(|source| self.failed(stream, source))
    }

    /// As [`Self::note`], on another thread and without waiting, for the same reason.
    pub(crate) fn note_aside(&self, line: String) {
        let sink = Arc::clone(&self.sink);
        drop(tokio::task::spawn_blocking(move || note(&*sink, &line)));
    }

    /// Prints a message of clap: help and the version on stdout, usage errors on stderr.
    pub(crate) fn clap_message(&self, message: &clap::Error) {
        // Fails if the reader has closed its end.
        let _ = message.print();
    }
}

fn note(sink: &dyn Sink, line: &str) {
    let end = if terminal::is_raw() { "\r\n" } else { "\n" };
    let _ = sink.write(OutputStream::Stderr, format!("{}{end}", printable(line)).as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Memory(Mutex<Vec<u8>>);

    impl Sink for Memory {
        fn write(&self, _: OutputStream, bytes: &[u8]) -> io::Result<()> {
            self.0.lock().unwrap().extend(bytes);
            Ok(())
        }
    }

    /// What is written of these bytes.
    fn kept(is_terminal: bool, bytes: &[u8]) -> Vec<u8> {
        let memory = Arc::new(Memory::default());
        let sink = Arc::clone(&memory) as Arc<dyn Sink>;
        let printer = if is_terminal { Printer::to_terminal(sink) } else { Printer::to(sink) };
        printer.kept(OutputStream::Stdout, bytes).unwrap();
        memory.0.lock().unwrap().clone()
    }

    #[test]
    fn kept_output_is_unchanged_in_a_file_and_escaped_on_a_terminal() {
        assert_eq!(kept(false, b"\x1b[2J\xff\0"), b"\x1b[2J\xff\0\n");
        assert_eq!(kept(false, b"line\n"), b"line\n");
        assert_eq!(kept(false, b""), b"");
        assert_eq!(kept(true, b"a\n\x1b[2J\xff"), "a\n\\u{1b}[2J\u{fffd}\n".as_bytes());
    }
}
