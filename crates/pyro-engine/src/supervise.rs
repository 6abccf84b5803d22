//! The supervisor process: how it is started, and what it records in the registry. `pyro-supervisor` does the work.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyro_machine::network::{self, NetworkHelper, RunError};
use pyro_supervisor::{
    BootInfo, CommandOutcome, EndReason, Exec, MountPoint, Program, PublishedPort, Retention,
    ServiceDefinition, ServiceStatus, Store, StoreError,
};

use crate::clock::now;
use crate::registry::{NewCommand, RecordedPort, Registry, VmPatch};
use crate::{DirectoryMount, Error, ErrorKind, ExecutionMode, StopReason, VmId, convert, limits};

/// Name of the hidden subcommand that supervises one VM.
pub const SUPERVISE_COMMAND: &str = "supervise";
/// Name of the hidden subcommand that carries the packets of one VM.
pub const NETWORK_COMMAND: &str = "network";
/// This program, even if its file was replaced since it was started.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// The command that starts a supervisor process.
#[derive(Clone, Debug)]
pub(crate) struct SupervisorCommand {
    /// The pyro executable.
    pub(crate) program: PathBuf,
    /// State directory.
    pub(crate) base_dir: PathBuf,
}

impl SupervisorCommand {
    /// The program's arguments.
    pub(crate) fn args(&self) -> [&OsStr; 2] {
        [OsStr::new(SUPERVISE_COMMAND), self.base_dir.as_os_str()]
    }
}

/// Supervises the VM described on `lifeline`, this process's standard input, until it ends. The process does nothing
/// else; it uses a single-threaded runtime.
///
/// # Errors
/// The lifeline is invalid; nothing was started.
pub async fn supervise(base_dir: &Path, lifeline: OwnedFd) -> io::Result<()> {
    let network = NetworkHelper { program: OWN_PROGRAM.into(), args: vec![NETWORK_COMMAND.into()] };
    pyro_supervisor::run(lifeline, RegistryStore(Arc::new(Registry::new(base_dir))), network).await
}

/// Carries the packets of one VM until it ends, on the descriptors that its supervisor has passed. The process does
/// nothing else.
///
/// # Errors
/// The descriptors were not passed, or the link to the VM failed.
pub fn carry_network() -> Result<(), RunError> {
    network::run_from_parent()
}

struct RegistryStore(Arc<Registry>);

impl RegistryStore {
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Registry) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let registry = Arc::clone(&self.0);
        match tokio::task::spawn_blocking(move || work(&registry)).await {
            Ok(written) => written.map_err(store_error),
            Err(error) => Err(StoreError { is_permanent: false, cause: error.to_string() }),
        }
    }
}

/// Classifies a store error: an unusable file may become usable later, but a rejected change stays rejected.
fn store_error(error: Error) -> StoreError {
    StoreError { is_permanent: error.kind != ErrorKind::StateUnusable, cause: error.to_string() }
}

/// Ignores a missing record, which needs no change.
fn unless_gone(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Expired) => Ok(()),
        done => done,
    }
}

impl Store for RegistryStore {
    async fn record_start(&self, vm_id: &str, info: &BootInfo) -> Result<f64, StoreError> {
        let patch = patch_of(info);
        let vm_id = vm_id.to_owned();
        let started = self.write(move |registry| registry.set_started(&VmId::parse(&vm_id)?, &patch));
        Ok(started.await?.expires_at)
    }

    async fn record_end(
        &self,
        vm_id: &str,
        retention: Retention,
        reason: &EndReason,
        loss: Option<&str>,
    ) -> Result<(), StoreError> {
        let (vm_id, reason, loss) = (vm_id.to_owned(), reason.clone(), loss.map(str::to_owned));
        let record = move |registry: &Registry| {
            let id = VmId::parse(&vm_id)?;
            let stopped = |reason, text| registry.mark_stopped(&id, reason, text).map(drop);
            let loss = loss.as_deref();
            unless_gone(match (reason, retention) {
                (EndReason::Deleted, _) => registry.delete(&id),
                (EndReason::Expired, Retention::Caller | Retention::Lifetime) => {
                    registry.mark_expired(&id, now()).map(drop)
                }
                (_, Retention::Caller) => registry.delete(&id),
                (EndReason::Expired, Retention::Deletion) => stopped(StopReason::Expired, loss),
                (EndReason::VmmEnded { description }, _) => {
                    stopped(StopReason::GuestEnded, Some(&description))
                }
                (EndReason::ChannelLost, _) => {
                    stopped(StopReason::GuestEnded, Some("the connection to the guest was lost"))
                }
                (EndReason::Stopped, _) => stopped(StopReason::ExplicitStop, loss),
                (EndReason::Terminated, _) => {
                    stopped(StopReason::Terminated, loss.or(Some("its supervisor was terminated")))
                }
                // Its start was never announced, so its record is unchanged.
                (EndReason::CallerGone, _) => Ok(()),
            })
        };
        self.write(record).await
    }

    async fn record_ports(&self, vm_id: &str, ports: &[PublishedPort]) -> Result<(), StoreError> {
        let (vm_id, ports) = (vm_id.to_owned(), recorded(ports));
        self.write(move |registry| registry.set_ports(&VmId::parse(&vm_id)?, &ports).map(drop)).await
    }

    async fn services(&self, vm_id: &str) -> Result<Vec<ServiceDefinition>, StoreError> {
        let vm_id = vm_id.to_owned();
        let services = self.write(move |registry| registry.services(&VmId::parse(&vm_id)?)).await?;
        Ok(services.into_iter().filter_map(|service| service.definition).collect())
    }

    async fn record_service(
        &self,
        vm_id: &str,
        definition: &ServiceDefinition,
        status: &ServiceStatus,
    ) -> Result<(), StoreError> {
        let (vm_id, definition, status) = (vm_id.to_owned(), definition.clone(), status.clone());
        self.write(move |registry| registry.set_service(&VmId::parse(&vm_id)?, &definition, &status, now()))
            .await
    }

    async fn record_service_status(
        &self,
        vm_id: &str,
        name: &str,
        status: &ServiceStatus,
    ) -> Result<(), StoreError> {
        let (vm_id, name, status) = (vm_id.to_owned(), name.to_owned(), status.clone());
        self.write(move |registry| registry.set_service_status(&VmId::parse(&vm_id)?, &name, &status, now()))
            .await
    }

    async fn forget_service(&self, vm_id: &str, name: &str) -> Result<(), StoreError> {
        let (vm_id, name) = (vm_id.to_owned(), name.to_owned());
        self.write(move |registry| registry.delete_service(&VmId::parse(&vm_id)?, &name).map(drop)).await
    }

    async fn record_mounts(
        &self,
        vm_id: &str,
        mounts: &[MountPoint],
        lost: &[String],
    ) -> Result<(), StoreError> {
        let mount = |point: &MountPoint| DirectoryMount {
            host: point.host.display().to_string(),
            guest: point.guest.clone(),
            writable: point.writable,
            uid: point.owner,
        };
        let (vm_id, mounts) = (vm_id.to_owned(), mounts.iter().map(mount).collect::<Vec<_>>());
        let lost = lost.to_vec();
        self.write(move |registry| registry.set_mounts(&VmId::parse(&vm_id)?, &mounts, lost).map(drop)).await
    }

    async fn forget(&self, vm_id: &str) -> Result<(), StoreError> {
        let vm_id = vm_id.to_owned();
        self.write(move |registry| unless_gone(registry.delete(&VmId::parse(&vm_id)?))).await
    }

    async fn record_command(&self, vm_id: &str, exec: &Exec) -> Result<u64, StoreError> {
        let new = NewCommand {
            command: command_text(&exec.program),
            cwd: exec.cwd.clone(),
            execution_mode: ExecutionMode::GuestVsock,
            accepted_at: now(),
        };
        let vm_id = vm_id.to_owned();
        self.write(move |registry| registry.accept_command(&VmId::parse(&vm_id)?, &new)).await
    }

    async fn record_command_end(
        &self,
        vm_id: &str,
        sequence: u64,
        outcome: &CommandOutcome,
    ) -> Result<(), StoreError> {
        let outcome = outcome.clone();
        let vm_id = vm_id.to_owned();
        self.write(move |registry| registry.end_command(&VmId::parse(&vm_id)?, sequence, now(), &outcome))
            .await
    }
}

fn recorded(ports: &[PublishedPort]) -> Vec<RecordedPort> {
    let port = |port: &PublishedPort| RecordedPort {
        mapping: convert::port_mapping(port.mapping),
        bound: Some(port.bound),
    };
    ports.iter().map(port).collect()
}

/// Returns what to record about a VM that is up.
fn patch_of(info: &BootInfo) -> VmPatch {
    let mut metadata = vec![
        ("boot_mode", "native".to_owned()),
        ("boot_ms", info.boot_ms.to_string()),
        ("kernel_release", info.kernel_release.clone()),
        ("vmm", info.vmm.name().to_owned()),
    ];
    metadata.push(("start_mode", info.start_mode.to_string()));
    if let Some(warning) = &info.warning {
        metadata.push(("template_warning", warning.clone()));
    }
    if let Some(confinement) = &info.confinement {
        metadata.push(("confinement", confinement.to_string()));
    }
    if let Some(confinement) = &info.network_confinement {
        metadata.push(("network_confinement", confinement.self_applied().to_string()));
    }
    if let Some(restricted) = &info.supervisor_restricted {
        metadata.push(("supervisor_restricted", restricted.to_string()));
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
    VmPatch {
        execution_mode: Some(ExecutionMode::GuestVsock),
        accelerator: Some(info.accelerator.to_string()),
        ports: Some(recorded(&info.ports)),
        guest_ip: info.network.as_ref().map(|network| network.address.to_string()),
        metadata: metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

/// Returns a command as the journal shows it: as text that a shell would take.
pub(crate) fn command_text(program: &Program) -> String {
    match program {
        Program::Argv(words) => limits::quoted(words).unwrap_or_else(|| program.label()),
        Program::Shell { .. } | Program::LoginShell => program.label(),
    }
}
