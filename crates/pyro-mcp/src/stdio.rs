//! The transport for one client on a pair of byte streams, one message per line. Unlike rmcp's own, it answers every request, even
//! an invalid one, and stops reading while the client does not read.

mod answer;
mod decode;
mod in_flight;
mod line;
mod message_id;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rmcp::RoleServer;
use rmcp::model::{ClientNotification, JsonRpcMessage};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio_util::sync::CancellationToken;

use self::decode::{Refused, decode};
use self::in_flight::InFlight;
use self::line::{Line, Lines};

/// Messages that wait until the client reads, in bytes. With more, no further message is taken.
const UNREAD_BYTES: usize = 4 << 20;
/// Requests in flight and their answers, in bytes. With more, no further large message is taken, and none with a large answer.
const IN_FLIGHT_BYTES: usize = 64 << 20;
/// Maximum length of a small message, in bytes. Cancellations are small.
const SMALL_BYTES: usize = 4096;

/// Serves one client that writes to `R` and reads from `W`.
pub(crate) struct Stdio<R, W> {
    lines: Lines<R>,
    /// A message that was read and not taken yet.
    next: Option<Next>,
    output: Arc<Output<W>>,
    in_flight: InFlight,
    /// Cancelled when the client sends or reads no more.
    ended: CancellationToken,
    /// The answer to an invalid message, until it is written.
    refusal: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
}

/// A message that was read.
struct Next {
    /// The message, or why it is refused. `None`: it needs no answer.
    message: Result<Option<RxJsonRpcMessage<RoleServer>>, Refused>,
    /// Its length in bytes, and that of its answer if that can be large.
    bytes: usize,
}

/// Where messages go.
struct Output<W> {
    /// Absent once the transport is closed.
    stream: AsyncMutex<Option<W>>,
    unread_bytes: AtomicUsize,
    /// A message was written, or a request was answered.
    progress: Notify,
    /// The client reads no more, or nothing more is written.
    closed: CancellationToken,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin + Send + 'static> Stdio<R, W> {
    pub(crate) fn new(input: R, output: W) -> Self {
        let output = Output {
            stream: AsyncMutex::new(Some(output)),
            unread_bytes: AtomicUsize::new(0),
            progress: Notify::new(),
            closed: CancellationToken::new(),
        };
        Self {
            lines: Lines::new(input),
            next: None,
            output: Arc::new(output),
            in_flight: InFlight::default(),
            ended: CancellationToken::new(),
            refusal: None,
        }
    }

    /// Is cancelled when the client sends or reads no more.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Returns a message, or why it is refused. `None`: it needs no answer.
    fn take(&mut self, next: Next) -> Result<Option<RxJsonRpcMessage<RoleServer>>, Refused> {
        let message = next.message?;
        match &message {
            Some(JsonRpcMessage::Request(request)) => self.in_flight.begin(&request.id, next.bytes)?,
            Some(JsonRpcMessage::Notification(notification)) => {
                if let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    self.in_flight.cancel(id);
                }
            }
            _ => {}
        }
        Ok(message)
    }

    /// Waits until there is space for another message of this size.
    async fn has_space(&mut self, bytes: usize) {
        loop {
            let mut progress = std::pin::pin!(self.output.progress.notified());
            progress.as_mut().enable();
            let unread = self.output.unread_bytes.load(Ordering::Acquire);
            let is_taken = bytes <= SMALL_BYTES || self.in_flight.bytes() < IN_FLIGHT_BYTES;
            if unread < UNREAD_BYTES && is_taken {
                return;
            }
            progress.await;
        }
    }

    /// Reads a message, and waits until there is space for it and its answer. `None`: there are no more, which is noticed at once.
    /// Dropping the future loses nothing.
    async fn read(&mut self) -> io::Result<Option<Next>> {
        let next = match self.next.take() {
            Some(next) => next,
            None => match self.lines.next().await? {
                Line::Whole(line) => Next::of(&line),
                Line::TooLong(id) => {
                    let text = format_args!("expected at most {} bytes", self.lines.max_bytes);
                    Next { message: Err(Refused::invalid(id, text)), bytes: 0 }
                }
                Line::End => return Ok(None),
            },
        };
        let bytes = next.bytes;
        self.next = Some(next);
        self.has_space(bytes).await;
        Ok(self.next.take())
    }

    fn refuse(&mut self, refused: Refused) {
        let Refused { id, error } = refused;
        self.refusal =
            Some(Box::pin(Arc::clone(&self.output).write(TxJsonRpcMessage::<RoleServer>::error(error, id))));
    }
}

impl<R, W> Transport<RoleServer> for Stdio<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send + 'static,
{
    type Error = io::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let answered = match &message {
            JsonRpcMessage::Response(response) => Some(&response.id),
            JsonRpcMessage::Error(error) => error.id.as_ref(),
            _ => None,
        };
        if let Some(id) = answered {
            self.in_flight.end(id);
            self.output.progress.notify_waiters();
        }
        Arc::clone(&self.output).write(message)
    }

    /// Dropping the future loses nothing.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        let received = self.next_message().await;
        if received.is_none() {
            self.ended.cancel();
        }
        received
    }

    async fn close(&mut self) -> io::Result<()> {
        // It may hold the stream.
        self.refusal = None;
        // Ends writes for which the client does not read.
        self.output.closed.cancel();
        drop(self.output.stream.lock().await.take());
        Ok(())
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin + Send + 'static> Stdio<R, W> {
    /// Returns the next message that is taken. Dropping the future loses nothing.
    async fn next_message(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            if let Some(refusal) = &mut self.refusal {
                let written = refusal.await;
                self.refusal = None;
                written.ok()?;
            }
            let closed = self.output.closed.clone();
            let read = tokio::select! {
                biased;
                () = closed.cancelled() => return None,
                read = self.read() => read,
            };
            let next = read.unwrap_or_else(|error| {
                tracing::error!(%error, "cannot read from the client");
                None
            });
            match self.take(next?) {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(refused) => self.refuse(refused),
            }
        }
    }
}

impl Next {
    fn of(line: &[u8]) -> Self {
        let message = decode(line);
        let answer = match &message {
            Ok(Some(JsonRpcMessage::Request(request))) => answer::expected(&request.request),
            _ => 0,
        };
        Self { message, bytes: line.len() + answer }
    }
}

impl<W: AsyncWrite + Unpin> Output<W> {
    /// Writes a message as a line.
    fn write(self: Arc<Self>, message: TxJsonRpcMessage<RoleServer>) -> impl Future<Output = io::Result<()>> {
        let line = serde_json::to_vec(&message).map(|mut line| {
            line.push(b'\n');
            line
        });
        let unread = Unread::new(self, line.as_ref().map_or(0, Vec::len));
        async move {
            let line = line?;
            let mut stream = unread.output.stream.lock().await;
            let stream = stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let written = async {
                stream.write_all(&line).await?;
                stream.flush().await
            };
            let written = tokio::select! {
                biased;
                written = written => written,
                () = unread.output.closed.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
            };
            written.inspect_err(|_| unread.output.closed.cancel())
        }
    }
}

/// Bytes that the client has not read yet.
struct Unread<W> {
    output: Arc<Output<W>>,
    bytes: usize,
}

impl<W> Unread<W> {
    fn new(output: Arc<Output<W>>, bytes: usize) -> Self {
        output.unread_bytes.fetch_add(bytes, Ordering::AcqRel);
        Self { output, bytes }
    }
}

impl<W> Drop for Unread<W> {
    fn drop(&mut self) {
        self.output.unread_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.output.progress.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
