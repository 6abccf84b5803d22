//! What clients send to running commands: input, sizes of their terminals, and signals.
//!
//! Each has its own stream to the guest, so a command that does not read its input delays nothing else. The input of a
//! client that goes stays open for another.

use futures::{SinkExt, StreamExt};
use pyro_wire::{
    Call, Failure, Frame, FrameCodec, Input, InputEnd, InputReply, Resize, Signal, SteerReply, TerminalSize,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::{Commands, reply};
use crate::conversation::HOST_MARGIN;
use crate::mux::call;
use crate::protocol::{CommandKey, InputOutcome, Reply, Request, ServerStream};
use crate::server::Store;

impl<S: Store + 'static> Commands<S> {
    /// Passes on what a client sends to the standard input of a command, until the client finishes or disconnects, or the
    /// command takes no more.
    pub(in crate::server) async fn input(&self, command: CommandKey, mut client: ServerStream) {
        let answer = match self.sent(command).await {
            Some((id, present)) => self.relay(id, present, &mut client).await,
            None => Some(Reply::Input(InputOutcome::NotRunning)),
        };
        if let Some(answer) = answer {
            reply(&mut client, answer).await;
        }
    }

    /// `None`: the client has disconnected.
    async fn relay(
        &self,
        id: u64,
        mut present: watch::Receiver<bool>,
        client: &mut ServerStream,
    ) -> Option<Reply> {
        let (stream, _permit) = match self.0.streams.open().await {
            Ok(open) => open,
            Err(error) => return Some(Reply::Refused { cause: error.to_string() }),
        };
        let stream = Framed::new(stream.compat(), FrameCodec::default());
        let Ok(Ok(guest)) = timeout(HOST_MARGIN, call(stream, Input { command: id })).await else {
            return Some(Reply::Refused { cause: "the guest takes no requests".to_owned() });
        };
        let (mut to_guest, mut from_guest) = guest.split();
        let pump = async {
            while let Some(Ok(frame)) = client.next().await {
                let passed = match frame {
                    Frame::Output(stream, bytes) => to_guest.send(Frame::Output(stream, bytes)).await,
                    Frame::Control(Request::InputFinished) => {
                        to_guest.send(Frame::Control(InputEnd::Finished)).await
                    }
                    Frame::Control(_) => return,
                };
                if passed.is_err() {
                    // The guest's answer says why.
                    std::future::pending::<()>().await;
                }
            }
        };
        let answer = async {
            let answer = from_guest.next();
            tokio::pin!(answer);
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                // The command has ended, and the guest says so.
                _ = present.wait_for(|_| false) => {}
            }
            timeout(HOST_MARGIN, answer).await.ok().flatten()
        };
        tokio::select! {
            biased;
            answer = answer => Some(match answer {
                Some(Ok(Frame::Control(answer))) => reply_to_input(answer),
                Some(Ok(Frame::Output(..)) | Err(_)) => {
                    Reply::Refused { cause: "unexpected message from the guest agent".to_owned() }
                }
                None => Reply::Input(InputOutcome::Closed),
            }),
            () = pump => None,
        }
    }

    /// Changes the size of a command's terminal.
    pub(in crate::server) async fn resize(
        &self,
        command: CommandKey,
        size: TerminalSize,
        mut client: ServerStream,
    ) {
        let answer = self.steer(command, |command| Resize { command, size }).await;
        reply(&mut client, answer).await;
    }

    /// Sends a signal to a command.
    pub(in crate::server) async fn signal(&self, command: CommandKey, signal: i32, mut client: ServerStream) {
        let answer = match (1..=64).contains(&signal) {
            true => self.steer(command, |command| Signal { command, signal }).await,
            false => Reply::Refused { cause: "invalid signal: expected 1 to 64".to_owned() },
        };
        reply(&mut client, answer).await;
    }

    async fn steer<C: Call<Reply = SteerReply>>(
        &self,
        command: CommandKey,
        request: impl FnOnce(u64) -> C,
    ) -> Reply {
        let Some((id, _)) = self.sent(command).await else { return Reply::NotRunning };
        match timeout(HOST_MARGIN, self.0.streams.ask(request(id))).await {
            Ok(Some(SteerReply::Done)) => Reply::Done,
            Ok(Some(SteerReply::NotRunning)) => Reply::NotRunning,
            Ok(Some(SteerReply::Failed(failure))) => refused(&failure),
            Ok(None) | Err(_) => Reply::Refused { cause: "the guest does not answer".to_owned() },
        }
    }

    /// Returns a command's number in the guest, once the guest was sent it, and what shows that it has not ended. `None`: no
    /// such command runs.
    async fn sent(&self, command: CommandKey) -> Option<(u64, watch::Receiver<bool>)> {
        let id = match command {
            CommandKey::Id(id) => id,
            CommandKey::Sequence(sequence) => self.find(sequence).await?.id,
        };
        let mut present = self.0.present.borrow().get(&id).cloned()?;
        present.wait_for(|is_sent| *is_sent).await.ok()?;
        Some((id, present))
    }
}

fn reply_to_input(answer: InputReply) -> Reply {
    Reply::Input(match answer {
        InputReply::Taken => InputOutcome::Taken,
        InputReply::Closed => InputOutcome::Closed,
        InputReply::NotRunning => InputOutcome::NotRunning,
        InputReply::Busy => InputOutcome::Busy,
        InputReply::Failed(failure) => return refused(&failure),
    })
}

/// The text of a failure is bounded where it is decoded.
fn refused(Failure { step, cause, .. }: &Failure) -> Reply {
    Reply::Refused { cause: format!("{step}: {cause}") }
}
