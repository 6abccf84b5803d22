//! Files in and out of a guest.

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::LocalBoxStream;
use futures::{Sink, SinkExt, StreamExt, future, stream};
use pyro_archive::{ArchiveError, Limits, Links, Report, Rules};
use pyro_wire::{ArchiveReply, Frame, FrameCodec, FrameError, OutputStream, Pack, Unpack};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::{ACCEPT_LIMIT, Client, ConnectError, ask};
use crate::mux::{RequestStream, call};
use crate::protocol::{self, Greeting, Reply};

/// Why something was not copied, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The guest was not asked.
    #[error(transparent)]
    NotDelivered(#[from] ConnectError),
    /// The supervisor did not accept the request. Nothing was copied.
    #[error("nothing was copied: {cause}")]
    Refused {
        /// Why.
        cause: String,
    },
    /// The guest's half of the work failed.
    #[error("in the VM: {cause}")]
    Guest {
        /// Why it failed, with the path.
        cause: String,
    },
    /// The host's half of the work failed.
    #[error(transparent)]
    Host(ArchiveError),
    /// The guest was lost.
    #[error("the VM was lost while files were copied")]
    Lost,
    /// The guest neither sent nor took anything for too long.
    #[error("the VM was silent for {} s while files were copied", .limit.as_secs_f32())]
    Silent {
        /// How long it may be silent.
        limit: Duration,
    },
}

impl Client {
    /// Copies a file or a directory out of the guest to a name in a directory of the host. Nothing else on the host is
    /// touched, whatever the guest sends; see [`pyro_archive::unpack`].
    ///
    /// Modes lose the bits of `mask`, as a umask takes them away.
    ///
    /// # Errors
    /// [`CopyError`]. Part of a directory may have been copied.
    pub async fn copy_out(
        &self,
        pack: Pack,
        place: (PathBuf, OsString),
        mask: u32,
    ) -> Result<Report, CopyError> {
        let limits = Limits { max_entries: pack.limits.max_entries, max_bytes: pack.limits.max_bytes };
        let unpack = async |chunks: &mut Chunks<'_>| {
            pyro_archive::unpack_from(chunks, place, limits, Rules { links: Links::Inside, mask }).await
        };
        let (mut unpacked, guest) = self.receive(pack, unpack).await?;
        // What the guest left out is missing here too.
        if let Some(ArchiveReply::Archived(report)) = guest {
            unpacked.left_out = unpacked.left_out.saturating_add(report.left_out);
            unpacked.examples.extend(report.examples.iter().take(MAX_EXAMPLES).map(|name| printable(name)));
            unpacked.examples.truncate(MAX_EXAMPLES);
        }
        Ok(unpacked)
    }

    /// Reads a regular file of the guest. Nothing is made on the host.
    ///
    /// # Errors
    /// [`CopyError`].
    pub async fn read_file(&self, pack: Pack) -> Result<Vec<u8>, CopyError> {
        let limit = pack.limits.max_bytes;
        let read = async |chunks: &mut Chunks<'_>| pyro_archive::contents_from(chunks, limit).await;
        Ok(self.receive(pack, read).await?.0)
    }

    /// Copies a file or a directory of the host into the guest.
    ///
    /// # Errors
    /// [`CopyError`]. Part of a directory may have been copied.
    pub async fn copy_in(&self, source: PathBuf, unpack: Unpack) -> Result<Report, CopyError> {
        let limits = Limits { max_entries: unpack.limits.max_entries, max_bytes: unpack.limits.max_bytes };
        self.send(unpack, async |sink: &mut ChunkSink<'_>| {
            pyro_archive::pack_into(source, limits, sink).await
        })
        .await
    }

    /// Makes or replaces a regular file in the guest. Nothing is made on the host.
    ///
    /// # Errors
    /// [`CopyError`].
    pub async fn write_file(&self, contents: Vec<u8>, mode: u32, unpack: Unpack) -> Result<(), CopyError> {
        self.send(unpack, async |sink: &mut ChunkSink<'_>| {
            pyro_archive::contents_into(contents, mode, sink).await
        })
        .await
    }

    /// A stream to the guest for one request.
    async fn guest_stream(&self) -> Result<RequestStream<UnixStream>, CopyError> {
        let mut stream = self.connect().await?.stream;
        ask(&mut stream, protocol::Request::Copy).await?;
        // The guest is not asked before the supervisor has accepted, so every other answer means that it never was.
        match timeout(ACCEPT_LIMIT, stream.next()).await {
            Ok(Some(Ok(Frame::Control(Reply::Done)))) => Ok(stream.map_codec(|_| FrameCodec::default())),
            Ok(Some(Ok(Frame::Control(Reply::Refused { cause })))) => Err(CopyError::Refused { cause }),
            Ok(Some(Ok(Frame::Control(Reply::Unknown(Greeting { version, .. }))))) => {
                Err(ConnectError::OtherVersion { version: Some(version) }.into())
            }
            Ok(Some(Ok(_))) => Err(ConnectError::Unreachable(io::ErrorKind::InvalidData.into()).into()),
            Ok(Some(Err(error))) => Err(not_delivered(error)),
            Ok(None) => Err(ConnectError::Unreachable(io::ErrorKind::UnexpectedEof.into()).into()),
            Err(_) => Err(ConnectError::Unresponsive.into()),
        }
    }

    /// Has the guest pack something, and `take` what comes. Gives what the guest says of it, too.
    async fn receive<T>(
        &self,
        pack: Pack,
        take: impl AsyncFnOnce(&mut Chunks<'_>) -> Result<T, ArchiveError>,
    ) -> Result<(T, Option<ArchiveReply>), CopyError> {
        let mut stream = call(self.guest_stream().await?, pack).await.map_err(not_delivered)?;
        let mut reply = None;
        let limit = self.silence_limit;
        let mut is_silent = false;
        let frames = stream::unfold((&mut stream, &mut is_silent), async |(stream, is_silent)| {
            let Ok(frame) = timeout(limit, stream.next()).await else {
                *is_silent = true;
                return None;
            };
            frame.map(|frame| (frame, (stream, is_silent)))
        });
        let mut chunks = frames
            .map(|frame| match frame {
                Ok(Frame::Output(OutputStream::Stdout, chunk)) => Some(Ok(chunk)),
                // The archive has its own end; an answer before that end says why there is no more.
                Ok(Frame::Control(answer)) => {
                    reply = Some(answer);
                    None
                }
                Ok(Frame::Output(OutputStream::Stderr, _)) => Some(Err(io::ErrorKind::InvalidData.into())),
                Err(error) => Some(Err(io::Error::other(error))),
            })
            .take_while(|chunk| future::ready(chunk.is_some()))
            .filter_map(future::ready)
            .boxed_local();
        let taken = take(&mut chunks).await;
        drop(chunks);
        // It follows the archive immediately, and may have been read together with it.
        let reply = match reply {
            None if taken.is_ok() => match timeout(limit, stream.next()).await {
                Ok(Some(Ok(Frame::Control(answer)))) => Some(answer),
                _ => None,
            },
            reply => reply,
        };
        match (taken, &reply) {
            (Err(ArchiveError::Truncated), Some(ArchiveReply::Failed(failure))) => {
                Err(CopyError::Guest { cause: failure.cause.clone() })
            }
            (Err(ArchiveError::Truncated), _) if is_silent => Err(CopyError::Silent { limit }),
            (Err(ArchiveError::Truncated | ArchiveError::Stream { .. }), _) => Err(CopyError::Lost),
            (taken, _) => Ok((taken.map_err(CopyError::Host)?, reply)),
        }
    }

    /// Has the guest unpack the archive that `give` sends.
    async fn send<T>(
        &self,
        unpack: Unpack,
        give: impl AsyncFnOnce(&mut ChunkSink<'_>) -> Result<T, ArchiveError>,
    ) -> Result<T, CopyError> {
        let stream = call(self.guest_stream().await?, unpack).await.map_err(not_delivered)?;
        let (sink, mut answers) = stream.split();
        let progress = Progress::new(self.silence_limit);
        let mut chunks: ChunkSink<'_> = Box::pin(sink.with(|chunk: Bytes| {
            progress.made();
            future::ready(Ok::<_, FrameError>(Frame::Output(OutputStream::Stdout, chunk)))
        }));
        let exchange = async {
            let mut sending = pin!(give(&mut chunks));
            Ok(tokio::select! {
                given = &mut sending => match given {
                    // The guest may have reported why it takes no more.
                    Ok(_) | Err(ArchiveError::Stream { .. }) => (given.ok(), answers.next().await),
                    Err(error) => return Err(CopyError::Host(error)),
                },
                answer = answers.next() => match answer {
                    // It has seen the end of the archive before we have finished with ours.
                    Some(Ok(Frame::Control(ArchiveReply::Archived(_)))) => (sending.await.ok(), answer),
                    // It takes no more.
                    answer => (None, answer),
                },
            })
        };
        let (given, answer) = tokio::select! {
            exchanged = exchange => exchanged?,
            () = progress.ceased() => return Err(CopyError::Silent { limit: self.silence_limit }),
        };
        match (answer, given) {
            (Some(Ok(Frame::Control(ArchiveReply::Failed(failure)))), _) => {
                Err(CopyError::Guest { cause: failure.cause })
            }
            // What could not be packed is missing there; the guest itself leaves nothing out.
            (Some(Ok(Frame::Control(ArchiveReply::Archived(_)))), Some(given)) => Ok(given),
            _ => Err(CopyError::Lost),
        }
    }
}

/// When the guest last took something.
struct Progress {
    limit: Duration,
    latest: Cell<Instant>,
}

impl Progress {
    fn new(limit: Duration) -> Self {
        Self { limit, latest: Cell::new(Instant::now()) }
    }

    fn made(&self) {
        self.latest.set(Instant::now());
    }

    /// Ends when nothing was taken for as long as the limit.
    async fn ceased(&self) {
        loop {
            let deadline = self.latest.get() + self.limit;
            if Instant::now() >= deadline {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

/// Received pieces of an archive.
type Chunks<'a> = LocalBoxStream<'a, io::Result<Bytes>>;
/// Takes the pieces of an archive.
type ChunkSink<'a> = Pin<Box<dyn Sink<Bytes, Error = FrameError> + 'a>>;

/// Maximum number of names that a guest can add to a report.
const MAX_EXAMPLES: usize = 5;
/// Maximum length of such a name, in characters.
const MAX_EXAMPLE_CHARS: usize = 200;

/// Returns a guest's text in a form that is safe for a terminal.
fn printable(name: &str) -> String {
    name.chars().take(MAX_EXAMPLE_CHARS).flat_map(char::escape_debug).collect()
}

fn not_delivered(error: FrameError) -> CopyError {
    ConnectError::Unreachable(io::Error::other(error)).into()
}
