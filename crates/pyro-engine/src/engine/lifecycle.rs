//! VMs that outlive the call: create, start, exec, stop, delete, and status.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use pyro_machine::Vmm;
use pyro_supervisor::{EndRequest, Ended, Owner, OwnerLock, Phase, files, network_denials};
use tokio_util::sync::CancellationToken;

use super::exec::shell_of;
use super::launch::{Launch, Needs};
use super::reconcile::{OWNER_VANISHED, owner_vanished};
use super::{Engine, Shared, now, state_unusable, vm_dir};
use crate::Kind;
use crate::capture::Captured;
use crate::exit_code::{duration_ms, exit_code};
use crate::host_settings::HostChoice;
use crate::limits::{self, CheckedCommand, Sizing};
use crate::operations::ExecVm;
use crate::registry::{NewVm, VmPatch, VmRecord};
use crate::state::{Transitions as _, VmEvent};
use crate::{
    CallContext, DeleteReason, Deleted, Error, ErrorKind, Event, Events, ExecutionMode, HostAccess, Naming,
    NetworkDenial, NetworkInfo, RunResult, StopReason, TtlFrom, Vm, VmId, VmSpec, VmState, convert,
};

/// Metadata key for a state transition in progress. Not recorded.
const TRANSITION: &str = "transition";
/// Time for a supervisor that lost its guest to record the reason.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// The `last_error` of a VM whose supervisor had to be killed to stop it.
const SUPERVISOR_KILLED: &str =
    "the guest may not have written everything to its disk: its supervisor did not respond and was killed";
/// The `last_error` of a VM whose supervisor ended without recording that it stopped the VM.
const SUPERVISOR_LOST: &str = "the guest may not have written everything to its disk: its supervisor was lost while it was stopping the VM";

impl Engine {
    /// Records a new VM. Installs its environment first if necessary.
    ///
    /// # Errors
    /// `InvalidInput`, `AtCapacity`, `EnvironmentUnavailable`, `StateUnusable`, `Cancelled`.
    pub async fn create_vm(
        &self,
        spec: VmSpec,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Vm, Error> {
        let sizing = limits::check_spec(&spec)?;
        let mounts = self.check_mounts(&spec.mounts).await?;
        self.check_host_settings(&spec, events).await?;
        let version = self.prepare_environment(&spec, events, cancel).await?;
        self.reconcile().await?;
        let vm = NewVm { mounts, ..self.new_vm(VmId::random()?, &spec, sizing, version) };
        Ok(self.insert(vm).await?.payload())
    }

    /// Boots a VM until it accepts commands.
    ///
    /// # Errors
    /// `NotFound`, `Expired`, `WrongState`, `VmUnavailable`, `BootFailed`, `EnvironmentUnavailable`,
    /// `StateUnusable`, `Cancelled`. The VM is then unchanged, except that a start which is cancelled when its guest is
    /// already up may still complete: the VM runs then, as its state says.
    pub async fn start_vm(
        &self,
        vm_id: &str,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Vm, Error> {
        let id = VmId::parse(vm_id)?;
        let record = self.record_for(Kind::Vm, &id, VmEvent::Start).await?;
        let backend = self.backend(Needs::of_recorded(&record), events, cancel).await?;
        let lock = match self.own_stopped(&record).await? {
            Some(lock) => lock,
            // It was never started.
            None => self.own_vm_dir(Kind::Vm, &id).await?,
        };
        // The lock proves that no process runs the VM, whatever its last supervisor was able to record.
        self.note_vanished(&id).await?;
        let record = self.record_for(Kind::Vm, &id, VmEvent::Start).await?;
        self.bring_up(Launch { record, lock, backend }, events, cancel).await?;
        Ok(self.get(Kind::Vm, &id).await?.payload())
    }

    /// Runs one command and then removes the VM. If the command cannot be run, the VM is unchanged. If the VM cannot be
    /// removed, the result's `cleanup` says so.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `Expired`, `WrongState`, `NotDelivered`, `OutcomeUnknown`, `Cancelled`.
    pub async fn exec_vm(&self, request: ExecVm, call: &CallContext) -> Result<RunResult, Error> {
        let CallContext { events, cancel, .. } = call;
        let command = limits::check_command(request.command, request.output.output)?;
        let id = VmId::parse(&request.vm.vm_id)?;
        let record = self.record_for(Kind::Vm, &id, VmEvent::Exec).await?;
        let began = now();
        let captured = match self.execute(&record, &command, call).await {
            Err(error) if error.kind == ErrorKind::OutcomeUnknown => {
                return Err(self.explain_loss(Kind::Vm, &id, error, cancel).await);
            }
            captured => captured?,
        };
        let network_denials = self.denials_of_command(&record, began).await;
        let removed = self.remove(&id).await;
        let cleanup = cleanup(id, removed, events).await;
        Ok(RunResult { network_denials, ..run_result(record, command, captured, cleanup) })
    }

    /// Adds to `error` why the guest was lost, which its supervisor records before it exits. A caller that cancels gets
    /// `error` unchanged.
    pub(super) async fn explain_loss(
        &self,
        kind: Kind,
        id: &VmId,
        error: Error,
        cancel: &CancellationToken,
    ) -> Error {
        let recorded =
            async { self.await_release_within(id, LAST_WORDS).await.and(self.get(kind, id).await) };
        let recorded = tokio::select! {
            biased;
            () = cancel.cancelled() => return error,
            recorded = recorded => recorded,
        };
        match recorded {
            Ok(VmRecord { last_error: Some(reason), .. }) => error.caused_by(reason),
            Ok(_) => error.caused_by(OWNER_VANISHED),
            // The VM goes on, or its supervisor is frozen. What is known of the command says more.
            Err(cause) if cause.kind == ErrorKind::WrongState && error.source.is_some() => error,
            Err(cause) => error.caused_by(cause),
        }
    }

    /// Stops a VM; what its guest wrote is kept for the next start. Stopping a stopped VM is not an error.
    ///
    /// # Errors
    /// `NotFound`, `Expired` if it was removed because of its lifetime, `StateUnusable`.
    pub async fn stop_vm(&self, vm_id: &str) -> Result<Vm, Error> {
        let id = VmId::parse(vm_id)?;
        self.get(Kind::Vm, &id).await?;
        Ok(self.stop(Kind::Vm, &id).await?.payload())
    }

    /// Stops a VM or a task.
    pub(super) async fn stop(&self, kind: Kind, id: &VmId) -> Result<VmRecord, Error> {
        let dir = self.vm_dir(id);
        let was_held = self.blocking(move |_| Ok(OwnerLock::is_held(&dir))).await?;
        let (_lock, was_killed) = match self.end(id, EndRequest::Stop).await? {
            Ended::Released(lock) => (lock, false),
            Ended::Killed(lock) => (Some(lock), true),
            // It was stopped, and another process has started it again since.
            Ended::TakenAgain => return Ok(as_it_is(&self.shared, self.get(kind, id).await?)),
        };
        let id = id.clone();
        self.registry(move |registry| {
            // A supervisor that stops its VM in order records that before it releases the lock.
            let record = registry.get(kind, &id)?;
            if record.state == VmState::Started && record.execution_mode != ExecutionMode::HostCompat {
                let (reason, error) = match (was_killed, was_held) {
                    (true, _) => (StopReason::ExplicitStop, SUPERVISOR_KILLED),
                    (false, true) => (StopReason::OwnerVanished, SUPERVISOR_LOST),
                    (false, false) => (StopReason::OwnerVanished, OWNER_VANISHED),
                };
                registry.mark_stopped(&id, reason, Some(error))?;
            }
            Ok(registry.transition(kind, &id, VmEvent::Stop, &VmPatch::default())?.1)
        })
        .await
    }

    /// Removes a VM and its files in any state. Unsaved work in it is lost.
    ///
    /// # Errors
    /// `NotFound`, `Expired` if it was removed because of its lifetime, `StateUnusable`.
    pub async fn delete_vm(&self, vm_id: &str) -> Result<Deleted, Error> {
        let id = VmId::parse(vm_id)?;
        self.check_deletion(Kind::Vm, &id).await?;
        self.remove(&id).await?;
        Ok(Deleted::new(id, DeleteReason::ExplicitDelete))
    }

    /// Checks that the caller may remove a VM or a task and that its state allows it.
    pub(super) async fn check_deletion(&self, kind: Kind, id: &VmId) -> Result<(), Error> {
        match self.get(kind, id).await {
            Ok(record) => {
                let applied = record.state.apply(VmEvent::Delete);
                applied.map(drop).map_err(|denied| denied.into_error(kind, id.as_str()))
            }
            // A record that cannot be read can still be deleted if it is of that kind.
            Err(error) if error.kind == ErrorKind::StateUnusable => {
                let vm = id.clone();
                match self.registry(move |registry| registry.exists(kind, &vm)).await? {
                    true => Ok(()),
                    false => Err(Error::not_found(kind, id.as_str())),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the state of a VM.
    ///
    /// # Errors
    /// `NotFound`, `Expired`, `StateUnusable`.
    pub async fn status_vm(&self, vm_id: &str) -> Result<Vm, Error> {
        let record = self.record_for(Kind::Vm, &VmId::parse(vm_id)?, VmEvent::Read).await?;
        self.blocking(move |shared| {
            let mut vm = record.payload();
            vm.metadata.extend(transition(record.state, &vm_dir(&shared.config.base_dir, &record.vm_id)));
            Ok(vm)
        })
        .await
    }

    /// Returns the network of a VM.
    ///
    /// # Errors
    /// As [`Engine::status_vm`].
    pub async fn network_info_vm(&self, vm_id: &str) -> Result<NetworkInfo, Error> {
        let vm = self.status_vm(vm_id).await?;
        let denials = self.denials(&vm.vm_id, 0.0).await?;
        Ok(NetworkInfo::of(&vm, denials))
    }

    /// Returns what the guest of `record` was refused while a command ran that began at `began`, in seconds since the epoch. If
    /// that cannot be read, it is only logged: the command has run.
    pub(super) async fn denials_of_command(&self, record: &VmRecord, began: f64) -> Vec<NetworkDenial> {
        if record.network.is_none() {
            return Vec::new();
        }
        self.denials(&record.vm_id, began).await.unwrap_or_else(|error| {
            tracing::warn!(vm_id = %record.vm_id, %error, "what the guest was refused cannot be read");
            Vec::new()
        })
    }

    /// Returns what the guest of a VM was refused since this time, in seconds since the epoch, the latest last.
    async fn denials(&self, id: &VmId, since: f64) -> Result<Vec<NetworkDenial>, Error> {
        let dir = self.vm_dir(id);
        self.blocking(move |_| denials(&dir, since)).await
    }

    /// Installs the environment if necessary and returns its version. Returns `None` where no VM can run and the caller
    /// has agreed to the host: the environment is not needed then.
    async fn prepare_environment(
        &self,
        spec: &VmSpec,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Option<String>, Error> {
        if spec.host_access().is_allowed() && self.host().await.is_err() {
            self.inspect_environment(&spec.environment).await?;
            return Ok(None);
        }
        Ok(Some(self.environment(&spec.environment, events, cancel).await?.version.clone()))
    }

    /// Builds the record of a new VM.
    pub(super) fn new_vm(
        &self,
        vm_id: VmId,
        spec: &VmSpec,
        sizing: Sizing,
        environment_version: Option<String>,
    ) -> NewVm {
        let host_choice = HostChoice::of(spec, self.config());
        let mut metadata = BTreeMap::new();
        metadata.insert(HostAccess::NAME.to_owned(), spec.host_access().is_allowed().to_string());
        metadata.extend(host_choice.metadata());
        NewVm {
            vm_id,
            environment: spec.environment.clone(),
            environment_version,
            sizing,
            created_at: now(),
            kind: Kind::Vm,
            ephemeral: false,
            disk_mib: None,
            ports: Vec::new(),
            mounts: Vec::new(),
            network: spec.network.then(|| spec.network_policy.clone().unwrap_or_default()),
            host_choice,
            host_access: spec.host_access(),
            metadata,
            naming: Naming::default(),
            ttl_from: TtlFrom::default(),
            owner: None,
        }
    }

    /// Records a VM or a task, unless the capacity is used up.
    pub(super) async fn insert(&self, vm: NewVm) -> Result<VmRecord, Error> {
        let max_active_vms = self.config().max_active_vms;
        let vm = NewVm { owner: self.caller.owner().cloned(), ..vm };
        self.registry(move |registry| {
            registry.insert(&vm, max_active_vms)?;
            registry.get(vm.kind, &vm.vm_id)
        })
        .await
    }

    /// Returns the record of what the caller may find. Every operation on an existing VM or task begins with it.
    pub(super) async fn get(&self, kind: Kind, id: &VmId) -> Result<VmRecord, Error> {
        let (id, caller) = (id.clone(), self.caller.clone());
        // A state directory that does not exist has no VMs, and a read must not create it.
        self.blocking(move |shared| match shared.config.base_dir.exists() {
            true => shared.registry.find(&caller, kind, &id),
            false => Err(Error::not_found(kind, id.as_str())),
        })
        .await
    }

    /// Returns the record if its state allows `event` and, for a VM, its lifetime has not ended.
    pub(super) async fn record_for(&self, kind: Kind, id: &VmId, event: VmEvent) -> Result<VmRecord, Error> {
        let record = self.get(kind, id).await?;
        if kind == Kind::Vm && record.expires_at <= now() {
            self.expire(id).await?;
            return Err(Error::vm_expired(id.as_str()));
        }
        let record = as_it_is(&self.shared, record);
        if event == VmEvent::Exec && record.stop_reason == Some(StopReason::Expired) {
            return Err(Error::task_expired(id.as_str()));
        }
        record.state.apply(event).map_err(|denied| denied.into_error(kind, id.as_str()))?;
        Ok(record)
    }
}

/// Returns the record with changes that are not recorded yet: a VM whose supervisor has vanished or whose lifetime has
/// ended is not running. The next change records that; a read does not.
pub(super) fn as_it_is(shared: &Shared, mut record: VmRecord) -> VmRecord {
    if record.state == VmState::Started {
        let reason = if record.expires_at <= now() {
            Some((StopReason::Expired, None))
        } else if owner_vanished(shared, &record) {
            Some((StopReason::OwnerVanished, Some(OWNER_VANISHED.to_owned())))
        } else {
            None
        };
        if let Some((reason, error)) = reason {
            record.state = VmState::Stopped;
            record.stop_reason = Some(reason);
            record.last_error = error;
        }
    }
    record
}

/// Returns the metadata entry for the state transition in progress, which the recorded state does not show yet.
pub(super) fn transition(state: VmState, dir: &Path) -> Option<(String, String)> {
    let transition = match (state, Owner::of(dir)?.phase) {
        (VmState::Created | VmState::Stopped, Phase::Starting) => "starting",
        (VmState::Started, Phase::Stopping) => "stopping",
        _ => return None,
    };
    Some((TRANSITION.to_owned(), transition.to_owned()))
}

/// As [`Engine::denials`], for the VM in `dir`. Blocks.
pub(super) fn denials(dir: &Path, since: f64) -> Result<Vec<NetworkDenial>, Error> {
    let denials = network_denials(dir)
        .map_err(|error| state_unusable("read", &dir.join(files::NETWORK_DENIALS), error))?;
    Ok(denials.iter().filter(|denial| denial.time >= since).map(convert::denial).collect())
}

/// Returns what became of a VM whose command has ended. A removal that failed must not replace the command's result: the
/// caller would run the command again. [`Engine::reconcile`] removes a one-shot run later; any other VM remains until it
/// is deleted or its lifetime ends.
pub(super) async fn cleanup(vm_id: VmId, removed: Result<(), Error>, events: &Events) -> Deleted {
    let cleanup = Deleted::new(vm_id, DeleteReason::PostExecCleanup);
    match removed {
        Ok(()) => cleanup,
        Err(error) => {
            let vm_id = &cleanup.vm_id;
            tracing::warn!(%vm_id, %error, "the VM cannot be removed now");
            let text = format!("the command has run, but vm {vm_id} cannot be removed now: {error}");
            events.send(Event::Warning(text)).await;
            Deleted { deleted: false, ..cleanup }
        }
    }
}

/// Returns the result of a command after which its VM was to be removed.
pub(super) fn run_result(
    record: VmRecord,
    command: CheckedCommand,
    captured: Captured,
    cleanup: Deleted,
) -> RunResult {
    let Captured { end, stdout, stderr } = captured;
    let in_guest = record.execution_mode == ExecutionMode::GuestVsock;
    let vmm = record.metadata.get("vmm").and_then(|name| Vmm::of_name(name)).unwrap_or_default();
    RunResult {
        cleanup,
        shell: shell_of(&command, &record.environment, record.execution_mode),
        vm_id: record.vm_id,
        environment: record.environment,
        environment_version: record.environment_version,
        command: command.text,
        stdout: stdout.into(),
        stderr: stderr.into(),
        exit_code: exit_code(&end),
        duration_ms: duration_ms(&end),
        execution_mode: record.execution_mode,
        stdout_truncated: end.stdout_dropped,
        stderr_truncated: end.stderr_dropped,
        timed_out: end.timed_out,
        accelerator: record.accelerator,
        channel: in_guest.then(|| vmm.channel().to_owned()),
        kernel_release: record.metadata.get("kernel_release").cloned(),
        network_denials: Vec::new(),
        timings: Vec::new(),
    }
}
