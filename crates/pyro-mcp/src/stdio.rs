//! The transport for one client on a pair of byte streams, one message per line. Unlike rmcp's own, it answers every request, even
//! an invalid one, and stops reading while the client does not read.

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
/// Requests in flight, in bytes. With more, no further large message is taken.
const IN_FLIGHT_BYTES: usize = 64 << 20;
/// Maximum length of a small message, in bytes. Cancellations are small.
const SMALL_BYTES: usize = 4096;

/// Serves one client that writes to `R` and reads from `W`.
pub(crate) struct Stdio<R, W> {
    lines: Lines<R>,
    /// A line that was read and not taken yet.
    next: Option<Line>,
    output: Arc<Output<W>>,
    in_flight: InFlight,
    /// Cancelled when the client sends or reads no more.
    ended: CancellationToken,
    /// The answer to an invalid message, until it is written.
    refusal: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
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

    /// Returns the message of a line, or why it is refused. `None`: it needs no answer.
    fn take(&mut self, line: &[u8]) -> Result<Option<RxJsonRpcMessage<RoleServer>>, Refused> {
        let message = decode(line)?;
        match &message {
            Some(JsonRpcMessage::Request(request)) => self.in_flight.begin(&request.id, line.len())?,
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

    /// Waits until there is space for another message of this length.
    async fn has_space(&mut self, length: usize) {
        loop {
            let mut progress = std::pin::pin!(self.output.progress.notified());
            progress.as_mut().enable();
            let unread = self.output.unread_bytes.load(Ordering::Acquire);
            let is_taken = length <= SMALL_BYTES || self.in_flight.bytes() < IN_FLIGHT_BYTES;
            if unread < UNREAD_BYTES && is_taken {
                return;
            }
            progress.await;
        }
    }

    /// Reads a line, and waits until there is space for its message. That there are no more lines is noticed at once. Dropping
    /// the future loses nothing.
    async fn line(&mut self) -> io::Result<Line> {
        let next = match self.next.take() {
            Some(line) => line,
            None => self.lines.next().await?,
        };
        let length = match &next {
            Line::Whole(line) => line.len(),
            Line::TooLong(_) => 0,
            Line::End => return Ok(next),
        };
        self.next = Some(next);
        self.has_space(length).await;
        Ok(self.next.take().unwrap_or(Line::End))
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
            let line = tokio::select! {
                biased;
                () = closed.cancelled() => return None,
                line = self.line() => line,
            };
            let taken = match line {
                Ok(Line::Whole(line)) => self.take(&line),
                Ok(Line::TooLong(id)) => {
                    let max_bytes = self.lines.max_bytes;
                    Err(Refused::invalid(id, format_args!("expected at most {max_bytes} bytes")))
                }
                Ok(Line::End) => return None,
                Err(error) => {
                    tracing::error!(%error, "cannot read from the client");
                    return None;
                }
            };
            match taken {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(refused) => self.refuse(refused),
            }
        }
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
