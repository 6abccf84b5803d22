//! What the host provides for running VMs.

use std::path::{Path, PathBuf};

use pyro_machine::{Accelerator, FingerprintError, Firecracker, Vmm, accel};

use super::Engine;
use crate::doctor::AcceleratorReport;
use crate::guest_kernel::GuestKernelError;
use crate::{convert, guest_kernel, search_path, state_dir};

/// Names of the VMM executables.
const QEMU: &str = "qemu-system-x86_64";
const FIRECRACKER: &str = "firecracker";
/// Name of the hidden subcommand that measures KVM.
pub const PROBE_COMMAND: &str = "probe-kvm";

/// What is needed to run a VM on this host.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) vmm: Vmm,
    pub(super) vmm_program: PathBuf,
    pub(super) accelerator: Accelerator,
    /// The kernel for the guests of every environment, if configured.
    pub(super) guest_kernel: Option<PathBuf>,
}

/// Why commands do not run in a VM.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostUnavailable {
    /// The configured VMM does not exist.
    #[error("the configured VMM {} does not exist", .0.display())]
    ConfiguredVmm(PathBuf),
    /// No VMM is installed.
    #[error("{QEMU} is not installed (Debian and Ubuntu: package qemu-system-x86)")]
    NoQemu,
    /// Firecracker was chosen and is not installed.
    #[error(
        "{FIRECRACKER} was not found in PATH (`PYRO_VMM` selects it, `PYRO_FIRECRACKER` says where it is)"
    )]
    NoFirecracker,
    /// Firecracker does not report its version.
    #[error("Firecracker cannot be used")]
    FirecrackerUnknown(#[source] FingerprintError),
    /// Firecracker is not one that pyro can use.
    #[error("{} is not Firecracker {major}.{minor} or later: it reports {version:?}", program.display(), major = Firecracker::MIN_VERSION.0, minor = Firecracker::MIN_VERSION.1)]
    FirecrackerVersion {
        /// The program.
        program: PathBuf,
        /// What it reports.
        version: String,
    },
    /// Firecracker was chosen on a host without KVM.
    #[error("Firecracker needs KVM: {reason}")]
    FirecrackerNeedsKvm {
        /// Why it is not used.
        reason: String,
    },
    /// The configured guest kernel cannot be booted.
    #[error(transparent)]
    GuestKernel(#[from] GuestKernelError),
    /// The task's files are on the host.
    #[error("the task was created on the host")]
    TaskOnHost,
}

impl Engine {
    /// Returns what is needed to run VMs; the error says why VMs cannot run.
    pub(super) async fn host(&self) -> Result<Host, HostUnavailable> {
        let vmm = self.config().vmm;
        let vmm_program = self.vmm_program(vmm)?;
        if vmm == Vmm::Firecracker {
            self.check_firecracker(&vmm_program).await?;
        }
        let guest_kernel = self.config().guest_kernel.clone();
        if let Some(image) = &guest_kernel {
            guest_kernel::release(image)?;
        }
        let (accelerator, reason) = match self.config().accelerator {
            Some(forced) => (convert::accelerator(forced), "PYRO_ACCEL selects emulation".to_owned()),
            None => {
                let verdict = self.choose_accelerator(true).await;
                (verdict.accelerator, verdict.reason)
            }
        };
        if vmm == Vmm::Firecracker && accelerator != Accelerator::Kvm {
            return Err(HostUnavailable::FirecrackerNeedsKvm { reason });
        }
        Ok(Host { vmm, vmm_program, accelerator, guest_kernel })
    }

    /// Returns the accelerator report for `doctor`. Caches nothing.
    pub(super) async fn accelerator_report(&self) -> AcceleratorReport {
        if let Some(forced) = self.config().accelerator {
            return AcceleratorReport {
                selected: Some(forced.to_string()),
                reason: "forced by the configuration".to_owned(),
                measured_ms: None,
                kvm_costs: None,
                cached: false,
            };
        }
        let verdict = self.choose_accelerator(false).await;
        AcceleratorReport {
            selected: Some(verdict.accelerator.to_string()),
            reason: verdict.reason,
            measured_ms: verdict.measured_ms,
            kvm_costs: verdict.costs.map(convert::kvm_costs),
            cached: verdict.cached,
        }
    }

    async fn choose_accelerator(&self, may_remember: bool) -> accel::Verdict {
        let cache = state_dir::accelerator(&self.config().base_dir);
        accel::choose(&cache, may_remember, (&self.config().program, &[PROBE_COMMAND])).await
    }

    /// Fails if Firecracker is not one that machines run on. Its version is remembered for as long as the file stays the same.
    async fn check_firecracker(&self, program: &Path) -> Result<(), HostUnavailable> {
        let cache = state_dir::templates(&self.config().base_dir);
        let version =
            Firecracker::ask_version(program, &cache).await.map_err(HostUnavailable::FirecrackerUnknown)?;
        if Firecracker::version(&version).is_some_and(Firecracker::is_supported) {
            return Ok(());
        }
        Err(HostUnavailable::FirecrackerVersion { program: program.to_owned(), version })
    }

    fn vmm_program(&self, vmm: Vmm) -> Result<PathBuf, HostUnavailable> {
        let (configured, name, missing) = match vmm {
            Vmm::Qemu => (&self.config().vmm_program, QEMU, HostUnavailable::NoQemu),
            Vmm::Firecracker => {
                (&self.config().firecracker_program, FIRECRACKER, HostUnavailable::NoFirecracker)
            }
        };
        match configured {
            // A bare name is one that was not found in the search path, and no file of the current directory.
            Some(program) if !search_path::is_bare(program) && program.is_file() => Ok(program.clone()),
            Some(program) => Err(HostUnavailable::ConfiguredVmm(program.clone())),
            None => search_path::find(name, &self.config().search_path).ok_or(missing),
        }
    }
}

/// Measures KVM and prints nothing: the caller passes the returned JSON to the process that started this one. Run it as
/// the only work of a process; a broken KVM may hang or crash it.
pub fn probe_kvm() -> String {
    accel::probe()
}
