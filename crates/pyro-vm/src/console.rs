//! What the VMM and the guest's serial console print: kept in a bounded file and, the latest lines, in memory
//! for error reports. Bytes come from the guest and are treated as hostile.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes kept in `serial.log`; a chatty or hostile guest must not fill the host's disk.
const MAX_LOG_BYTES: usize = 1024 * 1024;
/// Lines and bytes per line kept for error reports.
const MAX_TAIL_LINES: usize = 20;
const MAX_TAIL_LINE_BYTES: usize = 400;

/// Shared by the tasks that read the console's sources; lives on one thread.
#[derive(Clone)]
pub(crate) struct Console(Rc<RefCell<State>>);

struct State {
    log: Option<File>,
    log_bytes_left: usize,
    tail: VecDeque<Vec<u8>>,
    line: Vec<u8>,
}

impl Console {
    pub(crate) fn new(log: File) -> Self {
        Self(Rc::new(RefCell::new(State {
            log: Some(log),
            log_bytes_left: MAX_LOG_BYTES,
            tail: VecDeque::new(),
            line: Vec::new(),
        })))
    }

    /// Reads the source to its end.
    pub(crate) async fn follow(self, mut source: impl AsyncRead + Unpin) {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = source.read(&mut chunk).await {
            self.0.borrow_mut().add(&chunk[..count]);
        }
    }

    /// The latest lines, oldest first, printable.
    pub(crate) fn tail(&self) -> Vec<String> {
        let state = self.0.borrow();
        let unfinished = (!state.line.is_empty()).then_some(&state.line);
        state.tail.iter().chain(unfinished).map(|line| printable(line)).collect()
    }
}

impl State {
    fn add(&mut self, bytes: &[u8]) {
        self.log(bytes);
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ if self.line.len() < MAX_TAIL_LINE_BYTES => self.line.push(byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        if self.tail.len() == MAX_TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn log(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.log else { return };
        let kept = &bytes[..bytes.len().min(self.log_bytes_left)];
        self.log_bytes_left -= kept.len();
        // A log that cannot be written (full disk) must not disturb the VM.
        if file.write_all(kept).is_err() {
            self.log = None;
        } else if self.log_bytes_left == 0 {
            let _ = writeln!(file, "\n[console output beyond {MAX_LOG_BYTES} bytes is not kept]");
            self.log = None;
        }
    }
}

/// Escape sequences of a hostile guest must not reach anyone's terminal.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim_end().chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (tempfile::NamedTempFile, Console) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let console = Console::new(file.reopen().unwrap());
        (file, console)
    }

    #[test]
    fn the_tail_keeps_the_latest_lines_printable() {
        let (_file, console) = console();
        for n in 0..30 {
            console.0.borrow_mut().add(format!("line {n}\r\n\n").as_bytes());
        }
        console.0.borrow_mut().add(b"\x1b[31mred \xff and unfinished");
        let tail = console.tail();
        assert_eq!(tail.len(), MAX_TAIL_LINES + 1);
        assert_eq!(tail[0], "line 10");
        assert_eq!(tail[MAX_TAIL_LINES], "\u{fffd}[31mred \u{fffd} and unfinished");
    }

    #[test]
    fn the_log_is_bounded() {
        let (file, console) = console();
        for _ in 0..MAX_LOG_BYTES / 1000 + 50 {
            console.0.borrow_mut().add(&[b'x'; 1000]);
        }
        let kept = std::fs::read(file.path()).unwrap();
        assert!(kept.len() < MAX_LOG_BYTES + 100);
        assert!(kept.ends_with(b"is not kept]\n"));
        assert!(console.tail()[0].len() <= MAX_TAIL_LINE_BYTES);
    }
}
