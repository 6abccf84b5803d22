//! A descriptor that becomes readable when an event has happened.
#![expect(unsafe_code, reason = "registering a descriptor with the runtime")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Watches a descriptor that is never read.
pub(super) struct EventFd(AsyncFd<OwnedFd>);

impl EventFd {
    /// Starts watching.
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is one and the same open descriptor for as long as it lives, and the `AsyncFd` owns it.
        Ok(Self(unsafe { AsyncFd::register(descriptor) }?))
    }

    /// Waits until the event has happened.
    pub(super) async fn happened(&self) {
        // After an error there is nothing to wait for.
        let _ = self.0.readable().await;
    }

    pub(super) fn descriptor(&self) -> &OwnedFd {
        self.0.get_ref()
    }
}
