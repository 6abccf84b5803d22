//! Firecracker. Code outside this directory refers to it only by the type [`Firecracker`].

mod api;
mod cage;
mod kernel;
mod machine;
mod plan;
mod scratch;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyro_confine::{Access, Confinement, Group, Identity, Layer, Policy, Program, Visible};
use tokio::net::UnixListener;

use crate::accel::{self, Accelerator};
use crate::artifact::Artifact;
use crate::file_lock::Retry;
use crate::hardware::{Disks, Hardware, Launch, Start};
use crate::network::{Network, NetworkError, NetworkHelper, Provider};
use crate::platform::{
    Capabilities, Fingerprint, FingerprintError, LaunchError, Machine, Platform, while_alive,
};
use crate::qemu::cage::{KVM, checked, group};
use crate::qemu::process::VmmProcess;
use crate::qemu::{create, launch_error, version};
use api::Api;
use scratch::Scratch;

pub use machine::FirecrackerMachine;

/// Name of the directory that a machine shares with its Firecracker, next to its layer.
const SCRATCH: &str = "firecracker";
/// Name of the socket for a machine's packets, next to its layer until it is moved into that directory.
const PACKETS: &str = "packets.sock";
/// Name of the unpacked kernel in it.
const KERNEL: &str = "vmlinux";
/// Descriptor that keeps the layer locked.
const LOCK_FD: RawFd = 3;

/// The platform whose machines are Firecracker processes.
#[derive(Debug, Default)]
pub struct Firecracker {
    network_helper: Option<NetworkHelper>,
}

impl Firecracker {
    /// The first version that machines run on: the one that was tried.
    pub const MIN_VERSION: (u32, u32) = (1, 12);

    /// Has no effects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the process that carries the packets of machines with a network.
    #[must_use]
    pub fn with_network_helper(self, helper: NetworkHelper) -> Self {
        Self { network_helper: Some(helper) }
    }

    /// Returns the first line that the program prints about its version, which is cached in `cache`.
    ///
    /// # Errors
    /// The program does not report its version.
    pub async fn ask_version(program: &Path, cache: &Path) -> Result<String, FingerprintError> {
        version::version(cache, program).await
    }

    /// Returns the version in the first line of `firecracker --version`.
    pub fn version(text: &str) -> Option<&str> {
        let rest = text.strip_prefix("Firecracker v")?;
        rest.split_whitespace().next()
    }

    /// Returns whether a version is [`Self::MIN_VERSION`] or later.
    pub fn is_supported(version: &str) -> bool {
        let mut numbers = version.split('.').map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= Self::MIN_VERSION,
            _ => false,
        }
    }
}

impl Platform for Firecracker {
    type Machine = FirecrackerMachine;

    fn capabilities(&self) -> Capabilities {
        Capabilities { snapshots: true }
    }

    async fn fingerprint(&self, hardware: &Hardware, cache: &Path) -> Result<Fingerprint, FingerprintError> {
        let version = version::version(cache, &hardware.config.vmm_program).await?;
        Ok(Fingerprint {
            // The guest's processor is the host's.
            arrangement: vec![plan::config(hardware, true).to_string(), accel::processor()],
            saves_machines: Self::version(&version).is_some_and(Self::is_supported),
            version,
        })
    }

    fn is_fingerprint_cached(&self, hardware: &Hardware, cache: &Path) -> bool {
        version::is_remembered(cache, &hardware.config.vmm_program)
    }

    fn start_network(&self, provider: Provider) -> Result<Network, NetworkError> {
        provider.start_listening(self.network_helper.as_ref(), |settings| {
            let path = settings.denials.with_file_name(PACKETS);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            scratch::listen(&path).map(OwnedFd::from)
        })
    }

    async fn launch(&self, launch: Launch) -> Result<FirecrackerMachine, LaunchError> {
        let Launch { hardware, disks, mut network, start, console, requires_full_confinement } = launch;
        let prepared = prepare(&hardware, &disks, &start, network.is_some()).await;
        let group = group(&hardware.config, &disks, &start);
        let moving = group.as_ref().ok().zip(network.as_ref().and_then(Network::process_id));
        // The kernel may take some milliseconds, in which Firecracker is started.
        let moving = moving.map(|(group, network)| {
            let group = Arc::clone(group);
            tokio::task::spawn_blocking(move || group.add(network))
        });
        let started = prepared.and_then(|prepared| start_process(prepared, &hardware, &group));
        if let Some(moving) = moving
            && let Err(error) = moving.await.unwrap_or_else(|error| Err(io::Error::other(error)))
        {
            tracing::warn!(%error, "the process that carries the network has no control group");
        }
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                // Before its group is dropped, which cannot be removed while the process is in it.
                if let Some(network) = &mut network {
                    network.stop().await;
                }
                return Err(error);
            }
        };
        let mut retry = Retry::in_dir(started.scratch.path());
        let api = started.scratch.socket(plan::API);
        let mut machine = FirecrackerMachine::new(started, network, console, group.ok());
        let finish = async {
            if requires_full_confinement {
                let confined = machine.fully_confined().await;
                confined.map_err(|missing| LaunchError::NotFullyConfined { missing })?;
            }
            if plan::needs_control(&start) {
                let api = while_alive(&mut machine, Api::connect(&api, &mut retry)).await?;
                machine.control_with(api);
            }
            Ok(())
        };
        match finish.await {
            Ok(()) => Ok(machine),
            Err(error) => {
                machine.kill().await;
                Err(error)
            }
        }
    }
}

/// What one Firecracker is started with.
struct Prepared {
    scratch: Scratch,
    agent: UnixListener,
    lock: File,
    arguments: Vec<OsString>,
    policy: Policy,
}

/// A Firecracker that was started.
struct Started {
    process: VmmProcess,
    confinement: Confinement,
    scratch: Scratch,
    agent: UnixListener,
}

/// Makes the files and sockets of a machine.
async fn prepare(
    hardware: &Hardware,
    disks: &Disks,
    start: &Start,
    has_network: bool,
) -> Result<Prepared, LaunchError> {
    if hardware.config.accelerator != Accelerator::Kvm {
        return Err(LaunchError::NeedsKvm);
    }
    if let Start::Kernel { save_in: Some(files) } = start {
        create(files.memory.path())?;
        create(files.state.path())?;
    }
    let path = disks.layer.with_file_name(SCRATCH);
    let failed = |source| LaunchError::File { path: path.clone(), source };
    let scratch = Scratch::create(path.clone()).map_err(failed)?;
    let packets = disks.layer.with_file_name(PACKETS);
    // A machine that is made to be saved has a network that leads nowhere.
    if has_network && packets.exists() {
        std::fs::rename(packets, scratch.path().join(plan::packet_socket())).map_err(failed)?;
    }
    let kernel = match start {
        Start::Kernel { save_in } => {
            let config = plan::config(hardware, save_in.is_some());
            scratch.write(plan::CONFIG, &config).map_err(failed)?;
            Some(kernel(&disks.kernel, scratch.path().join(KERNEL)).await?)
        }
        Start::Saved { .. } => None,
    };
    let agent = scratch.listen(&plan::agent_socket()).map_err(LaunchError::Connection)?;
    let lock =
        cage::lock(&disks.layer).map_err(|source| LaunchError::File { path: disks.layer.clone(), source })?;
    let policy = cage::policy(hardware, disks, start, identity()?, scratch.path(), kernel)?;
    Ok(Prepared { scratch, agent, lock, arguments: plan::arguments(start), policy })
}

fn start_process(
    prepared: Prepared,
    hardware: &Hardware,
    group: &Result<Arc<Group>, Layer>,
) -> Result<Started, LaunchError> {
    let Prepared { scratch, agent, lock, arguments, policy } = prepared;
    let (stdout, stdout_end) = io::pipe().map_err(LaunchError::Connection)?;
    let (stderr, stderr_end) = io::pipe().map_err(LaunchError::Connection)?;
    let nothing = File::open("/dev/null").map_err(LaunchError::Connection)?;
    let descriptors =
        vec![(nothing.into(), 0), (stdout_end.into(), 1), (stderr_end.into(), 2), (lock.into(), LOCK_FD)];
    let program = hardware.config.vmm_program.clone();
    let command = Program {
        program: program.clone(),
        arguments,
        descriptors,
        // The supervisor ends it in an orderly way.
        blocked_signals: vec![libc::SIGTERM, libc::SIGINT, libc::SIGHUP],
        huge_pages: true,
    };
    let started = pyro_confine::start_in(group.clone(), command, &policy)
        .map_err(|error| launch_error(program, error))?;
    let process = VmmProcess::new(started.process, [stdout, stderr]).map_err(LaunchError::Connection)?;
    Ok(Started { process, confinement: started.confinement, scratch, agent })
}

/// Returns whose rights Firecracker has. It opens the device of KVM itself.
fn identity() -> Result<Identity, LaunchError> {
    let unusable = |source| LaunchError::File { path: KVM.into(), source };
    let device = std::fs::metadata(KVM).map_err(unusable)?;
    Identity::for_program().for_device(&device).ok_or_else(|| {
        let reason = "only root may open it, and Firecracker, which does not run as root, takes no open one";
        unusable(io::Error::new(io::ErrorKind::PermissionDenied, reason))
    })
}

/// Returns the kernel to load: the image itself, or what was unpacked from it to `target`.
async fn kernel(image: &Artifact, target: PathBuf) -> Result<Visible, LaunchError> {
    let unpack = {
        let (image, target) = (image.clone(), target.clone());
        tokio::task::spawn_blocking(move || kernel::unpack(&image, &target))
    };
    let unpacked = unpack.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    match unpacked.map_err(|source| LaunchError::File { path: image.path().to_owned(), source })? {
        true => Ok(Visible::new(target, Access::Read)),
        false => Ok(checked(image)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_and_compared() {
        assert_eq!(Firecracker::version("Firecracker v1.12.1"), Some("1.12.1"));
        assert_eq!(Firecracker::version("Firecracker v1.13.0-dev extra"), Some("1.13.0-dev"));
        assert_eq!(Firecracker::version("QEMU emulator version 10"), None);
        for (version, expected) in [
            ("1.12.1", true),
            ("1.13.0-dev", true),
            ("2.0.0", true),
            ("1.11.9", false),
            ("", false),
            ("x.y", false),
        ] {
            assert_eq!(Firecracker::is_supported(version), expected, "{version}");
        }
    }
}
