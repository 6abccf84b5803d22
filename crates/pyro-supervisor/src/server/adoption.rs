//! How a spare becomes the VM of its claimer.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::SinkExt;
use pyro_wire::{Exec, Failure, Frame, FrameCodec, Identify, IdentifyReply};
use tokio_util::codec::Framed;

use super::driver::{remove_dir, remove_file};
use super::mounts::{MountError, Mounts};
use crate::handover;
use crate::machine::NoRandomness;
use crate::mux::Streams;
use crate::protocol::{CLAIM_LIMIT, LifelineServer, Reply, ServerStream};
use crate::spec::LaunchSpec;
use crate::{OwnerLock, files, machine};

/// Code that every command runs: the emulator translates it on its first run, which takes ten times as long as running
/// it. As in the template, nothing here may leave a trace.
const WARM_UP: [&str; 2] = ["true", "git --version"];

/// Files that a spare moves to the directory of the VM that it becomes.
const MOVED: [&str; 3] = [files::LAYER, files::SERIAL_LOG, files::SUPERVISOR_LOG];

/// Runs what commands usually run, in the way they are run.
pub(super) async fn warm_up(spec: &LaunchSpec, streams: &Streams) {
    let limit = Duration::from_secs(spec.boot_limit_seconds);
    let work = async {
        for command in WARM_UP {
            let exec = Exec { kill_grace_ms: 0, output_limit: Some(0), ..Exec::new(command, limit) };
            streams.ask(exec).await;
        }
        let identity = machine::identity(spec, None).ok()?;
        streams.ask(Identify(identity)).await
    };
    // If the guest is stuck, that shows when the spare is claimed.
    let _ = tokio::time::timeout(limit, work).await;
}

/// What a claimer passes on.
pub(super) struct HandedOver {
    /// The connection, which becomes the lifeline.
    pub(super) lifeline: LifelineServer,
    pub(super) lock: OwnerLock,
    /// Those of the servers of its directories.
    pub(super) sockets: Vec<OwnedFd>,
}

/// Grants a claim and takes over the lock of the claimer's VM, and this many sockets.
pub(super) async fn hand_over(mut client: ServerStream, sockets: usize) -> Option<HandedOver> {
    let handed_over = tokio::time::timeout(CLAIM_LIMIT, async {
        client.send(Frame::Control(Reply::Done)).await.ok()?;
        // The claimer sends nothing more before the lock, so nothing is lost with the buffer.
        let stream = client.into_inner();
        let lock = OwnerLock::received(handover::receive(&stream).await.ok()?);
        let mut received = Vec::new();
        for _ in 0..sockets {
            received.push(handover::receive(&stream).await.ok()?);
        }
        let lifeline = Framed::new(stream, FrameCodec::default());
        Some(HandedOver { lifeline, lock, sockets: received })
    });
    handed_over.await.ok().flatten()
}

/// Why a spare did not become the VM of its claimer.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeOverError {
    #[error("cannot move {name}")]
    Move { name: &'static str, source: io::Error },
    #[error(transparent)]
    Random(#[from] NoRandomness),
    #[error("{0}")]
    Guest(Failure),
    #[error("the guest sent no valid response")]
    NoAnswer,
    #[error("the guest did not answer within {} seconds", .0.as_secs())]
    TimedOut(Duration),
    /// The guest is that VM already.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Moves the spare's files to the claimer's directory, gives the guest its new identity, and mounts its directories.
pub(super) async fn take_over(
    spare: PathBuf,
    spec: LaunchSpec,
    streams: Streams,
    (mounts, sockets): (Mounts, Vec<OwnedFd>),
) -> Result<(), TakeOverError> {
    for name in MOVED {
        fs::rename(spare.join(name), spec.dir.join(name))
            .map_err(|source| TakeOverError::Move { name, source })?;
    }
    let denials = files::NETWORK_DENIALS;
    match fs::rename(spare.join(denials), spec.dir.join(denials)) {
        // A VM without a network has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        moved => moved.map_err(|source| TakeOverError::Move { name: denials, source })?,
    }
    remove(&spare);
    let identity = machine::identity(&spec, None)?;
    let limit = spec.pace.allow(CLAIM_LIMIT);
    match tokio::time::timeout(limit, streams.ask(Identify(identity))).await {
        Ok(Some(IdentifyReply::Identified)) => {}
        Ok(Some(IdentifyReply::Failed(failure))) => return Err(TakeOverError::Guest(failure)),
        Ok(None) => return Err(TakeOverError::NoAnswer),
        Err(_) => return Err(TakeOverError::TimedOut(limit)),
    }
    Ok(mounts.mount_all(&spec, sockets, &streams).await?)
}

/// Removes the files that a spare may have left in the claimer's directory if it died while it was being claimed.
pub(crate) fn clear_claimed(dir: &Path) {
    for name in MOVED.into_iter().chain([files::NETWORK_DENIALS, files::CONTROL_SOCKET]) {
        remove_file(&dir.join(name));
    }
}

/// Removes a spare's directory.
pub(super) fn remove(dir: &Path) {
    remove_dir(dir);
    // The directory of the kind is removed with its last spare.
    let _ = dir.parent().map(fs::remove_dir);
}
