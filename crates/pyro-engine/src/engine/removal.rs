//! Removes a VM, whatever the state of the VM and its processes.

use std::time::Duration;

use pyro_supervisor::{Client, EndError, EndRequest, Ended, Owner, OwnerLock, Phase, files, remove_dir};

use super::{Engine, state_unusable};
use crate::{Error, ErrorKind, Hint, Kind, VmId};

/// Maximum time for a supervisor to end its VM. It covers 15 seconds in which a supervisor that is frozen is found not to
/// respond, and then an orderly end: 3 seconds for the commands, 20 for the guest, and a few for
/// the record. One that does not respond even then is killed within that time. Slower hosts have more.
const END_LIMIT: Duration = Duration::from_secs(50);

impl Engine {
    /// Asks the VM's supervisor, if there is one, to end the VM, and waits until the supervisor is gone.
    pub(super) async fn end(&self, id: &VmId, how: EndRequest) -> Result<Ended, Error> {
        match self.client(id).end(how, self.pace().allow(END_LIMIT)).await {
            Ok(ended) => Ok(ended),
            Err(error) => Err(self.held(id, error).await),
        }
    }

    /// Waits until no process holds the VM. `None`: its directory is gone.
    pub(super) async fn await_release(&self, id: &VmId) -> Result<Option<OwnerLock>, Error> {
        self.await_release_within(id, self.pace().allow(END_LIMIT)).await
    }

    /// Like `await_release`, with a time limit.
    pub(super) async fn await_release_within(
        &self,
        id: &VmId,
        limit: Duration,
    ) -> Result<Option<OwnerLock>, Error> {
        match self.client(id).released(limit).await {
            Ok(lock) => Ok(lock),
            Err(error) => Err(self.held(id, error).await),
        }
    }

    /// Returns a client for the VM's supervisor.
    pub(super) fn client(&self, id: &VmId) -> Client {
        Client::new(self.vm_dir(id)).at(self.pace())
    }

    /// Returns the error for a VM or task that a process holds.
    async fn held(&self, id: &VmId, error: EndError) -> Error {
        let dir = self.vm_dir(id);
        let error = match error {
            EndError::Lock(error) => return state_unusable("lock", &dir, error),
            EndError::Held => error,
        };
        let task = id.clone();
        let kind = match self.registry(move |registry| registry.exists(Kind::Task, &task)).await {
            Ok(true) => Kind::Task,
            Ok(false) | Err(_) => Kind::Vm,
        };
        let (message, hint) = match Owner::of(&dir).map(|owner| owner.phase) {
            Some(Phase::Starting | Phase::Stopping) => {
                (format!("{kind} {id} is being started or stopped by another process"), Hint::RetryInAMoment)
            }
            Some(Phase::Running) | None => (
                format!("{kind} {id} is held by a process that does not react"),
                Hint::FindHolder { file: dir.join(files::OWNER_LOCK).display().to_string() },
            ),
        };
        Error::new(ErrorKind::WrongState, message).hint(hint).caused_by(error)
    }

    /// Ends the VM's processes, if any, and removes its files. Its record stays.
    async fn remove_files(&self, id: &VmId, how: EndRequest) -> Result<Option<OwnerLock>, Error> {
        let lock = loop {
            match self.end(id, how).await? {
                Ended::Released(lock) => break lock,
                Ended::Killed(lock) => break Some(lock),
                // A process that starts it again loses it again.
                Ended::TakenAgain => {}
            }
        };
        let dir = self.vm_dir(id);
        self.blocking(move |_| {
            remove_dir(&dir).map_err(|error| state_unusable("remove", &dir, error))?;
            Ok(lock)
        })
        .await
    }

    /// Removes the VM: processes, files and record.
    ///
    /// # Errors
    /// `StateUnusable`. A missing record is not an error: the supervisor may have been faster.
    pub(super) async fn remove(&self, id: &VmId) -> Result<(), Error> {
        let _lock = self.remove_files(id, EndRequest::Delete).await?;
        let id = id.clone();
        match self.registry(move |registry| registry.delete(&id)).await {
            Err(error) if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Expired) => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the VM because its lifetime has ended. True if this call removed it.
    pub(super) async fn expire(&self, id: &VmId) -> Result<bool, Error> {
        let _lock = self.remove_files(id, EndRequest::Expire).await?;
        let id = id.clone();
        self.registry(move |registry| registry.mark_expired(&id, super::now())).await
    }
}
