//! Directories of this host in the guests of tasks, while they run.

use pyro_supervisor::{MountError, RunError};

use super::{EXIT_TIME, not_asked, supervisor_lost, unanswered};
use crate::engine::Engine;
use crate::engine::mounts::mount_point;
use crate::registry::VmRecord;
use crate::{DirectoryMount, Error, ErrorKind, ExecutionMode, Kind, Task, VmId, VmState};

impl Engine {
    /// Mounts a directory of this host in a running task, until it is unmounted or the task is deleted. A stopped task gets it
    /// back when it starts.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if the directory may not be mounted; `WrongState` if the task is not running, runs on this
    /// host, or cannot have the mount; `NotDelivered`, `OutcomeUnknown`, `StateUnusable`, `VmUnavailable`.
    pub async fn mount_task(&self, task_id: &str, mount: DirectoryMount) -> Result<Task, Error> {
        let id = self.task_id(task_id).await?;
        let record = self.record_for_use(&id, None).await?;
        if record.execution_mode == ExecutionMode::HostCompat {
            return Err(on_host());
        }
        let mounts = self.check_mounts(&[mount]).await?;
        for mount in &mounts {
            let socket = self.serve_mount(mount).await?;
            let mounted = self.client(&id).mount(mount_point(mount), socket).await;
            mounted.map_err(|error| mount_error(&id, error))?;
        }
        self.status_task(id.as_str()).await
    }

    /// Unmounts a directory of a task. Processes in the guest that still use it get errors.
    ///
    /// # Errors
    /// `NotFound` if there is no such task or mount; `WrongState` if the task is being started or stopped; `NotDelivered`,
    /// `OutcomeUnknown`, `StateUnusable`.
    pub async fn unmount_task(&self, task_id: &str, guest: &str) -> Result<Task, Error> {
        let id = self.task_id(task_id).await?;
        let record = super::as_it_is(&self.shared, self.get(Kind::Task, &id).await?);
        let was_mounted = match record.state {
            VmState::Started => {
                self.client(&id).unmount(guest).await.map_err(|error| mount_error(&id, error))?
            }
            _ => self.unmount_stopped(record, guest.to_owned()).await?,
        };
        match was_mounted {
            true => self.status_task(id.as_str()).await,
            false => {
                let message = format!("task {id} has no directory of this host mounted on {guest}");
                Err(Error::new(ErrorKind::NotFound, message))
            }
        }
    }

    /// Forgets a directory that the task would mount when it starts.
    async fn unmount_stopped(&self, record: VmRecord, guest: String) -> Result<bool, Error> {
        let id = record.vm_id;
        // No other process starts it meanwhile.
        let _lock = self.await_release_within(&id, EXIT_TIME).await?;
        let id_of_task = id.clone();
        self.registry(move |registry| {
            let mut mounts = registry.get(Kind::Task, &id_of_task)?.mounts;
            let before = mounts.len();
            mounts.retain(|mount| mount.guest != guest);
            registry.set_mounts(&id_of_task, &mounts, Vec::new())?;
            Ok(mounts.len() < before)
        })
        .await
    }
}

/// The error of a mount where commands run on this host.
pub(in crate::engine) fn on_host() -> Error {
    let message = "directories cannot be mounted in host compatibility mode: commands see this host's own";
    Error::new(ErrorKind::WrongState, message)
}

fn mount_error(id: &VmId, error: MountError) -> Error {
    match error {
        error @ MountError::NotRecorded { .. } => Error::new(ErrorKind::StateUnusable, error.to_string()),
        MountError::Request(RunError::Refused { cause }) => Error::new(ErrorKind::WrongState, cause),
        MountError::Request(RunError::NotDelivered(error)) => not_asked(error),
        MountError::Request(RunError::Unanswered) => unanswered(id),
        MountError::Request(RunError::Cancelled | RunError::InputFailed { .. } | RunError::Lost { .. }) => {
            supervisor_lost(id)
        }
    }
}
