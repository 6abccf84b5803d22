//! A home of its own for every test, and the output of `pyro` in it.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};

use pyro_testkit::Sandbox;
use serde_json::Value;

/// The executable under test.
pub(crate) const PYRO: &str = env!("CARGO_BIN_EXE_pyro");

/// An empty home directory, and the environment variables that `pyro` is started with.
pub(crate) struct Home(Sandbox);

impl Home {
    /// Sets only `HOME`, an empty directory as `PATH`, and a mirror that does not answer: no test may depend on the
    /// network.
    pub(crate) fn new() -> Self {
        let home = Self(Sandbox::new("pyro-home-"));
        home.set_path("HOME", "")
            .set_path("PATH", "bin")
            .set("PYRO_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    }

    /// Sets a variable.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.0.set(name, value);
        self
    }

    /// Sets a variable to a path in the home.
    pub(crate) fn set_path(self, name: &str, inside: &str) -> Self {
        let path = self.path(inside);
        self.set(name, path.to_str().unwrap())
    }

    /// Removes a variable.
    pub(crate) fn unset(mut self, name: &str) -> Self {
        self.0.unset(name);
        self
    }

    /// A path in the home.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.0.path(inside)
    }

    /// What the home holds.
    pub(crate) fn entries(&self) -> Vec<PathBuf> {
        self.0.entries()
    }

    /// `program` with the variables of this home and no others, in the home, and no input.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.0.program(program);
        command.current_dir(self.0.root());
        command
    }

    /// `pyro` with these words, to be started by the test.
    pub(crate) fn command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Command {
        let mut command = self.program(PYRO);
        command.args(words);
        command
    }

    /// Runs `pyro` to its end.
    pub(crate) fn pyro<const N: usize>(&self, words: [&str; N]) -> Ended {
        self.ended(self.command(words).output().unwrap())
    }

    /// Output in which everything that varies is replaced.
    pub(crate) fn ended(&self, output: Output) -> Ended {
        Ended {
            status: output.status,
            stdout: stable(&output.stdout, self.0.root()),
            stderr: stable(&output.stderr, self.0.root()),
            raw_stdout: output.stdout,
        }
    }
}

/// How `pyro` ended and what it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) raw_stdout: Vec<u8>,
}

impl Ended {
    /// The exit status; a signal has none.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by signal {:?}", self.status.signal()))
    }

    /// The one JSON document on stdout, in the promised form, and nothing on stderr.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.stderr, "", "no word on stderr with --json");
        let text = str::from_utf8(&self.raw_stdout).unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(text.is_ascii());
        if !text.contains('\\') {
            // `Value` keeps keys sorted, so its own pretty form is the promised one where nothing is escaped.
            assert_eq!(text, format!("{value:#}\n"));
        }
        value
    }

    /// The error document: `ok` false, and exit status 2 for invalid input, 1 for anything else.
    pub(crate) fn json_error(&self) -> Value {
        let value = self.json();
        let expected = if value["kind"] == "invalid_input" { 2 } else { 1 };
        assert_eq!(self.code(), expected, "{self:?}");
        assert_eq!(value["ok"], false);
        assert!(
            value["error"].is_string() && value["kind"].is_string() && value["hints"].is_array(),
            "{value}"
        );
        value
    }

    /// Everything, for a snapshot.
    pub(crate) fn all(&self) -> String {
        format!("exit: {}\n--- stdout\n{}--- stderr\n{}", self.code(), self.stdout, self.stderr)
    }
}

/// `bytes` as text in which the home, ids and durations are placeholders.
fn stable(bytes: &[u8], home: &Path) -> String {
    let text = String::from_utf8_lossy(bytes).replace(home.to_str().unwrap(), "[HOME]");
    let pieces = text.split_inclusive([' ', '\n']).map(|piece| {
        let word = piece.trim_end_matches([' ', '\n']);
        let end = &piece[word.len()..];
        match word.split_once('=') {
            Some(("vm_id", _)) => format!("vm_id=[ID]{end}"),
            Some(("duration_ms", _)) => format!("duration_ms=[MS]{end}"),
            _ => piece.to_owned(),
        }
    });
    pieces.collect()
}
