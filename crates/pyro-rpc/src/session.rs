//! One client: its lines come in, its calls run beside each other, events and answers go out.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use pyro_api::{CallContext, Contract, Error, Events};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::document::DISCOVER;
use crate::fault::{Fault, Problem};
use crate::lines::{self, Line, Lines};
use crate::message::{self, Id, Message, Object, Unusable};
use crate::methods::{self, Call};
use crate::note::{Ack, Cancel};
use crate::teller::Teller;
use crate::under_way::{Control, UnderWay};
use crate::{handshake, params};

/// How long calls that are under way may clean up when the client has gone.
const CLEANUP_LIMIT: Duration = Duration::from_secs(20);
/// How long the last answers may wait for a client that does not read.
const LAST_ANSWERS_LIMIT: Duration = Duration::from_secs(1);
/// Lines that may wait to be written before calls have to wait.
const LINES_AHEAD: usize = 64;
/// Events of a call that may wait to be told before the engine has to wait.
const EVENTS_AHEAD: usize = 64;

/// The contract as a server for one program.
#[derive(Debug)]
pub struct Server {
    contract: Arc<dyn Contract>,
}

impl Server {
    /// A server for what `contract` can do.
    pub fn new(contract: impl Contract + 'static) -> Self {
        Self { contract: Arc::new(contract) }
    }

    /// Serves the client whose lines are `input`, and who reads `output`, until the input ends, nobody reads the output any
    /// more, or `stop` is done. Calls that are under way then are cancelled, and what they hold is freed before this
    /// returns; tasks stay. Must be called on a tokio runtime. All goes on in the thread that calls it, so that no call waits
    /// for another thread to wake up.
    ///
    /// # Errors
    /// The output could not be written.
    pub async fn serve(
        self,
        input: impl AsyncRead + Unpin,
        output: impl AsyncWrite + Unpin + 'static,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        LocalSet::new().run_until(self.serve_here(input, output, stop)).await
    }

    async fn serve_here(
        self,
        input: impl AsyncRead + Unpin,
        output: impl AsyncWrite + Unpin + 'static,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let (lines, ahead) = mpsc::channel(LINES_AHEAD);
        let session = Rc::new(Session {
            contract: self.contract,
            lines,
            under_way: UnderWay::default(),
            closing: CancellationToken::new(),
            freed: TaskTracker::new(),
        });
        let mut writer = spawn_local(lines::write(output, ahead));
        let unread = tokio::select! {
            biased;
            () = stop => None,
            () = session.read(input) => None,
            written = &mut writer => Some(written),
        };
        session.closing.cancel();
        session.freed.close();
        let _ = tokio::time::timeout(CLEANUP_LIMIT, session.freed.wait()).await;
        // The writer ends when the last of those who have lines for it has gone.
        drop(session);
        match unread {
            Some(written) => written.unwrap_or_else(|lost| Err(io::Error::other(lost))),
            None => {
                let _ = tokio::time::timeout(LAST_ANSWERS_LIMIT, writer).await;
                Ok(())
            }
        }
    }
}

/// What all calls of a client share.
struct Session {
    contract: Arc<dyn Contract>,
    lines: mpsc::Sender<Vec<u8>>,
    under_way: UnderWay,
    /// Cancelled when the server ends.
    closing: CancellationToken,
    /// Calls that still hold something.
    freed: TaskTracker,
}

impl Session {
    /// Takes line after line, until there are no more.
    async fn read(self: &Rc<Self>, input: impl AsyncRead + Unpin) {
        let mut input = FramedRead::new(input, Lines::new());
        let mut greeted = false;
        while let Some(line) = input.next().await {
            let answer = match line {
                Ok(Line::Whole(line)) => self.take(&line, &mut greeted),
                Ok(Line::TooLong) => Some(message::too_long()),
                Err(error) => {
                    tracing::warn!(%error, "the input cannot be read");
                    return;
                }
            };
            if let Some(answer) = answer {
                // Nobody reads any more: that ends the server.
                let _ = self.lines.send(answer).await;
            }
        }
    }

    /// Takes one line, and gives the answer to one that begins no call.
    fn take(self: &Rc<Self>, line: &[u8], greeted: &mut bool) -> Option<Vec<u8>> {
        let Message { id, method, params } = match Message::read(line) {
            Ok(message) => message,
            Err(Unusable { id, fault }) => return Some(message::failure(id.as_ref(), fault)),
        };
        let Some(id) = id else {
            self.note(&method, params);
            return None;
        };
        let refused =
            |text: &str| Some(message::failure(Some(&id), Fault::new(Problem::InvalidRequest, text)));
        match (*greeted, method.as_str()) {
            (false, handshake::INITIALIZE) => {
                let greeting = handshake::greet(&params);
                *greeted = greeting.is_ok();
                let answer = greeting.and_then(|hello| message::success(&id, &hello));
                return Some(answer.unwrap_or_else(|fault| message::failure(Some(&id), fault)));
            }
            (true, handshake::INITIALIZE) => return refused("`initialize` was done already"),
            (false, method) if method != DISCOVER => {
                return refused("the first request must be `initialize`");
            }
            _ => {}
        }
        match self.under_way.begin(&id, self.closing.child_token()) {
            Ok(control) => drop(spawn_local(Rc::clone(self).call(id, method, params, control))),
            Err(fault) => return Some(message::failure(Some(&id), fault)),
        }
        None
    }

    /// Takes a message that nobody waits for an answer to. One that makes no sense is passed over.
    fn note(&self, method: &str, params: Object) {
        match method {
            "cancel" => match params::read::<Cancel>(&params) {
                Ok(Cancel { id }) => self.under_way.cancel(&id),
                Err(fault) => tracing::warn!(?fault, "cancel"),
            },
            "ack" => match params::read::<Ack>(&params) {
                Ok(Ack { id, bytes }) => self.under_way.acknowledge(&id, bytes),
                Err(fault) => tracing::warn!(?fault, "ack"),
            },
            method => tracing::warn!(method, "unknown notification"),
        }
    }

    /// Carries out a call and answers it.
    async fn call(self: Rc<Self>, id: Id, method: String, params: Object, control: Control) {
        let holds = self.freed.token();
        let (session, call_id) = (Rc::clone(&self), id.clone());
        // A task of its own, so that what is wrong with one call costs no other.
        let work = spawn_local(async move {
            let _holds = holds;
            session.carry_out(&call_id, &method, &params, control).await
        });
        let done = work
            .await
            .unwrap_or_else(|lost| Err(Error::internal("the call was lost").caused_by(lost).into()));
        let answer = done.unwrap_or_else(|fault| message::failure(Some(&id), fault));
        // Before the answer, which allows the client to use the id again.
        self.under_way.end(&id);
        let _ = self.lines.send(answer).await;
    }

    /// Carries out a call and tells its events meanwhile.
    async fn carry_out(
        &self,
        id: &Id,
        method: &str,
        params: &Object,
        control: Control,
    ) -> Result<Vec<u8>, Fault> {
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let over = CancellationToken::new();
        let context = CallContext { events: Events::to(sender), cancel: control.cancel.clone() };
        let call = Call { contract: Arc::clone(&self.contract), context };
        let teller = Teller {
            id: id.clone(),
            control,
            lines: self.lines.clone(),
            closing: self.closing.clone(),
            sent: 0,
        };
        let work = async {
            let done = methods::carry_out(&call, method, id, params).await;
            over.cancel();
            done
        };
        tokio::join!(work, teller.tell(events, &over)).0
    }
}

#[cfg(test)]
mod tests;
