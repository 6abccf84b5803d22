//! A started program, whose output tests can wait for.

use std::io::Read;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::process;
use crate::waiting::{LONG, scaled};

/// A program that runs. Killed if the test ends before it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    started: Instant,
    /// What it writes to standard output.
    pub stdout: Stream,
    /// What it writes to standard error.
    pub stderr: Stream,
}

impl Running {
    /// Starts the program, whose output must be piped.
    pub fn start(command: &mut Command) -> Self {
        let started = Instant::now();
        let mut child = command.spawn().unwrap();
        let stdout = Stream::follow(child.stdout.take().unwrap());
        let stderr = Stream::follow(child.stderr.take().unwrap());
        Self { child, started, stdout, stderr }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        process::kill(self.pid(), signal);
    }

    /// Waits for its end and the end of its output, which processes that it left behind would hold up.
    pub fn finish(mut self) -> Ended {
        let limit = 3 * LONG;
        let stdout = self.stdout.wait(limit, "end of stdout", |_, ended| ended);
        let stderr = self.stderr.wait(limit, "end of stderr", |_, ended| ended);
        let status = self.child.wait().unwrap();
        let elapsed = self.started.elapsed();
        Ended { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned(), elapsed }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One output stream of a running program.
#[derive(Clone, Debug)]
pub struct Stream(Arc<(Mutex<Received>, Condvar)>);

#[derive(Debug, Default)]
struct Received {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    fn follow(mut source: impl Read + Send + 'static) -> Self {
        let stream = Self(Arc::default());
        let followed = stream.clone();
        std::thread::spawn(move || {
            let mut chunk = vec![0; 64 * 1024];
            loop {
                let count = source.read(&mut chunk).unwrap_or(0);
                let mut received = followed.0.0.lock().unwrap();
                received.bytes.extend_from_slice(&chunk[..count]);
                received.ended = count == 0;
                followed.0.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        stream
    }

    /// Waits until `text` has been written.
    ///
    /// # Panics
    /// The stream ended without it.
    pub fn wait_for(&self, text: &str) {
        let seen = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        let bytes = self.wait(LONG, text, |bytes, ended| ended || seen(bytes));
        assert!(seen(&bytes), "no {text:?} in {:?}", String::from_utf8_lossy(&bytes));
    }

    fn wait(&self, limit: Duration, what: &str, mut reached: impl FnMut(&[u8], bool) -> bool) -> Vec<u8> {
        let limit = scaled(limit);
        let received = self.0.0.lock().unwrap();
        let (received, timeout) = self
            .0
            .1
            .wait_timeout_while(received, limit, |received| !reached(&received.bytes, received.ended))
            .unwrap();
        let bytes = received.bytes.clone();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]);
        assert!(!timeout.timed_out(), "no {what:?} within {limit:?}, only {shown:?}");
        bytes
    }
}

/// How a program ended and what it wrote.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything on standard output.
    pub stdout: Vec<u8>,
    /// Everything on standard error, as text.
    pub stderr: String,
    /// From its start to its end.
    pub elapsed: Duration,
}

impl Ended {
    /// The exit status; a signal has none.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by signal {:?}", self.status.signal()))
    }

    /// Standard output as text.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.stdout).unwrap()
    }

    /// Standard output of a command that succeeded.
    pub fn success(&self) -> &str {
        assert_eq!(self.status.code(), Some(0), "{self:?}");
        self.text()
    }

    /// The one JSON document on standard output, which holds nothing else.
    pub fn json(&self) -> Value {
        assert_eq!(self.stderr, "", "no word on stderr with --json");
        let text = self.text();
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The message of a failure of pyro itself, in human mode: everything from `[error]` on.
    pub fn error(&self) -> &str {
        self.error_with(1)
    }

    /// The message about a wrong command line, as [`Self::error`].
    pub fn usage_error(&self) -> &str {
        self.error_with(2)
    }

    fn error_with(&self, status: i32) -> &str {
        assert_eq!(self.status.code(), Some(status), "{self:?}");
        let start = self.stderr.find("[error] ").unwrap_or_else(|| panic!("no error in {self:?}"));
        &self.stderr[start..]
    }
}
