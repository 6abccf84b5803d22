//! The standard input of this process, for a command.

use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use pyro_engine::{Input, InputEvent, TerminalSize};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::termios::isatty;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::terminal;

/// Bytes to read at a time, at most.
const CHUNK_BYTES: usize = 64 * 1024;
/// Number of pieces in the queue before reading waits.
const PIECES_AHEAD: usize = 2;
/// Maximum wait for a program that draws for another size. One that draws nothing does not say so.
const DRAWING_GRACE: Duration = Duration::from_secs(1);

/// What to pass on to a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Standard input. Without this, it is not touched.
    pub(crate) input: bool,
    /// The sizes that the terminal gets.
    pub(crate) sizes: bool,
    /// [`DETACH_KEYS`] end the input and are not passed on.
    pub(crate) detachable: bool,
}

/// Ctrl-P and Ctrl-Q, as in other programs that attach to something.
const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

/// What is passed on to a command.
pub(crate) struct Source {
    pub(crate) input: Input,
    /// Why standard input could not be read to its end.
    pub(crate) failure: mpsc::Receiver<Unread>,
}

/// Why standard input is not read to its end.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It is a terminal that is gone. The input does not end with it.
    Hangup,
    /// Reading failed.
    Failed(io::Error),
}

/// Passes on what `passed` says for as long as the command takes it. Needs a running event loop.
///
/// # Errors
/// Signals cannot be received, or no thread can be started.
pub(crate) fn pass_on(passed: Passed) -> io::Result<Source> {
    let (failed, failure) = mpsc::channel(1);
    if passed == Passed::default() {
        return Ok(Source { input: Input::none(), failure });
    }
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    if passed.sizes {
        let changes = signal(SignalKind::window_change())?;
        tokio::spawn(pass_on_sizes(changes, sender.clone()));
    }
    if passed.input {
        // Nothing interrupts a read, so the thread is left behind when the command ends.
        thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            if let Err(unread) = read_all(io::stdin(), &sender, passed.detachable) {
                // The call may have ended.
                let _ = failed.try_send(unread);
            }
        })?;
    }
    Ok(Source { input: Input::from(receiver), failure })
}

/// Sends the size of the terminal whenever it may have changed. A program that has to draw again gets another size before, since
/// the kernel tells it only of one that differs.
async fn pass_on_sizes(mut changes: Signal, sender: mpsc::Sender<InputEvent>) {
    loop {
        let draws_again = tokio::select! {
            Some(()) = changes.recv() => false,
            () = terminal::continued() => false,
            () = terminal::taken_up() => true,
            () = sender.closed() => return,
        };
        let Some(size) = terminal::size() else { continue };
        let shown = terminal::shown();
        if draws_again {
            let rows = if size.rows > 1 { size.rows - 1 } else { 2 };
            if sender.send(InputEvent::Resize(TerminalSize { rows, ..size })).await.is_err() {
                return;
            }
            // A program that learns of both at once sees no difference.
            let _ = timeout(DRAWING_GRACE, shown).await;
        }
        if sender.send(InputEvent::Resize(size)).await.is_err() {
            return;
        }
    }
}

/// Sends everything that can be read. Only an end of the input, or the detach keys, are one for the command.
fn read_all(source: impl AsFd, sender: &mpsc::Sender<InputEvent>, detachable: bool) -> Result<(), Unread> {
    let is_terminal = isatty(&source);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut keys = DetachKeys::default();
    loop {
        let event = match rustix::io::read(&source, &mut buffer) {
            Ok(0) | Err(Errno::IO) if is_terminal && has_hung_up(&source) => return Err(Unread::Hangup),
            Ok(0) => InputEvent::Finished,
            Ok(count) if detachable => {
                let (typed, is_detached) = keys.filter(&buffer[..count]);
                if !typed.is_empty() && sender.blocking_send(InputEvent::Data(typed)).is_err() {
                    return Ok(());
                }
                match is_detached {
                    true => InputEvent::Finished,
                    false => continue,
                }
            }
            Ok(count) => InputEvent::Data(Bytes::copy_from_slice(&buffer[..count])),
            Err(Errno::INTR) => continue,
            // A program that shares this open file may have made it non-blocking.
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&source, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => continue,
                Err(error) => return Err(Unread::Failed(error.into())),
            },
            // In the background, where nothing can bring this process to the foreground again.
            Err(Errno::IO) if is_terminal => return Ok(()),
            Err(error) => return Err(Unread::Failed(error.into())),
        };
        let is_last = event == InputEvent::Finished;
        if sender.blocking_send(event).is_err() || is_last {
            return Ok(());
        }
    }
}

/// Returns whether the other side of a terminal is gone.
fn has_hung_up(terminal: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&terminal, PollFlags::IN)];
    let waited = poll(&mut polled, Some(&Timespec::default()));
    waited.is_ok() && polled[0].revents().contains(PollFlags::HUP)
}

/// Finds the detach keys in what is typed. The first of them is held back until the next key.
#[derive(Debug, Default)]
struct DetachKeys {
    is_begun: bool,
}

impl DetachKeys {
    /// Returns what to pass on, and whether the keys came after that.
    fn filter(&mut self, typed: &[u8]) -> (Bytes, bool) {
        let [first, second] = DETACH_KEYS;
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for key in typed {
            if self.is_begun && *key == second {
                return (passed.into(), true);
            }
            if std::mem::take(&mut self.is_begun) {
                passed.push(first);
            }
            if *key == first {
                self.is_begun = true;
            } else {
                passed.push(*key);
            }
        }
        (passed.into(), false)
    }
}

/// Returns whether standard input is likely to be meant for the command: a pipe or a file.
pub(crate) fn is_pipe_or_file() -> bool {
    fstat(io::stdin()).is_ok_and(|status| {
        matches!(FileType::from_raw_mode(status.st_mode), FileType::Fifo | FileType::RegularFile)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    #[test]
    fn a_source_without_blocking_is_read_to_its_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        fcntl_setfl(&reader, OFlags::NONBLOCK).unwrap();
        let (sender, mut events) = mpsc::channel(1);
        let reading = thread::spawn(move || read_all(reader, &sender, false));
        for piece in ["one", "two"] {
            writer.write_all(piece.as_bytes()).unwrap();
            assert_eq!(events.blocking_recv(), Some(InputEvent::Data(piece.into())));
        }
        drop(writer);
        assert_eq!(events.blocking_recv(), Some(InputEvent::Finished));
        reading.join().unwrap().unwrap();
    }

    #[test]
    fn a_source_that_cannot_be_read_has_no_end() {
        let (sender, mut events) = mpsc::channel(1);
        let unread = read_all(File::open("/").unwrap(), &sender, false).unwrap_err();
        assert!(
            matches!(&unread, Unread::Failed(error) if error.kind() == io::ErrorKind::IsADirectory),
            "{unread:?}"
        );
        drop(sender);
        assert_eq!(events.blocking_recv(), None);
    }

    #[test]
    fn a_terminal_that_goes_is_no_end_of_the_input() {
        let (window, terminal) = pyro_testkit::pty();
        let (sender, mut events) = mpsc::channel(1);
        let reading = thread::spawn(move || read_all(terminal, &sender, false));
        rustix::io::write(&window, b"word\n").unwrap();
        assert_eq!(events.blocking_recv(), Some(InputEvent::Data("word\n".into())));
        drop(window);
        assert!(matches!(reading.join().unwrap(), Err(Unread::Hangup)));
        assert_eq!(events.blocking_recv(), None);
    }

    #[test]
    fn the_end_key_of_a_terminal_is_an_end() {
        let (window, terminal) = pyro_testkit::pty();
        let (sender, mut events) = mpsc::channel(1);
        rustix::io::write(&window, b"\x04").unwrap();
        read_all(terminal, &sender, false).unwrap();
        assert_eq!(events.blocking_recv(), Some(InputEvent::Finished));
    }

    #[test]
    fn the_detach_keys_are_found_and_all_others_passed_on() {
        let mut keys = DetachKeys::default();
        let mut filter = |typed: &[u8]| {
            let (passed, is_detached) = keys.filter(typed);
            (passed.to_vec(), is_detached)
        };
        assert_eq!(filter(b"ls\x11\r"), (b"ls\x11\r".to_vec(), false));
        assert_eq!(filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(filter(b"b"), (b"\x10b".to_vec(), false));
        assert_eq!(filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(filter(b"\x11rest"), (Vec::new(), true));
    }
}
