//! Shells, as their clients see them.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use pyro_wire::{Exec, Frame};

use super::{Client, CommandInput, ConnectError, RunError, WATCH_PROBE_AFTER, ask, unexpected};
use crate::conversation::CommandOutcome;
use crate::protocol::{CommandKey, InputOutcome, ReadShell, Reply, Request, ShellPart, ShellState};

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
    pub async fn read_shell(&self, request: ReadShell) -> Result<Option<(Bytes, ShellPart)>, RunError> {
        let read = async {
            let mut stream = self.connect().await?.stream;
            ask(&mut stream, Request::ReadShell(request)).await?;
            let mut all = BytesMut::new();
            loop {
                match stream.next().await {
                    Some(Ok(Frame::Output(_, bytes))) => {
                        all.extend_from_slice(&bytes);
                        if all.len() as u64 > request.max_bytes {
                            return Err(RunError::Lost { sequence: None });
                        }
                    }
                    Some(Ok(Frame::Control(Reply::ShellPart(part)))) => {
                        return Ok(Some((all.freeze(), part)));
                    }
                    Some(Ok(Frame::Control(Reply::NotRunning))) => return Ok(None),
                    Some(Ok(Frame::Control(reply))) => return Err(unexpected(reply)),
                    Some(Err(_)) | None => return Err(RunError::Lost { sequence: None }),
                }
            }
        };
        let silent = Err(ConnectError::Unresponsive.into());
        self.while_responsive(WATCH_PROBE_AFTER, read).await.unwrap_or(silent)
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

    /// Types bytes into a shell. Returns when they are on their way to it.
    ///
    /// # Errors
    /// As [`Client::input`].
    pub async fn type_into_shell(
        &self,
        sequence: u64,
        keys: Bytes,
    ) -> Result<Option<InputOutcome>, RunError> {
        let events = stream::iter([CommandInput::Data(keys), CommandInput::Finished]).boxed();
        self.input(CommandKey::Sequence(sequence), events).await
    }
}
