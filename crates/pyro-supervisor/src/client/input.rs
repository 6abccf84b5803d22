//! What a client sends to a running command.

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, MAX_OUTPUT_BYTES, OutputStream, TerminalSize};

use super::{Client, ConnectError, RunError, WATCH_PROBE_AFTER, ask, unexpected};
use crate::protocol::{ClientStream, CommandKey, InputOutcome, Reply, Request};

/// One thing to send to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandInput {
    /// Bytes for its standard input.
    Data(Bytes),
    /// Its standard input ends.
    Finished,
    /// Its terminal has this size now.
    Resize(TerminalSize),
}

/// What to send to a command, in order. It is not read further while the command does not take what it was sent.
pub type InputStream = BoxStream<'static, CommandInput>;

impl Client {
    /// Sends `input` to a running command. Returns what became of it when the command was given all, or takes no more;
    /// `None` if `input` ends without [`CommandInput::Finished`]. The command's standard input stays open then, as it does
    /// when the future is dropped.
    ///
    /// # Errors
    /// The supervisor cannot be reached, does not respond any more, was lost, or the guest refused it.
    pub async fn input(
        &self,
        command: CommandKey,
        input: InputStream,
    ) -> Result<Option<InputOutcome>, RunError> {
        let mut stream = self.connect().await?.stream;
        ask(&mut stream, Request::Input(command)).await?;
        // A command may take nothing for long, but its supervisor responds.
        let sent = self.send_input(stream, command, input);
        let silent = Err(ConnectError::Unresponsive.into());
        self.while_responsive(WATCH_PROBE_AFTER, sent).await.unwrap_or(silent)
    }

    async fn send_input(
        &self,
        stream: ClientStream,
        command: CommandKey,
        mut input: InputStream,
    ) -> Result<Option<InputOutcome>, RunError> {
        let (mut sink, mut replies) = stream.split();
        let send = async {
            while let Some(event) = input.next().await {
                match event {
                    CommandInput::Data(mut bytes) => {
                        while !bytes.is_empty() {
                            let piece = bytes.split_to(bytes.len().min(MAX_OUTPUT_BYTES));
                            sink.send(Frame::Output(OutputStream::Stdout, piece)).await?;
                        }
                    }
                    // A terminal that cannot be resized keeps its size.
                    CommandInput::Resize(size) => drop(self.resize(command, size).await),
                    CommandInput::Finished => {
                        sink.send(Frame::Control(Request::InputFinished)).await?;
                        return Ok(true);
                    }
                }
            }
            Ok::<_, pyro_wire::FrameError>(false)
        };
        let answer = tokio::select! {
            biased;
            answer = replies.next() => answer,
            sent = send => match sent {
                Ok(false) => return Ok(None),
                // The supervisor answers, also after it has stopped reading.
                Ok(true) | Err(_) => replies.next().await,
            },
        };
        match answer {
            Some(Ok(Frame::Control(Reply::Input(outcome)))) => Ok(Some(outcome)),
            Some(Ok(Frame::Control(reply))) => Err(unexpected(reply)),
            Some(Ok(Frame::Output(..)) | Err(_)) | None => Err(RunError::Lost { sequence: None }),
        }
    }

    /// Changes the size of a running command's terminal. Returns whether it runs.
    ///
    /// # Errors
    /// The supervisor cannot be reached or did not answer, or the command has no terminal.
    pub async fn resize(&self, command: CommandKey, size: TerminalSize) -> Result<bool, RunError> {
        self.steer(Request::Resize { command, size }).await
    }

    /// Sends a signal to a running command, or to what runs in the foreground of its terminal. Returns whether it runs.
    ///
    /// # Errors
    /// The supervisor cannot be reached or did not answer, or the guest refused it.
    pub async fn signal(&self, command: CommandKey, signal: i32) -> Result<bool, RunError> {
        self.steer(Request::Signal { command, signal }).await
    }

    async fn steer(&self, request: Request) -> Result<bool, RunError> {
        match self.ask(request).await? {
            Reply::Done => Ok(true),
            Reply::NotRunning => Ok(false),
            reply => Err(unexpected(reply)),
        }
    }

    /// Sends the input of a command that this client runs. Without input, only the terminal's size is passed on. Returns why
    /// a command that runs was not given all of its input, unless it closed it.
    pub(super) async fn feed(
        &self,
        command: CommandKey,
        takes_input: bool,
        mut input: InputStream,
    ) -> Option<String> {
        if takes_input {
            return match self.input(command, input).await {
                // How a command ends that has ended says more.
                Ok(None | Some(InputOutcome::Taken | InputOutcome::Closed | InputOutcome::NotRunning)) => {
                    None
                }
                Ok(Some(InputOutcome::NoInput)) => Some("the command takes no input".to_owned()),
                Ok(Some(InputOutcome::Busy)) => Some("another caller sends it".to_owned()),
                Err(error) => Some(error.to_string()),
            };
        }
        while let Some(event) = input.next().await {
            if let CommandInput::Resize(size) = event {
                let _ = self.resize(command, size).await;
            }
        }
        None
    }
}
