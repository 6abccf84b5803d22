//! Directories of the host.

use std::io;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, Mount, MountInput, MountReply, OutputStream};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::World;
use super::{GuestStream, failure};

/// Two connected sockets whose packets are messages.
pub(in crate::server::tests) fn packets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// A message of 100 bytes.
pub(in crate::server::tests) fn fuse_message() -> Bytes {
    let mut message = vec![7; 100];
    message[0..4].copy_from_slice(&100_u32.to_le_bytes());
    message.into()
}

/// Stands for the guest's kernel: it sends one message and reads the answers of the host. It cannot mount on `/busy`.
pub(super) async fn serve(world: &World, mount: Mount, mut stream: GuestStream<MountInput, MountReply>) {
    if mount.path == "/busy" {
        let reply = MountReply::Failed(failure("mounting on /busy", "it is busy"));
        let _ = stream.send(Frame::Control(reply)).await;
        return;
    }
    let _ = stream.send(Frame::Control(MountReply::Mounted)).await;
    let _ = stream.send(Frame::Output(OutputStream::Stdout, fuse_message())).await;
    let mut lost = false;
    world.mounted.set(world.mounted.get() + 1);
    loop {
        let frame = tokio::select! {
            frame = stream.next() => frame,
            () = world.halting.cancelled() => break,
        };
        match frame {
            Some(Ok(Frame::Output(..))) => {}
            Some(Ok(Frame::Control(MountInput::Lost))) => lost = true,
            Some(Ok(Frame::Control(MountInput::Unmount)) | Err(_)) | None => break,
        }
    }
    // The host must say that the server of `/lost` has ended before it asks for anything else.
    let is_full = mount.path == "/full" || (mount.path == "/lost" && !lost);
    let not_written = is_full.then(|| failure("writing it out", "no space left on device"));
    let _ = stream.send(Frame::Control(MountReply::Unmounted { not_written })).await;
    let _ = stream.close().await;
    world.mounted.set(world.mounted.get() - 1);
}
