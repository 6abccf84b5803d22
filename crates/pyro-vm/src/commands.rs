//! Commands of a journal, as their clients see them. The supervisor runs and records them.

use std::io;
use std::path::PathBuf;

use futures::StreamExt;
use pyro_wire::{Exec, Frame};

use crate::OutputChunk;
use crate::supervisor::CommandEnd;
use crate::supervisor::control::{self, ClientStream, ControlReply, ControlRequest};

/// Why a client does not know how its command ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The supervisor was not reached: the command surely did not run.
    #[error("the VM cannot be reached")]
    NotDelivered(#[source] io::Error),
    /// The supervisor did not take the command: it surely did not run.
    #[error("{cause}")]
    Refused {
        /// Why.
        cause: String,
    },
    /// The supervisor was lost. If the command has a number, its record will say more.
    #[error("the VM's supervisor was lost")]
    Lost {
        /// Its number, if it was told.
        sequence: Option<u64>,
    },
}

/// A way to the supervisor of one VM. Holds no connection.
#[derive(Clone, Debug)]
pub struct CommandClient {
    dir: PathBuf,
}

impl CommandClient {
    /// For the VM whose directory is `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Runs a command and waits for its end. Its output comes as it is written; while `on_output` waits, the command
    /// is slowed down. Dropping the future leaves the command alone: it goes on, as [`CommandClient::detach`] lets it.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn run(
        &self,
        exec: Exec,
        on_accepted: impl FnOnce(u64),
        on_output: impl AsyncFnMut(OutputChunk),
    ) -> Result<(u64, CommandEnd), RunError> {
        let (sequence, stream) = self.begin(exec, false).await?;
        on_accepted(sequence);
        match end_of(stream, on_output).await {
            Ok(Some(end)) => Ok((sequence, end)),
            Ok(None) | Err(_) => Err(RunError::Lost { sequence: Some(sequence) }),
        }
    }

    /// Begins a command that nobody waits for.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn detach(&self, exec: Exec) -> Result<u64, RunError> {
        Ok(self.begin(exec, true).await?.0)
    }

    async fn begin(&self, exec: Exec, detach: bool) -> Result<(u64, ClientStream), RunError> {
        let request = ControlRequest::Run { exec, detach };
        let mut stream = control::connect(&self.dir, request).await.map_err(RunError::NotDelivered)?;
        match stream.next().await {
            Some(Ok(Frame::Control(ControlReply::Accepted { sequence }))) => Ok((sequence, stream)),
            Some(Ok(Frame::Control(ControlReply::Refused { cause }))) => Err(RunError::Refused { cause }),
            _ => Err(RunError::Lost { sequence: None }),
        }
    }

    /// Waits until a command that runs has ended; its output, from the beginning, is given to `on_output` meanwhile if
    /// `output` is true. `None`: it does not run, and its record says more.
    ///
    /// # Errors
    /// The supervisor cannot be reached or was lost.
    pub async fn watch(
        &self,
        sequence: u64,
        output: bool,
        on_output: impl AsyncFnMut(OutputChunk),
    ) -> io::Result<Option<CommandEnd>> {
        let request = ControlRequest::Watch { sequence, output };
        end_of(control::connect(&self.dir, request).await?, on_output).await
    }

    /// Ends a command that runs and waits until it has ended. `None`: it does not run, and its record says more.
    ///
    /// # Errors
    /// The supervisor cannot be reached or was lost.
    pub async fn kill(&self, sequence: u64) -> io::Result<Option<CommandEnd>> {
        end_of(control::connect(&self.dir, ControlRequest::Kill { sequence }).await?, async |_| {}).await
    }
}

async fn end_of(
    mut stream: ClientStream,
    mut on_output: impl AsyncFnMut(OutputChunk),
) -> io::Result<Option<CommandEnd>> {
    loop {
        match stream.next().await {
            Some(Ok(Frame::Output(stream, bytes))) => on_output(OutputChunk { stream, bytes }).await,
            Some(Ok(Frame::Control(ControlReply::Ended(end)))) => return Ok(Some(end)),
            Some(Ok(Frame::Control(ControlReply::NotRunning))) => return Ok(None),
            Some(Ok(Frame::Control(_))) => return Err(io::ErrorKind::InvalidData.into()),
            Some(Err(error)) => return Err(io::Error::other(error)),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
