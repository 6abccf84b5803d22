//! Tasks: VMs that stay, with their disk and the journal of their commands, until they are deleted.

mod commands;
mod contents;
mod files;
mod host;
mod input;
mod journal;
pub(super) mod mounts;
mod naming;
mod ports;
mod services;
mod shells;
mod tree;

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use pyro_env::InstalledEnvironment;
use pyro_machine::disk::{self, LayerDefect};
use pyro_supervisor::{ConnectError, OwnerLock, RunError, WORKSPACE, files as vm_files};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::exec::not_asked;
use super::host::HostUnavailable;
use super::launch::{EXIT_TIME, Launch, Needs};
use super::lifecycle::{as_it_is, denials, transition};
use super::reconcile::owner_vanished;
use super::{Engine, Shared, now, unless_cancelled, vm_dir};
use crate::Kind;
use crate::exit_code::{duration_ms, exit_code};
use crate::limits;
use crate::registry::{NewVm, VmRecord};
use crate::state::VmEvent;
use crate::{
    DeleteReason, DiskState, Error, ErrorKind, Event, Events, ExecutionMode, Hint, HostAccess, LastCommand,
    Naming, RunPhase, StopReason, Task, TaskDeleted, TaskFilter, TaskList, TaskSpec, TtlFrom, VmId, VmState,
};

pub use files::{CopyFromGuest, CopyToGuest};
pub(crate) use journal::dropped;

/// Metadata key for the digest of the base image under a task's disk.
const DIGEST: &str = "environment_digest";

/// Minimum time between two renewals of the lifetime of a task to whose command or shell its caller sends input.
/// The shortest lifetime is three of them.
const RENEW_INTERVAL: Duration = Duration::from_secs(20);

/// How long a lifetime has only begun at most, in seconds. Without hardware virtualisation, the start of a VM can take that long.
const MAX_BEGINNING_SECONDS: i64 = 60;

impl Engine {
    /// Creates a task and starts it. Installs its environment first if necessary. The task outlives this process.
    ///
    /// # Errors
    /// `InvalidInput`, `AtCapacity`, `EnvironmentUnavailable`, `VmUnavailable`, `BootFailed`, `StateUnusable`,
    /// `Cancelled`. Nothing is left behind in that case.
    pub async fn create_task(
        &self,
        spec: TaskSpec,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Task, Error> {
        let sizing = limits::check_spec(&spec.vm)?;
        let disk_mib = limits::check_disk(spec.disk_mib)?;
        let ports = ports::check(&spec.publish)?;
        let mounts = self.check_mounts(&spec.vm.mounts).await?;
        spec.naming.check()?;
        self.check_name(&spec.naming).await?;
        self.check_host_settings(&spec.vm, events).await?;
        events.send(Event::Phase(RunPhase::Create { environment: spec.vm.environment.clone() })).await;
        let backend = self.backend(Needs::of_new(&spec.vm), events, cancel).await?;
        ports::refuse_on_host(&backend, &spec.publish)?;
        let version = backend.as_ref().ok().map(|(_, environment)| environment.version.clone());
        unless_cancelled(cancel, self.reconcile()).await?;
        let id = VmId::random()?;
        let mut vm = self.new_vm(id.clone(), &spec.vm, sizing, version);
        if let Ok((_, environment)) = &backend {
            vm.metadata.insert(DIGEST.to_owned(), environment.digest.clone());
        }
        let TaskSpec { naming, ttl_from, .. } = spec;
        let task = NewVm { kind: Kind::Task, disk_mib, ports, mounts, naming, ttl_from, ..vm };
        let started = async {
            // A task that is not started and has no lock holder is an orphan, so take the lock before writing the
            // record.
            let lock = self.own_vm_dir(Kind::Task, &id).await?;
            let record = self.insert(task).await?;
            events.send(Event::Phase(RunPhase::Start { vm_id: id.clone() })).await;
            self.bring_up(Launch { record, lock, backend }, events, cancel).await?;
            self.status_task(id.as_str()).await
        };
        match started.await {
            Ok(task) => {
                for mapping in &spec.publish {
                    ports::warn_of_others(*mapping, events).await;
                }
                Ok(task)
            }
            Err(error) => {
                // The first error is more useful than one of the cleanup.
                let _ = self.remove(&id).await;
                Err(error)
            }
        }
    }

    /// Starts a stopped task with its existing disk. If its lifetime has ended, a new one begins. A task whose commands
    /// ran in a guest starts in a guest or not at all, and a task whose commands ran on the host starts on the host.
    ///
    /// # Errors
    /// `NotFound`, `WrongState`, `EnvironmentUnavailable`, `VmUnavailable`, `BootFailed`, `StateUnusable`, `Cancelled`.
    /// In that case, its disk and its journal are unchanged, except that a start which is cancelled when its guest is
    /// already up may still complete: the task runs then, as its state says.
    pub async fn start_task(
        &self,
        task_id: &str,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Task, Error> {
        let id = self.task_id(task_id).await?;
        let record = self.record_for(Kind::Task, &id, VmEvent::Start).await?;
        self.refuse_while_busy(&id).await?;
        let backend = match record.execution_mode {
            // Its files are on the host, even if VMs can run by now.
            ExecutionMode::HostCompat => Err(HostUnavailable::TaskOnHost),
            // Its files are on its disk, which only a guest can access.
            ExecutionMode::GuestVsock | ExecutionMode::Pending => {
                let needs = Needs { host_access: HostAccess::Denied, ..Needs::of_recorded(&record) };
                self.backend(needs, events, cancel).await?
            }
        };
        if let Ok((_, environment)) = &backend {
            warn_of_another_base(&record, environment, events).await;
        }
        let lock =
            self.own_stopped(&record).await?.ok_or_else(|| Error::not_found(Kind::Task, id.as_str()))?;
        // The lock proves that no process runs the task, whatever its last supervisor was able to record.
        self.note_vanished(&id).await?;
        let mut record = self.record_for(Kind::Task, &id, VmEvent::Start).await?;
        if record.expires_at <= now() {
            let ttl_seconds = record.sizing.ttl_seconds;
            record = self.renew(&id, ttl_seconds, now() + f64::from(ttl_seconds)).await?;
        }
        self.bring_up(Launch { record, lock, backend }, events, cancel).await?;
        self.status_task(id.as_str()).await
    }

    /// Stops a task; its disk and its journal are kept. Commands running in the guest are ended. Stopping a stopped
    /// task is not an error. [`Task::last_error`] reports what the guest could not write out in time.
    ///
    /// # Errors
    /// `NotFound`, `StateUnusable`; `WrongState` if a command runs on the host, or if an unresponsive process holds the
    /// task.
    pub async fn stop_task(&self, task_id: &str) -> Result<Task, Error> {
        let id = self.task_id(task_id).await?;
        let record = as_it_is(&self.shared, self.get(Kind::Task, &id).await?);
        self.refuse_while_busy(&id).await?;
        // Keep the recorded stop reason of a stopped task. A task that is being started is still recorded as stopped.
        if record.state != VmState::Stopped || OwnerLock::is_held(&self.vm_dir(&id)) {
            self.stop(Kind::Task, &id).await?;
        }
        self.status_task(id.as_str()).await
    }

    /// Removes a task with its disk and its journal, in any state.
    ///
    /// # Errors
    /// As [`Engine::stop_task`].
    pub async fn delete_task(&self, task_id: &str) -> Result<TaskDeleted, Error> {
        let id = self.task_id(task_id).await?;
        self.check_deletion(Kind::Task, &id).await?;
        self.refuse_while_busy(&id).await?;
        self.remove(&id).await?;
        Ok(TaskDeleted { task_id: id, deleted: true, reason: DeleteReason::ExplicitDelete })
    }

    /// Returns the state of a task.
    ///
    /// # Errors
    /// `NotFound`, `StateUnusable`.
    pub async fn status_task(&self, task_id: &str) -> Result<Task, Error> {
        let id = self.task_id(task_id).await?;
        let record = self.get(Kind::Task, &id).await?;
        self.blocking(move |shared| task(shared, record)).await
    }

    /// Returns the tasks that the caller may find and that have the labels of `filter`, oldest first. Damaged ones are left
    /// out if there is a label to look for.
    ///
    /// # Errors
    /// `InvalidInput`, `StateUnusable`.
    pub async fn list_tasks(&self, filter: TaskFilter) -> Result<TaskList, Error> {
        filter.check()?;
        if !self.config().base_dir.exists() {
            return Ok(TaskList { tasks: Vec::new(), damaged_task_ids: Vec::new(), count: 0 });
        }
        let caller = self.caller.clone();
        self.blocking(move |shared| {
            let mut records = shared.registry.list()?;
            records.retain(|record| caller.finds(record.owner.as_deref()));
            let mut damaged = shared.registry.task_ids(&caller)?;
            damaged.retain(|id| filter.labels.is_empty() && records.iter().all(|record| record.vm_id != *id));
            records.retain(|record| filter.matches(&record.labels));
            let tasks = records
                .into_iter()
                // A task whose creator died disappears at the next cleanup.
                .filter(|record| record.kind == Kind::Task)
                .filter(|record| record.state != VmState::Created || !owner_vanished(shared, record))
                .map(|record| task(shared, record))
                .collect::<Result<Vec<_>, _>>()?;
            let count = (tasks.len() + damaged.len()) as u64;
            Ok(TaskList { tasks, damaged_task_ids: damaged, count })
        })
        .await
    }

    /// Fails early if the name of a task to create is in use; the record of the task decides.
    async fn check_name(&self, naming: &Naming) -> Result<(), Error> {
        let Some(name) = naming.name.clone() else { return Ok(()) };
        let owner = self.caller.owner().cloned();
        self.registry(move |registry| registry.check_name(owner.as_ref(), &name)).await
    }

    /// Gives a task a new lifetime, which begins now. If the old one has just ended, the task is stopped anyway; the
    /// result says so.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `StateUnusable`; `WrongState` if an unresponsive process holds the task; `NotDelivered` if
    /// its supervisor does not respond or is of another version; its lifetime is then unchanged. `OutcomeUnknown` if its
    /// supervisor did not answer.
    pub async fn extend_task(&self, task_id: &str, ttl_seconds: i64) -> Result<Task, Error> {
        let ttl_seconds = limits::check_ttl(ttl_seconds)?;
        let id = self.task_id(task_id).await?;
        let record = as_it_is(&self.shared, self.get(Kind::Task, &id).await?);
        // Its lifetime has ended and must not be renewed while its supervisor is stopping it. No other process starts it
        // before it is renewed.
        let _lock = match record.stop_reason {
            Some(StopReason::Expired) => {
                let lock = self.await_release(&id).await?;
                self.note_vanished(&id).await?;
                lock
            }
            _ => None,
        };
        self.extend_seen(&record, ttl_seconds).await?;
        self.status_task(id.as_str()).await
    }

    /// Returns the record of a running task for a use of it that takes at most `longest`, if that is known.
    ///
    /// # Errors
    /// `NotFound`, `Expired`, `StateUnusable`; `WrongState` if the task is not running.
    async fn record_for_use(&self, id: &VmId, longest: Option<Duration>) -> Result<VmRecord, Error> {
        let record = self.record_for(Kind::Task, id, VmEvent::Exec).await?;
        self.renewed(&record, longest).await;
        Ok(record)
    }

    /// Renews a task whose record was read a moment ago, if a use of it does that.
    async fn renewed(&self, record: &VmRecord, longest: Option<Duration>) {
        // Most tasks are not renewed, and their commands need not read the record once more.
        if record.ttl_from == TtlFrom::Use {
            self.renew_used(&record.vm_id, longest).await;
        }
    }

    /// Begins a new lifetime of a running task that is being used, if its creator asked for that. It lasts at least for
    /// `longest`, as far as lifetimes may be that long, so that it does not end in the middle of the use. A use never
    /// shortens a lifetime. If it cannot be renewed, the use goes on: it fails by itself if the task cannot be reached.
    async fn renew_used(&self, id: &VmId, longest: Option<Duration>) {
        if let Err(error) = self.try_renew_used(id, longest).await {
            tracing::warn!(task_id = %id, %error, "the lifetime of a task that is used cannot be renewed");
        }
    }

    /// Begins a new lifetime of a task whenever its caller sends something, but not much more often than needed.
    async fn renew_at(&self, used: &Notify, id: &VmId) -> Infallible {
        loop {
            // The use has just begun a lifetime.
            tokio::time::sleep(RENEW_INTERVAL).await;
            used.notified().await;
            self.renew_used(id, None).await;
        }
    }

    async fn try_renew_used(&self, id: &VmId, longest: Option<Duration>) -> Result<(), Error> {
        // It may have been extended or updated since the use began.
        let record = as_it_is(&self.shared, self.get(Kind::Task, id).await?);
        let lasting = record.sizing.lasting(longest, self.shared.config.max_raised_ttl_seconds);
        let expires_at = now() + f64::from(lasting.ttl_seconds);
        if record.ttl_from != TtlFrom::Use
            || record.state != VmState::Started
            || expires_at <= record.expires_at
        {
            return Ok(());
        }
        self.extend_supervised(id, expires_at).await?;
        let renewed = id.clone();
        let recorded = self.registry(move |registry| registry.prolong(&renewed, expires_at)).await?;
        // Another caller has extended it meanwhile, and its supervisor may have been given that end first.
        if recorded.expires_at > expires_at {
            self.extend_supervised(id, recorded.expires_at).await?;
        }
        Ok(())
    }

    /// Gives a task whose record was `seen` a little earlier a new lifetime.
    async fn extend_seen(&self, seen: &VmRecord, ttl_seconds: u32) -> Result<(), Error> {
        let id = &seen.vm_id;
        let expires_at = now() + f64::from(ttl_seconds);
        if seen.state == VmState::Started {
            self.extend_supervised(id, expires_at).await?;
            return self.renew(id, ttl_seconds, expires_at).await.map(drop);
        }
        let renewed = self.renew(id, ttl_seconds, expires_at).await?;
        // Another process has started it since, perhaps with the old lifetime.
        if renewed.state == VmState::Started
            && let Err(error) = self.extend_supervised(id, expires_at).await
        {
            self.renew(id, seen.sizing.ttl_seconds, seen.expires_at).await?;
            return Err(error);
        }
        Ok(())
    }

    /// Gives the supervisor of a running task the new end of its lifetime.
    async fn extend_supervised(&self, id: &VmId, expires_at: f64) -> Result<(), Error> {
        let client = self.client(id);
        match client.extend(expires_at).await {
            // One that is exiting cannot be reached, which the task's status shows. Any other supervisor would still end
            // the task at the old time, so the record must not promise another one.
            Err(RunError::NotDelivered(error @ ConnectError::Unreachable(_))) => {
                client.released(EXIT_TIME).await.map(drop).map_err(|_| not_asked(error))
            }
            Err(RunError::NotDelivered(
                error @ (ConnectError::OtherVersion { .. } | ConnectError::Unresponsive),
            )) => Err(not_asked(error)),
            Err(RunError::Unanswered) => Err(unanswered(id)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn renew(&self, id: &VmId, ttl_seconds: u32, expires_at: f64) -> Result<VmRecord, Error> {
        let id = id.clone();
        self.registry(move |registry| registry.renew(&id, ttl_seconds, expires_at)).await
    }
}

/// Refuses a time limit that the lifetime of the task ends first. A lifetime that begins with each use is raised for time limits
/// up to `max_raised_ttl_seconds`. When a lifetime has only begun, a time limit may be as long as all of it: a caller that gives
/// the same number twice means that there is no other limit than the lifetime.
///
/// # Errors
/// `InvalidInput` with the maximum.
fn outlast(seen: &VmRecord, wanted: i64, max_raised_ttl_seconds: u32) -> Result<(), Error> {
    let left = (seen.expires_at - now()).max(0.0) as i64;
    let whole = i64::from(seen.sizing.ttl_seconds);
    let has_only_begun = whole - left <= (whole / 10).min(MAX_BEGINNING_SECONDS);
    let most = if has_only_begun { left.max(whole) } else { left };
    let most = match seen.ttl_from {
        TtlFrom::Use => most.max(max_raised_ttl_seconds.into()),
        TtlFrom::Create => most,
    };
    if wanted > most { Err(Error::timeout_beyond_lifetime(most)) } else { Ok(()) }
}

/// Warns if the base image differs from the one that the task's disk was written over. The task's files are still
/// there, but programs of the base image may not fit what was installed on the disk since.
async fn warn_of_another_base(record: &VmRecord, environment: &InstalledEnvironment, events: &Events) {
    if record.metadata.get(DIGEST).is_some_and(|digest| *digest != environment.digest) {
        let text = format!(
            "task {} was created from another build of {}: installed programs may not fit together any more",
            record.vm_id, record.environment
        );
        events.send(Event::Warning(text)).await;
    }
}

/// Returns a task as callers see it.
fn task(shared: &Shared, record: VmRecord) -> Result<Task, Error> {
    let record = as_it_is(shared, record);
    let (command_count, last) = shared.registry.command_summary(&record.vm_id)?;
    let last_command = last.and_then(|last| {
        let (exit_code, duration_ms) = last.end().map(|end| (exit_code(end), duration_ms(end)))?;
        Some(LastCommand {
            sequence: last.sequence,
            command: last.command,
            cwd: last.cwd,
            exit_code,
            duration_ms,
            execution_mode: last.execution_mode,
        })
    });
    let mut services = shared.registry.service_states(&record.vm_id)?;
    services.iter_mut().for_each(|service| service.state = services::as_in_task(record.state, service.state));
    let dir = vm_dir(&shared.config.base_dir, &record.vm_id);
    let mut metadata = record.metadata;
    metadata.extend(transition(record.state, &dir));
    let disk = fs::metadata(dir.join(vm_files::LAYER)).ok();
    Ok(Task {
        environment: record.environment,
        environment_version: record.environment_version,
        vcpu_count: record.sizing.vcpu_count,
        mem_mib: record.sizing.mem_mib,
        ttl_seconds: record.sizing.ttl_seconds,
        created_at: record.created_at,
        expires_at: record.expires_at,
        state: record.state,
        network_enabled: record.network.is_some(),
        network_policy: record.network,
        allow_host_compat: record.host_access.is_allowed(),
        guest_ip: record.guest_ip,
        tap_name: None,
        execution_mode: record.execution_mode,
        workspace_path: WORKSPACE.to_owned(),
        command_count,
        last_command,
        metadata,
        accelerator: record.accelerator,
        stop_reason: record.stop_reason,
        last_error: record.last_error,
        disk_mib: disk.map(|disk| disk.len() >> 20),
        disk_state: disk_state(record.execution_mode, &dir),
        disk_used_bytes: used_bytes(&dir),
        published_ports: ports::shown(&record.ports, record.state),
        services,
        mounts: record.mounts.clone(),
        lost_mounts: match record.state {
            VmState::Started => record.lost_mounts,
            VmState::Created | VmState::Stopped => Vec::new(),
        },
        // A list that cannot be read must not hide the task.
        network_denials: denials(&dir, 0.0).unwrap_or_else(|error| {
            tracing::warn!(task_id = %record.vm_id, %error, "what the guest was refused cannot be read");
            Vec::new()
        }),
        owner: record.owner,
        name: record.name,
        labels: record.labels,
        ttl_from: record.ttl_from,
        task_id: record.vm_id,
    })
}

/// Returns whether the disk of a task can be used; `None` if the task has none, because no guest ever wrote to one.
fn disk_state(mode: ExecutionMode, dir: &Path) -> Option<DiskState> {
    (mode == ExecutionMode::GuestVsock).then(|| match disk::check(&dir.join(vm_files::LAYER)) {
        Ok(()) => DiskState::Ok,
        Err(LayerDefect::Missing) => DiskState::Missing,
        Err(LayerDefect::Unreadable(_) | LayerDefect::NoFileSystem | LayerDefect::Short { .. }) => {
            DiskState::Damaged
        }
    })
}

/// Returns the bytes of the host's disk that a task uses.
pub(super) fn used_bytes(dir: &Path) -> u64 {
    let files_in = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|file| file.blocks() * 512).sum::<u64>()
    };
    let logs = fs::read_dir(dir.join(vm_files::SERVICES)).into_iter().flatten().filter_map(Result::ok);
    let logged = logs.map(|service| files_in(&service.path())).sum::<u64>();
    files_in(dir) + files_in(&dir.join(vm_files::COMMANDS)) + logged
}

/// Returns the error for a supervisor that received a request and did not answer. It may still do what it was asked.
fn unanswered(id: &VmId) -> Error {
    Error::new(ErrorKind::OutcomeUnknown, format!("the supervisor of task {id} did not answer in time"))
        .hint(Hint::TaskStatus)
}

/// Returns the error for a supervisor that is gone and has not recorded what it was asked for.
fn supervisor_lost(id: &VmId) -> Error {
    Error::new(ErrorKind::OutcomeUnknown, format!("the supervisor of task {id} was lost"))
        .hint(Hint::TaskStatus)
}

#[cfg(test)]
mod tests;
