//! The terminal that a person's command runs on: its size, and what pyro and the command change of it, which is put back on
//! every way out.

mod job_control;
mod modes;

use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use pyro_engine::TerminalSize;
use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

pub(crate) use self::job_control::{continued, follow as follow_job_control, taken_up};
use self::modes::Modes;

/// What the terminal has to get back.
struct Changed {
    /// The mode that it had before raw mode.
    mode: Option<Termios>,
    /// What the command has changed by escape sequences.
    modes: Option<Modes>,
}

static CHANGED: Mutex<Changed> = Mutex::new(Changed { mode: None, modes: None });
static SHOWN: Notify = Notify::const_new();

fn changed() -> MutexGuard<'static, Changed> {
    CHANGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Raw mode of the terminal on standard input: each key goes to the guest, Ctrl-C too. Dropping it puts the mode from before
/// back, and so does a panic.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Enters raw mode. `None`: standard input is not a terminal.
    ///
    /// # Errors
    /// The terminal refuses it.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        restore_at_panic();
        let raw = raw(&before);
        changed().mode = Some(before);
        let guard = Self(());
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = changed().mode.take() {
            set_mode(&before);
        }
    }
}

fn raw(before: &Termios) -> Termios {
    let mut raw = before.clone();
    raw.make_raw();
    raw
}

/// Sets the mode of the terminal, unless it is another job's.
fn set_mode(mode: &Termios) {
    if !is_in_background() {
        // The terminal may be gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, mode);
    }
}

/// Returns whether the terminal is another job's: its shell has put the terminal back, and setting a mode would stop this process.
fn is_in_background() -> bool {
    // An error: the terminal does not control this process, and stops nothing.
    tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground != getpgrp())
}

/// Returns whether another program has ended raw mode, such as the shell of a process that was stopped without a warning.
fn is_taken() -> bool {
    let is_canonical =
        || tcgetattr(io::stdin()).is_ok_and(|mode| mode.local_modes.contains(LocalModes::ICANON));
    is_raw() && is_canonical()
}

/// Returns whether the terminal is in raw mode, in which a newline does not begin a line.
pub(crate) fn is_raw() -> bool {
    changed().mode.is_some()
}

/// Takes what the terminal is shown next by a command.
pub(crate) fn follow_output(bytes: &[u8]) {
    restore_at_panic();
    changed().modes.get_or_insert_default().follow(bytes);
    SHOWN.notify_waiters();
}

/// Returns the moment at which a command shows something, from now on.
pub(crate) fn shown() -> Notified<'static> {
    SHOWN.notified()
}

/// Returns what puts back the modes that the command has changed. The caller shows it, or cannot.
pub(crate) fn take_modes() -> String {
    changed().modes.take().map_or_else(String::new, |modes| modes.put_back())
}

/// Puts everything back. It stays known, for [`take_up`].
fn put_back() {
    let changed = changed();
    if let Some(before) = &changed.mode {
        set_mode(before);
    }
    show(&changed.modes.as_ref().map_or_else(String::new, Modes::put_back));
}

/// Undoes [`put_back`].
fn take_up() {
    let changed = changed();
    if let Some(before) = &changed.mode {
        set_mode(&raw(before));
    }
    show(&changed.modes.as_ref().map_or_else(String::new, Modes::take_up));
}

/// Shows a short escape sequence, unless the terminal is another job's. The writer to standard output may be what has failed.
fn show(sequence: &str) {
    if !sequence.is_empty() && !is_in_background() {
        let _ = rustix::io::write(io::stdout(), sequence.as_bytes());
    }
}

/// The program ends at a panic without dropping anything.
fn restore_at_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // What is done with the lock does not panic.
            put_back();
            report(panic);
        }));
    });
}

/// Returns the size of the terminal on standard input, or else of that on standard output. `None`: neither has a size.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    let limited = |side: u16| side.min(1000);
    (size.ws_col > 0 && size.ws_row > 0)
        .then(|| TerminalSize { columns: limited(size.ws_col), rows: limited(size.ws_row) })
}

#[cfg(test)]
mod tests;
