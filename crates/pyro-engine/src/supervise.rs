//! The supervisor process: `pyro-vm` does the work, the registry learns of it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use pyro_vm::supervisor::{self, BootInfo, CommandEnd, EndReason, Recorder};
use pyro_vm::{Exec, Retention};

use crate::engine::now;
use crate::registry::{CommandExit, CommandFate, NewCommand, Registry, VmPatch};
use crate::{EngineError, ErrorKind, ExecutionMode, StopReason, VmId};

/// Supervises the VM that is described on `lifeline`, this process's standard input, to its end. The only
/// thing that the process does; on a single-threaded runtime.
///
/// # Errors
/// Nothing was started: the lifeline is not one.
pub async fn supervise(base_dir: &Path, lifeline: OwnedFd) -> io::Result<()> {
    supervisor::run(lifeline, Arc::new(RegistryRecorder(Registry::new(base_dir)))).await
}

struct RegistryRecorder(Registry);

impl Recorder for RegistryRecorder {
    fn record_start(&self, vm_id: &str, info: &BootInfo) -> Result<f64, String> {
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
            };
            self.0.set_started(&VmId::parse(vm_id)?, &patch)
        };
        record().map(|record| record.expires_at).map_err(|error: EngineError| error.to_string())
    }

    fn record_end(&self, vm_id: &str, retention: Retention, reason: &EndReason, loss: Option<&str>) {
        let record = || {
            let id = VmId::parse(vm_id)?;
            let stopped = |reason, text| self.0.mark_stopped(&id, reason, text).map(drop);
            match (reason, retention) {
                (EndReason::Deleted, _) => self.0.delete(&id),
                (EndReason::Expired, Retention::Caller | Retention::Lifetime) => {
                    self.0.mark_expired(&id, now()).map(drop)
                }
                (_, Retention::Caller) => self.0.delete(&id),
                (EndReason::Expired, Retention::Deletion) => stopped(StopReason::Expired, loss),
                (EndReason::VmmEnded { description }, _) => {
                    stopped(StopReason::GuestEnded, Some(description))
                }
                (EndReason::Stopped, _) => stopped(StopReason::ExplicitStop, loss),
                (EndReason::Terminated, _) => {
                    stopped(StopReason::Terminated, loss.or(Some("its supervisor was terminated")))
                }
                // It was never announced, so its record says what it said before.
                (EndReason::CallerGone, _) => Ok(()),
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

    fn record_command(&self, vm_id: &str, exec: &Exec) -> Result<u64, String> {
        let new = NewCommand {
            command: exec.command.clone(),
            cwd: exec.cwd.clone(),
            execution_mode: ExecutionMode::GuestVsock,
            accepted_at: now(),
        };
        let accepted = VmId::parse(vm_id).and_then(|id| self.0.accept_command(&id, &new));
        accepted.map_err(|error| error.to_string())
    }

    fn record_command_end(&self, vm_id: &str, sequence: u64, end: &CommandEnd) -> Result<(), String> {
        let fate = match end {
            CommandEnd::Ended { outcome, killed, stdout_truncated, stderr_truncated } => {
                CommandFate::Exited(CommandExit {
                    killed: *killed,
                    stdout_truncated: *stdout_truncated,
                    stderr_truncated: *stderr_truncated,
                    ..CommandExit::from(outcome)
                })
            }
            CommandEnd::NotRun { cause } => CommandFate::NotRun(cause.clone()),
            CommandEnd::Lost => CommandFate::Unknown,
        };
        let ended = VmId::parse(vm_id).and_then(|id| self.0.end_command(&id, sequence, now(), &fate));
        ended.map_err(|error| error.to_string())
    }
}
