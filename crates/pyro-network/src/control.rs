//! The connection to the process that started this one: it learns what confines this process, and sends the host's resolvers,
//! whose list this process cannot read.
//!
//! Messages are JSON, one in each packet of a `SOCK_SEQPACKET` socket, so that it cannot be connected elsewhere.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use pyro_confine::Confinement;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};

/// Maximum size of a message in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// A message to the process that started this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// What confines this process. First, and sent before a byte of the guest is read.
    Confined(Box<Confinement>),
    /// The list of resolvers may have changed. Answered by the addresses if it has, and by nothing otherwise.
    RefreshResolvers,
}

/// This process's end.
#[derive(Debug)]
pub(crate) struct Control(OwnedFd);

impl Control {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends a message, unless it would have to wait: then nothing is lost that is not sent again.
    pub(crate) fn send(&self, message: &Message) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        match send(self.0.as_fd(), &text, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns the latest list of resolvers that has arrived and was not returned yet.
    pub(crate) fn resolvers(&self) -> Option<Vec<SocketAddr>> {
        let mut latest = None;
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        while let Ok((length @ 1.., _)) = recv(self.0.as_fd(), &mut buffer[..], RecvFlags::DONTWAIT) {
            latest = buffer.get(..length).and_then(|text| serde_json::from_slice(text).ok()).or(latest);
        }
        latest
    }
}
