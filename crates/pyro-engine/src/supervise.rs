//! The supervisor process: `pyro-vm` does the work, the registry learns of it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use pyro_vm::supervisor::{self, BootInfo, EndReason, Recorder};

use crate::registry::{Registry, VmPatch};
use crate::{EngineError, ErrorKind, ExecutionMode, VmId};

/// Supervises the VM that is described on `lifeline`, this process's standard input, to its end. The only
/// thing that the process does; on a single-threaded runtime.
///
/// # Errors
/// Nothing was started: the lifeline is not one.
pub async fn supervise(base_dir: &Path, lifeline: OwnedFd) -> io::Result<()> {
    supervisor::run(lifeline, &RegistryRecorder(Registry::new(base_dir))).await
}

struct RegistryRecorder(Registry);

impl Recorder for RegistryRecorder {
    fn record_start(&self, vm_id: &str, info: &BootInfo) -> Result<(), String> {
        let record = || {
            let mut metadata = vec![
                ("boot_mode", "native".to_owned()),
                ("boot_ms", info.boot_ms.to_string()),
                ("kernel_release", info.kernel_release.clone()),
            ];
            metadata.push(("start_mode", info.start_mode.to_string()));
            if let Some(warning) = &info.warning {
                metadata.push(("template_warning", warning.clone()));
            }
            if let Some(network) = &info.network {
                metadata.extend([
                    ("gateway_ip", network.gateway.to_string()),
                    ("subnet_cidr", network.subnet()),
                    ("mac_address", network.mac_address.clone()),
                    (
                        "dns_servers",
                        network.dns_servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                    ),
                ]);
            }
            let patch = VmPatch {
                execution_mode: Some(ExecutionMode::GuestVsock),
                accelerator: Some(info.accelerator.to_string()),
                guest_ip: info.network.as_ref().map(|network| network.address.to_string()),
                metadata: metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
                ..VmPatch::default()
            };
            self.0.set_started(&VmId::parse(vm_id)?, patch)
        };
        record().map(drop).map_err(|error: EngineError| error.to_string())
    }

    fn record_end(&self, vm_id: &str, bound_to_caller: bool, reason: &EndReason) {
        let record = || {
            let id = VmId::parse(vm_id)?;
            match reason {
                EndReason::Expired => self.0.mark_expired(&id, crate::engine::now()).map(drop),
                EndReason::Deleted => self.0.delete(&id),
                _ if bound_to_caller => self.0.delete(&id),
                EndReason::VmmEnded { description } => self.0.mark_stopped(&id, Some(description)).map(drop),
                EndReason::Stopped => self.0.mark_stopped(&id, None).map(drop),
                EndReason::Terminated => {
                    self.0.mark_stopped(&id, Some("its supervisor was terminated")).map(drop)
                }
                // It was never announced, so its record says what it said before.
                EndReason::CallerGone => Ok(()),
            }
        };
        match record() {
            Err(error) if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Expired) => {
                // The lock's release will tell the others what the record cannot.
                tracing::error!(vm_id, %error, "the end of the VM cannot be recorded");
            }
            _ => {}
        }
    }
}
