//! A descriptor that becomes readable when an event has happened.
#![expect(unsafe_code, reason = "registering a descriptor with the runtime")]

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Watches a descriptor that does not block.
#[derive(Debug)]
pub struct EventFd(AsyncFd<OwnedFd>);

impl EventFd {
    /// Starts watching.
    ///
    /// # Errors
    /// The runtime cannot watch the descriptor.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is one and the same open descriptor for as long as it lives, and the `AsyncFd` owns it.
        Ok(Self(unsafe { AsyncFd::register(descriptor) }?))
    }

    /// Waits until the event has happened. It stays so: nothing is read.
    pub async fn happened(&self) {
        // After an error there is nothing to wait for.
        let _ = self.0.readable().await;
    }

    /// Waits until there is something to read, and discards all of it.
    pub async fn read_all(&self) {
        let Ok(mut ready) = self.0.readable().await else { return pending().await };
        let mut buffer = [0; 4096];
        while rustix::io::read(self.0.get_ref(), &mut buffer).is_ok_and(|length| length > 0) {}
        ready.clear_ready();
    }

    /// Returns the descriptor.
    pub fn descriptor(&self) -> &OwnedFd {
        self.0.get_ref()
    }
}
