//! A pipe whose other end belongs to the program that started the server: the server ends when that program does.

use std::future;
use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::fs::{FileType, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::net::unix::pipe::Receiver;

/// Takes over an inherited descriptor; `None` if this number is not an open pipe.
pub(super) fn take(number: i32) -> Option<OwnedFd> {
    // SAFETY: no other part of this process owns the descriptor: this runs before it opens any.
    #[expect(unsafe_code, reason = "an inherited descriptor has only a number")]
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    if !fstat(&descriptor).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo) {
        // Do not close a descriptor that this program does not own.
        std::mem::forget(descriptor);
        return None;
    }
    // Helper processes must not hold it.
    fcntl_setfd(&descriptor, FdFlags::CLOEXEC).ok()?;
    Some(descriptor)
}

/// Waits for the end of the pipe; forever without one.
pub(super) async fn end(lifeline: Option<OwnedFd>) {
    let Some(Ok(pipe)) = lifeline.map(Receiver::from_owned_fd) else { return future::pending().await };
    // Bytes in the pipe have no meaning.
    while pipe.readable().await.is_ok() {
        match pipe.try_read(&mut [0; 64]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}
