//! Files in and out of a guest.

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};

use bytes::Bytes;
use futures::stream::LocalBoxStream;
use futures::{Sink, SinkExt, Stream, StreamExt, sink, stream};
use pyro_archive::{ArchiveError, Limits, Links, Report, Rules};
use pyro_wire::{ArchiveReply, Frame, FrameCodec, FrameError, MAX_EXAMPLES, OutputStream, Pack, Unpack};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{ACCEPT_LIMIT, Client, ConnectError, WATCH_PROBE_AFTER, ask};
use crate::mux::{RequestStream, call};
use crate::protocol::{self, COPY_STEP_LIMIT, Greeting, Reply};

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
    /// The guest sent something else than it was asked for.
    #[error("unexpected message from the guest agent")]
    Unexpected,
    /// The guest or its supervisor was lost.
    #[error("the VM was lost while files were copied")]
    Lost,
    /// The guest neither sent nor took anything for a minute.
    #[error("the guest made no progress for {} seconds", COPY_STEP_LIMIT.as_secs())]
    Stalled,
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
        let (source, target) = (pack.path.clone(), place.0.join(&place.1));
        let unpack = async |chunks: &mut Chunks<'_>| {
            let rules = Rules { mask, ..Rules::from(Links::Inside) };
            let unpacked = pyro_archive::unpack_from(chunks, place, limits, rules).await;
            unpacked.map_err(|error| error.named(&target.display().to_string()))
        };
        let (unpacked, guest) = self.receive(pack, unpack).await?;
        let mut unpacked = unpacked.named(&source);
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

    /// Reads a regular file of the guest and writes its contents to `sink`, with zeros for its holes. Returns how many bytes it has.
    ///
    /// # Errors
    /// [`CopyError`]. Part of the contents may have been written.
    pub async fn read_file_to(
        &self,
        pack: Pack,
        sink: impl io::Write + Send + 'static,
    ) -> Result<u64, CopyError> {
        let limit = pack.limits.max_bytes;
        let named = pack.path.clone();
        let read = async |chunks: &mut Chunks<'_>| {
            let read = pyro_archive::contents_through(chunks, limit, sink).await;
            read.map_err(|error| error.named(&named))
        };
        Ok(self.receive(pack, read).await?.0)
    }

    /// Makes or replaces a regular file in the guest with what `pieces` give. It has its name only once it is complete. Returns how
    /// many bytes it has.
    ///
    /// # Errors
    /// [`CopyError`].
    pub async fn write_file_from(
        &self,
        mut pieces: impl Stream<Item = io::Result<Bytes>> + Unpin,
        mode: u32,
        unpack: Unpack,
    ) -> Result<u64, CopyError> {
        let limit = unpack.limits.max_bytes;
        self.send(unpack, async |sink: &mut ChunkSink<'_>| {
            pyro_archive::pieces_into(&mut pieces, mode, limit, sink).await
        })
        .await
    }

    /// Copies a file or a directory of the host into the guest. `named` is its path as the user knows it.
    ///
    /// # Errors
    /// [`CopyError`]. Part of a directory may have been copied.
    pub async fn copy_in(&self, source: PathBuf, named: String, unpack: Unpack) -> Result<Report, CopyError> {
        let limits = Limits { max_entries: unpack.limits.max_entries, max_bytes: unpack.limits.max_bytes };
        self.send(unpack, async |sink: &mut ChunkSink<'_>| {
            let packed = pyro_archive::pack_into(source, limits, sink).await;
            packed.map(|report| report.named(&named)).map_err(|error| error.named(&named))
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
    pub(super) async fn guest_stream(&self) -> Result<RequestStream<UnixStream>, CopyError> {
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
        let received = receive(self.guest_stream().await?, pack, take);
        self.while_responsive(WATCH_PROBE_AFTER, received).await.unwrap_or(Err(CopyError::Lost))
    }

    /// Has the guest unpack the archive that `give` sends.
    async fn send<T>(
        &self,
        unpack: Unpack,
        give: impl AsyncFnOnce(&mut ChunkSink<'_>) -> Result<T, ArchiveError>,
    ) -> Result<T, CopyError> {
        let sent = send(self.guest_stream().await?, unpack, give);
        self.while_responsive(WATCH_PROBE_AFTER, sent).await.unwrap_or(Err(CopyError::Lost))
    }
}

async fn receive<T>(
    stream: RequestStream<UnixStream>,
    pack: Pack,
    take: impl AsyncFnOnce(&mut Chunks<'_>) -> Result<T, ArchiveError>,
) -> Result<(T, Option<ArchiveReply>), CopyError> {
    let mut stream = call(stream, pack).await.map_err(not_delivered)?;
    // The archive has its own end; an answer before that end says why there is no more.
    let mut answer = None;
    let mut chunks = stream::unfold((&mut stream, &mut answer), |(stream, answer)| async move {
        let chunk = match next(stream).await {
            Ok(Some(Ok(Frame::Output(OutputStream::Stdout, chunk)))) => Ok(chunk),
            Ok(Some(Ok(Frame::Output(OutputStream::Stderr, _)))) => Err(io::ErrorKind::InvalidData.into()),
            Ok(Some(Err(error))) => Err(io::Error::other(error)),
            Ok(Some(Ok(Frame::Control(reply)))) => {
                *answer = Some(Ok(reply));
                return None;
            }
            Ok(None) => return None,
            Err(stalled) => {
                *answer = Some(Err(stalled));
                return None;
            }
        };
        Some((chunk, (stream, answer)))
    })
    .boxed_local();
    let taken = take(&mut chunks).await;
    drop(chunks);
    let answer = match answer.transpose()? {
        // It follows the archive immediately, and may have been read together with it.
        None if taken.is_ok() => match next(&mut stream).await? {
            Some(Ok(Frame::Control(reply))) => Some(reply),
            _ => None,
        },
        answer => answer,
    };
    match (taken, &answer) {
        (Err(ArchiveError::Truncated), Some(ArchiveReply::Failed(failure))) => {
            Err(CopyError::Guest { cause: failure.cause.clone() })
        }
        (Err(ArchiveError::Truncated | ArchiveError::Stream { .. }), _) => Err(CopyError::Lost),
        (taken, _) => Ok((taken.map_err(CopyError::Host)?, answer)),
    }
}

async fn send<T>(
    stream: RequestStream<UnixStream>,
    unpack: Unpack,
    give: impl AsyncFnOnce(&mut ChunkSink<'_>) -> Result<T, ArchiveError>,
) -> Result<T, CopyError> {
    let (sink, mut answers) = call(stream, unpack).await.map_err(not_delivered)?.split();
    let is_stalled = Cell::new(false);
    let mut chunks: ChunkSink<'_> =
        Box::pin(sink::unfold(sink, async |mut sink, chunk: Bytes| {
            match timeout(COPY_STEP_LIMIT, sink.send(Frame::Output(OutputStream::Stdout, chunk))).await {
                Ok(sent) => sent.map(|()| sink),
                Err(_) => {
                    is_stalled.set(true);
                    Err(io::Error::from(io::ErrorKind::TimedOut).into())
                }
            }
        }));
    let mut sending = pin!(give(&mut chunks));
    let (given, answer) = tokio::select! {
        given = &mut sending => match given {
            Err(ArchiveError::Stream { .. }) if is_stalled.get() => return Err(CopyError::Stalled),
            // The guest may have reported why it takes no more.
            Ok(_) | Err(ArchiveError::Stream { .. }) => (given.ok(), next(&mut answers).await?),
            Err(error) => return Err(CopyError::Host(error)),
        },
        answer = answers.next() => match answer {
            // It has seen the end of the archive before we have finished with ours.
            Some(Ok(Frame::Control(ArchiveReply::Archived(_)))) => (sending.await.ok(), answer),
            // It takes no more.
            answer => (None, answer),
        },
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

type FromGuest = Result<Frame<ArchiveReply>, FrameError>;

/// Returns what the guest sends next, if it does so in time. An empty piece of an archive is not progress.
async fn next(stream: &mut (impl Stream<Item = FromGuest> + Unpin)) -> Result<Option<FromGuest>, CopyError> {
    let frame = async {
        loop {
            match stream.next().await {
                Some(Ok(Frame::Output(_, chunk))) if chunk.is_empty() => {}
                frame => return frame,
            }
        }
    };
    timeout(COPY_STEP_LIMIT, frame).await.map_err(|_| CopyError::Stalled)
}

/// Received pieces of an archive.
type Chunks<'a> = LocalBoxStream<'a, io::Result<Bytes>>;
/// Takes the pieces of an archive.
type ChunkSink<'a> = Pin<Box<dyn Sink<Bytes, Error = FrameError> + 'a>>;

/// Maximum length of such a name with its reason, in characters.
const MAX_EXAMPLE_CHARS: usize = 400;

/// Returns a guest's text in a form that is safe for a terminal. A name that the guest has escaped already stays as it is.
fn printable(name: &str) -> String {
    let mut text = String::new();
    for character in name.chars().take(MAX_EXAMPLE_CHARS) {
        match character {
            '\\' | '\'' | '"' => text.push(character),
            _ => text.extend(character.escape_debug()),
        }
    }
    text
}

pub(super) fn not_delivered(error: FrameError) -> CopyError {
    ConnectError::Unreachable(io::Error::other(error)).into()
}

#[cfg(test)]
mod tests;
