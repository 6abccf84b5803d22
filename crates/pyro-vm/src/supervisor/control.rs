//! The supervisor's socket: one request per connection.
//!
//! The socket lies in the VM's directory, which only its user can enter. It is addressed through the
//! directory's descriptor, because a socket's path may have 107 bytes and a state directory more.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, FrameCodec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::codec::{Framed, FramedParts};

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
    /// Let the guest write everything out, then end the VM; its directory stays.
    Stop,
    /// End the VM at once and remove its directory.
    Delete,
    /// The same, because its lifetime is over.
    Expire,
}

/// Answer to all requests but [`ControlRequest::Guest`], when it is done; to a claim, that it is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) struct Done;

pub(super) type ServerStream = Framed<UnixStream, FrameCodec<ControlRequest, Done>>;

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
pub(crate) async fn connect(dir: &Path, request: ControlRequest) -> io::Result<UnixStream> {
    let dir = open_dir(dir)?;
    let stream = UnixStream::connect(socket_path(&dir)).await?;
    let mut framed = Framed::new(stream, FrameCodec::<(), ControlRequest>::default());
    framed.send(Frame::Control(request)).await.map_err(io::Error::other)?;
    Ok(framed.into_inner())
}

/// Ends the VM in `dir` as told and waits until its supervisor has cleaned up.
///
/// # Errors
/// The supervisor cannot be reached, which normally means that the VM has ended by itself.
pub async fn end(dir: &Path, request: ControlRequest) -> io::Result<()> {
    let stream = connect(dir, request).await?;
    let mut framed = Framed::new(stream, FrameCodec::<Done, ()>::default());
    match framed.next().await {
        Some(Ok(Frame::Control(Done))) => Ok(()),
        Some(Ok(Frame::Output(..))) => Err(io::ErrorKind::InvalidData.into()),
        Some(Err(error)) => Err(io::Error::other(error)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Waits for the answer to a claim: the connection, which is now a lifeline, or `None`.
pub(super) async fn granted(stream: UnixStream) -> Option<UnixStream> {
    let mut framed = Framed::new(stream, FrameCodec::<Done, ()>::default());
    match tokio::time::timeout(SENTENCE_LIMIT, framed.next()).await {
        // It says nothing more before it has the lock, so nothing is lost with the buffer.
        Ok(Some(Ok(Frame::Control(Done)))) => Some(framed.into_inner()),
        _ => None,
    }
}

/// Grants a claim: the connection, which is now a lifeline, or `None` if the client has gone.
pub(super) async fn grant(mut framed: ServerStream) -> Option<UnixStream> {
    framed.send(Frame::Control(Done)).await.ok()?;
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
    let _ = framed.send(Frame::Control(Done)).await;
}
