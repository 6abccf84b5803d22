//! Shells of a task: what can be asked of them, and the bytes of keys.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Command, Error, ErrorKind, InputMode, TerminalSize};

/// Maximum size of a text that is typed at once, in bytes.
pub const MAX_TYPED_BYTES: usize = 64 * 1024;
/// Maximum number of keys that are pressed at once.
pub const MAX_KEYS: usize = 1000;
/// Maximum number of bytes of a shell that are returned at once: those that are kept.
pub const MAX_READ_BYTES: u64 = 1 << 20;
/// Maximum time to wait for output, in seconds.
const MAX_WAIT_SECONDS: f64 = 3600.0;

/// A shell to open: a login shell, or `command` or `argv`, on a terminal of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ShellCommand {
    /// Text for the shell, at most 1 MiB. Default: an interactive login shell.
    pub command: Option<String>,
    /// Program and its arguments, run without a shell instead of `command`; at most 1 MiB in total and 128 KiB each.
    #[cfg_attr(test, proptest(strategy = "proptest::option::of(crate::strategies::few())"))]
    pub argv: Option<Vec<String>>,
    /// Shell that runs `command`, such as `bash`: a name that is looked up in `PATH`, or an absolute path. Default:
    /// `/bin/sh`, or what the environment uses.
    pub shell: Option<String>,
    /// Working directory, which must exist; below `/workspace` unless it is absolute. Default: `/workspace`.
    pub cwd: Option<String>,
    /// Additional environment variables, at most 32 KiB in total. They win over those that the image sets, such as `PATH`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// User of the guest to run it as: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`. Default: root.
    pub user: Option<String>,
    /// Size of its terminal.
    #[serde(flatten)]
    pub size: TerminalSize,
}

impl From<ShellCommand> for Command {
    fn from(shell: ShellCommand) -> Self {
        let ShellCommand { command, argv, shell, cwd, env, user, size } = shell;
        Self {
            command,
            argv,
            shell,
            timeout_seconds: None,
            cwd,
            env,
            user,
            stdin: None,
            input: InputMode::Stream,
            terminal: Some(size),
        }
    }
}

/// One shell of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ShellName {
    /// Number of the shell, which is its number in the task's journal.
    pub shell_id: u64,
}

/// What to return of a shell's output, and how long to wait for it.
#[derive(Debug, Clone, Copy, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ShellRead {
    /// Where to begin: `cursor` of an earlier result. Default: so that the latest output is returned; after text was typed,
    /// where the output ended before.
    pub cursor: Option<u64>,
    /// Maximum number of bytes of the terminal to return, 4 to 1048576.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: u64,
    /// Maximum time to wait for output, in seconds, at most 3600. Default: 0, which returns at once.
    #[serde(default)]
    pub wait_seconds: f64,
    /// Wait until there is output and then none for this time, in seconds. Default: 0, which returns as soon as there is any.
    #[serde(default)]
    pub idle_seconds: f64,
    /// `raw` returns what the terminal wrote; `plain` leaves escape sequences out and applies carriage returns, backspaces,
    /// and erased text; `screen` returns the rows of the screen as they are now, whatever the cursor.
    #[serde(default)]
    pub format: ShellFormat,
}

fn default_max_bytes() -> u64 {
    64 * 1024
}

impl Default for ShellRead {
    fn default() -> Self {
        Self {
            cursor: None,
            max_bytes: default_max_bytes(),
            wait_seconds: 0.0,
            idle_seconds: 0.0,
            format: ShellFormat::default(),
        }
    }
}

/// A [`ShellRead`] after the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckedRead {
    /// Where to begin.
    pub cursor: Option<u64>,
    /// Maximum number of bytes.
    pub max_bytes: u64,
    /// Maximum time to wait, in milliseconds.
    pub wait_ms: u64,
    /// Time without output, in milliseconds.
    pub idle_ms: u64,
    /// The form of the text.
    pub format: ShellFormat,
}

impl ShellRead {
    /// The same, if its numbers are within their limits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub fn check(self) -> Result<CheckedRead, Error> {
        let Self { cursor, max_bytes, wait_seconds, idle_seconds, format } = self;
        // A character has up to 4 bytes, and only whole ones are returned.
        if !(4..=MAX_READ_BYTES).contains(&max_bytes) {
            return Err(Error::out_of_range("max_bytes", 4, MAX_READ_BYTES as i64));
        }
        let milliseconds = |name: &str, seconds: f64| match (0.0..=MAX_WAIT_SECONDS).contains(&seconds) {
            true => Ok((seconds * 1000.0).round() as u64),
            false => Err(Error::out_of_range(name, 0, MAX_WAIT_SECONDS as i64)),
        };
        Ok(CheckedRead {
            cursor,
            max_bytes,
            wait_ms: milliseconds("wait_seconds", wait_seconds)?,
            idle_ms: milliseconds("idle_seconds", idle_seconds)?,
            format,
        })
    }
}

/// The form in which the output of a shell is returned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum ShellFormat {
    /// What the terminal wrote, with escape sequences.
    #[default]
    Raw,
    /// Lines of text without escape sequences.
    Plain,
    /// The rows of the screen.
    Screen,
}

/// What to type into a shell.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ShellText {
    /// Text to type, at most 64 KiB. Nothing is added: a line ends with `\n`.
    #[serde(default)]
    pub text: String,
    /// Keys to press after the text, at most 1000, such as `Enter`, `Ctrl-C`, `Escape`, `Tab`, `Up`, `PageDown`, or `F1`.
    #[serde(default)]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub keys: Vec<String>,
}

impl ShellText {
    /// The bytes that a terminal sends for it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`]: the text is too long, or a key is unknown.
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        let refused = |message: String| Err(Error::new(ErrorKind::InvalidInput, message));
        if self.text.len() > MAX_TYPED_BYTES {
            let length = self.text.len();
            return refused(format!(
                "text is too long: it has {length} bytes, and the maximum is {MAX_TYPED_BYTES}"
            ));
        }
        if self.keys.len() > MAX_KEYS {
            return refused(format!("too many keys: the maximum is {MAX_KEYS}"));
        }
        let mut bytes = self.text.clone().into_bytes();
        for key in &self.keys {
            match key_bytes(key) {
                Some(key) => bytes.extend(key),
                None => {
                    let key: String = key.escape_debug().take(32).collect();
                    return refused(format!(
                        "invalid key '{key}': expected a name such as Enter, Tab, Escape, Backspace, Up, Home, PageDown, \
                         F1, or Ctrl-C"
                    ));
                }
            }
        }
        Ok(bytes)
    }
}

/// What a terminal of the type xterm sends for a key, whose name is read without regard to case.
fn key_bytes(name: &str) -> Option<Vec<u8>> {
    let name = name.to_ascii_lowercase();
    if let Some(key) = name.strip_prefix("ctrl-").or_else(|| name.strip_prefix("c-")) {
        return match key.as_bytes() {
            [letter @ (b'a'..=b'z' | b'[' | b'\\' | b']' | b'^' | b'_' | b'@')] => Some(vec![letter & 0x1f]),
            _ => None,
        };
    }
    let sequence = match &*name {
        "enter" | "return" => "\r",
        "tab" => "\t",
        "escape" | "esc" => "\x1b",
        "space" => " ",
        "backspace" => "\x7f",
        "up" => "\x1b[A",
        "down" => "\x1b[B",
        "right" => "\x1b[C",
        "left" => "\x1b[D",
        "home" => "\x1b[H",
        "end" => "\x1b[F",
        "insert" => "\x1b[2~",
        "delete" => "\x1b[3~",
        "pageup" => "\x1b[5~",
        "pagedown" => "\x1b[6~",
        "f1" => "\x1bOP",
        "f2" => "\x1bOQ",
        "f3" => "\x1bOR",
        "f4" => "\x1bOS",
        "f5" => "\x1b[15~",
        "f6" => "\x1b[17~",
        "f7" => "\x1b[18~",
        "f8" => "\x1b[19~",
        "f9" => "\x1b[20~",
        "f10" => "\x1b[21~",
        "f11" => "\x1b[23~",
        "f12" => "\x1b[24~",
        _ => return None,
    };
    Some(sequence.as_bytes().to_vec())
}

/// A signal for a shell.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ShellSignal {
    /// Name of the signal: `INT`, `TERM`, `KILL`, `HUP`, `QUIT`, `TSTP`, `STOP`, `CONT`, `USR1`, `USR2`, or `WINCH`, with or
    /// without `SIG`. What runs in the foreground of the terminal receives it.
    pub signal: String,
}

impl ShellSignal {
    /// The number of the signal on Linux for x86-64.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub fn number(&self) -> Result<i32, Error> {
        let name = self.signal.to_ascii_uppercase();
        Ok(match name.strip_prefix("SIG").unwrap_or(&name) {
            "HUP" => 1,
            "INT" => 2,
            "QUIT" => 3,
            "KILL" => 9,
            "USR1" => 10,
            "USR2" => 12,
            "TERM" => 15,
            "CONT" => 18,
            "STOP" => 19,
            "TSTP" => 20,
            "WINCH" => 28,
            _ => {
                let message = "invalid signal: expected INT, TERM, KILL, HUP, QUIT, TSTP, STOP, CONT, USR1, USR2 or WINCH";
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_a_terminal_sends() {
        let typed = |keys: &[&str]| {
            let keys = keys.iter().map(ToString::to_string).collect();
            ShellText { text: "é".to_owned(), keys }.bytes()
        };
        assert_eq!(typed(&["Ctrl-C", "enter", "Up", "C-["]).unwrap(), "é\x03\r\x1b[A\x1b".as_bytes());
        for unknown in ["Ctrl-Enter", "Ctrl-", "", "F13", "\u{1b}[2J"] {
            let error = typed(&[unknown]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidInput);
            assert!(!error.message.contains('\x1b'), "{error}");
        }
        let long = ShellText { text: "x".repeat(MAX_TYPED_BYTES + 1), keys: Vec::new() };
        assert_eq!(long.bytes().unwrap_err().kind, ErrorKind::InvalidInput);
    }

    #[test]
    fn numbers_outside_their_limits_are_refused() {
        let check = |read: ShellRead| read.check().map_err(|error| error.to_string());
        let read = ShellRead { wait_seconds: 1.5, idle_seconds: 0.25, ..ShellRead::default() };
        assert_eq!(check(read).map(|read| (read.wait_ms, read.idle_ms)), Ok((1500, 250)));
        for seconds in [-1.0, 3601.0, f64::NAN, f64::INFINITY] {
            let refused = check(ShellRead { wait_seconds: seconds, ..read }).unwrap_err();
            assert_eq!(refused, "wait_seconds must be between 0 and 3600");
            check(ShellRead { idle_seconds: seconds, ..read }).unwrap_err();
        }
        for max_bytes in [0, 3, MAX_READ_BYTES + 1] {
            check(ShellRead { max_bytes, ..read }).unwrap_err();
        }
    }

    #[test]
    fn signals_have_names() {
        let number = |signal: &str| ShellSignal { signal: signal.to_owned() }.number();
        assert_eq!((number("int").unwrap(), number("SIGKILL").unwrap()), (2, 9));
        assert_eq!(number("9").unwrap_err().kind, ErrorKind::InvalidInput);
    }
}
