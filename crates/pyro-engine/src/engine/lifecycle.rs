//! VMs that outlive the call: create, start, exec, stop, delete, look.

use std::collections::BTreeMap;

use pyro_vm::supervisor::control::ControlRequest;
use tokio_util::sync::CancellationToken;

use super::reconcile::{OWNER_VANISHED, owner_vanished};
use super::{Engine, now};
use crate::finished::Finished;
use crate::limits::{self, Sizing};
use crate::registry::{NewVm, VmPatch, VmRecord};
use crate::state::VmEvent;
use crate::{
    Command, DeleteReason, Deleted, EngineError, ErrorKind, Events, ExecutionMode, NetworkInfo, RunResult,
    Vm, VmId, VmSpec, VmState,
};

impl Engine {
    /// Records a new VM. Its environment is installed first if it is not.
    ///
    /// # Errors
    /// `InvalidInput`, `AtCapacity`, `EnvironmentUnavailable`, `StateUnusable`, `Cancelled`.
    pub async fn create_vm(
        &self,
        spec: VmSpec,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Vm, EngineError> {
        let sizing = limits::check_spec(&spec)?;
        let version = self.prepare_environment(&spec, events, cancel).await?;
        self.reconcile().await?;
        let record = self.insert(&VmId::random()?, &spec, sizing, version, false).await?;
        Ok(record.payload())
    }

    /// Boots a VM until it takes commands.
    ///
    /// # Errors
    /// `NotFound`, `Expired`, `WrongState`, `VmUnavailable`, `BootFailed`, `EnvironmentUnavailable`,
    /// `StateUnusable`, `Cancelled`. The VM is then as it was before.
    pub async fn start_vm(&self, vm_id: &str, cancel: &CancellationToken) -> Result<Vm, EngineError> {
        let id = VmId::parse(vm_id)?;
        let record = self.admit(&id, VmEvent::Start).await?;
        let host = match self.host().await {
            Ok(host) => host,
            Err(reason) if record.allow_host_compat => {
                return Ok(self.start_on_host(&id, &reason).await?.payload());
            }
            Err(reason) => return Err(EngineError::boot_unavailable(&reason)),
        };
        let environment = self.environment(&record.environment, &Events::none(), cancel).await?;
        let lock = self.own_vm_dir(&id).await?;
        // Whoever has the lock knows that nobody runs the VM, whatever its last owner could still write.
        let vm = id.clone();
        self.registry(move |registry| registry.mark_stopped(&vm, Some(OWNER_VANISHED))).await?;
        // The supervisor has the lock and the record is written; nothing more is asked of the lifeline.
        drop(self.start_guest(&record, environment, host, lock, cancel).await?);
        Ok(self.get(&id).await?.payload())
    }

    /// Runs one command and then removes the VM. If the command cannot be run, the VM stays as it is.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `Expired`, `WrongState`, `NotDelivered`, `OutcomeUnknown`, `Cancelled`.
    pub async fn exec_vm(
        &self,
        vm_id: &str,
        command: Command,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<RunResult, EngineError> {
        let timeout = limits::check_command(&command)?;
        let id = VmId::parse(vm_id)?;
        let record = self.admit(&id, VmEvent::Exec).await?;
        let finished = match self.execute(&record, &command, timeout, events, cancel).await {
            Err(error) if error.kind == ErrorKind::OutcomeUnknown => {
                return Err(self.explain_loss(&id, error).await);
            }
            finished => finished?,
        };
        self.remove(&id).await?;
        Ok(run_result(record, command, finished))
    }

    /// Adds to `error` why the guest was lost, which its supervisor records before it goes.
    async fn explain_loss(&self, id: &VmId, error: EngineError) -> EngineError {
        match self.await_release(id).await.and(self.get(id).await) {
            Ok(VmRecord { last_error: Some(reason), .. }) => error.caused_by(reason),
            Ok(_) => error.caused_by(OWNER_VANISHED),
            Err(cause) => error.caused_by(cause),
        }
    }

    /// Stops a VM; what its guest wrote is kept for another start. Stopping a stopped VM is no error.
    ///
    /// # Errors
    /// `NotFound`, `Expired` if it was removed because of its lifetime, `StateUnusable`.
    pub async fn stop_vm(&self, vm_id: &str) -> Result<Vm, EngineError> {
        let id = VmId::parse(vm_id)?;
        self.get(&id).await?;
        let _lock = self.end(&id, ControlRequest::Stop).await?;
        let (_, record) = self
            .registry(move |registry| registry.transition(&id, VmEvent::Stop, &VmPatch::default()))
            .await?;
        Ok(record.payload())
    }

    /// Removes a VM and its files, whatever its state. Unsaved work in it is lost.
    ///
    /// # Errors
    /// `NotFound`, `Expired` if it was removed because of its lifetime, `StateUnusable`.
    pub async fn delete_vm(&self, vm_id: &str) -> Result<Deleted, EngineError> {
        let id = VmId::parse(vm_id)?;
        // A record that cannot be read can still be deleted.
        match self.get(&id).await {
            Ok(record) => {
                record.state.apply(VmEvent::Delete).map_err(|denied| denied.into_error(vm_id))?;
            }
            Err(error) if error.kind == ErrorKind::StateUnusable => {}
            Err(error) => return Err(error),
        }
        self.remove(&id).await?;
        Ok(Deleted::new(id, DeleteReason::ExplicitDelete))
    }

    /// What is known about a VM.
    ///
    /// # Errors
    /// `NotFound`, `Expired`, `StateUnusable`.
    pub async fn status_vm(&self, vm_id: &str) -> Result<Vm, EngineError> {
        Ok(self.admit(&VmId::parse(vm_id)?, VmEvent::Read).await?.payload())
    }

    /// The network of a VM.
    ///
    /// # Errors
    /// As [`Engine::status_vm`].
    pub async fn network_info_vm(&self, vm_id: &str) -> Result<NetworkInfo, EngineError> {
        Ok(NetworkInfo::of(&self.status_vm(vm_id).await?))
    }

    /// The version of the environment, which is then installed. A caller who agreed to the host, where no VM
    /// can run, needs none.
    pub(super) async fn prepare_environment(
        &self,
        spec: &VmSpec,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Option<String>, EngineError> {
        if spec.allow_host_compat && self.host().await.is_err() {
            self.inspect_environment(&spec.environment).await?;
            return Ok(None);
        }
        Ok(Some(self.environment(&spec.environment, events, cancel).await?.version.clone()))
    }

    pub(super) async fn insert(
        &self,
        id: &VmId,
        spec: &VmSpec,
        sizing: Sizing,
        environment_version: Option<String>,
        ephemeral: bool,
    ) -> Result<VmRecord, EngineError> {
        let mut metadata = BTreeMap::new();
        metadata.insert("allow_host_compat".to_owned(), spec.allow_host_compat.to_string());
        let vm = NewVm {
            vm_id: id.clone(),
            environment: spec.environment.clone(),
            environment_version,
            sizing,
            created_at: now(),
            ephemeral,
            network_enabled: spec.network,
            allow_host_compat: spec.allow_host_compat,
            metadata,
        };
        let ceiling = self.config().max_active_vms;
        self.registry(move |registry| {
            registry.insert(&vm, ceiling)?;
            registry.get(&vm.vm_id)
        })
        .await
    }

    pub(super) async fn get(&self, id: &VmId) -> Result<VmRecord, EngineError> {
        let id = id.clone();
        // A state directory that is not there has no VMs, and looking must not make it.
        self.blocking(move |shared| match shared.config.base_dir.exists() {
            true => shared.registry.get(&id),
            false => Err(EngineError::vm_not_found(id.as_str())),
        })
        .await
    }

    /// The VM, if its lifetime has not ended and its state allows `event`. A VM whose owner has vanished counts
    /// as stopped; that is noted when something changes next, not by looking.
    async fn admit(&self, id: &VmId, event: VmEvent) -> Result<VmRecord, EngineError> {
        let mut record = self.get(id).await?;
        if record.expires_at <= now() {
            self.expire(id).await?;
            return Err(EngineError::vm_expired(id.as_str()));
        }
        if record.state == VmState::Started && owner_vanished(&self.shared, &record) {
            record.state = VmState::Stopped;
            record.last_error = Some(OWNER_VANISHED.to_owned());
        }
        record.state.apply(event).map_err(|denied| denied.into_error(id.as_str()))?;
        Ok(record)
    }
}

/// The result of a command whose VM is removed.
pub(super) fn run_result(record: VmRecord, command: Command, finished: Finished) -> RunResult {
    let in_guest = record.execution_mode == ExecutionMode::GuestVsock;
    RunResult {
        cleanup: Deleted::new(record.vm_id.clone(), DeleteReason::PostExecCleanup),
        vm_id: record.vm_id,
        environment: record.environment,
        environment_version: record.environment_version,
        command: command.command,
        stdout: finished.stdout.into(),
        stderr: finished.stderr.into(),
        exit_code: finished.exit_code,
        duration_ms: u64::try_from(finished.duration.as_millis()).unwrap_or(u64::MAX),
        execution_mode: record.execution_mode,
        stdout_truncated: finished.stdout_truncated,
        stderr_truncated: finished.stderr_truncated,
        timed_out: finished.timed_out,
        accelerator: record.accelerator,
        channel: in_guest.then(|| pyro_vm::CHANNEL.to_owned()),
        kernel_release: record.metadata.get("kernel_release").cloned(),
        timings: Vec::new(),
    }
}
