//! A directory and environment variables of its own for every test.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A temporary directory, and the only environment variables that programs started here get. None are set at first.
#[derive(Debug)]
pub struct Sandbox {
    directory: TempDir,
    variables: Vec<(String, String)>,
}

impl Sandbox {
    /// An empty one, whose directory has a name that begins with `prefix`. The directory goes with this value.
    pub fn new(prefix: &str) -> Self {
        Self { directory: TempDir::with_prefix(prefix).unwrap(), variables: Vec::new() }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A path in its directory.
    pub fn path(&self, inside: &str) -> PathBuf {
        // `join` would put a slash after it.
        if inside.is_empty() { self.root().to_owned() } else { self.root().join(inside) }
    }

    /// What its directory holds.
    pub fn entries(&self) -> Vec<PathBuf> {
        fs::read_dir(self.root()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Sets an environment variable.
    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Removes an environment variable.
    pub fn unset(&mut self, name: &str) {
        self.variables.retain(|(known, _)| known != name);
    }

    /// `program` with the variables of this sandbox and no others, no input, and pipes for its output.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}
