//! Descriptors that pass from one process to another: the lock of a VM, from the process that claims a spare to that spare,
//! so that the VM always has an owner; and the artifacts of its guest, from the process that checked them to the supervisor.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;

use pyro_machine::spawn::Spawn;
use pyro_machine::{Artifact, GuestImage};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::spec::LaunchSpec;

/// Number of the first artifact in a supervisor's process. The others follow.
const FIRST_ARTIFACT: RawFd = 3;

/// Has a supervisor inherit the artifacts that `spec` names, and says so in `spec`, if all of them are open.
pub(crate) fn pass_artifacts(spawn: Spawn, spec: &mut LaunchSpec) -> io::Result<Spawn> {
    let files: Option<Vec<_>> = spec.guest.artifacts().map(Artifact::file).collect();
    spec.artifacts_are_open = files.is_some();
    let mut numbered = files.unwrap_or_default().into_iter().zip(FIRST_ARTIFACT..);
    numbered.try_fold(spawn, |spawn, (file, number)| Ok(spawn.inherit(file.try_clone()?, number)))
}

/// Returns the guest with the artifacts that this process has inherited, if it has.
///
/// # Errors
/// They were not passed.
pub(crate) fn artifacts(spec: &LaunchSpec) -> io::Result<GuestImage> {
    let guest = spec.guest.clone();
    if !spec.artifacts_are_open {
        return Ok(guest);
    }
    // Another way to the same inodes, and never to a descriptor that something else in this process owns.
    let open = |number: RawFd| Ok(Arc::new(File::open(format!("/proc/self/fd/{number}"))?));
    let count = guest.artifacts().count();
    let mut files = (FIRST_ARTIFACT..).take(count).map(open).collect::<io::Result<VecDeque<_>>>()?;
    Ok(guest.with_artifacts(|artifact| match files.pop_front() {
        Some(file) => Artifact::opened(artifact.path(), file),
        None => artifact,
    }))
}

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

    #[test]
    fn a_supervisor_inherits_the_artifacts_if_all_are_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = crate::spec::tests::spec();
        let child = || Spawn::new("/bin/cat").args(["/proc/self/fd/3", "/proc/self/fd/4", "/proc/self/fd/5"]);
        pass_artifacts(child(), &mut spec).unwrap();
        assert!(!spec.artifacts_are_open);
        assert_eq!(artifacts(&spec).unwrap(), spec.guest);

        spec.guest = spec.guest.with_artifacts(|artifact| {
            let path = dir.path().join(artifact.path().file_name().unwrap());
            std::fs::write(&path, format!("{} ", artifact.path().display())).unwrap();
            let opened = Artifact::open(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            opened
        });
        let output = pass_artifacts(child(), &mut spec).unwrap().output_blocking().unwrap();
        assert!(spec.artifacts_are_open);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "/env/rootfs /env/vmlinuz /env/modules.cpio ");
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
