//! Output of the machine's process and of the guest's serial console: stored in a bounded file, with the latest lines
//! in memory for error reports. The bytes come from the guest and are treated as hostile.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pyro_wire::steers;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Notify;

/// Maximum size of `serial.log` in bytes; a verbose or hostile guest must not fill the host's disk.
const MAX_LOG_BYTES: usize = 1024 * 1024;
/// Lines shown in error reports.
const SHOWN_LINES: usize = 20;
/// Maximum lines, and bytes per line, kept to choose them from. A kernel panic is followed by about fifty lines.
const KEPT_LINES: usize = 100;
const MAX_LINE_BYTES: usize = 400;
/// How a guest's kernel reports a panic, and how QEMU reports code that KVM cannot run. Later lines say less.
const ENDS: [&str; 2] = ["Kernel panic - not syncing", "KVM internal error"];
/// Maximum wait for the rest of a dead machine's output.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// The log file of a console could not be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {}", path.display())]
pub struct ConsoleError {
    /// The log file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// The console of one machine. Clones share it: the machine gets one, the code that reports its failures keeps another.
/// Lives on one thread.
#[derive(Clone, Debug)]
pub struct Console {
    state: Rc<RefCell<State>>,
    source_ended: Rc<Notify>,
}

#[derive(Debug)]
struct State {
    log: Option<File>,
    log_bytes_left: usize,
    printed: u64,
    open_sources: usize,
    tail: VecDeque<Vec<u8>>,
    line: Vec<u8>,
}

impl Console {
    /// Creates a console that keeps its first MiB in the file `log`, which is created or truncated.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(log: &Path) -> Result<Self, ConsoleError> {
        match File::create(log) {
            Ok(file) => Ok(Self::new(Some(file))),
            Err(source) => Err(ConsoleError { path: log.to_owned(), source }),
        }
    }

    /// Creates a console that keeps the latest lines in memory only.
    pub fn in_memory() -> Self {
        Self::new(None)
    }

    fn new(log: Option<File>) -> Self {
        let state = State {
            log,
            log_bytes_left: MAX_LOG_BYTES,
            printed: 0,
            open_sources: 0,
            tail: VecDeque::new(),
            line: Vec::new(),
        };
        Self { state: Rc::new(RefCell::new(state)), source_ended: Rc::default() }
    }

    /// Adds output of the machine.
    pub fn print(&self, bytes: &[u8]) {
        self.state.borrow_mut().add(bytes);
    }

    /// Returns how many bytes were printed so far.
    pub fn printed(&self) -> u64 {
        self.state.borrow().printed
    }

    /// Returns the task that reads the source to its end.
    pub(crate) fn follow<S: AsyncRead + Unpin>(&self, mut source: S) -> impl Future<Output = ()> + use<S> {
        let console = self.clone();
        console.state.borrow_mut().open_sources += 1;
        async move {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut chunk).await {
                console.print(&chunk[..count]);
            }
            console.state.borrow_mut().open_sources -= 1;
            console.source_ended.notify_waiters();
        }
    }

    /// Returns the lines that say most about the end of a dead machine: those from a kernel panic or an error of KVM on, or
    /// the latest; at most 20, oldest first, printable. Waits up to a second for output that has not been read yet.
    pub async fn last_words(&self) -> Vec<String> {
        // Its process may be gone before all of its output is read.
        let _ = tokio::time::timeout(DRAIN_LIMIT, self.drained()).await;
        self.tail()
    }

    /// Returns the most informative lines so far, as [`Console::last_words`] without the wait.
    pub fn tail(&self) -> Vec<String> {
        let state = self.state.borrow();
        let unfinished = (!state.line.is_empty()).then_some(&state.line);
        let lines: Vec<String> = state.tail.iter().chain(unfinished).map(|line| printable(line)).collect();
        let latest = lines.len().saturating_sub(SHOWN_LINES);
        let is_end = |line: &String| ENDS.iter().any(|end| line.contains(end));
        let start = lines.iter().position(is_end).unwrap_or(latest);
        lines.into_iter().skip(start).take(SHOWN_LINES).collect()
    }

    async fn drained(&self) {
        loop {
            // Start waiting before the check, so that an end in between is not missed.
            let ended = self.source_ended.notified();
            if self.state.borrow().open_sources == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl State {
    fn add(&mut self, bytes: &[u8]) {
        self.printed = self.printed.saturating_add(bytes.len() as u64);
        self.log(bytes);
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ if self.line.len() < MAX_LINE_BYTES => self.line.push(byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        if self.tail.len() == KEPT_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn log(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.log else { return };
        let kept = &bytes[..bytes.len().min(self.log_bytes_left)];
        self.log_bytes_left -= kept.len();
        // A log that cannot be written (full disk) must not affect the VM.
        if file.write_all(kept).is_err() {
            self.log = None;
        } else if self.log_bytes_left == 0 {
            let _ = writeln!(file, "\n[console output beyond {MAX_LOG_BYTES} bytes is not kept]");
            self.log = None;
        }
    }
}

/// Escape sequences of a hostile guest must not reach a terminal.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim_end().chars().map(|c| if steers(c) && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_deceive_a_reader_is_replaced() {
        let line = "a\u{1b}[2J\u{202e}b\u{2066}c\u{200f}\u{200b}\td\r\n";
        assert_eq!(printable(line.as_bytes()), "a\u{fffd}[2J\u{fffd}b\u{fffd}c\u{fffd}\u{fffd}\td");
    }

    fn console() -> (tempfile::NamedTempFile, Console) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let console = Console::new(Some(file.reopen().unwrap()));
        (file, console)
    }

    #[test]
    fn the_tail_keeps_the_latest_lines_printable() {
        let (_file, console) = console();
        for n in 0..200 {
            console.print(format!("line {n}\r\n\n").as_bytes());
        }
        console.print(b"\x1b[31mred \xff and unfinished");
        let tail = console.tail();
        assert_eq!(tail.len(), SHOWN_LINES);
        assert_eq!(tail[0], "line 181");
        assert_eq!(
            console.printed(),
            (0..200).map(|n| format!("line {n}\r\n\n").len() as u64).sum::<u64>() + 25
        );
        assert_eq!(tail[SHOWN_LINES - 1], "\u{fffd}[31mred \u{fffd} and unfinished");
    }

    #[test]
    fn a_panic_is_what_is_shown() {
        for end in ["[1.0] Kernel panic - not syncing: crash", "KVM internal error. Suberror: 1"] {
            let (_file, console) = console();
            console.print(format!("before\n{end}\n").as_bytes());
            for n in 0..60 {
                console.print(format!("trace {n}\n").as_bytes());
            }
            let tail = console.tail();
            assert_eq!(tail.len(), SHOWN_LINES);
            assert_eq!(tail[0], end);
        }
    }

    #[tokio::test]
    async fn the_last_words_are_waited_for() {
        let (_file, console) = console();
        let (reader, mut writer) = tokio::io::duplex(64);
        let follow = console.follow(reader);
        let speak = async {
            tokio::task::yield_now().await;
            tokio::io::AsyncWriteExt::write_all(&mut writer, b"good bye\n").await.unwrap();
            drop(writer);
        };
        let ((), (), words) = tokio::join!(follow, speak, console.last_words());
        assert_eq!(words, ["good bye"]);
    }

    #[test]
    fn the_log_is_bounded() {
        let (file, console) = console();
        for _ in 0..MAX_LOG_BYTES / 1000 + 50 {
            console.print(&[b'x'; 1000]);
        }
        let kept = std::fs::read(file.path()).unwrap();
        assert!(kept.len() < MAX_LOG_BYTES + 100);
        assert!(kept.ends_with(b"is not kept]\n"));
        assert!(console.tail()[0].len() <= MAX_LINE_BYTES);
    }
}
