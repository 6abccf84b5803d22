//! Suspension, while the terminal is changed: the shell gets it back without the changes, which are made again afterwards.
//!
//! In raw mode, Ctrl-Z is a key of the guest, so another process sends these signals.

use std::io;

use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::{put_back, take_up};
use crate::signals;

/// Follows SIGTSTP and SIGCONT from now on. Needs a running event loop.
///
/// # Errors
/// Signals cannot be received.
pub(crate) fn follow() -> io::Result<()> {
    let mut continued = continuations()?;
    tokio::spawn(async move {
        while continued.recv().await.is_some() {
            take_up();
        }
    });
    if signals::is_ignored(Signal::TSTP.as_raw()) {
        return Ok(());
    }
    let mut suspended = signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?;
    tokio::spawn(async move {
        while suspended.recv().await.is_some() {
            put_back();
            // What SIGTSTP does to a process that does not handle it.
            let _ = kill_process(getpid(), Signal::STOP);
        }
    });
    Ok(())
}

/// Returns the moments at which this process goes on after it was stopped.
///
/// # Errors
/// Signals cannot be received.
pub(crate) fn continuations() -> io::Result<tokio::signal::unix::Signal> {
    signal(SignalKind::from_raw(Signal::CONT.as_raw()))
}
