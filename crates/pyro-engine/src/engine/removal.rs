//! Getting rid of a VM, whatever state it and its processes are in.

use std::fs;
use std::io;

use pyro_vm::supervisor::OwnerLock;
use pyro_vm::supervisor::control::{self, ControlRequest};

use super::{Engine, state_unusable};
use crate::{EngineError, ErrorKind, VmId};

impl Engine {
    /// Ends the VM's processes, if any, and removes its files. Its record stays.
    ///
    /// Returns the lock on the VM, so that nobody starts it again before the record is changed.
    async fn remove_files(
        &self,
        id: &VmId,
        request: ControlRequest,
    ) -> Result<Option<OwnerLock>, EngineError> {
        let dir = self.vm_dir(id);
        if OwnerLock::is_held(&dir) {
            // A supervisor that cannot be reached is on its way out, or its starter holds the lock and will
            // end by itself; either way the lock below comes free.
            let _ = control::end(&dir, request).await;
        }
        self.blocking(move |_| {
            let lock = match OwnerLock::acquire(&dir) {
                Ok(Some(lock)) => lock,
                Ok(None) => return Ok(None),
                Err(error) => return Err(state_unusable("lock", &dir, error)),
            };
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(state_unusable("remove", &dir, error))
                }
                _ => Ok(Some(lock)),
            }
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
