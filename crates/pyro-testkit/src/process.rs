//! Processes of a sandbox, found by their command line or environment.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A running process.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: Pid,
    words: Vec<String>,
}

impl Process {
    /// `pyro supervise <state directory>`.
    pub fn is_supervisor_of(&self, state: &Path) -> bool {
        matches!(&self.words[..], [_, word, dir] if word == "supervise" && Path::new(dir) == state)
    }

    /// A shell that runs a script with this file name.
    pub fn is_script(&self, name: &str) -> bool {
        self.is_program("sh") && self.name(1).is_some_and(|script| script == name)
    }

    /// It has the file open.
    pub fn holds(&self, file: &Path) -> bool {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid.as_raw_pid())).into_iter().flatten();
        fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).any(|open| open == file)
    }

    /// A process of the program with this name.
    pub fn is_program(&self, name: &str) -> bool {
        self.name(0).is_some_and(|program| program == name)
    }

    /// One of its arguments is this word.
    pub fn has_argument(&self, word: &str) -> bool {
        self.words.iter().skip(1).any(|argument| argument == word)
    }

    /// File name of a word of the command line.
    fn name(&self, index: usize) -> Option<&OsStr> {
        Path::new(self.words.get(index)?).file_name()
    }
}

/// Processes that name `directory` on their command line or in their environment, but not this one. Those
/// that have ended and wait to be reaped have neither.
pub fn mentioning(directory: &Path) -> Vec<Process> {
    let needle = directory.as_os_str().as_bytes();
    let own = rustix::process::getpid();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            let variables = fs::read(entry.path().join("environ")).unwrap_or_default();
            let mentions = |text: &[u8]| text.windows(needle.len()).any(|window| window == needle);
            (pid != own && (mentions(&words) || mentions(&variables))).then(|| Process {
                pid,
                words: words
                    .split(|byte| *byte == 0)
                    .map(|word| String::from_utf8_lossy(word).into_owned())
                    .filter(|word| !word.is_empty())
                    .collect(),
            })
        })
        .collect()
}

/// Sends a signal to one process of the test's own, which may have ended already.
pub fn kill(pid: Pid, signal: Signal) {
    let _ = kill_process(pid, signal);
}
