//! Directories of the host that clients mount and unmount while the VM runs.

use std::rc::Rc;

use futures::SinkExt;
use pyro_wire::Frame;
use tokio::time::timeout;

use crate::handover;
use crate::machine::with_causes;
use crate::mount::MountPoint;
use crate::mux::Streams;
use crate::protocol::{Reply, ServerStream};
use crate::server::commands::reply;
use crate::server::mounts::{Mounts, Unmounted, not_written};
use crate::server::{REPLY_LIMIT, Store};

/// Changes the mounted directories of a VM, and records each change before its client is answered.
pub(super) struct MountRecorder<S> {
    pub(super) mounts: Mounts,
    pub(super) store: Rc<S>,
    pub(super) vm_id: String,
}

impl<S: Store> MountRecorder<S> {
    /// Takes the socket of the directory's server from the client, and mounts the directory.
    pub(super) async fn mount(&self, point: MountPoint, mut client: ServerStream, streams: &Streams) {
        let _recording = self.mounts.recording.lock().await;
        let granted = timeout(REPLY_LIMIT, client.send(Frame::Control(Reply::Done))).await;
        let Ok(Ok(())) = granted else { return };
        // The client sends nothing before it.
        let Ok(Ok(socket)) = timeout(REPLY_LIMIT, handover::receive(client.get_ref())).await else { return };
        let guest = point.guest.clone();
        let answer = match self.mounts.mount(point, socket, streams).await {
            Ok(()) => self.record_mount(&guest).await,
            Err(error) => Reply::Refused { cause: with_causes(&error) },
        };
        reply(&mut client, answer).await;
    }

    async fn record_mount(&self, guest: &str) -> Reply {
        let Some(mounts) = self.mounts.to_record() else { return stopping() };
        match self.store.record_mounts(&self.vm_id, &mounts, &self.mounts.lost()).await {
            Ok(()) => Reply::Mounted,
            Err(error) => {
                self.mounts.unmount(guest).await;
                Reply::NotRecorded { cause: error.cause }
            }
        }
    }

    /// Records directories whose servers have ended, whenever that happens.
    pub(super) async fn record_losses(&self) {
        loop {
            self.mounts.loss.notified().await;
            let _recording = self.mounts.recording.lock().await;
            let Some(mounts) = self.mounts.to_record() else { return };
            if let Err(error) = self.store.record_mounts(&self.vm_id, &mounts, &self.mounts.lost()).await {
                tracing::error!(vm_id = self.vm_id, %error, "the loss of a mounted directory cannot be recorded");
            }
        }
    }

    /// The directory stays mounted if the change cannot be recorded.
    pub(super) async fn unmount(&self, guest: &str) -> Reply {
        let _recording = self.mounts.recording.lock().await;
        let Some(mut mounts) = self.mounts.to_record() else { return stopping() };
        let before = mounts.len();
        mounts.retain(|point| point.guest != guest);
        if mounts.len() == before {
            return Reply::NotMounted;
        }
        match self.store.record_mounts(&self.vm_id, &mounts, &self.mounts.lost()).await {
            Ok(()) => match self.mounts.unmount(guest).await {
                Unmounted::NotWritten(cause) => Reply::Refused {
                    cause: format!("{guest} was unmounted, but {}", not_written(guest, &cause)),
                },
                Unmounted::Written | Unmounted::NotMounted => Reply::Done,
            },
            Err(error) => Reply::NotRecorded { cause: error.cause },
        }
    }
}

fn stopping() -> Reply {
    Reply::Refused { cause: "the VM is being stopped".to_owned() }
}
