//! Directories of the host in a running guest.

use std::os::fd::OwnedFd;

use futures::StreamExt;
use pyro_wire::Frame;
use tokio::time::timeout;

use super::{ACCEPT_LIMIT, Client, PROBE_AFTER, ask, unexpected};
use crate::protocol::{ClientStream, Reply, Request};
use crate::{MountPoint, RunError, handover};

/// Why mounted directories were not changed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The change cannot be recorded.
    #[error("the mounted directories cannot be recorded, and none was changed: {cause}")]
    NotRecorded {
        /// Why.
        cause: String,
    },
    /// Any other reason.
    #[error(transparent)]
    Request(#[from] RunError),
}

impl Client {
    /// Mounts a directory, whose server has the other end of `socket`, in the guest, and records that.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn mount(&self, point: MountPoint, socket: OwnedFd) -> Result<(), MountError> {
        let mut stream = self.connect().await.map_err(RunError::from)?.stream;
        ask(&mut stream, Request::Mount(point)).await.map_err(RunError::from)?;
        match self.answer(&mut stream).await? {
            Reply::Done => {}
            reply => return Err(unexpected(reply).into()),
        }
        // The supervisor sends nothing more before it has the socket.
        let lost = |_| RunError::Lost { sequence: None };
        handover::send(stream.get_ref(), &socket).await.map_err(lost)?;
        drop(socket);
        match self.answer(&mut stream).await? {
            Reply::Mounted => Ok(()),
            Reply::NotRecorded { cause } => Err(MountError::NotRecorded { cause }),
            reply => Err(unexpected(reply).into()),
        }
    }

    /// Unmounts a directory, and records that. Returns whether it was mounted.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn unmount(&self, guest: &str) -> Result<bool, MountError> {
        match self.ask(Request::Unmount { guest: guest.to_owned() }).await? {
            Reply::Done => Ok(true),
            Reply::NotMounted => Ok(false),
            Reply::NotRecorded { cause } => Err(MountError::NotRecorded { cause }),
            reply => Err(unexpected(reply).into()),
        }
    }

    async fn answer(&self, stream: &mut ClientStream) -> Result<Reply, RunError> {
        match timeout(ACCEPT_LIMIT, self.while_responsive(PROBE_AFTER, stream.next())).await {
            Ok(Some(Some(Ok(Frame::Control(reply))))) => Ok(reply),
            Ok(Some(_)) => Err(RunError::Lost { sequence: None }),
            Ok(None) | Err(_) => Err(RunError::Unanswered),
        }
    }
}
