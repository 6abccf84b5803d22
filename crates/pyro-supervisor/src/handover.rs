//! Passes the lock of a VM from the process that claims a spare to that spare, so that the VM always has an owner.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Descriptors are sent with at least one byte of data.
const COMPANION: [u8; 1] = [0];

/// Sends one descriptor.
pub(crate) async fn send(stream: &UnixStream, descriptor: impl AsFd) -> io::Result<()> {
    let descriptors = [descriptor.as_fd()];
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(stream, &[IoSlice::new(&COMPANION)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    };
    stream.async_io(Interest::WRITABLE, send).await
}

/// Receives one descriptor.
pub(crate) async fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let receive = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut companion = COMPANION;
        let mut parts = [IoSliceMut::new(&mut companion)];
        recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        descriptor.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    };
    stream.async_io(Interest::READABLE, receive).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_descriptor_arrives_open() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        send(&ours, &reader).await.unwrap();
        drop(reader);
        let received = receive(&theirs).await.unwrap();
        io::Write::write_all(&mut writer, b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&received, &mut byte).unwrap(), 1);
    }

    #[tokio::test]
    async fn a_byte_without_a_descriptor_is_none() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.try_write(b"x").unwrap();
        receive(&theirs).await.unwrap_err();
        drop(ours);
        receive(&theirs).await.unwrap_err();
    }
}
