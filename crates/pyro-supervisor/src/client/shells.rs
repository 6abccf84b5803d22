//! Shells, as their clients see them.

use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use pyro_wire::{Exec, Frame, FrameError, MAX_OUTPUT_BYTES, OutputStream};
use tokio::time::timeout;

use super::{Client, ConnectError, RunError, WATCH_PROBE_AFTER, ask, unexpected};
use crate::conversation::CommandOutcome;
use crate::protocol::{ClientStream, InputOutcome, ReadShell, Reply, Request, ShellPart, ShellState};

/// Time limit for a shell to take what is typed. One that reads nothing takes about half a mebibyte in advance.
pub const TYPE_LIMIT: Duration = Duration::from_secs(10);

/// What a shell wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct ShellOutput {
    /// What was asked for of the bytes before the others.
    pub before: Bytes,
    /// The bytes.
    pub bytes: Bytes,
    /// What follows them.
    pub part: ShellPart,
}

/// What became of typing into a shell.
#[derive(Debug, Clone, PartialEq)]
pub enum ShellAnswer {
    /// It was given all of it, and wrote this.
    Output(ShellOutput),
    /// It has ended.
    Ended,
    /// It did not take all of it within [`TYPE_LIMIT`].
    NotTaken,
}

/// How showing a shell ended.
#[derive(Debug, Clone, PartialEq)]
pub enum AttachEnd {
    /// The shell has ended, and all of its output was passed on.
    Ended(CommandOutcome),
    /// The caller has read so slowly that what comes next is no longer kept.
    Behind,
    /// There is no such shell.
    NoShell,
}

impl Client {
    /// Starts a shell, which has a terminal and an input, and returns its number.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn open_shell(&self, exec: Exec) -> Result<u64, RunError> {
        match self.ask(Request::OpenShell(exec)).await? {
            Reply::Accepted { sequence: Some(sequence), .. } => Ok(sequence),
            reply => Err(unexpected(reply)),
        }
    }

    /// Lists the shells that run, and the latest that have ended, in the order of their numbers.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn list_shells(&self) -> Result<Vec<ShellState>, RunError> {
        match self.ask(Request::ListShells).await? {
            Reply::Shells(shells) => Ok(shells),
            reply => Err(unexpected(reply)),
        }
    }

    /// Waits for output of a shell and returns it. `None`: there is no such shell.
    ///
    /// # Errors
    /// [`RunError`]; [`RunError::Refused`] if the cursor is beyond what was written.
    pub async fn read_shell(&self, request: ReadShell) -> Result<Option<ShellOutput>, RunError> {
        let read = async {
            let mut stream = self.connect().await?.stream;
            ask(&mut stream, Request::ReadShell(request)).await?;
            output(&mut stream, request).await
        };
        let silent = Err(ConnectError::Unresponsive.into());
        self.while_responsive(WATCH_PROBE_AFTER, read).await.unwrap_or(silent)
    }

    /// Types into a shell, waits for output that follows, and returns it. `None`: there is no such shell.
    ///
    /// # Errors
    /// As [`Self::read_shell`].
    pub async fn write_shell(
        &self,
        keys: Bytes,
        request: ReadShell,
    ) -> Result<Option<ShellAnswer>, RunError> {
        let written = async {
            let mut stream = self.connect().await?.stream;
            ask(&mut stream, Request::WriteShell(request)).await?;
            let answer = async {
                // The supervisor answers, also if it does not read everything.
                let _ = type_keys(&mut stream, keys).await;
                stream.next().await
            };
            match timeout(TYPE_LIMIT, answer).await {
                Err(_) => return Ok(Some(ShellAnswer::NotTaken)),
                Ok(Some(Ok(Frame::Control(Reply::Input(InputOutcome::Taken))))) => {}
                Ok(Some(Ok(Frame::Control(Reply::Input(_))))) => return Ok(Some(ShellAnswer::Ended)),
                Ok(Some(Ok(Frame::Control(Reply::NotRunning)))) => return Ok(None),
                Ok(Some(Ok(Frame::Control(reply)))) => return Err(unexpected(reply)),
                Ok(Some(Ok(Frame::Output(..)) | Err(_)) | None) => {
                    return Err(RunError::Lost { sequence: None });
                }
            }
            Ok(output(&mut stream, request).await?.map(ShellAnswer::Output))
        };
        let silent = Err(ConnectError::Unresponsive.into());
        self.while_responsive(WATCH_PROBE_AFTER, written).await.unwrap_or(silent)
    }

    /// Passes on what a shell writes from a cursor on, until it ends, or the caller has read too slowly.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn attach_shell(
        &self,
        sequence: u64,
        cursor: u64,
        mut on_output: impl AsyncFnMut(Bytes),
    ) -> Result<AttachEnd, RunError> {
        let attached = async {
            let mut stream = self.connect().await?.stream;
            ask(&mut stream, Request::AttachShell { sequence, cursor }).await?;
            loop {
                match stream.next().await {
                    Some(Ok(Frame::Output(_, bytes))) => on_output(bytes).await,
                    Some(Ok(Frame::Control(Reply::Ended(outcome)))) => return Ok(AttachEnd::Ended(outcome)),
                    Some(Ok(Frame::Control(Reply::Shells(_)))) => return Ok(AttachEnd::Behind),
                    Some(Ok(Frame::Control(Reply::NotRunning))) => return Ok(AttachEnd::NoShell),
                    Some(Ok(Frame::Control(reply))) => return Err(unexpected(reply)),
                    Some(Err(_)) | None => return Err(RunError::Lost { sequence: None }),
                }
            }
        };
        let attached = pin!(attached);
        let silent = Err(ConnectError::Unresponsive.into());
        self.while_responsive(WATCH_PROBE_AFTER, attached).await.unwrap_or(silent)
    }
}

/// Sends what is typed into a shell.
async fn type_keys(stream: &mut ClientStream, mut keys: Bytes) -> Result<(), FrameError> {
    while !keys.is_empty() {
        let piece = keys.split_to(keys.len().min(MAX_OUTPUT_BYTES));
        stream.feed(Frame::Output(OutputStream::Stdout, piece)).await?;
    }
    stream.send(Frame::Control(Request::InputFinished)).await
}

/// Receives the answer to a read of a shell. `None`: there is no such shell.
async fn output(stream: &mut ClientStream, request: ReadShell) -> Result<Option<ShellOutput>, RunError> {
    let mut all = BytesMut::new();
    loop {
        match stream.next().await {
            Some(Ok(Frame::Output(_, bytes))) => {
                all.extend_from_slice(&bytes);
                if all.len() as u64 > request.before.saturating_add(request.max_bytes) {
                    return Err(RunError::Lost { sequence: None });
                }
            }
            Some(Ok(Frame::Control(Reply::ShellPart(part)))) if part.before <= all.len() as u64 => {
                // At most the number of bytes in memory.
                let before = all.split_to(part.before as usize).freeze();
                return Ok(Some(ShellOutput { before, bytes: all.freeze(), part }));
            }
            Some(Ok(Frame::Control(Reply::NotRunning))) => return Ok(None),
            Some(Ok(Frame::Control(reply))) => return Err(unexpected(reply)),
            Some(Err(_)) | None => return Err(RunError::Lost { sequence: None }),
        }
    }
}
