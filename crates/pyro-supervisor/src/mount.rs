//! Directories of the host in a guest, as plain data, and the sockets of their servers.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use pyro_machine::spawn::Spawn;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Maximum number of directories of the host in one guest.
pub const MAX_MOUNTS: usize = 16;
/// Number of the first socket in a supervisor's process. The others follow.
const FIRST_SOCKET: RawFd = 16;

/// A directory of the host, and where the guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountPoint {
    /// Absolute path on the host, without symbolic links.
    pub host: PathBuf,
    /// Absolute path in the guest.
    pub guest: String,
    /// The guest may change the directory.
    pub writable: bool,
    /// The user and the group of the guest that own everything in it, as the guest sees it.
    pub owner: u32,
}

/// The sockets of the servers of a VM's directories, in the order of [`LaunchSpec::mounts`](crate::LaunchSpec::mounts). A server
/// ends when all copies of its socket are closed.
#[derive(Clone, Debug, Default)]
pub struct MountSockets(Vec<Arc<OwnedFd>>);

/// Equal if they are the same descriptors.
impl PartialEq for MountSockets {
    fn eq(&self, other: &Self) -> bool {
        self.numbers().eq(other.numbers())
    }
}

impl FromIterator<OwnedFd> for MountSockets {
    fn from_iter<T: IntoIterator<Item = OwnedFd>>(sockets: T) -> Self {
        Self(sockets.into_iter().map(Arc::new).collect())
    }
}

impl MountSockets {
    fn numbers(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().map(|socket| socket.as_raw_fd())
    }

    /// Returns the sockets.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &OwnedFd> {
        self.0.iter().map(Arc::as_ref)
    }

    /// Has a supervisor inherit them.
    pub(crate) fn pass(&self, spawn: Spawn) -> io::Result<Spawn> {
        let mut numbered = self.iter().zip(FIRST_SOCKET..);
        numbered.try_fold(spawn, |spawn, (socket, number)| Ok(spawn.inherit(socket.try_clone()?, number)))
    }

    /// Takes those that this process has inherited. Call it once, before other descriptors are opened.
    ///
    /// # Errors
    /// They were not passed.
    pub(crate) fn inherited(count: usize) -> io::Result<Vec<OwnedFd>> {
        let open = |number: RawFd| {
            #[expect(unsafe_code, reason = "descriptors that the parent process opened")]
            // SAFETY: fcntl on a number that is not open fails, and then nothing is made of it. One that is open was passed
            // for this use alone.
            unsafe {
                rustix::io::fcntl_setfd(
                    rustix::fd::BorrowedFd::borrow_raw(number),
                    rustix::io::FdFlags::CLOEXEC,
                )?;
                Ok(OwnedFd::from_raw_fd(number))
            }
        };
        (FIRST_SOCKET..).take(count.min(MAX_MOUNTS)).map(open).collect()
    }
}
