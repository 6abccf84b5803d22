use std::os::fd::{AsFd, OwnedFd};

use pyro_testkit::pty;
use rustix::stdio::{dup2_stdin, dup2_stdout};
use rustix::termios::LocalModes;

use super::*;

/// The terminal of this process, until it is dropped.
struct OwnTerminal {
    window: OwnedFd,
    before: [OwnedFd; 2],
}

impl OwnTerminal {
    fn new() -> Self {
        let (window, terminal) = pty();
        let before = [io::stdin().as_fd().try_clone_to_owned(), io::stdout().as_fd().try_clone_to_owned()];
        let before = before.map(Result::unwrap);
        dup2_stdin(&terminal).unwrap();
        dup2_stdout(&terminal).unwrap();
        Self { window, before }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.window).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// What is shown next.
    fn shown(&self) -> String {
        let mut buffer = [0; 256];
        let count = rustix::io::read(&self.window, &mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }
}

impl Drop for OwnTerminal {
    fn drop(&mut self) {
        dup2_stdin(&self.before[0]).unwrap();
        dup2_stdout(&self.before[1]).unwrap();
    }
}

/// One test, because all of it is about the streams of this process.
#[test]
fn a_panic_and_a_suspension_put_everything_back() {
    let own = OwnTerminal::new();
    let mode = RawMode::enter().unwrap();
    assert!(mode.is_some() && own.is_raw() && is_raw());
    follow_output(b"\x1b[?1049h");

    put_back();
    assert_eq!((own.is_raw(), own.shown()), (false, "\x1b[?1049l".to_owned()));
    take_up();
    assert_eq!((own.is_raw(), own.shown()), (true, "\x1b[?1049h".to_owned()));

    // A shell that did not get it back, since the process was stopped without a warning.
    assert!(!is_taken());
    set_mode(&changed().mode.clone().unwrap());
    assert!(is_taken() && is_raw());
    take_up();
    assert_eq!((is_taken(), own.shown()), (false, "\x1b[?1049h".to_owned()));

    let panicked = std::thread::spawn(|| panic!("the reason")).join();
    assert!(panicked.is_err());
    assert_eq!((own.is_raw(), own.shown()), (false, "\x1b[?1049l".to_owned()));

    take_up();
    assert!(own.is_raw());
    drop(mode);
    assert!(!own.is_raw() && !is_raw());
    assert_eq!((take_modes(), take_modes()), ("\x1b[?1049l".to_owned(), String::new()));
}
