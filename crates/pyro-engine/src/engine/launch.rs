//! Starts the VM of a record: in a guest or, with the caller's consent, as a record whose commands run on the host.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pyro_env::{EnvironmentVersion, InstalledEnvironment};
use pyro_machine::disk::{LayerDefect, released};
use pyro_machine::network::Policy;
use pyro_machine::{Accelerator, Artifact, GuestImage, GuestKernel, MachineConfig};
use pyro_supervisor::spares::Claim;
use pyro_supervisor::{
    BootInfo, BootStage, LaunchSpec, Lifeline, MountSockets, Owner, OwnerLock, Phase, Purpose, Retention,
    StartError, files, remove_dir, template,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::tasks::mounts::on_host;
use super::{Engine, disk, state_unusable, unless_cancelled};
use crate::Kind;
use crate::boot_times::{self, BootTimes};
use crate::engine::host::{Host, HostUnavailable};
use crate::engine::reconcile::{OWNER_VANISHED, is_unfinished};
use crate::host_settings::{ChosenSettings, HostChoice};
use crate::limits::{self, Sizing};
use crate::registry::{VmPatch, VmRecord};
use crate::state::VmEvent;
use crate::{
    Error, ErrorKind, Event, Events, ExecutionMode, Hint, HostAccess, NetworkPolicy, PortMapping, StopReason,
    VmId, VmSpec, convert, presets, state_dir,
};

/// Time limit for a VMM whose supervisor was killed to close the VM's disk. The kernel first frees the guest's memory.
const DISK_LIMIT: Duration = Duration::from_secs(10);

/// Time for a supervisor to exit after it has recorded the end of its VM. One that holds the VM for longer has just
/// started it.
pub(super) const EXIT_TIME: Duration = Duration::from_secs(2);

/// The warning where a guest is to get proxy settings and this host sets none.
const NO_PROXY: &str =
    "host_proxy has no effect: this host sets none of HTTP_PROXY, HTTPS_PROXY, and ALL_PROXY for pyro";

/// Time after which the step of a start is reported to its caller, and time between two reports. Supervisors report a step
/// every 5 seconds.
const SLOW_START: Duration = Duration::from_secs(4);

/// What a VM starts from: the host's VMM and an installed environment, or the reason why no VM can run, in which case
/// the caller has agreed to the host.
pub(super) type Backend = Result<(Host, InstalledEnvironment), HostUnavailable>;

/// What a VM consists of, independent of its purpose.
pub(super) struct Shape {
    pub(super) sizing: Sizing,
    pub(super) retention: Retention,
    pub(super) disk_mib: Option<u32>,
    /// What it may reach; `None`: it has no network.
    pub(super) network: Option<NetworkPolicy>,
    /// Its ports that are published on this host.
    pub(super) ports: Vec<PortMapping>,
    /// What it gets of this host's settings.
    pub(super) host: HostChoice,
    pub(super) expires_at: f64,
    /// If its start fails, no other process may find it.
    pub(super) is_new: bool,
}

/// What a VM needs of its host.
#[derive(Clone, Copy)]
pub(super) struct Needs<'a> {
    pub(super) environment: &'a str,
    /// The version that its disk was written over; `None`: the catalog's.
    pub(super) version: Option<&'a str>,
    pub(super) host_access: HostAccess,
}

impl<'a> Needs<'a> {
    /// Returns what a new VM needs.
    pub(super) fn of_new(spec: &'a VmSpec) -> Self {
        Self { environment: &spec.environment, version: None, host_access: spec.host_access() }
    }

    /// Returns what a recorded VM needs.
    pub(super) fn of_recorded(record: &'a VmRecord) -> Self {
        Self {
            environment: &record.environment,
            version: record.environment_version.as_deref(),
            host_access: record.host_access,
        }
    }
}

/// A VM that is recorded and locked, but not started yet.
pub(super) struct Launch {
    pub(super) record: VmRecord,
    pub(super) lock: OwnerLock,
    pub(super) backend: Backend,
}

/// A VM that accepts commands.
pub(super) enum Started {
    /// In a guest.
    Guest(Box<StartedGuest>),
    /// As a record whose commands run on the host. The caller holds its lock.
    OnHost(OwnerLock),
}

/// A guest that accepts commands.
pub(super) struct StartedGuest {
    pub(super) lifeline: Lifeline,
    pub(super) info: BootInfo,
    /// What spares of its kind are started from; `None` if it has a disk from an earlier start, which no other VM may
    /// get a copy of.
    pub(super) model: Option<LaunchSpec>,
}

impl Engine {
    /// Locks the VM's directory, which it creates if missing.
    ///
    /// # Errors
    /// `WrongState` if another process is starting or running the VM, `StateUnusable`.
    pub(super) async fn own_vm_dir(&self, kind: Kind, id: &VmId) -> Result<OwnerLock, Error> {
        let id = id.clone();
        let dir = self.vm_dir(&id);
        self.blocking(move |_| {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(&dir).map_err(|error| state_unusable("make", &dir, error))?;
            match OwnerLock::try_acquire(&dir) {
                Ok(Some(lock)) => Ok(lock),
                Ok(None) => {
                    let message = format!("{kind} {id} is being started or stopped by another process");
                    Err(Error::new(ErrorKind::WrongState, message).hint(Hint::RetryInAMoment))
                }
                Err(error) => Err(state_unusable("lock", &dir, error)),
            }
        })
        .await
    }

    /// Locks the directory of a VM that is recorded as stopped. `None`: it has no directory.
    ///
    /// # Errors
    /// `WrongState` if another process is starting or running the VM, `StateUnusable`.
    pub(super) async fn own_stopped(&self, record: &VmRecord) -> Result<Option<OwnerLock>, Error> {
        let VmRecord { kind, vm_id: id, .. } = record;
        // If another process is already starting it, report that, however long the start takes.
        if Owner::of(&self.vm_dir(id)).is_some_and(|owner| owner.phase == Phase::Starting) {
            let message = format!("{kind} {id} is being started by another process");
            return Err(Error::new(ErrorKind::WrongState, message).hint(Hint::RetryInAMoment));
        }
        let lock = match record.stop_reason {
            // Its supervisor may still be flushing data.
            Some(StopReason::Expired) => self.await_release(id).await,
            // It may have recorded the end and not exited yet.
            _ => self.await_release_within(id, EXIT_TIME).await,
        };
        if lock.is_err() {
            // If another process has just started it, that is more useful to report than a held lock.
            self.record_for(*kind, id, VmEvent::Start).await?;
        }
        lock
    }

    /// Finds what a VM needs, and installs the environment if it is missing.
    ///
    /// # Errors
    /// `VmUnavailable` if no VM can run and the caller has not agreed to the host; the errors of the environment.
    pub(super) async fn backend(
        &self,
        needs: Needs<'_>,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Backend, Error> {
        match self.host().await {
            Ok(host) => {
                let environment = match needs.version {
                    None => self.environment(needs.environment, events, cancel).await?,
                    Some(version) => {
                        let which = EnvironmentVersion::new(needs.environment, version);
                        self.environment_version(which, events, cancel).await?
                    }
                };
                Ok(Ok((host, environment)))
            }
            Err(reason) => {
                self.inspect_environment(needs.environment).await?;
                match needs.host_access {
                    HostAccess::Allowed => Ok(Err(reason)),
                    HostAccess::Denied => Err(Error::boot_unavailable(&reason.to_string())),
                }
            }
        }
    }

    /// Boots the VM of a record, or records that its commands run on the host, and starts the spares that are missing
    /// then. The VM is not bound to this process.
    pub(super) async fn bring_up(
        &self,
        launch: Launch,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        // The supervisor has the lock and the record is written, so the lifeline is no longer needed.
        if let Started::Guest(guest) = self.start(launch, events, cancel).await?
            && let Some(model) = guest.model
        {
            self.refill(&model, cancel, cancel).await;
        }
        Ok(())
    }

    /// Refuses a VM that ran in a guest and whose disk is gone or damaged: it would start with an empty disk.
    ///
    /// # Errors
    /// `StateUnusable`.
    pub(super) async fn check_disk(&self, record: &VmRecord) -> Result<(), Error> {
        if record.execution_mode != ExecutionMode::GuestVsock {
            return Ok(());
        }
        let layer = self.vm_dir(&record.vm_id).join(files::LAYER);
        let (kind, id) = (record.kind, record.vm_id.clone());
        self.blocking(move |_| {
            pyro_machine::disk::check(&layer).map_err(|defect| {
                let path = layer.display().to_string();
                let word = if matches!(defect, LayerDefect::Missing) { "missing" } else { "damaged" };
                let message = format!("the disk of {kind} {id} is {word}: {path}");
                let hint = match kind {
                    Kind::Task => Hint::DiskLost { path },
                    Kind::Vm => Hint::VmDiskLost { path },
                };
                Error::new(ErrorKind::StateUnusable, message).hint(hint).caused_by(defect)
            })
        })
        .await
    }

    /// Waits for the VMM of an earlier start to close the VM's disk, which it does last of all when its supervisor was killed.
    ///
    /// # Errors
    /// `WrongState` if that takes too long, `StateUnusable`.
    async fn await_disk(&self, kind: Kind, id: &VmId) -> Result<(), Error> {
        let layer = self.vm_dir(id).join(files::LAYER);
        match released(&layer, Instant::now() + DISK_LIMIT).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let message = format!("the disk of {kind} {id} is in use by another process");
                let file = layer.display().to_string();
                Err(Error::new(ErrorKind::WrongState, message).hint(Hint::FindHolder { file }))
            }
            Err(error) => Err(state_unusable("lock", &layer, error)),
        }
    }

    /// Boots the VM of a record, possibly by claiming a spare, or records that its commands run on the host. The
    /// supervisor records that a guest is up.
    pub(super) async fn start(
        &self,
        launch: Launch,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Started, Error> {
        let Launch { record, lock, backend } = launch;
        let (host, environment) = match backend {
            Ok(backend) => backend,
            Err(_) if !record.mounts.is_empty() => return Err(on_host()),
            Err(reason) => {
                self.start_on_host(&record.vm_id, &reason.to_string()).await?;
                return Ok(Started::OnHost(lock));
            }
        };
        self.check_disk(&record).await?;
        self.await_disk(record.kind, &record.vm_id).await?;
        let shape = Shape {
            sizing: record.sizing,
            retention: match record.kind {
                Kind::Task => Retention::Deletion,
                Kind::Vm if record.ephemeral => Retention::Caller,
                Kind::Vm => Retention::Lifetime,
            },
            disk_mib: record.disk_mib,
            network: record.network.clone(),
            ports: record.ports.iter().map(|port| port.mapping).collect(),
            host: record.host_choice.clone(),
            expires_at: record.expires_at,
            is_new: is_unfinished(&record),
        };
        let spec = self.launch_spec(&record.vm_id, shape, &environment, host).await?;
        let model = (self.warm_spares() > 0 && !spec.dir.join(files::LAYER).exists()).then(|| spec.clone());
        let (mounts, mount_sockets) = self.serve_mounts(&record.mounts).await?;
        let spec = LaunchSpec { mounts, mount_sockets, ..spec };
        let start = async {
            let dir = spec.dir.clone();
            let pool = self.pool();
            let claimed = self.claim_spare(&record.vm_id, async || pool.claim(&spec, &lock).await).await?;
            let started = match claimed {
                Some(claimed) => claimed,
                None => {
                    if events.are_heard() && template::is_missing(&spec).await {
                        events.send(Event::FirstOfKind).await;
                    }
                    // Spares yield to a VM that a caller wants.
                    pool.trim(self.spares_capacity().await? as usize).await;
                    let supervisor = self.supervisor_command();
                    let (accelerator, limit) = (spec.machine.accelerator, spec.boot_limit_seconds);
                    let on_stage = stage_teller(events);
                    let started = pyro_supervisor::start(
                        &supervisor.program,
                        &supervisor.args(),
                        spec,
                        &lock,
                        on_stage,
                    )
                    .await;
                    self.record_boot(accelerator, limit, &started).await;
                    started
                }
            };
            let is_new = is_unfinished(&record);
            started.map_err(|error| start_error(record.kind, &record.vm_id, is_new, &dir, error))
        };
        let (lifeline, info) = unless_cancelled(cancel, start).await?;
        Ok(Started::Guest(Box::new(StartedGuest { lifeline, info, model })))
    }

    /// Takes note of how long a kernel took to boot, for the limit of the next one.
    async fn record_boot(
        &self,
        accelerator: Accelerator,
        limit_seconds: u64,
        started: &Result<(Lifeline, BootInfo), StartError>,
    ) {
        let file = state_dir::boot_times(&self.config().base_dir);
        let recorded = match started {
            Ok((_, info)) if boot_times::kernel_time(&info.stages).is_some() => {
                let stages = info.stages.clone();
                self.blocking(move |_| {
                    boot_times::record_start(&file, accelerator, &stages);
                    Ok(())
                })
                .await
            }
            Err(StartError::Boot(failure)) if failure.timed_out => {
                let limit = Duration::from_secs(limit_seconds);
                self.blocking(move |_| {
                    boot_times::record_timeout(&file, accelerator, limit);
                    Ok(())
                })
                .await
            }
            _ => Ok(()),
        };
        if let Err(error) = recorded {
            tracing::warn!(%error, "the time of a boot is not remembered");
        }
    }

    /// Claims spares for a VM, whose lock the caller holds, until one does not fail. `None`: none is left.
    async fn claim_spare(
        &self,
        id: &VmId,
        claim: impl AsyncFn() -> Claim,
    ) -> Result<Option<Result<(Lifeline, BootInfo), StartError>>, Error> {
        loop {
            match claim().await {
                Claim::NotGranted => return Ok(None),
                Claim::Granted(claimed) => return Ok(Some(*claimed)),
                // It may have recorded the start before it was lost. A VM that runs cannot be started, and the disk that the
                // spare would have given it must not be missed.
                Claim::Failed => {
                    let id = id.clone();
                    self.registry(move |registry| registry.take_back_start(&id, OWNER_VANISHED)).await?;
                }
            }
        }
    }

    /// Ensures that one-shot runs of the default size start from a template.
    pub(super) async fn make_default_template(
        &self,
        environment: InstalledEnvironment,
        host: Host,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let sizing = limits::check_spec(&VmSpec::new(&environment.name))?;
        let shape = Shape {
            sizing,
            retention: Retention::Caller,
            disk_mib: None,
            network: None,
            ports: Vec::new(),
            host: HostChoice::default(),
            expires_at: f64::MAX,
            is_new: false,
        };
        let id = VmId::random()?;
        // Opening the registry creates the state directory, or rejects one that cannot be trusted.
        self.registry(|registry| registry.ids().map(drop)).await?;
        let spec = self.launch_spec(&id, shape, &environment, host).await?;
        let dir = spec.dir.clone();
        let lock = self.own_vm_dir(Kind::Vm, &id).await?;
        let make = async {
            let supervisor = self.supervisor_command();
            let on_stage = stage_teller(events);
            pyro_supervisor::make_template(&supervisor.program, &supervisor.args(), spec, &lock, on_stage)
                .await
                .map_err(|error| start_error(Kind::Vm, &id, true, &dir, error))
        };
        let made = unless_cancelled(cancel, make).await;
        drop(lock);
        // A supervisor that was abandoned or killed must not leave anything behind.
        let _lock = self.await_release(&id).await?;
        let _ = remove_dir(&dir);
        made
    }

    pub(super) async fn launch_spec(
        &self,
        id: &VmId,
        shape: Shape,
        environment: &InstalledEnvironment,
        host: Host,
    ) -> Result<LaunchSpec, Error> {
        let dir = self.vm_dir(id);
        let layer = dir.join(files::LAYER);
        let has_layer = layer.exists();
        let chosen = match shape.is_new {
            true => self.host_settings(shape.host).await?,
            false => self.host_settings_again(shape.host).await?,
        };
        let policy = match shape.network {
            Some(policy) => Some(convert::network_policy(&self.without_presets(policy).await?)?),
            None => None,
        };
        let has_network = policy.is_some();
        let network_policy = Policy { proxies: chosen.proxies, ..policy.unwrap_or_default() };
        let vm = id.clone();
        let (layer_template, boot_limit, pace) = self
            .blocking(move |shared| {
                let times = BootTimes::read(&state_dir::boot_times(&shared.config.base_dir));
                let (limit, pace) = (times.limit(host.accelerator), times.pace(host.accelerator));
                shared.pace.set(times.slowest_pace());
                // The layer exists from an earlier start; a disk that has since become full must not prevent this one.
                if has_layer {
                    return Ok((layer, limit, pace));
                }
                let lifetime = shape.retention.layer_lifetime();
                Ok((disk::template(shared, &vm, shape.disk_mib, lifetime)?, limit, pace))
            })
            .await?;
        let checked = &environment.files;
        Ok(LaunchSpec {
            vm_id: id.to_string(),
            dir,
            retention: shape.retention,
            is_new: shape.is_new,
            in_use_lock: Some(environment.use_lock.clone()),
            expires_at: shape.expires_at,
            vmm: host.vmm,
            boot_limit_seconds: boot_limit.as_secs(),
            pace,
            reports_stages: false,
            machine: MachineConfig {
                vmm_program: host.vmm_program,
                accelerator: host.accelerator,
                vcpu_count: shape.sizing.vcpu_count,
                mem_mib: shape.sizing.mem_mib,
            },
            template_dir: Some(state_dir::templates(&self.config().base_dir)),
            guest: GuestImage {
                digest: environment.digest.clone(),
                kernel: match host.guest_kernel {
                    Some(image) => GuestKernel::SelfContained { image: configured_kernel(image)? },
                    None => GuestKernel::WithModules {
                        image: Artifact::opened(&environment.kernel, Arc::clone(&checked.kernel)),
                        modules: Artifact::opened(&environment.modules, Arc::clone(&checked.modules)),
                    },
                },
                base_image: Artifact::opened(&environment.rootfs, Arc::clone(&checked.rootfs)),
                base_filesystem: environment.rootfs_format.to_string(),
                layer_template,
            },
            artifacts_are_open: false,
            network: has_network,
            network_policy,
            host_settings: chosen.guest,
            ports: shape.ports.into_iter().map(convert::guest_port_mapping).collect(),
            mounts: Vec::new(),
            mount_sockets: MountSockets::default(),
            purpose: Purpose::Vm,
            requires_full_confinement: self.config().requires_full_confinement,
            variables: self.config().supervisor_variables(),
        })
    }

    /// Reads what a VM gets of this host's settings.
    ///
    /// # Errors
    /// `InvalidInput` if they cannot be used.
    async fn host_settings(&self, choice: HostChoice) -> Result<ChosenSettings, Error> {
        self.blocking(move |shared| Ok(choice.read(&shared.config)?)).await
    }

    /// The same for a VM or task whose choice was made earlier, when it was created.
    ///
    /// # Errors
    /// `InvalidInput`, with the way out if it may be the file of certificates.
    async fn host_settings_again(&self, choice: HostChoice) -> Result<ChosenSettings, Error> {
        let bundle = choice.bundle().map(|path| path.display().to_string());
        self.host_settings(choice).await.map_err(|unusable| match bundle {
            Some(path) => unusable.hint(Hint::RestoreBundle { path }),
            None => unusable,
        })
    }

    /// Checks that a VM like `spec` can get what it is to get of this host's settings, those of its package managers included.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub(super) async fn check_host_settings(&self, spec: &VmSpec, events: &Events) -> Result<(), Error> {
        let choice = HostChoice::of(spec, self.config());
        let wants_proxy = choice.proxy;
        let chosen = self.host_settings(choice).await?;
        if wants_proxy && chosen.proxies.is_empty() {
            events.send(Event::Warning(NO_PROXY.to_owned())).await;
        }
        match &spec.network_policy {
            Some(policy) => self.without_presets(policy.clone()).await.map(drop),
            None => Ok(()),
        }
    }

    /// Returns a policy with the hosts of its presets in their place.
    ///
    /// # Errors
    /// `InvalidInput` if they are not known.
    async fn without_presets(&self, policy: NetworkPolicy) -> Result<NetworkPolicy, Error> {
        Ok(presets::expand(policy, self.config(), &self.shared.default_hosts).await?)
    }

    /// Records that commands of this VM run on the host, to which its caller has agreed.
    async fn start_on_host(&self, id: &VmId, reason: &str) -> Result<(), Error> {
        let patch = VmPatch {
            execution_mode: Some(ExecutionMode::HostCompat),
            metadata: [("boot_mode", "compat"), ("runtime_reason", reason)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..VmPatch::default()
        };
        let id = id.clone();
        self.registry(move |registry| registry.set_started(&id, &patch).map(drop)).await
    }
}

/// Returns what reports the steps of a slow start to its caller.
fn stage_teller(events: &Events) -> impl AsyncFnMut(BootStage) {
    let begun = Instant::now();
    let mut due = SLOW_START;
    async move |stage| {
        let passed = begun.elapsed();
        if passed >= due {
            // Some steps take no time.
            due = passed + SLOW_START;
            let step = stage.to_string();
            events.send(Event::Starting { step, seconds: passed.as_secs() }).await;
        }
    }
}

/// Opens the kernel that is used in place of the environment's.
fn configured_kernel(image: PathBuf) -> Result<Artifact, Error> {
    Artifact::open(&image).map_err(|error| {
        let message = format!("cannot open the guest kernel {}", image.display());
        Error::new(ErrorKind::VmUnavailable, message).caused_by(error)
    })
}

fn start_error(kind: Kind, id: &VmId, is_new: bool, dir: &Path, error: StartError) -> Error {
    match error {
        StartError::Boot(failure) if failure.stage == BootStage::Ports => {
            let message = format!("{kind} {id} was not started: {}", failure.cause);
            // A task that exists keeps its ports until they are unpublished.
            let hint = match is_new {
                true => Hint::AnotherPort,
                false => Hint::UnpublishTask { task: id.to_string() },
            };
            Error::new(ErrorKind::BootFailed, message).hint(hint)
        }
        StartError::Boot(failure) if failure.stage == BootStage::Mounts => {
            let message = format!("{kind} {id} was not started: {}", failure.cause);
            Error::new(ErrorKind::BootFailed, message)
        }
        StartError::Boot(failure) => {
            let message = format!("{kind} {id} did not come up: {} failed: {}", failure.stage, failure.cause);
            let error = Error::new(ErrorKind::BootFailed, message).hint(Hint::CheckHost);
            match failure.console.is_empty() {
                true => error,
                false => error.hint(Hint::Console { lines: failure.console.join("\n") }),
            }
        }
        StartError::Ended(_) => {
            Error::new(ErrorKind::BootFailed, format!("{kind} {id} was ended while it was starting"))
        }
        StartError::OtherVersion { version } => Error::new(
            ErrorKind::VmUnavailable,
            format!("pyro was replaced by version {version} while this process runs"),
        )
        .hint(Hint::RestartProcess),
        StartError::Lost => {
            let error = Error::new(
                ErrorKind::BootFailed,
                format!("the supervisor of {kind} {id} was lost while it was starting"),
            );
            match fs::read_to_string(dir.join(files::SUPERVISOR_LOG)) {
                Ok(log) if !log.trim().is_empty() => error.caused_by(log.trim().to_owned()),
                _ => error,
            }
        }
        error @ StartError::Unresponsive => Error::new(
            ErrorKind::BootFailed,
            format!("the supervisor of {kind} {id} did not respond while it was starting"),
        )
        .caused_by(error),
        StartError::Spawn(cause) if cause.kind() == io::ErrorKind::StorageFull => {
            state_unusable("write to", dir, cause)
        }
        StartError::Spawn(cause) => {
            Error::new(ErrorKind::VmUnavailable, "the supervisor process cannot be started").caused_by(cause)
        }
    }
}

#[cfg(test)]
mod tests;
