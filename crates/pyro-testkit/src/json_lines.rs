//! A client of a server on standard input and output: JSON-RPC, one message per line.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use crate::waiting::{LONG, scaled};

/// A client of such a server. Its end closes the input, with which the server ends.
#[derive(Debug)]
pub struct Session {
    /// The server.
    pub server: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    /// What has been read of `output` and not been received.
    read: Vec<u8>,
}

impl Session {
    /// Starts the server. Its output is read only while a message is waited for.
    pub fn started(mut command: Command) -> Self {
        let mut server = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = server.stdin.take();
        let output = server.stdout.take().unwrap();
        Self { server, input, output, read: Vec::new() }
    }

    /// Sends a message.
    pub fn send(&mut self, message: &Value) {
        self.send_line(&message.to_string());
    }

    /// Sends a line that may not be a message.
    pub fn send_line(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The next message of the server. Nothing else may be on its output.
    ///
    /// # Panics
    /// The server ends, writes something else, or sends nothing within [`LONG`].
    pub fn receive(&mut self) -> Value {
        let line = self.line();
        let message: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert_eq!(message["jsonrpc"], "2.0");
        message
    }

    /// The next line; empty at the end of the output.
    fn line(&mut self) -> String {
        let start = Instant::now();
        let mut looked_at = 0;
        loop {
            if let Some(end) = self.read[looked_at..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=looked_at + end).collect();
                return String::from_utf8(line).unwrap();
            }
            looked_at = self.read.len();
            let rest = scaled(LONG).saturating_sub(start.elapsed()).try_into().unwrap();
            let ready = poll(&mut [PollFd::new(&self.output.as_fd(), PollFlags::IN)], Some(&rest)).unwrap();
            assert_ne!(ready, 0, "timed out waiting for a message");
            let mut chunk = [0; 64 * 1024];
            match self.output.read(&mut chunk).unwrap() {
                0 => return String::from_utf8(std::mem::take(&mut self.read)).unwrap(),
                count => self.read.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// Sends a request and takes the next message as its answer.
    pub fn ask(&mut self, method: &str, params: Value) -> Value {
        self.send(&json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params }));
        let answer = self.receive();
        assert_eq!(answer["id"], 7);
        answer
    }

    /// Closes the input.
    pub fn close(&mut self) {
        drop(self.input.take());
    }

    /// Closes the input and waits for the end, which must be a success with nothing on standard error.
    pub fn end(mut self) {
        let status = self.ended();
        let mut stderr = String::new();
        if let Some(mut pipe) = self.server.stderr.take() {
            pipe.read_to_string(&mut stderr).unwrap();
        }
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    }

    /// Closes the input and waits for the end.
    pub fn ended(&mut self) -> ExitStatus {
        self.close();
        // Its remaining output must be read, or it would block.
        let mut rest = Vec::new();
        self.output.read_to_end(&mut rest).unwrap();
        self.server.wait().unwrap()
    }
}
