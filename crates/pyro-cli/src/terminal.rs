//! The terminal that a person's command runs on: its size, and raw mode, which is put back on every way out.

mod modes;

use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, PoisonError};

use pyro_engine::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

pub(crate) use self::modes::Modes;

/// The mode that the terminal had before raw mode.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

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
        let mut raw = before.clone();
        raw.make_raw();
        restore_at_panic();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let guard = Self(());
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Returns whether the terminal is in raw mode, in which a newline does not begin a line.
pub(crate) fn is_raw() -> bool {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

fn restore() {
    // A panic while this is locked cannot happen: nothing in between panics.
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // The terminal may be gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}

/// The program ends at a panic without dropping anything.
fn restore_at_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
}

/// Returns the size of the terminal on standard input, or else of that on standard output. `None`: neither has a size.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    let limited = |side: u16| side.min(1000);
    (size.ws_col > 0 && size.ws_row > 0)
        .then(|| TerminalSize { columns: limited(size.ws_col), rows: limited(size.ws_row) })
}
