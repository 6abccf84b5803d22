//! Getting rid of a VM, whatever state it and its processes are in.

use std::fs;
use std::io;
use std::time::Duration;

use pyro_vm::supervisor::control::{self, ControlRequest};
use pyro_vm::supervisor::{OwnerLock, files};

use super::{Engine, state_unusable};
use crate::{EngineError, ErrorKind, VmId};

/// Longest time that a supervisor may take to end its VM, including the guest's orderly halt. Processes that
/// were stopped or are stuck must not make every caller hang.
const END_LIMIT: Duration = Duration::from_secs(30);

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
        if OwnerLock::is_held(&dir) {
            // A supervisor that cannot be reached is on its way out, or its starter holds the lock and will
            // end by itself; either way the lock comes free.
            let _ = tokio::time::timeout(END_LIMIT, control::end(&dir, request)).await;
        }
        self.await_release(id).await
    }

    /// Waits until nobody holds the VM.
    pub(super) async fn await_release(&self, id: &VmId) -> Result<Option<OwnerLock>, EngineError> {
        let dir = self.vm_dir(id);
        let lock = self
            .blocking(move |_| OwnerLock::acquire(&dir).map_err(|error| state_unusable("lock", &dir, error)));
        tokio::time::timeout(END_LIMIT, lock).await.unwrap_or_else(|_| {
            let message = format!("vm {id} is held by a process that does not react");
            Err(EngineError::new(ErrorKind::WrongState, message)
                .hint(format!("`fuser {}` finds it", self.vm_dir(id).join(files::OWNER_LOCK).display())))
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
