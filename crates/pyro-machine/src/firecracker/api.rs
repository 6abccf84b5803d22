//! Firecracker's control socket: HTTP with JSON, as far as snapshots need it.
//!
//! An HTTP client of its own would be larger than these three requests.

use std::io;
use std::path::Path;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::plan::Request;
use crate::file_lock::{LOOK_AGAIN, Retry};
use crate::platform::MachineError;

/// Longest answer that Firecracker may send: a guest may have taken it over.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Longest reason that is passed on, in characters.
const MAX_REASON_CHARS: usize = 1000;
const MAX_HEADERS: usize = 32;

/// A control connection.
#[derive(Debug)]
pub(super) struct Api(UnixStream);

/// Firecracker's report of a failure.
#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

impl Api {
    /// Connects as soon as Firecracker listens. `retry` watches the directory since before it was started. There is no limit
    /// of time: the caller stops waiting when Firecracker ends.
    pub(super) async fn connect(socket: &Path, retry: &mut Retry) -> Result<Self, MachineError> {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return Ok(Self(stream)),
                // The second, for a moment: the socket is created before it listens, and only the first is an event.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
                {
                    retry.wait(Instant::now() + LOOK_AGAIN).await;
                }
                Err(error) => return Err(MachineError::Connection(error)),
            }
        }
    }

    /// Sends a request and waits until it is done.
    pub(super) async fn request(&mut self, (method, path, body): Request) -> Result<(), MachineError> {
        let body = body.to_string();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(text.as_bytes()).await.map_err(MachineError::Connection)?;
        let mut answer = Vec::new();
        loop {
            if let Some((status, body)) = parse(&answer)? {
                return match status {
                    200..300 => Ok(()),
                    _ => {
                        Err(MachineError::Refused { command: path.to_owned(), reason: reason(status, body) })
                    }
                };
            }
            if answer.len() >= MAX_ANSWER_BYTES {
                return Err(invalid("the answer is too long"));
            }
            if self.0.read_buf(&mut answer).await.map_err(MachineError::Connection)? == 0 {
                return Err(MachineError::Closed);
            }
        }
    }
}

/// Returns status and body of a complete answer.
fn parse(answer: &[u8]) -> Result<Option<(u16, &[u8])>, MachineError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let status = response.parse(answer).map_err(invalid)?;
    let (httparse::Status::Complete(start), Some(code)) = (status, response.code) else { return Ok(None) };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = match length {
        Some(header) => {
            let text = std::str::from_utf8(header.value).map_err(invalid)?;
            text.trim().parse::<usize>().map_err(invalid)?
        }
        None => 0,
    };
    let end = start.checked_add(length).ok_or_else(|| invalid("the answer is too long"))?;
    Ok(answer.get(start..end).map(|body| (code, body)))
}

/// Returns why Firecracker refused.
fn reason(status: u16, body: &[u8]) -> String {
    match serde_json::from_slice::<Fault>(body) {
        Ok(fault) => fault.fault_message.chars().take(MAX_REASON_CHARS).collect(),
        Err(_) => format!("status {status}"),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> MachineError {
    MachineError::Connection(io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::net::UnixListener;

    use super::super::plan;
    use super::*;

    /// Sends one request to a server that gives this answer and closes the connection. Returns the request as it arrived.
    async fn ask(answer: &[u8], request: Request) -> (Result<(), MachineError>, String) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut api = Api(ours);
        let server = async {
            let mut asked = vec![0; 4096];
            let length = theirs.read(&mut asked).await.unwrap();
            asked.truncate(length);
            let _ = theirs.write_all(answer).await;
            drop(theirs);
            String::from_utf8(asked).unwrap()
        };
        tokio::join!(api.request(request), server)
    }

    #[tokio::test]
    async fn requests_are_what_firecracker_expects() {
        let done = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        let (outcome, asked) = ask(done, plan::restore()).await;
        outcome.unwrap();
        let (head, body) = asked.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("PUT /snapshot/load HTTP/1.1\r\n"), "{head}");
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}");
        assert_eq!(
            serde_json::from_str::<Value>(body).unwrap(),
            json!({
                "snapshot_path": "/machine/state", "resume_vm": true,
                "mem_backend": { "backend_type": "File", "backend_path": "/machine/memory" },
            })
        );
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let failure = async |answer: &[u8]| ask(answer, plan::restore()).await.0.unwrap_err();
        let body = r#"{"fault_message": "no such file"}"#;
        let answer = format!("HTTP/1.1 400 \r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let refused = failure(answer.as_bytes()).await;
        assert_eq!(refused.to_string(), "the VMM refused /snapshot/load: no such file");
        let without_reason = failure(b"HTTP/1.1 500 \r\n\r\n").await;
        assert_eq!(without_reason.to_string(), "the VMM refused /snapshot/load: status 500");
        for cut in [&b""[..], b"HTTP/1.1 204", &answer.as_bytes()[..answer.len() - 1]] {
            let closed = failure(cut).await;
            assert!(matches!(closed, MachineError::Closed), "{closed}");
        }
        let endless = [&b"HTTP/1.1 204 \r\nX: "[..], &[b'x'; MAX_ANSWER_BYTES]].concat();
        let huge = b"HTTP/1.1 400 \r\nContent-Length: 18446744073709551615\r\n\r\n";
        for hostile in [&endless[..], huge, b"no HTTP\r\n\r\n", b"HTTP/1.1 200 \r\nContent-Length: x\r\n\r\n"]
        {
            let invalid = failure(hostile).await;
            assert!(matches!(invalid, MachineError::Connection(_)), "{invalid}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_being_started_is_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api");
        let mut retry = Retry::in_dir(dir.path());
        let start = async {
            tokio::task::yield_now().await;
            UnixListener::bind(&socket).unwrap()
        };
        let (connected, _server) = tokio::join!(Api::connect(&socket, &mut retry), start);
        connected.unwrap();
    }
}
