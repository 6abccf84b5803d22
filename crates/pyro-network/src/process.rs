//! What the process that runs a guest's network inherits from the one that starts it.
#![expect(unsafe_code, reason = "descriptors that the parent process opened")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::server::{RunError, run};

/// Descriptor of the link to the guest, a stream socket, or one that listens for it.
pub const LINK_FD: RawFd = 3;
/// Descriptor from which the configuration is read, a serialised [`Config`](crate::Config).
pub const CONFIG_FD: RawFd = 4;
/// Descriptor to which denials are written.
pub const EVENTS_FD: RawFd = 5;
/// Descriptor of the connection to the process that starts this one, a `SOCK_SEQPACKET` socket.
pub const CONTROL_FD: RawFd = 6;

/// Runs a guest's network on the descriptors that the parent process has passed, until the link closes. Call it once, as
/// the only work of a process.
///
/// # Errors
/// [`RunError`]; among others, if the descriptors were not passed.
pub fn run_from_parent() -> Result<(), RunError> {
    let [link, config, events, control] = [LINK_FD, CONFIG_FD, EVENTS_FD, CONTROL_FD].map(|number| {
        // SAFETY: fcntl on a number that is not open fails, and then nothing is made of it.
        let is_open = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_getfd(is_open).map_err(|errno| RunError::Read(errno.into()))?;
        // SAFETY: the descriptor is open, and the parent has passed it for this use alone.
        Ok::<OwnedFd, RunError>(unsafe { OwnedFd::from_raw_fd(number) })
    });
    run(link?, config?, events?, control?)
}
