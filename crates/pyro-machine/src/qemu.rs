//! QEMU. Nothing above this folder knows of it but by the type [`Qemu`].

mod arguments;
mod clock;
mod machine;
mod qmp;
mod version;

use std::path::Path;
use std::process::Stdio;

use tokio::net::UnixStream;

use crate::accel::Accelerator;
use crate::hardware::{Disks, Hardware, Launch, Start};
use crate::network::{Network, NetworkError, NetworkInterface, Provider};
use crate::platform::{Capabilities, Fingerprint, FingerprintError, LaunchError, Platform, while_alive};
use crate::spawn::Spawn;
use arguments::{CHANNEL_FD, CONTROL_FD, NETWORK_FD};
use clock::Clock;
use qmp::Qmp;

pub use machine::QemuMachine;

/// Name of the channel between host and guest, as payloads report it.
pub const CHANNEL: &str = "virtio-serial";

/// The platform whose machines are QEMU processes.
#[derive(Debug)]
pub struct Qemu {
    clock: Clock,
}

impl Default for Qemu {
    fn default() -> Self {
        Self::new()
    }
}

impl Qemu {
    /// Touches nothing. The first launch is faster when this was called a few milliseconds before it.
    pub fn new() -> Self {
        Self { clock: Clock::start() }
    }
}

impl Platform for Qemu {
    type Machine = QemuMachine;

    fn capabilities(&self) -> Capabilities {
        Capabilities { snapshots: true }
    }

    async fn fingerprint(&self, hardware: &Hardware, cache: &Path) -> Result<Fingerprint, FingerprintError> {
        let version = version::version(cache, &hardware.config.vmm_program).await?;
        let disks = Disks {
            kernel: "kernel".into(),
            initrd: "initrd".into(),
            base_image: "base".into(),
            layer: "layer".into(),
        };
        let start = Start::Kernel { memory: Some("memory".into()) };
        let arguments = arguments::arguments(hardware, &disks, &start, None);
        Ok(Fingerprint {
            arrangement: arguments.iter().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            saves_machines: version::saves_machines(&version),
            version,
        })
    }

    fn is_fingerprint_cached(&self, hardware: &Hardware, cache: &Path) -> bool {
        version::is_remembered(cache, &hardware.config.vmm_program)
    }

    fn start_network(
        &self,
        provider: Provider,
        interface: &NetworkInterface,
    ) -> Result<Network, NetworkError> {
        provider.start(interface)
    }

    async fn launch(&self, launch: Launch) -> Result<QemuMachine, LaunchError> {
        let Launch { hardware, disks, mut network, start, console } = launch;
        let tsc_khz = match (&start, hardware.config.accelerator) {
            (Start::Kernel { .. }, Accelerator::Tcg) => self.clock.khz().await,
            _ => None,
        };
        let (channel, channel_end) = UnixStream::pair().map_err(LaunchError::Connection)?;
        let mut spawn = Spawn::new(&hardware.config.vmm_program)
            .args(arguments::arguments(&hardware, &disks, &start, tsc_khz))
            .current_dir(Path::new("/"))
            .clear_env()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .inherit(channel_end.into_std().map_err(LaunchError::Connection)?, CHANNEL_FD)
            .bind_to_parent()
            .shield_from_group_signals();
        if let Some(link) = network.as_mut().and_then(Network::take_link) {
            spawn = spawn.inherit(link, NETWORK_FD);
        }
        let mut control = None;
        if arguments::needs_control(&start) {
            let (ours, theirs) = UnixStream::pair().map_err(LaunchError::Connection)?;
            spawn = spawn.inherit(theirs.into_std().map_err(LaunchError::Connection)?, CONTROL_FD);
            control = Some(ours);
        }
        if !arguments::huge_pages(hardware.config.accelerator) {
            spawn = spawn.forgo_huge_pages();
        }
        let program = hardware.config.vmm_program;
        let process = spawn.start().map_err(|source| LaunchError::Run { program, source })?;
        let mut machine = QemuMachine::new(process, channel, network, console);
        if let Some(control) = control {
            let qmp = while_alive(&mut machine, Qmp::connect(control)).await?;
            machine.control_with(qmp);
        }
        Ok(machine)
    }
}
