//! A terminal, as a person has one.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::{LONG, Sandbox, scaled};

/// A terminal of `script` with 33 rows and 101 columns, in which a line of shell text runs.
pub(crate) struct Terminal {
    child: Child,
    keys: ChildStdin,
    /// What is shown, read at once, so that programs need not wait for this test.
    screen: Receiver<Vec<u8>>,
    /// All that was shown.
    shown: String,
    /// Up to where [`Self::until`] has looked.
    seen: usize,
    /// File with the device's name.
    device: std::path::PathBuf,
}

impl Terminal {
    /// Runs `line` in the sandbox. Afterwards, its status is shown as `status=N`, and the modes of the terminal before and after
    /// it are in the files `before` and `after`.
    pub(crate) fn run(sandbox: &Sandbox, line: &str) -> Self {
        let line = format!(
            "stty rows 33 cols 101; tty > device; stty -a > before; {line}; echo status=$?; stty -a > after"
        );
        let mut child = sandbox
            .program("script")
            .current_dir(sandbox.path(""))
            .env("PATH", "/usr/bin:/bin")
            .env("TERM", "xterm-256color")
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, screen) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer)
                && sender.send(buffer[..count].to_vec()).is_ok()
            {}
        });
        Self { child, keys, screen, shown: String::new(), seen: 0, device: sandbox.path("device") }
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this text is shown, after what was waited for earlier.
    pub(crate) fn until(&mut self, text: &str) {
        while !self.shown[self.seen..].contains(text) {
            assert!(self.read(), "{text:?} was not shown: {:?}", self.shown);
        }
        let at = self.shown[self.seen..].find(text).unwrap();
        self.seen += at + text.len();
    }

    /// Changes the size of the terminal, as a window does.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let device = std::fs::read_to_string(&self.device).unwrap();
        let (rows, columns) = (rows.to_string(), columns.to_string());
        let resized = Command::new("stty")
            .args(["-F", device.trim(), "rows", &rows, "cols", &columns])
            .status()
            .unwrap();
        assert!(resized.success());
    }

    /// Waits until the line has ended, and returns all that was shown.
    pub(crate) fn finish(mut self) -> String {
        while self.read() {}
        self.child.wait().unwrap();
        self.shown
    }

    /// Closes the terminal, as a window does.
    pub(crate) fn close(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Returns whether there was anything to read.
    fn read(&mut self) -> bool {
        match self.screen.recv_timeout(scaled(LONG)) {
            Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => panic!("nothing more was shown: {:?}", self.shown),
        }
        true
    }
}

/// A tmux of this host, which knows what its screen looks like.
pub(crate) struct Tmux<'a> {
    sandbox: &'a Sandbox,
    server: String,
}

impl<'a> Tmux<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox) -> Self {
        Self { sandbox, server: sandbox.path("tmux").to_str().unwrap().to_owned() }
    }

    /// Runs a line of shell text in its only window. The last row is its status line.
    pub(crate) fn run(&self, line: &str) -> Terminal {
        let line = line.replace('\'', r"'\''");
        let all = format!("tmux -u -f /dev/null -S {} new-session '{line}'", self.server);
        Terminal::run(self.sandbox, &all)
    }

    pub(crate) fn call(&self, words: &[&str]) -> String {
        let ended = self.sandbox.program("tmux").args(["-S", &self.server]).args(words).output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        String::from_utf8(ended.stdout).unwrap()
    }

    pub(crate) fn screen(&self) -> String {
        self.call(&["capture-pane", "-p"])
    }

    /// Waits until the screen is as expected.
    pub(crate) fn until(&self, what: &str, is_expected: impl Fn(&str) -> bool) {
        let mut screen = String::new();
        let deadline = Instant::now() + scaled(LONG);
        while !is_expected(&screen) {
            assert!(Instant::now() < deadline, "no {what}:\n{screen}");
            thread::sleep(Duration::from_millis(50));
            screen = self.screen();
        }
    }
}

/// Requires that a terminal has the modes that it had before.
pub(crate) fn assert_put_back(sandbox: &Sandbox) {
    // Without the size, which may have changed.
    let modes = |name: &str| {
        let all = std::fs::read_to_string(sandbox.path(name)).unwrap();
        all[all.find("line =").unwrap()..].to_owned()
    };
    assert!(modes("before").contains(" icanon"), "{}", modes("before"));
    assert_eq!(modes("before"), modes("after"));
}
