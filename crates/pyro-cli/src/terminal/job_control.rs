//! Suspension of this process while a command has its terminal: the shell gets the terminal back without the changes, which are
//! made again afterwards, and the command's program draws again.
//!
//! In raw mode, Ctrl-Z is a key of the guest, so another process sends these signals.

use std::future;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::OnceLock;

use libc::c_int;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Notify;

use super::{is_in_background, is_taken, put_back, take_up};
use crate::signals;

/// Where the handler writes the numbers of signals, in their order. It stays open.
static NOTES: OnceLock<OwnedFd> = OnceLock::new();

static CONTINUED: Notify = Notify::const_new();
static TAKEN_UP: Notify = Notify::const_new();

/// Waits until this process has been continued. The size of the terminal may have changed.
pub(crate) async fn continued() {
    CONTINUED.notified().await;
}

/// Waits until the terminal has been taken up again, so that the command's program has to draw again.
pub(crate) async fn taken_up() {
    TAKEN_UP.notified().await;
}

/// Follows SIGTSTP and SIGCONT from now on. Needs a running event loop.
///
/// # Errors
/// Signals cannot be received.
pub(crate) fn follow() -> io::Result<()> {
    if NOTES.get().is_some() {
        return Ok(());
    }
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let notes = Receiver::from_owned_fd(reader)?;
    if NOTES.set(writer).is_err() {
        return Ok(());
    }
    set(libc::SIGCONT, &noting())?;
    if !signals::is_ignored(libc::SIGTSTP) {
        set(libc::SIGTSTP, &noting())?;
    }
    tokio::spawn(async move {
        // The terminal is as the shell left it.
        let mut is_given_back = false;
        loop {
            if next(&notes).await == libc::SIGTSTP {
                put_back();
                is_given_back = true;
                // It cannot fail for signals that exist.
                let _ = stop();
            }
            CONTINUED.notify_one();
            if !is_in_background() && (is_given_back || is_taken()) {
                take_up();
                is_given_back = false;
                TAKEN_UP.notify_one();
            }
        }
    });
    Ok(())
}

/// Waits for signals, and returns the last of them: a continuation undoes a suspension that comes before it, as in the kernel.
async fn next(notes: &Receiver) -> c_int {
    loop {
        let mut numbers = [0; 64];
        match notes.try_read(&mut numbers) {
            Ok(count @ 1..) => return numbers[count - 1].into(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && notes.readable().await.is_ok() => {}
            // The other end stays open.
            _ => future::pending().await,
        }
    }
}

/// Does what SIGTSTP does to a process that does not handle it. Returns when this process goes on, which is at once if no process
/// could continue it (in an orphaned process group).
fn stop() -> io::Result<()> {
    let before = set(libc::SIGTSTP, &action(libc::SIG_DFL))?;
    // SAFETY: has no preconditions. The signal is for this thread, which has it before this returns.
    #[expect(unsafe_code, reason = "rustix has no safe function for it")]
    let raised = unsafe { libc::raise(libc::SIGTSTP) };
    let failed = (raised != 0).then(io::Error::last_os_error);
    set(libc::SIGTSTP, &before)?;
    failed.map_or(Ok(()), Err)
}

/// The action that writes the number of the signal to [`NOTES`].
fn noting() -> libc::sigaction {
    action(note as *const () as libc::sighandler_t)
}

extern "C" fn note(signal: c_int) {
    let Some(notes) = NOTES.get() else { return };
    // Neither allocates, takes a lock, nor sets `errno`. A full pipe holds more signals than matter.
    let _ = rustix::io::write(notes, &[signal as u8]);
}

fn action(handler: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: all its fields are numbers or optional pointers.
    #[expect(unsafe_code, reason = "the structure has private fields on some systems")]
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    action
}

/// Sets the action of a signal and returns the one before.
fn set(signal: c_int, action: &libc::sigaction) -> io::Result<libc::sigaction> {
    let mut before = self::action(libc::SIG_DFL);
    // SAFETY: both structures are valid. The handler is the default, one that was set before, or `note`, which does only what is
    // allowed in a handler.
    #[expect(unsafe_code, reason = "rustix has no safe function for it")]
    let result = unsafe { libc::sigaction(signal, ptr::from_ref(action), ptr::from_mut(&mut before)) };
    (result == 0).then_some(before).ok_or_else(io::Error::last_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_continuation_undoes_the_suspension_before_it() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let notes = Receiver::from_owned_fd(reader).unwrap();
        for (numbers, last) in [
            (&[libc::SIGTSTP][..], libc::SIGTSTP),
            (&[libc::SIGTSTP, libc::SIGCONT], libc::SIGCONT),
            (&[libc::SIGCONT, libc::SIGTSTP], libc::SIGTSTP),
        ] {
            let bytes: Vec<u8> = numbers.iter().map(|number| *number as u8).collect();
            rustix::io::write(&writer, &bytes).unwrap();
            assert_eq!(next(&notes).await, last, "{numbers:?}");
        }
    }
}
