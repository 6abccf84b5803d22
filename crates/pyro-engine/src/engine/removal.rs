//! Getting rid of a VM, whatever state it and its processes are in.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use pyro_vm::supervisor::control::{self, ControlRequest};
use pyro_vm::supervisor::{OwnerLock, files};

use super::{Engine, state_unusable};
use crate::{EngineError, ErrorKind, Hint, VmId};

/// Longest time that a supervisor may take to end its VM, including the guest's orderly halt. Processes that
/// were stopped or are stuck must not make every caller hang.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Pause before a supervisor is asked again that could not be reached.
const ASK_AGAIN: Duration = Duration::from_millis(200);

impl Engine {
    /// Asks the VM's supervisor, if it has one, to end it, and waits until nobody holds the VM.
    ///
    /// Returns the lock on the VM, so that nobody starts it before the caller is done; `None` if its directory
    /// is gone.
    pub(super) async fn end(
        &self,
        id: &VmId,
        request: ControlRequest,
    ) -> Result<Option<OwnerLock>, EngineError> {
        let dir = self.vm_dir(id);
        let deadline = Instant::now() + END_LIMIT;
        while OwnerLock::is_held(&dir) && Instant::now() < deadline {
            let asked = tokio::time::timeout_at(deadline.into(), control::ask(&dir, request.clone())).await;
            if let Ok(Ok(())) = asked {
                break;
            }
            // A supervisor that cannot be reached is on its way out, or has just been given the lock and does not listen
            // yet; then it has to be asked again.
            if let Ok(lock) = self.await_release_within(id, ASK_AGAIN).await {
                return Ok(lock);
            }
        }
        self.await_release(id).await
    }

    /// Waits until nobody holds the VM.
    pub(super) async fn await_release(&self, id: &VmId) -> Result<Option<OwnerLock>, EngineError> {
        self.await_release_within(id, END_LIMIT).await
    }

    /// The same, not as long.
    pub(super) async fn await_release_within(
        &self,
        id: &VmId,
        limit: Duration,
    ) -> Result<Option<OwnerLock>, EngineError> {
        let dir = self.vm_dir(id);
        let lock = self
            .blocking(move |_| OwnerLock::acquire(&dir).map_err(|error| state_unusable("lock", &dir, error)));
        tokio::time::timeout(limit, lock).await.unwrap_or_else(|_| {
            let message = format!("vm {id} is held by a process that does not react");
            Err(EngineError::new(ErrorKind::WrongState, message).hint(Hint::FindHolder {
                file: self.vm_dir(id).join(files::OWNER_LOCK).display().to_string(),
            }))
        })
    }

    /// Ends the VM's processes, if any, and removes its files. Its record stays.
    async fn remove_files(
        &self,
        id: &VmId,
        request: ControlRequest,
    ) -> Result<Option<OwnerLock>, EngineError> {
        let lock = self.end(id, request).await?;
        let dir = self.vm_dir(id);
        self.blocking(move |_| match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(state_unusable("remove", &dir, error))
            }
            _ => Ok(lock),
        })
        .await
    }

    /// Removes the VM: processes, files and record.
    ///
    /// # Errors
    /// `StateUnusable`. That the record is gone already is no error: the supervisor may have been faster.
    pub(super) async fn remove(&self, id: &VmId) -> Result<(), EngineError> {
        let _lock = self.remove_files(id, ControlRequest::Delete).await?;
        let id = id.clone();
        match self.registry(move |registry| registry.delete(&id)).await {
            Err(error) if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Expired) => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the VM because its lifetime has ended. True if this call is the one that did.
    pub(super) async fn expire(&self, id: &VmId) -> Result<bool, EngineError> {
        let _lock = self.remove_files(id, ControlRequest::Expire).await?;
        let id = id.clone();
        self.registry(move |registry| registry.mark_expired(&id, super::now())).await
    }
}
