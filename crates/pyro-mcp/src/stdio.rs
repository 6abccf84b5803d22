//! The transport for one client on a pair of byte streams, one message per line. Unlike rmcp's own, it answers every request, even
//! an invalid one, and stops reading while the client does not read.

mod answer;
mod decode;
mod in_flight;
mod line;
mod message_id;
mod waiting;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rmcp::RoleServer;
use rmcp::model::{ClientNotification, JsonRpcMessage, RequestId};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::decode::{Refused, decode};
use self::in_flight::InFlight;
use self::line::{Line, Lines};
use self::waiting::{Held, Waiting};

/// Messages that wait until the client reads, in bytes. With more, no further message is taken.
const UNREAD_BYTES: usize = 4 << 20;
/// Requests in flight and their answers, in bytes. With more, a further large request waits, and one with a large answer; smaller
/// messages behind it do not.
const IN_FLIGHT_BYTES: usize = 64 << 20;
/// Maximum size of a small request and its answer, in bytes.
const SMALL_BYTES: usize = 4096;
/// How long requests that wait go on waiting after the end of the input, if none of them is taken meanwhile.
const LAST_REQUESTS_LIMIT: Duration = Duration::from_secs(5);

/// Serves one client that writes to `R` and reads from `W`.
pub(crate) struct Stdio<R, W> {
    lines: Lines<R>,
    /// A message that was read and not taken yet.
    next: Option<Next>,
    output: Arc<Output<W>>,
    in_flight: InFlight,
    waiting: Waiting,
    /// When the requests that wait are given up, after the end of the input.
    given_up: Option<Instant>,
    /// Cancelled when the client sends or reads no more.
    ended: CancellationToken,
    /// The answer to an invalid message, until it is written.
    refusal: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
}

/// A message that was read.
struct Next {
    /// The message, or why it is refused. `None`: it needs no answer.
    message: Result<Option<RxJsonRpcMessage<RoleServer>>, Refused>,
    size: Size,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    /// Length of a message.
    message: usize,
    /// Maximum length of its answer if that can be large.
    answer: usize,
}

impl Size {
    fn total(self) -> usize {
        self.message + self.answer
    }
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
            waiting: Waiting::default(),
            given_up: None,
            ended: CancellationToken::new(),
            refusal: None,
        }
    }

    /// Is cancelled when the client sends or reads no more.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Returns a message, or why it is refused. `None`: there is nothing to do now.
    fn take(&mut self, next: Next) -> Result<Option<RxJsonRpcMessage<RoleServer>>, Refused> {
        let message = next.message?;
        match message {
            Some(JsonRpcMessage::Request(request)) => self.take_request(Held { request, size: next.size }),
            Some(JsonRpcMessage::Notification(notification)) => {
                if let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    self.in_flight.cancel(id);
                    self.waiting.cancel(id);
                }
                Ok(Some(JsonRpcMessage::Notification(notification)))
            }
            _ => Ok(message),
        }
    }

    /// Returns a request unless it has to wait.
    fn take_request(&mut self, held: Held) -> Result<Option<RxJsonRpcMessage<RoleServer>>, Refused> {
        self.in_flight.check(&held.request.id)?;
        if self.waiting.contains(&held.request.id) {
            return Err(in_flight::duplicate(&held.request.id));
        }
        let is_large = held.size.total() > SMALL_BYTES;
        if is_large && !(self.waiting.is_empty() && self.has_space_for_large()) {
            self.waiting.push(held);
            return Ok(None);
        }
        self.begin(held).map(Some)
    }

    fn begin(&mut self, held: Held) -> Result<RxJsonRpcMessage<RoleServer>, Refused> {
        self.in_flight.begin(&held.request.id, held.size.total())?;
        Ok(JsonRpcMessage::Request(held.request))
    }

    /// Returns whether a large request is taken now.
    fn has_space_for_large(&self) -> bool {
        self.in_flight.bytes() < IN_FLIGHT_BYTES && self.in_flight.has_space()
    }

    /// Returns a message that was read earlier, or why it is refused. `None`: each that there is has to wait.
    fn take_earlier(&mut self) -> Result<Option<RxJsonRpcMessage<RoleServer>>, Refused> {
        if self.output.unread_bytes.load(Ordering::Acquire) >= UNREAD_BYTES {
            return Ok(None);
        }
        if self.has_space_for_large()
            && let Some(held) = self.waiting.pop()
        {
            self.given_up = self.given_up.map(|_| Instant::now() + LAST_REQUESTS_LIMIT);
            return self.begin(held).map(Some);
        }
        match self.next.take() {
            Some(next) => self.take(next),
            None => Ok(None),
        }
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
            let output = Arc::clone(&self.output);
            if output.closed.is_cancelled() {
                return None;
            }
            let mut progress = std::pin::pin!(output.progress.notified());
            progress.as_mut().enable();
            match self.take_earlier() {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(refused) => {
                    self.refuse(refused);
                    continue;
                }
            }
            if self.given_up.is_some() && self.waiting.is_empty() {
                return None;
            }
            let given_up = self.given_up;
            let reads = given_up.is_none() && self.next.is_none() && self.waiting.has_space();
            tokio::select! {
                biased;
                () = output.closed.cancelled() => return None,
                line = self.lines.next(), if reads => match line {
                    Ok(Line::Whole(line)) => self.next = Some(Next::of(&line)),
                    Ok(Line::TooLong(id)) => self.next = Some(Next::too_long(id, self.lines.max_bytes)),
                    Ok(Line::End) => self.end_input(),
                    Err(error) => {
                        tracing::error!(%error, "cannot read from the client");
                        self.end_input();
                    }
                },
                () = progress => {}
                () = sleep_until(given_up.unwrap_or_else(Instant::now)), if given_up.is_some() => return None,
            }
        }
    }

    /// Nothing more is read. Requests that wait are still taken.
    fn end_input(&mut self) {
        self.ended.cancel();
        self.given_up = Some(Instant::now() + LAST_REQUESTS_LIMIT);
    }
}

impl Next {
    fn of(line: &[u8]) -> Self {
        let message = decode(line);
        let answer = match &message {
            Ok(Some(JsonRpcMessage::Request(request))) => answer::expected(&request.request),
            _ => 0,
        };
        Self { message, size: Size { message: line.len(), answer } }
    }

    fn too_long(id: Option<RequestId>, max_bytes: usize) -> Self {
        let text = format_args!("expected at most {max_bytes} bytes");
        Self { message: Err(Refused::invalid(id, text)), size: Size::default() }
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
