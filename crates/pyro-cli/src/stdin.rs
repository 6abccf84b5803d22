//! The standard input of this process, for a command.

use std::io;
use std::os::fd::AsFd as _;
use std::thread;

use bytes::Bytes;
use pyro_engine::{Input, InputEvent};
use rustix::fs::{FileType, fstat};
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

/// Passes on what `passed` says for as long as the command takes it. Needs a running event loop.
///
/// # Errors
/// Signals cannot be received, or no thread can be started.
pub(crate) fn pass_on(passed: Passed) -> io::Result<Input> {
    if passed == Passed::default() {
        return Ok(Input::none());
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
        thread::Builder::new().name("stdin".to_owned()).spawn(move || read_all(&sender))?;
    }
    Ok(Input::from(receiver))
}

fn read_all(sender: &mpsc::Sender<InputEvent>) {
    let stdin = io::stdin();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let event = match rustix::io::read(stdin.as_fd(), &mut buffer) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(count @ 1..) => InputEvent::Data(Bytes::copy_from_slice(&buffer[..count])),
            // A terminal that has hung up cannot be read any more.
            Ok(0) | Err(_) => InputEvent::Finished,
        };
        let is_last = event == InputEvent::Finished;
        if sender.blocking_send(event).is_err() || is_last {
            return;
        }
    }
}

/// Returns whether standard input is likely to be meant for the command: a pipe or a file.
pub(crate) fn is_pipe_or_file() -> bool {
    fstat(io::stdin()).is_ok_and(|status| {
        matches!(FileType::from_raw_mode(status.st_mode), FileType::Fifo | FileType::RegularFile)
    })
}
