//! The standard input of this process, for a command.

use std::io;
use std::os::fd::AsFd;
use std::thread;

use bytes::Bytes;
use pyro_engine::{Input, InputEvent};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::termios::isatty;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::terminal;

/// Bytes to read at a time, at most.
const CHUNK_BYTES: usize = 64 * 1024;
/// Number of pieces in the queue before reading waits.
const PIECES_AHEAD: usize = 2;

/// What to pass on to a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Standard input. Without this, it is not touched.
    pub(crate) input: bool,
    /// The sizes that the terminal gets.
    pub(crate) sizes: bool,
}

/// What is passed on to a command.
pub(crate) struct Source {
    pub(crate) input: Input,
    /// Why standard input could not be read to its end.
    pub(crate) failure: mpsc::Receiver<io::Error>,
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
        let mut changes = signal(SignalKind::window_change())?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while changes.recv().await.is_some() {
                let Some(size) = terminal::size() else { continue };
                if sender.send(InputEvent::Resize(size)).await.is_err() {
                    return;
                }
            }
        });
    }
    if passed.input {
        // Nothing interrupts a read, so the thread is left behind when the command ends.
        thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            if let Err(error) = read_all(io::stdin(), &sender) {
                // The call may have ended.
                let _ = failed.try_send(error);
            }
        })?;
    }
    Ok(Source { input: Input::from(receiver), failure })
}

/// Sends everything that can be read. Only an end of the input is one for the command.
fn read_all(source: impl AsFd, sender: &mpsc::Sender<InputEvent>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let event = match rustix::io::read(&source, &mut buffer) {
            Ok(0) => InputEvent::Finished,
            Ok(count) => InputEvent::Data(Bytes::copy_from_slice(&buffer[..count])),
            Err(Errno::INTR) => continue,
            // A program that shares this open file may have made it non-blocking.
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&source, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            },
            // A terminal that is gone; SIGHUP says what happens to the command.
            Err(Errno::IO) if isatty(&source) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let is_last = event == InputEvent::Finished;
        if sender.blocking_send(event).is_err() || is_last {
            return Ok(());
        }
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
        let reading = thread::spawn(move || read_all(reader, &sender));
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
        let error = read_all(File::open("/").unwrap(), &sender).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        drop(sender);
        assert_eq!(events.blocking_recv(), None);
    }
}
