//! A terminal, as a person has one.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::Sandbox;

/// A terminal of `script` with 33 rows and 101 columns, in which a line of shell text runs.
pub(crate) struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: ChildStdout,
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
        let (keys, screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
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
        let mut buffer = [0; 4096];
        let count = self.screen.read(&mut buffer).unwrap();
        self.shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
        count > 0
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
