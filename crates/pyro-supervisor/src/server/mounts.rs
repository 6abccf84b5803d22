//! Directories of the host in the guest. Each has a server process, which another process has started; FUSE messages pass between
//! that and the guest here, and nothing looks into them.

mod relay;

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use pyro_wire::{Failure, Frame, FrameCodec, FrameError, Mount, MountReply};
use tokio::sync::{Mutex, Notify};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use self::relay::{Packets, RelayError};
use crate::mount::{MAX_MOUNTS, MountPoint};
use crate::mux::{OpenError, Streams, call};
use crate::spec::LaunchSpec;

/// Time limit for a guest to mount a directory.
const MOUNT_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for a guest to write everything out and to unmount a directory.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for the servers to exit once the VM has ended.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Why a directory is not mounted.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    #[error("too many mounted directories: the maximum is {MAX_MOUNTS}")]
    TooMany,
    #[error("a directory is mounted on {0} already")]
    Taken(String),
    #[error("mounts cannot be nested: a directory is mounted on {0}")]
    Nested(String),
    #[error("the VM is being stopped")]
    Closed,
    #[error("cannot mount {path}: {failure}")]
    Guest { path: String, failure: Failure },
    #[error("cannot mount {path}: the guest did not answer within {} seconds", .limit.as_secs())]
    TimedOut { path: String, limit: Duration },
    #[error("the server of a directory was not passed on")]
    NoServer,
    #[error("the guest sent no valid response")]
    NoAnswer,
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Channel(#[from] FrameError),
    #[error("the server of the directory cannot be reached")]
    Server(#[from] std::io::Error),
}

/// The directories of one VM.
#[derive(Clone, Default)]
pub(super) struct Mounts {
    table: Rc<RefCell<Table>>,
    /// Held while the table is changed and recorded, so that the latest table is recorded last.
    pub(super) recording: Rc<Mutex<()>>,
    /// A directory has lost its server since the table was recorded.
    pub(super) loss: Rc<Notify>,
}

#[derive(Default)]
struct Table {
    mounts: Vec<Mounted>,
    /// Set for good when the VM ends.
    is_closed: bool,
}

struct Mounted {
    point: MountPoint,
    unmount: Rc<Notify>,
    unmount_limit: Duration,
    /// Its server has ended, or cannot be reached any more.
    is_lost: Rc<Cell<bool>>,
    /// Returns why the guest may have kept something that was written to the directory.
    relay: JoinHandle<Option<Failure>>,
}

/// How a directory was unmounted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unmounted {
    /// It was not mounted.
    NotMounted,
    /// Everything that the guest wrote is on the host.
    Written,
    /// Something that the guest wrote may be missing on the host.
    NotWritten(String),
}

impl Mounts {
    /// Mounts a directory whose server has the other end of `socket`.
    pub(super) async fn mount(
        &self,
        point: MountPoint,
        socket: OwnedFd,
        streams: &Streams,
    ) -> Result<(), MountError> {
        self.check(&point)?;
        let packets = Packets::new(socket)?;
        let (stream, permit) = streams.open().await?;
        let stream = Framed::new(stream.compat(), FrameCodec::default());
        let request = Mount { path: point.guest.clone(), writable: point.writable };
        let mut stream = call(stream, request).await?;
        let limit = streams.pace().allow(MOUNT_LIMIT);
        match timeout(limit, stream.next()).await {
            Ok(Some(Ok(Frame::Control(MountReply::Mounted)))) => {}
            Ok(Some(Ok(Frame::Control(MountReply::Failed(failure))))) => {
                return Err(MountError::Guest { path: point.guest, failure });
            }
            Ok(Some(Err(error))) => return Err(error.into()),
            Ok(_) => return Err(MountError::NoAnswer),
            Err(_) => return Err(MountError::TimedOut { path: point.guest, limit }),
        }
        self.check(&point)?;
        let unmount = Rc::new(Notify::new());
        let (asked, path) = (Rc::clone(&unmount), point.guest.clone());
        let is_lost = Rc::new(Cell::new(false));
        let (lost, mounts) = (Rc::clone(&is_lost), self.clone());
        let relay = spawn_local(async move {
            let note_loss = |error: &RelayError| {
                tracing::warn!(path, %error, "a mounted directory was lost: unmount it, and mount it again");
                lost.set(true);
                mounts.loss.notify_one();
            };
            let not_written = match relay::run(stream, &packets, &asked, note_loss).await {
                Ok(None) => {
                    tracing::debug!(path, "a directory was unmounted");
                    None
                }
                Ok(Some(failure)) => {
                    tracing::warn!(path, %failure, "what the guest wrote to a directory may be lost");
                    Some(failure)
                }
                Err(error) => {
                    // The end of the machine closes all streams.
                    if !mounts.table.borrow().is_closed {
                        note_loss(&error);
                    }
                    None
                }
            };
            packets.settle().await;
            drop(permit);
            not_written
        });
        let unmount_limit = streams.pace().allow(UNMOUNT_LIMIT);
        self.table.borrow_mut().mounts.push(Mounted { point, unmount, unmount_limit, is_lost, relay });
        Ok(())
    }

    /// Mounts those that the VM has from its start on.
    pub(super) async fn mount_all(
        &self,
        spec: &LaunchSpec,
        sockets: Vec<OwnedFd>,
        streams: &Streams,
    ) -> Result<(), MountError> {
        if spec.mounts.len() != sockets.len() {
            return Err(MountError::NoServer);
        }
        for (point, socket) in spec.mounts.iter().zip(sockets) {
            self.mount(point.clone(), socket, streams).await?;
        }
        Ok(())
    }

    fn check(&self, point: &MountPoint) -> Result<(), MountError> {
        let mut table = self.table.borrow_mut();
        if table.is_closed {
            return Err(MountError::Closed);
        }
        // What the guest has unmounted, or lost, can be mounted again.
        table.mounts.retain(|mounted| !overlap(&mounted.point, point) || !mounted.relay.is_finished());
        if let Some(Mounted { point: other, .. }) =
            table.mounts.iter().find(|mounted| overlap(&mounted.point, point))
        {
            let guest = other.guest.clone();
            return Err(if guest == point.guest {
                MountError::Taken(guest)
            } else {
                MountError::Nested(guest)
            });
        }
        if table.mounts.len() >= MAX_MOUNTS { Err(MountError::TooMany) } else { Ok(()) }
    }

    /// Unmounts a directory, after the guest has written everything out, and waits for that.
    pub(super) async fn unmount(&self, guest: &str) -> Unmounted {
        let mounted = {
            let mut table = self.table.borrow_mut();
            let found = table.mounts.iter().position(|mounted| mounted.point.guest == guest);
            found.map(|index| table.mounts.remove(index))
        };
        let Some(Mounted { unmount, unmount_limit, mut relay, .. }) = mounted else {
            return Unmounted::NotMounted;
        };
        unmount.notify_one();
        match timeout(unmount_limit, &mut relay).await {
            Ok(Ok(None)) => Unmounted::Written,
            Ok(Ok(Some(failure))) => Unmounted::NotWritten(failure.to_string()),
            Ok(Err(error)) => Unmounted::NotWritten(error.to_string()),
            Err(_) => {
                // Closing the stream fails what still uses it.
                relay.abort();
                let limit = unmount_limit.as_secs();
                Unmounted::NotWritten(format!("the guest did not answer within {limit} seconds"))
            }
        }
    }

    /// Returns the directories to record. `None`: the VM is about to end, and keeps those that are recorded.
    pub(super) fn to_record(&self) -> Option<Vec<MountPoint>> {
        let table = self.table.borrow();
        (!table.is_closed).then(|| table.mounts.iter().map(|mounted| mounted.point.clone()).collect())
    }

    /// Returns the mount points of those that are lost.
    pub(super) fn lost(&self) -> Vec<String> {
        let table = self.table.borrow();
        let lost = table.mounts.iter().filter(|mounted| mounted.is_lost.get());
        lost.map(|mounted| mounted.point.guest.clone()).collect()
    }

    /// Mounts nothing more.
    pub(super) fn seal(&self) {
        self.table.borrow_mut().is_closed = true;
    }

    /// Waits for the servers to exit, for a limited time. The machine has ended. Returns for which directories something that the guest
    /// wrote may be missing on the host, and why.
    pub(super) async fn close(&self) -> Vec<String> {
        self.seal();
        let mounts = std::mem::take(&mut self.table.borrow_mut().mounts);
        let ends = mounts.into_iter().map(|Mounted { point, is_lost, relay, .. }| async move {
            let cause = match timeout(CLOSE_LIMIT, relay).await {
                Ok(Ok(Some(failure))) => failure.to_string(),
                // A guest writes nothing to one that is read-only.
                _ if is_lost.get() && point.writable => RelayError::ServerGone.to_string(),
                _ => return None,
            };
            Some(not_written(&point.guest, &cause))
        });
        join_all(ends).await.into_iter().flatten().collect()
    }
}

/// Says that something that the guest wrote may not be on the host.
pub(super) fn not_written(guest: &str, cause: &str) -> String {
    format!("what the guest wrote to {guest} last may be missing on this host: {cause}")
}

/// Returns whether one of two mount points is the other one or in it.
fn overlap(one: &MountPoint, other: &MountPoint) -> bool {
    let (one, other) = (Path::new(&one.guest), Path::new(&other.guest));
    one.starts_with(other) || other.starts_with(one)
}
