//! What clients send to running commands: input, sizes of their terminals, and signals.
//!
//! Each has its own stream to the guest, so a command that does not read its input delays nothing else. The input of a
//! client that goes stays open for another.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{
    Call, Failure, Frame, FrameCodec, Input, InputEnd, InputReply, Resize, Signal, SteerReply, TerminalSize,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::{Addressable, Commands, InputSlot, reply};
use crate::conversation::HOST_MARGIN;
use crate::mux::{Permit, call};
use crate::protocol::{CommandKey, InputOutcome, Reply, Request, ServerStream};
use crate::server::Store;

/// Time limit for a command to take what a client sent before it disconnected.
pub(super) const LAST_INPUT_LIMIT: Duration = Duration::from_secs(1);

impl<S: Store + 'static> Commands<S> {
    /// Passes on what a client sends to the standard input of a command, until the client finishes or disconnects, or the
    /// command takes no more.
    pub(in crate::server) async fn input(&self, command: CommandKey, mut client: ServerStream) {
        if let Some(shell) = self.shell_of(command).await {
            return self.type_into(&shell, client).await;
        }
        let answer = match self.sent(command).await {
            Some((_, Addressable { input: None, .. })) => Some(Reply::Input(InputOutcome::NoInput)),
            Some((id, Addressable { input: Some(slot), is_sent })) => match Attached::to(slot) {
                Some(attached) => self.relay(id, is_sent, &attached, &mut client).await,
                None => Some(Reply::Input(InputOutcome::Busy)),
            },
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
        mut is_sent: tokio::sync::watch::Receiver<bool>,
        attached: &Attached,
        client: &mut ServerStream,
    ) -> Option<Reply> {
        let hang_up = match HangUp::of(client) {
            Ok(hang_up) => hang_up,
            Err(error) => return Some(Reply::Refused { cause: error.to_string() }),
        };
        let stream = match self.0.streams.open_with(&attached.permit).await {
            Ok(stream) => Framed::new(stream.compat(), FrameCodec::default()),
            Err(error) => return Some(Reply::Refused { cause: error.to_string() }),
        };
        let Ok(Ok(guest)) = timeout(self.margin(), call(stream, Input { command: id })).await else {
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
        // A command that does not read keeps the pump from seeing the end of the client's bytes.
        let abandoned = async {
            hang_up.wait().await;
            sleep(LAST_INPUT_LIMIT).await;
        };
        let mut ended = is_sent.clone();
        let answer = async {
            let answer = from_guest.next();
            tokio::pin!(answer);
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                // The command has ended, and the guest says so.
                _ = ended.wait_for(|_| false) => {}
            }
            timeout(self.margin(), answer).await.ok().flatten()
        };
        let answer = tokio::select! {
            biased;
            answer = answer => answer,
            () = pump => return None,
            () = abandoned => return None,
        };
        Some(match answer {
            Some(Ok(Frame::Control(InputReply::NotRunning))) => {
                // The end of the command follows, unless the guest is confused.
                match timeout(self.margin(), is_sent.wait_for(|_| false)).await {
                    Ok(_) => Reply::Input(InputOutcome::NotRunning),
                    Err(_) => Reply::Refused { cause: "the guest does not know the command".to_owned() },
                }
            }
            Some(Ok(Frame::Control(answer))) => reply_to_input(answer),
            Some(Ok(Frame::Output(..)) | Err(_)) => {
                Reply::Refused { cause: "unexpected message from the guest agent".to_owned() }
            }
            None => Reply::Input(InputOutcome::Closed),
        })
    }

    /// Changes the size of a command's terminal.
    pub(in crate::server) async fn resize(
        &self,
        command: CommandKey,
        size: TerminalSize,
        mut client: ServerStream,
    ) {
        let answer = self.steer(command, |command| Resize { command, size }).await;
        if let (Reply::Done, Some(shell)) = (&answer, self.shell_of(command).await) {
            shell.set_size(size);
        }
        reply(&mut client, answer).await;
    }

    /// Sends a signal to a command.
    pub(in crate::server) async fn signal(&self, command: CommandKey, signal: i32, mut client: ServerStream) {
        let answer = match (1..=31).contains(&signal) {
            true => self.steer(command, |command| Signal { command, signal }).await,
            false => Reply::Refused { cause: "invalid signal: expected 1 to 31".to_owned() },
        };
        reply(&mut client, answer).await;
    }

    /// Time limit for the guest to take a message or to answer one.
    pub(super) fn margin(&self) -> Duration {
        self.0.streams.pace().allow(HOST_MARGIN)
    }

    async fn steer<C: Call<Reply = SteerReply>>(
        &self,
        command: CommandKey,
        request: impl FnOnce(u64) -> C,
    ) -> Reply {
        let Some((id, _)) = self.sent(command).await else { return Reply::NotRunning };
        match timeout(self.margin(), self.0.streams.ask_for_client(request(id))).await {
            Ok(Ok(Some(SteerReply::Done))) => Reply::Done,
            Ok(Ok(Some(SteerReply::NotRunning))) => Reply::NotRunning,
            Ok(Ok(Some(SteerReply::Failed(failure)))) => refused(&failure),
            Ok(Err(error)) => Reply::Refused { cause: error.to_string() },
            Ok(Ok(None)) | Err(_) => Reply::Refused { cause: "the guest does not answer".to_owned() },
        }
    }

    /// Returns a command's number in the guest, once the guest was sent it. `None`: no such command runs.
    pub(super) async fn sent(&self, command: CommandKey) -> Option<(u64, Addressable)> {
        let id = match command {
            CommandKey::Id(id) => id,
            CommandKey::Sequence(sequence) => self.find(sequence).await?.id,
        };
        let mut addressable = self.0.addressable.borrow().get(&id).cloned()?;
        addressable.is_sent.wait_for(|is_sent| *is_sent).await.ok()?;
        Some((id, addressable))
    }
}

/// The only client that sends a command's input. Dropping it lets another one do so.
pub(super) struct Attached {
    pub(super) permit: Rc<Permit>,
    slot: InputSlot,
}

impl Attached {
    /// `None`: another client sends the input.
    pub(super) fn to(slot: InputSlot) -> Option<Self> {
        let permit = slot.borrow_mut().take()?;
        Some(Self { permit, slot })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        *self.slot.borrow_mut() = Some(Rc::clone(&self.permit));
    }
}

/// Shows when a client disconnects, also while nothing is read from it.
pub(super) struct HangUp(UnixStream);

impl HangUp {
    pub(super) fn of(client: &ServerStream) -> io::Result<Self> {
        let socket = client.get_ref().as_fd().try_clone_to_owned()?;
        UnixStream::from_std(socket.into()).map(Self)
    }

    pub(super) async fn wait(&self) {
        // An error means that the event loop ends.
        while let Ok(ready) = self.0.ready(Interest::WRITABLE).await {
            if ready.is_write_closed() {
                return;
            }
            // Waits for the next event instead of reporting that there is space.
            let _ =
                self.0.try_io(Interest::WRITABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
        }
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
