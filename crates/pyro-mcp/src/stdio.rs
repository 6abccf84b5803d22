//! The transport for one client on a pair of byte streams, one message per line. Unlike rmcp's own, it answers every request, even
//! an invalid one, and stops reading while the client does not read.

mod decode;
mod line;
mod message_id;

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rmcp::RoleServer;
use rmcp::model::{ClientNotification, JsonRpcMessage, RequestId};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio_util::sync::CancellationToken;

use self::decode::{Refused, decode};
use self::line::{Line, Lines};

/// Maximum number of requests in flight.
const IN_FLIGHT: usize = 1024;
/// Messages that wait until the client reads, in bytes. With more, no further request is taken.
const UNREAD_BYTES: usize = 4 << 20;

/// Serves one client that writes to `R` and reads from `W`.
pub(crate) struct Stdio<R, W> {
    lines: Lines<R>,
    output: Arc<Output<W>>,
    in_flight: Arc<Mutex<HashSet<RequestId>>>,
    /// The answer to an invalid message, until it is written.
    refusal: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
}

/// Where messages go.
struct Output<W> {
    /// Absent once the transport is closed.
    stream: AsyncMutex<Option<W>>,
    unread_bytes: AtomicUsize,
    /// A message was written.
    written: Notify,
    /// The client reads no more.
    broken: CancellationToken,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin + Send + 'static> Stdio<R, W> {
    pub(crate) fn new(input: R, output: W) -> Self {
        let output = Output {
            stream: AsyncMutex::new(Some(output)),
            unread_bytes: AtomicUsize::new(0),
            written: Notify::new(),
            broken: CancellationToken::new(),
        };
        Self { lines: Lines::new(input), output: Arc::new(output), in_flight: Arc::default(), refusal: None }
    }

    /// Returns the message of a line, or why it is refused. `None`: it needs no answer.
    fn take(&mut self, line: &[u8]) -> Result<Option<RxJsonRpcMessage<RoleServer>>, Refused> {
        let message = decode(line)?;
        match &message {
            Some(JsonRpcMessage::Request(request)) => self.begin(&request.id)?,
            Some(JsonRpcMessage::Notification(notification)) => {
                if let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    // A cancelled request has no answer.
                    lock(&self.in_flight).remove(id);
                }
            }
            _ => {}
        }
        Ok(message)
    }

    fn begin(&self, id: &RequestId) -> Result<(), Refused> {
        let mut in_flight = lock(&self.in_flight);
        if in_flight.contains(id) {
            return Err(Refused::invalid(
                Some(id.clone()),
                format!("the id {id} belongs to a request in flight"),
            ));
        }
        if in_flight.len() >= IN_FLIGHT {
            let text = format!("too many requests in flight: expected at most {IN_FLIGHT}");
            return Err(Refused::invalid(Some(id.clone()), text));
        }
        in_flight.insert(id.clone());
        Ok(())
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
            lock(&self.in_flight).remove(id);
        }
        Arc::clone(&self.output).write(message)
    }

    /// Dropping the future loses nothing.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            if let Some(refusal) = &mut self.refusal {
                let written = refusal.await;
                self.refusal = None;
                written.ok()?;
            }
            let broken = self.output.broken.clone();
            let line = tokio::select! {
                biased;
                () = broken.cancelled() => return None,
                line = async {
                    self.output.has_space().await;
                    self.lines.next().await
                } => line,
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

    async fn close(&mut self) -> io::Result<()> {
        drop(self.output.stream.lock().await.take());
        Ok(())
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
            written.await.inspect_err(|_| unread.output.broken.cancel())
        }
    }

    /// Waits until the client has read enough.
    async fn has_space(&self) {
        loop {
            let mut written = std::pin::pin!(self.written.notified());
            written.as_mut().enable();
            if self.unread_bytes.load(Ordering::Acquire) < UNREAD_BYTES {
                return;
            }
            written.await;
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
        self.output.written.notify_waiters();
    }
}

/// A panic cannot leave the data inconsistent, so poisoning is ignored.
fn lock(in_flight: &Mutex<HashSet<RequestId>>) -> MutexGuard<'_, HashSet<RequestId>> {
    in_flight.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
