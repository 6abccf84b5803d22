//! The supervisor's socket: one request per connection.
//!
//! The socket lies in the VM's directory, which only its user can enter. It is addressed through the
//! directory's descriptor, because a socket's path may have 107 bytes and a state directory more.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Exec, Frame, FrameCodec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::codec::{Framed, FramedParts};

use super::commands::CommandEnd;
use super::files;
use crate::spec::LaunchSpec;

/// Time within which a supervisor or a client must say its sentence; both are local programs of ours.
const SENTENCE_LIMIT: Duration = Duration::from_secs(10);

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRequest {
    /// Become a stream to the guest, which carries one `pyro_wire::Request`.
    Guest,
    /// To a spare: become the VM that is described, and the connection its lifeline. The first who asks gets it;
    /// it is then given the lock of its new directory.
    Claim(Box<LaunchSpec>),
    /// Run a command, number it and record how it ends. Answered by [`ControlReply::Accepted`], its output, and
    /// [`ControlReply::Ended`].
    Run {
        /// The command.
        exec: Exec,
        /// The client does not wait: no output, no end.
        detach: bool,
    },
    /// Tell how a command ends. Answered by [`ControlReply::Ended`] or [`ControlReply::NotRunning`].
    Watch {
        /// Its number.
        sequence: u64,
        /// Send what it has written, and what it writes, before that.
        output: bool,
    },
    /// End a command. Answered as [`ControlRequest::Watch`].
    Kill {
        /// Its number.
        sequence: u64,
    },
    /// From now on the VM's lifetime ends at this time, in seconds since the epoch.
    Extend {
        /// The new end.
        expires_at: f64,
    },
    /// Let the guest write everything out, then end the VM; its directory stays.
    Stop,
    /// End the VM at once and remove its directory.
    Delete,
    /// Do what the end of its lifetime does.
    Expire,
}

/// What the supervisor answers, to all requests but [`ControlRequest::Guest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControlReply {
    /// It is done; to a claim: it is granted.
    Done,
    /// The command has its number and is recorded.
    Accepted {
        /// From 1, without gaps.
        sequence: u64,
    },
    /// The command has no number and surely does not run.
    Refused {
        /// Why.
        cause: String,
    },
    /// The command does not run any more, or there never was one with this number.
    NotRunning,
    /// The command has ended, and that is recorded.
    Ended(CommandEnd),
}

/// The supervisor's end of a connection.
pub(super) type ServerStream = Framed<UnixStream, FrameCodec<ControlRequest, ControlReply>>;

/// A client's end.
pub(crate) type ClientStream = Framed<UnixStream, FrameCodec<ControlReply, ControlRequest>>;

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, dir, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn socket_path(dir: &OwnedFd) -> String {
    format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), files::CONTROL_SOCKET)
}

/// Whoever listens holds the VM's lock, so a socket that is there already is a dead supervisor's.
pub(super) fn listen(dir: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(dir.join(files::CONTROL_SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket_path(&open_dir(dir)?))
}

/// Connects to the supervisor of the VM in `dir` and says what is wanted.
pub(crate) async fn connect(dir: &Path, request: ControlRequest) -> io::Result<ClientStream> {
    let dir = open_dir(dir)?;
    let stream = UnixStream::connect(socket_path(&dir)).await?;
    let mut framed = Framed::new(stream, FrameCodec::default());
    framed.send(Frame::Control(request)).await.map_err(io::Error::other)?;
    Ok(framed)
}

/// Has the supervisor of the VM in `dir` do something that it answers with [`ControlReply::Done`], and waits until it
/// is done.
///
/// # Errors
/// The supervisor cannot be reached, which normally means that the VM has ended by itself.
pub async fn ask(dir: &Path, request: ControlRequest) -> io::Result<()> {
    match connect(dir, request).await?.next().await {
        Some(Ok(Frame::Control(ControlReply::Done))) => Ok(()),
        Some(Ok(_)) => Err(io::ErrorKind::InvalidData.into()),
        Some(Err(error)) => Err(io::Error::other(error)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Waits for the answer to a claim: the connection, which is now a lifeline, or `None`.
pub(super) async fn granted(mut framed: ClientStream) -> Option<UnixStream> {
    match tokio::time::timeout(SENTENCE_LIMIT, framed.next()).await {
        // It says nothing more before it has the lock, so nothing is lost with the buffer.
        Ok(Some(Ok(Frame::Control(ControlReply::Done)))) => Some(framed.into_inner()),
        _ => None,
    }
}

/// Grants a claim: the connection, which is now a lifeline, or `None` if the client has gone.
pub(super) async fn grant(mut framed: ServerStream) -> Option<UnixStream> {
    framed.send(Frame::Control(ControlReply::Done)).await.ok()?;
    Some(framed.into_inner())
}

/// Reads a client's request.
pub(super) async fn receive(stream: UnixStream) -> Option<(ControlRequest, ServerStream)> {
    let mut framed: ServerStream = Framed::new(stream, FrameCodec::default());
    match tokio::time::timeout(SENTENCE_LIMIT, framed.next()).await {
        Ok(Some(Ok(Frame::Control(request)))) => Some((request, framed)),
        _ => None,
    }
}

/// The client's stream, with what it has said already beyond its request.
pub(super) fn into_bytes(framed: ServerStream) -> (UnixStream, bytes::BytesMut) {
    let FramedParts { io, read_buf, .. } = framed.into_parts();
    (io, read_buf)
}

/// Tells a client that its request is done.
pub(super) async fn confirm(mut framed: ServerStream) {
    // A client that has gone away does not need to know.
    let _ = framed.send(Frame::Control(ControlReply::Done)).await;
}
