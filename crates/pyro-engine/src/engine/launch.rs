//! Bringing up the VM of a record, in a guest or, with the caller's consent, as a promise to use the host.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use pyro_env::InstalledEnvironment;
use pyro_vm::supervisor::{self, Lifeline, OwnerLock, StartError};
use pyro_vm::{GuestImage, GuestKernel, LaunchSpec, LayerError, LayerLifetime, LayerTemplates, Machine};

use super::{Engine, state_unusable};
use crate::engine::host::Host;
use crate::registry::{VmPatch, VmRecord};
use crate::{EngineError, ErrorKind, ExecutionMode, VmId};

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

    /// Starts the VM in a guest. The supervisor records that it is up.
    pub(super) async fn start_guest(
        &self,
        record: &VmRecord,
        environment: InstalledEnvironment,
        host: Host,
        lock: OwnerLock,
    ) -> Result<Lifeline, EngineError> {
        let lifetime = if record.ephemeral { LayerLifetime::OneStart } else { LayerLifetime::ManyStarts };
        let layer_template = self
            .blocking(move |shared| {
                let config = &shared.config;
                LayerTemplates::new(config.base_dir.join("layers"), config.search_path.clone())
                    .fitting(lifetime)
                    .map_err(layer_error)
            })
            .await?;
        let dir = self.vm_dir(&record.vm_id);
        let spec = LaunchSpec {
            vm_id: record.vm_id.to_string(),
            dir: dir.clone(),
            bound_to_caller: record.ephemeral,
            expires_at: record.expires_at,
            boot_limit_seconds: boot_limit_seconds(host.accelerator),
            machine: Machine {
                vmm_program: host.vmm_program,
                accelerator: host.accelerator,
                vcpu_count: record.sizing.vcpu_count,
                mem_mib: record.sizing.mem_mib,
            },
            template_dir: templates_fit(host.accelerator).then(|| self.config().base_dir.join("templates")),
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
            network: record.network_enabled,
        };
        let args = [OsStr::new(SUPERVISE_COMMAND), self.config().base_dir.as_os_str()];
        let (lifeline, _) = supervisor::start(&self.config().program, &args, spec, &lock)
            .await
            .map_err(|error| start_error(&record.vm_id, &dir, error))?;
        Ok(lifeline)
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
