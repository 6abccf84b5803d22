//! Bringing up the VM of a record, in a guest or, with the caller's consent, as a promise to use the host.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use pyro_env::InstalledEnvironment;
use pyro_vm::supervisor::{self, BootInfo, Lifeline, OwnerLock, StartError};
use pyro_vm::{
    GuestImage, GuestKernel, LaunchSpec, LayerError, LayerLifetime, LayerTemplates, Machine, Purpose, Spares,
    spares,
};
use tokio_util::sync::CancellationToken;

use super::{Engine, spares_dir, state_unusable, templates_dir, unless_cancelled};
use crate::engine::host::Host;
use crate::limits::{self, Sizing};
use crate::registry::{VmPatch, VmRecord};
use crate::{EngineError, ErrorKind, ExecutionMode, VmId, VmSpec};

/// Name of the hidden subcommand that supervises one VM.
pub const SUPERVISE_COMMAND: &str = "supervise";

/// Longest boot in seconds. Emulation takes a few seconds, more when many machines boot at once.
fn boot_limit_seconds(accelerator: pyro_vm::Accelerator) -> u64 {
    match accelerator {
        pyro_vm::Accelerator::Kvm => 30,
        pyro_vm::Accelerator::Tcg => 120,
    }
}

/// Saved state has only been restored under emulation so far, where it saves most; a guest that wakes up with a
/// wrong clock under KVM would be worse than a boot of half a second.
fn templates_fit(accelerator: pyro_vm::Accelerator) -> bool {
    accelerator == pyro_vm::Accelerator::Tcg
}

/// What a VM is like, whoever it is for.
struct Shape {
    sizing: Sizing,
    ephemeral: bool,
    network: bool,
    expires_at: f64,
}

impl Engine {
    /// The VM's directory, made if missing, with its lock.
    ///
    /// # Errors
    /// `WrongState` if another process is starting or running the VM, `StateUnusable`.
    pub(super) async fn own_vm_dir(&self, id: &VmId) -> Result<OwnerLock, EngineError> {
        let id = id.clone();
        let dir = self.vm_dir(&id);
        self.blocking(move |_| {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(&dir).map_err(|error| state_unusable("make", &dir, error))?;
            match OwnerLock::try_acquire(&dir) {
                Ok(Some(lock)) => Ok(lock),
                Ok(None) => {
                    let message = format!("vm {id} is being started or stopped by another process");
                    Err(EngineError::new(ErrorKind::WrongState, message).hint("try again in a moment"))
                }
                Err(error) => Err(state_unusable("lock", &dir, error)),
            }
        })
        .await
    }

    /// Starts the VM in a guest, which may be one that waits for it. The supervisor records that it is up.
    pub(super) async fn start_guest(
        &self,
        record: &VmRecord,
        environment: InstalledEnvironment,
        host: Host,
        lock: OwnerLock,
        cancel: &CancellationToken,
    ) -> Result<(Lifeline, BootInfo), EngineError> {
        let shape = Shape {
            sizing: record.sizing,
            ephemeral: record.ephemeral,
            network: record.network_enabled,
            expires_at: record.expires_at,
        };
        let spec = self.launch_spec(&record.vm_id, shape, &environment, host).await?;
        let start = async {
            let dir = spec.dir.clone();
            let started = match spares::claim(&spec, &lock).await {
                Some(claimed) => claimed,
                None => {
                    // They give way to a VM that somebody wants.
                    spares::trim(&spec.spares.dir, spec.spares.room as usize).await;
                    supervisor::start(&self.config().program, &self.supervise_args(), spec, &lock).await
                }
            };
            started.map_err(|error| start_error(&record.vm_id, &dir, error))
        };
        unless_cancelled(cancel, start).await
    }

    /// Sees to it that one-shot runs of the default size start from a template, where templates are used at all.
    pub(super) async fn make_default_template(
        &self,
        environment: InstalledEnvironment,
        host: Host,
        cancel: &CancellationToken,
    ) -> Result<(), EngineError> {
        if !templates_fit(host.accelerator) {
            return Ok(());
        }
        let sizing = limits::check_spec(&VmSpec::new(&environment.name))?;
        let shape = Shape { sizing, ephemeral: true, network: false, expires_at: f64::MAX };
        let id = VmId::random()?;
        let spec = self.launch_spec(&id, shape, &environment, host).await?;
        let dir = spec.dir.clone();
        let lock = self.own_vm_dir(&id).await?;
        let make = async {
            supervisor::make_template(&self.config().program, &self.supervise_args(), spec, &lock)
                .await
                .map_err(|error| start_error(&id, &dir, error))
        };
        let made = unless_cancelled(cancel, make).await;
        drop(lock);
        // A supervisor that was given up or killed must not leave anything.
        let _lock = self.await_release(&id).await?;
        let _ = fs::remove_dir_all(&dir);
        made
    }

    fn supervise_args(&self) -> [&OsStr; 2] {
        [OsStr::new(SUPERVISE_COMMAND), self.config().base_dir.as_os_str()]
    }

    async fn launch_spec(
        &self,
        id: &VmId,
        shape: Shape,
        environment: &InstalledEnvironment,
        host: Host,
    ) -> Result<LaunchSpec, EngineError> {
        let spares = self.plan_spares().await?;
        let lifetime = if shape.ephemeral { LayerLifetime::OneStart } else { LayerLifetime::ManyStarts };
        let layer_template = self
            .blocking(move |shared| {
                let config = &shared.config;
                LayerTemplates::new(config.base_dir.join("layers"), config.search_path.clone())
                    .fitting(lifetime)
                    .map_err(layer_error)
            })
            .await?;
        Ok(LaunchSpec {
            vm_id: id.to_string(),
            dir: self.vm_dir(id),
            bound_to_caller: shape.ephemeral,
            expires_at: shape.expires_at,
            boot_limit_seconds: boot_limit_seconds(host.accelerator),
            machine: Machine {
                vmm_program: host.vmm_program,
                accelerator: host.accelerator,
                vcpu_count: shape.sizing.vcpu_count,
                mem_mib: shape.sizing.mem_mib,
            },
            template_dir: templates_fit(host.accelerator).then(|| templates_dir(&self.config().base_dir)),
            guest: GuestImage {
                digest: environment.digest.clone(),
                kernel: match host.guest_kernel {
                    Some(image) => GuestKernel::SelfContained { image },
                    None => GuestKernel::WithModules {
                        image: environment.kernel.clone(),
                        modules: environment.modules.clone(),
                    },
                },
                base_image: environment.rootfs.clone(),
                base_filesystem: environment.rootfs_format.to_string(),
                layer_template,
            },
            network: shape.network,
            spares,
            purpose: Purpose::Vm,
        })
    }

    /// How many spares there may be beside the VMs that were asked for.
    async fn plan_spares(&self) -> Result<Spares, EngineError> {
        let active = self.registry(|registry| registry.ids()).await?.len();
        let config = self.config();
        Ok(Spares {
            dir: spares_dir(&config.base_dir),
            wanted: config.warm_spares,
            room: u32::try_from((config.max_active_vms as usize).saturating_sub(active)).unwrap_or(u32::MAX),
            idle_seconds: config.spare_idle_seconds,
        })
    }

    /// Notes that commands of this VM run on the host, to which its caller has agreed.
    pub(super) async fn start_on_host(&self, id: &VmId, reason: &str) -> Result<VmRecord, EngineError> {
        let patch = VmPatch {
            execution_mode: Some(ExecutionMode::HostCompat),
            metadata: [("boot_mode", "compat"), ("runtime_reason", reason)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..VmPatch::default()
        };
        let id = id.clone();
        self.registry(move |registry| registry.set_started(&id, patch)).await
    }
}

fn layer_error(error: LayerError) -> EngineError {
    let hint = match &error {
        LayerError::NoSpace { .. } => "free some space on that disk, or name another state directory",
        LayerError::ToolMissing => "install e2fsprogs",
        LayerError::ToolFailed(_) | LayerError::Io { .. } => {
            "check the space and permissions of the state directory"
        }
    };
    let kind = match &error {
        LayerError::ToolMissing => ErrorKind::VmUnavailable,
        _ => ErrorKind::StateUnusable,
    };
    EngineError::new(kind, error.to_string()).with_causes_of(&error).hint(hint)
}

fn start_error(id: &VmId, dir: &Path, error: StartError) -> EngineError {
    match error {
        StartError::Boot(failure) => {
            let message = format!("vm {id} did not come up: {} failed: {}", failure.stage, failure.cause);
            let error =
                EngineError::new(ErrorKind::BootFailed, message).hint("`pyro doctor` checks what a VM needs");
            match failure.console.is_empty() {
                true => error,
                false => error.hint(format!("the console's last lines:\n{}", failure.console.join("\n"))),
            }
        }
        StartError::Ended(_) => {
            EngineError::new(ErrorKind::BootFailed, format!("vm {id} was ended while it was starting"))
        }
        StartError::Lost => {
            let error = EngineError::new(
                ErrorKind::BootFailed,
                format!("the supervisor of vm {id} was lost while it was starting"),
            );
            match fs::read_to_string(dir.join(supervisor::files::SUPERVISOR_LOG)) {
                Ok(log) if !log.trim().is_empty() => error.caused_by(log.trim().to_owned()),
                _ => error,
            }
        }
        StartError::Spawn(cause) if cause.kind() == io::ErrorKind::StorageFull => {
            state_unusable("write to", dir, cause)
        }
        StartError::Spawn(cause) => {
            EngineError::new(ErrorKind::VmUnavailable, "the supervisor process cannot be started")
                .caused_by(cause)
        }
    }
}
