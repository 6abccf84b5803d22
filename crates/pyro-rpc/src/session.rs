//! The session of a client: reads its lines, runs its calls concurrently, and sends events and responses.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use pyro_api::{CallContext, Caller, Contract, Error, Events, Input};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::document::DISCOVER;
use crate::event_sender::EventSender;
use crate::failure::{Failure, Problem};
use crate::in_flight::{Control, InFlight};
use crate::input_sender::{InputSender, Queued};
use crate::lines::{self, Line, Lines};
use crate::message::{self, Id, Message, Object, Unusable};
use crate::methods::{self, Call};
use crate::notification::{Ack, Cancel, Input as InputData};
use crate::{handshake, params};

/// How long calls in flight may clean up after the client has gone.
const CLEANUP_LIMIT: Duration = Duration::from_secs(20);
/// How long the last responses wait for a client that does not read.
const LAST_ANSWERS_LIMIT: Duration = Duration::from_secs(1);
/// Number of lines that can be queued for the client before calls have to wait.
const LINES_AHEAD: usize = 64;
/// Number of events of a call that can be queued before the engine has to wait.
const EVENTS_AHEAD: usize = 64;

/// Number of pieces of input of a call that can be queued before the client gets no more credit.
const INPUT_AHEAD: usize = 4;

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

    /// Serves a client that writes lines to `input` and reads `output`, until the input ends, the output is closed, or `stop`
    /// is done. Calls in flight are then cancelled, and their VMs are removed before this returns; tasks stay. Must be called
    /// on a tokio runtime. Everything runs on the calling thread, so that no call waits for another thread to wake up.
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
            in_flight: InFlight::default(),
            closing: CancellationToken::new(),
            cleaned_up: TaskTracker::new(),
        });
        let mut writer = spawn_local(lines::write(output, ahead));
        let unread = tokio::select! {
            biased;
            () = stop => None,
            () = session.read(input) => None,
            written = &mut writer => Some(written),
        };
        session.closing.cancel();
        session.cleaned_up.close();
        let _ = tokio::time::timeout(CLEANUP_LIMIT, session.cleaned_up.wait()).await;
        // The writer ends when the last sender of lines is gone.
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

/// State shared by all calls of a client.
struct Session {
    contract: Arc<dyn Contract>,
    lines: mpsc::Sender<Vec<u8>>,
    in_flight: InFlight,
    /// Cancelled when the server ends.
    closing: CancellationToken,
    /// Calls that have not cleaned up yet.
    cleaned_up: TaskTracker,
}

impl Session {
    /// Handles lines until the input ends.
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
                // A closed output ends the server, so the error needs no handling here.
                let _ = self.lines.send(answer).await;
            }
        }
    }

    /// Handles one line. Returns the response unless the line starts a call.
    fn take(self: &Rc<Self>, line: &[u8], greeted: &mut bool) -> Option<Vec<u8>> {
        let Message { id, method, params } = match Message::read(line) {
            Ok(message) => message,
            Err(Unusable { id, failure }) => return Some(message::error(id.as_ref(), failure)),
        };
        let Some(id) = id else {
            self.notification(&method, params);
            return None;
        };
        let refused =
            |text: &str| Some(message::error(Some(&id), Failure::new(Problem::InvalidRequest, text)));
        match (*greeted, method.as_str()) {
            (false, handshake::INITIALIZE) => {
                let greeting = handshake::greet(&params);
                *greeted = greeting.is_ok();
                let answer = greeting.and_then(|hello| message::success(&id, &hello));
                return Some(answer.unwrap_or_else(|failure| message::error(Some(&id), failure)));
            }
            (true, handshake::INITIALIZE) => return refused("`initialize` must be called only once"),
            (false, method) if method != DISCOVER => {
                return refused("the first request must be `initialize`");
            }
            _ => {}
        }
        match self.in_flight.begin(&id, self.closing.child_token()) {
            Ok(steering) => drop(spawn_local(Rc::clone(self).call(id, method, params, steering))),
            Err(failure) => return Some(message::error(Some(&id), failure)),
        }
        None
    }

    /// Handles a notification. An invalid one is ignored with a warning in the log.
    fn notification(&self, method: &str, params: Object) {
        match method {
            "cancel" => match params::read::<Cancel>(&params) {
                Ok(Cancel { id }) => self.in_flight.cancel(&id),
                Err(failure) => tracing::warn!(?failure, "cancel"),
            },
            "ack" => match params::read::<Ack>(&params) {
                Ok(Ack { id, bytes }) => self.in_flight.acknowledge(&id, bytes),
                Err(failure) => tracing::warn!(?failure, "ack"),
            },
            "input" => match params::read::<InputData>(&params) {
                Ok(InputData { id, data, finished }) => self.in_flight.input(&id, &data, finished),
                Err(failure) => tracing::warn!(?failure, "input"),
            },
            method => tracing::warn!(method, "unknown notification"),
        }
    }

    /// Performs a call and sends its response.
    async fn call(self: Rc<Self>, id: Id, method: String, params: Object, steering: (Control, Queued)) {
        let holds = self.cleaned_up.token();
        let (session, call_id) = (Rc::clone(&self), id.clone());
        // A task of its own, so that a panic in one call does not affect others.
        let work = spawn_local(async move {
            let _holds = holds;
            session.carry_out(&call_id, &method, &params, steering).await
        });
        let done = work
            .await
            .unwrap_or_else(|lost| Err(Error::internal("the call was lost").caused_by(lost).into()));
        let answer = done.unwrap_or_else(|failure| message::error(Some(&id), failure));
        // Before the response, after which the client may use the id again.
        self.in_flight.end(&id);
        let _ = self.lines.send(answer).await;
    }

    /// Performs a call, and meanwhile sends its events to the client and its input to its command.
    async fn carry_out(
        &self,
        id: &Id,
        method: &str,
        params: &Object,
        (control, queued): (Control, Queued),
    ) -> Result<Vec<u8>, Failure> {
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let (command, input) = mpsc::channel(INPUT_AHEAD);
        let input_sender = InputSender { id: id.clone(), queued, lines: self.lines.clone() };
        let over = CancellationToken::new();
        let context = CallContext {
            accepted: CancellationToken::new(),
            events: Events::to(sender),
            input: Input::from(input),
            cancel: control.cancel.clone(),
            caller: Caller::Operator,
        };
        let call = Call { contract: Arc::clone(&self.contract), context };
        let event_sender = EventSender {
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
        tokio::join!(work, event_sender.run(events, &over), input_sender.run(command, &over)).0
    }
}

#[cfg(test)]
mod tests;
