//! Bringing one machine up: disks, VMM, kernel, guest. Each step knows its name, so that a failure can say
//! where it happened.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use pyro_wire::{BaseImage, Bootstrap, GENERATION, NetworkConfig};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::LocalSet;

use super::{BootFailure, BootInfo, BootStage, files};
use crate::console::Console;
use crate::mux::{self, Streams};
use crate::network::Network;
use crate::spec::LaunchSpec;
use crate::vmm::{Disks, Hardware, Vmm};
use crate::{Accelerator, initrd, layer, process, tsc};

/// Time within which a VMM whose guest channel has closed is seen to end.
const VMM_END_LIMIT: Duration = Duration::from_secs(1);

/// A machine whose guest takes commands.
pub(super) struct RunningMachine {
    pub(super) vmm: Child,
    pub(super) network: Option<Network>,
    pub(super) streams: Streams,
    pub(super) console: Console,
    pub(super) info: BootInfo,
}

/// Boots the machine. Dropping the future, or an error, leaves no process behind.
pub(super) async fn boot(
    spec: &LaunchSpec,
    vmm: &dyn Vmm,
    tasks: &LocalSet,
) -> Result<RunningMachine, BootFailure> {
    let mut attempt = Attempt { stage: BootStage::Disks, console: None };
    let limit = Duration::from_secs(spec.boot_limit_seconds);
    let outcome = tokio::time::timeout(limit, attempt.boot(spec, vmm, tasks)).await;
    let cause = match outcome {
        Ok(Ok(machine)) => return Ok(machine),
        Ok(Err(cause)) => cause,
        Err(_) => format!("not done after {} seconds", spec.boot_limit_seconds),
    };
    let console = match attempt.console {
        Some(console) => console.last_words().await,
        None => Vec::new(),
    };
    Err(BootFailure { stage: attempt.stage, cause, console })
}

struct Attempt {
    stage: BootStage,
    console: Option<Console>,
}

impl Attempt {
    async fn boot(
        &mut self,
        spec: &LaunchSpec,
        vmm: &dyn Vmm,
        tasks: &LocalSet,
    ) -> Result<RunningMachine, String> {
        let started = Instant::now();
        let tsc = (spec.machine.accelerator == Accelerator::Tcg).then(tsc::Measurement::start);
        let disks = prepare_disks(spec).map_err(|error| chain(&*error))?;
        let tsc_khz = match tsc {
            Some(measurement) => measurement.finish().await,
            None => None,
        };

        self.stage = BootStage::Network;
        let (mut network, network_end) = match spec.network {
            true => Some(Network::start()?).unzip(),
            false => (None, None),
        };

        self.stage = BootStage::Vmm;
        let attachment = network.as_ref().map(Network::attachment);
        let machine = spec.machine.clone();
        let plan = vmm.plan(&Hardware { machine, disks, network: attachment, tsc_khz });
        let (channel, vmm_end) = UnixStream::pair().map_err(|error| chain(&error))?;
        let vmm_end = OwnedFd::from(vmm_end.into_std().map_err(|error| chain(&error))?);
        let mut command = Command::new(&plan.program);
        command
            .args(&plan.args)
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        process::bind_to_parent(&mut command, [vmm_end].into_iter().chain(network_end).collect());
        let mut vmm =
            command.spawn().map_err(|error| format!("cannot run {}: {error}", plan.program.display()))?;
        // The command holds the parent's copy of the VMM's end of the channel, which must close for the
        // VMM's death to be seen.
        drop(command);
        let console = self.follow_console(spec, &mut vmm, tasks).map_err(|error| chain(&error))?;

        self.stage = BootStage::Kernel;
        let guest_network = network.as_ref().map(Network::description);
        let network_config = network.as_ref().map(|network| network.config().clone());
        let network_failure = async {
            match &mut network {
                Some(network) => network.failure().await,
                None => std::future::pending().await,
            }
        };
        let mut channel = channel;
        let kernel_release = tokio::select! {
            up = self.handshake(spec, &mut channel, network_config) => match up {
                Ok(kernel_release) => kernel_release,
                Err(cause) => return Err(self.explain(cause, &mut vmm).await),
            },
            status = vmm.wait() => return Err(early_end(status)),
            reason = network_failure => {
                self.stage = BootStage::Network;
                return Err(reason);
            }
        };
        let (streams, driver) = mux::drive(channel);
        tasks.spawn_local(driver);
        let info = BootInfo {
            kernel_release,
            boot_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            accelerator: spec.machine.accelerator,
            network: guest_network,
        };
        Ok(RunningMachine { vmm, network, streams, console, info })
    }

    /// The channel closes when the VMM dies; its status then says more.
    async fn explain(&self, cause: String, vmm: &mut Child) -> String {
        match tokio::time::timeout(VMM_END_LIMIT, vmm.wait()).await {
            Ok(status) => format!("{}: {cause}", early_end(status)),
            Err(_) => cause,
        }
    }

    fn follow_console(
        &mut self,
        spec: &LaunchSpec,
        vmm: &mut Child,
        tasks: &LocalSet,
    ) -> io::Result<Console> {
        let console = Console::new(File::create(spec.dir.join(files::SERIAL_LOG))?);
        if let Some(stdout) = vmm.stdout.take() {
            tasks.spawn_local(console.follow(stdout));
        }
        if let Some(stderr) = vmm.stderr.take() {
            tasks.spawn_local(console.follow(stderr));
        }
        self.console = Some(console.clone());
        Ok(console)
    }

    async fn handshake(
        &mut self,
        spec: &LaunchSpec,
        channel: &mut UnixStream,
        network: Option<NetworkConfig>,
    ) -> Result<String, String> {
        let hello = mux::receive_hello(channel).await.map_err(|error| chain(&error))?;
        self.stage = BootStage::Guest;
        let mut random = [0; 48];
        getrandom::fill(&mut random).map_err(|error| format!("no random numbers: {error}"))?;
        let (seed, machine_id) = random.split_at(32);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let bootstrap = Bootstrap {
            generation: GENERATION,
            // Good until the year 2554.
            unix_time_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            seed: hex(seed),
            hostname: format!("pyro-{}", spec.vm_id),
            machine_id: hex(machine_id),
            base_image: BaseImage { filesystem: spec.guest.base_filesystem.clone() },
            network,
        };
        mux::bootstrap(channel, bootstrap).await.map_err(|error| chain(&error))?;
        Ok(hello.kernel_release)
    }
}

fn early_end(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("the VMM ended: {status}"),
        Err(error) => format!("the VMM was lost: {error}"),
    }
}

fn prepare_disks(spec: &LaunchSpec) -> Result<Disks, Box<dyn std::error::Error>> {
    let disks = Disks {
        kernel: spec.guest.kernel.clone(),
        initrd: spec.dir.join(files::INITRD),
        base_image: spec.guest.base_image.clone(),
        layer: spec.dir.join(files::LAYER),
        layer_lifetime: spec.layer_lifetime(),
    };
    initrd::write(&disks.initrd, &spec.guest.modules)?;
    layer::instantiate(&spec.guest.layer_template, &disks.layer)?;
    Ok(disks)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An error and its causes in one line, for a message that leaves the process.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
