//! The store that records the life of a VM.

use pyro_wire::Exec;

use crate::conversation::CommandOutcome;
use crate::service::{ServiceDefinition, ServiceStatus};
use crate::spec::Retention;
use crate::{BootInfo, EndReason, MountPoint, PublishedPort};

/// Why something cannot be recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct StoreError {
    /// Retrying cannot help: the store will never accept the data, or has no record for it.
    pub is_permanent: bool,
    /// Why, in words.
    pub cause: String,
}

/// Records the life of a VM. The supervisor reports nothing that is not on record.
#[expect(async_fn_in_trait, reason = "a supervisor runs on one thread")]
pub trait Store {
    /// Records that the VM is up. Returns when its lifetime ends, in seconds since the epoch, which may have changed
    /// while it was starting.
    ///
    /// # Errors
    /// [`StoreError`]; the VM is then ended.
    async fn record_start(&self, vm_id: &str, info: &BootInfo) -> Result<f64, StoreError>;

    /// Records that the VM ended, once it is gone. `loss` is the reason if its guest should have
    /// written everything out, to its disk and to its live directories, and may not have.
    ///
    /// # Errors
    /// [`StoreError`]; the release of the VM's lock then shows other processes what the record cannot.
    async fn record_end(
        &self,
        vm_id: &str,
        retention: Retention,
        reason: &EndReason,
        loss: Option<&str>,
    ) -> Result<(), StoreError>;

    /// Records the published ports of a running VM, in place of those that were recorded before.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn record_ports(&self, vm_id: &str, ports: &[PublishedPort]) -> Result<(), StoreError>;

    /// Returns the services of a VM in the order in which they were defined.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn services(&self, vm_id: &str) -> Result<Vec<ServiceDefinition>, StoreError>;

    /// Records a service that is about to start, in place of one with its name.
    ///
    /// # Errors
    /// [`StoreError`], a permanent one if the VM has too many services.
    async fn record_service(
        &self,
        vm_id: &str,
        definition: &ServiceDefinition,
        status: &ServiceStatus,
    ) -> Result<(), StoreError>;

    /// Records what became of a service. A service without a record is not an error.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn record_service_status(
        &self,
        vm_id: &str,
        name: &str,
        status: &ServiceStatus,
    ) -> Result<(), StoreError>;

    /// Removes the record of a service. A missing record is not an error.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn forget_service(&self, vm_id: &str, name: &str) -> Result<(), StoreError>;

    /// Records the directories that a running VM has mounted, in place of those that were recorded before. `lost` are the mount points
    /// of those whose servers have ended.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn record_mounts(
        &self,
        vm_id: &str,
        mounts: &[MountPoint],
        lost: &[String],
    ) -> Result<(), StoreError>;

    /// Removes the record of a VM that was never up for any caller. A missing record is not an error.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn forget(&self, vm_id: &str) -> Result<(), StoreError>;

    /// Records that a command begins, and gives it its sequence.
    ///
    /// # Errors
    /// [`StoreError`]; the command is then not run.
    async fn record_command(&self, vm_id: &str, exec: &Exec) -> Result<u64, StoreError>;

    /// Records the outcome of a command. The record is on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError`]. A permanent one makes the outcome unknown.
    async fn record_command_end(
        &self,
        vm_id: &str,
        sequence: u64,
        outcome: &CommandOutcome,
    ) -> Result<(), StoreError>;
}
