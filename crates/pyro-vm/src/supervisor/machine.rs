//! Bringing one machine up, from a template if there can be one, else from its kernel. Each step knows its name,
//! so that a failure can say where it happened.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pyro_wire::{Bootstrap, GENERATION, NetworkConfig, Preparation};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::task::LocalSet;
use tokio::time::error::Elapsed;

use super::launch::{Connections, VmmProcess, launch};
use super::stages::Stages;
use super::{BootFailure, BootInfo, BootStage, StartMode, files};
use crate::console::Console;
use crate::mux::{self, Streams};
use crate::network::Network;
use crate::qmp::Qmp;
use crate::spec::LaunchSpec;
use crate::template::{Template, Templates};
use crate::vmm::{Disks, Hardware, NetworkAttachment, Start, Vmm};
use crate::{Accelerator, hex::hex, initrd, layer, tsc};

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
    let mut attempt = Attempt::new(spec, vmm, tasks);
    let outcome = tokio::time::timeout(attempt.limit(), attempt.boot()).await;
    attempt.conclude(outcome).await
}

/// Makes the template for machines like this one, unless it is there. Dropping the future, or an error, leaves no
/// process behind.
pub(super) async fn make_template(
    spec: &LaunchSpec,
    vmm: &dyn Vmm,
    tasks: &LocalSet,
) -> Result<(), BootFailure> {
    let mut attempt = Attempt::new(spec, vmm, tasks);
    let limit = attempt.limit();
    let make = async {
        let Some(dir) = &spec.template_dir else { return Err("this host has no templates".to_owned()) };
        let templates = Templates::new(dir, spec, vmm).await;
        attempt.find_or_make_template(&templates).await.map(drop)
    };
    let outcome = tokio::time::timeout(limit, make).await;
    attempt.conclude(outcome).await
}

struct Attempt<'a> {
    spec: &'a LaunchSpec,
    vmm: &'a dyn Vmm,
    tasks: &'a LocalSet,
    started: Instant,
    stages: Stages,
    console: Option<Console>,
}

impl<'a> Attempt<'a> {
    fn new(spec: &'a LaunchSpec, vmm: &'a dyn Vmm, tasks: &'a LocalSet) -> Self {
        let stages = Stages::begin(BootStage::Disks);
        Self { spec, vmm, tasks, started: Instant::now(), stages, console: None }
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.spec.boot_limit_seconds)
    }

    async fn conclude<T>(self, outcome: Result<Result<T, String>, Elapsed>) -> Result<T, BootFailure> {
        let cause = match outcome {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(cause)) => cause,
            Err(_) => format!("not done after {} seconds", self.spec.boot_limit_seconds),
        };
        let console = match self.console {
            Some(console) => console.last_words().await,
            None => Vec::new(),
        };
        Err(BootFailure { stage: self.stages.current(), cause, console })
    }

    async fn boot(&mut self) -> Result<RunningMachine, String> {
        let mut warning = None;
        // A layer from an earlier start holds what no template knows of.
        if let (Some(dir), false) = (&self.spec.template_dir, self.spec.dir.join(files::LAYER).exists()) {
            let templates = Templates::new(dir, self.spec, self.vmm).await;
            match self.boot_from_template(&templates).await {
                Ok(machine) => return Ok(machine),
                Err(reason) => {
                    tracing::warn!(reason, "no start from a template");
                    let _ = std::fs::remove_file(self.spec.dir.join(files::LAYER));
                    warning = Some(reason);
                }
            }
        }
        self.boot_kernel(warning).await
    }

    async fn boot_kernel(&mut self, warning: Option<String>) -> Result<RunningMachine, String> {
        let (mut network, network_end) = self.start_network()?.unzip();
        let dir = &self.spec.dir;
        let (mut process, mut connections) = self.launch_kernel(dir, network_end, None).await?;
        let config = network.as_ref().map(|network| network.config().clone());
        let up = async {
            let release = self.prepare_guest(&mut connections.channel, false).await?;
            self.stages.enter(BootStage::Identity);
            mux::set_up(&mut connections.channel, identity(&self.spec.vm_id, config)?)
                .await
                .map_err(|error| chain(&error))?;
            Ok(release)
        };
        let release = with_network(&mut network, process.during(up)).await?;
        Ok(self.running(process, connections.channel, network, release, StartMode::Cold, warning))
    }

    async fn boot_from_template(&mut self, templates: &Templates) -> Result<RunningMachine, String> {
        let template = self.find_or_make_template(templates).await?;
        self.stages.enter(BootStage::Disks);
        let disks = self.disks();
        layer::instantiate(&template.layer(), &disks.layer).map_err(|error| chain(&error))?;
        let (mut network, network_end) = self.start_network()?.unzip();

        self.stages.enter(BootStage::Vmm);
        let start = Start::Template { memory: template.memory() };
        let (mut process, mut connections) =
            self.launch(disks, network_end, start, &self.spec.dir.join(files::SERIAL_LOG))?;
        let config = network.as_ref().map(|network| network.config().clone());
        let control = connections.control.take().ok_or("no control connection")?;
        let up = async {
            let mut qmp = Qmp::connect(control).await.map_err(|error| chain(&error))?;
            self.stages.enter(BootStage::Restore);
            qmp.load(&template.state()).await.map_err(|error| chain(&error))?;
            self.stages.enter(BootStage::Identity);
            mux::set_up(&mut connections.channel, identity(&self.spec.vm_id, config)?)
                .await
                .map_err(|error| chain(&error))
        };
        // Whatever is wrong with it, the next start must not meet it again. That the network failed says nothing.
        let restore = async { process.during(up).await.inspect_err(|_| templates.discard(&template)) };
        with_network(&mut network, restore).await?;
        let release = template.kernel_release().to_owned();
        Ok(self.running(process, connections.channel, network, release, StartMode::Template, None))
    }

    async fn find_or_make_template(&mut self, templates: &Templates) -> Result<Template, String> {
        if let Some(template) = templates.find() {
            return Ok(template);
        }
        match templates.recent_failure() {
            Some(reason) => Err(reason),
            None => self.make_template(templates).await.inspect_err(|reason| templates.failed(reason)),
        }
    }

    /// Boots a machine that nobody will use, saves it and ends it. One process makes it, others wait.
    async fn make_template(&mut self, templates: &Templates) -> Result<Template, String> {
        let layer_bytes = std::fs::metadata(&self.spec.guest.layer_template).map_or(0, |file| file.len());
        let room = layer_bytes + (u64::from(self.spec.machine.mem_mib) << 20);
        let partial = match templates.begin(room).await? {
            Ok(partial) => partial,
            Err(made_meanwhile) => return Ok(made_meanwhile),
        };
        let dir = partial.dir().to_owned();
        // The interface leads nowhere; a clone's is connected.
        let network_end = match self.spec.network {
            true => Some(std::os::unix::net::UnixStream::pair().map_err(|error| chain(&error))?),
            false => None,
        };
        let (dangling, vmm_end) = network_end.unzip();
        let (mut process, mut connections) =
            self.launch_kernel(&dir, vmm_end.map(OwnedFd::from), Some(partial.memory())).await?;
        let control = connections.control.take().ok_or("no control connection")?;
        let saved = async {
            let mut qmp = Qmp::connect(control).await.map_err(|error| chain(&error))?;
            let release = self.prepare_guest(&mut connections.channel, true).await?;
            qmp.save(&partial.state()).await.map_err(|error| chain(&error))?;
            Ok(release)
        };
        let release = process.during(saved).await?;
        let _ = process.child.kill().await;
        drop(dangling);
        for name in [files::INITRD, files::SERIAL_LOG] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        templates.finish(partial, release, &self.spec.guest.digest)
    }

    /// Starts the machine's kernel, with its files in `dir`.
    async fn launch_kernel(
        &mut self,
        dir: &Path,
        network_end: Option<OwnedFd>,
        memory: Option<PathBuf>,
    ) -> Result<(VmmProcess, Connections), String> {
        self.stages.enter(BootStage::Disks);
        let tsc = (self.spec.machine.accelerator == Accelerator::Tcg).then(tsc::Measurement::start);
        let disks = Disks { initrd: dir.join(files::INITRD), layer: dir.join(files::LAYER), ..self.disks() };
        initrd::write(&disks.initrd, self.spec.guest.kernel.modules())
            .map_err(|error| format!("cannot write {}: {error}", disks.initrd.display()))?;
        layer::instantiate(&self.spec.guest.layer_template, &disks.layer).map_err(|error| chain(&error))?;
        let tsc_khz = match tsc {
            Some(measurement) => measurement.finish().await,
            None => None,
        };
        self.stages.enter(BootStage::Vmm);
        let started =
            self.launch(disks, network_end, Start::Kernel { tsc_khz, memory }, &dir.join(files::SERIAL_LOG))?;
        self.stages.enter(BootStage::Kernel);
        Ok(started)
    }

    fn launch(
        &mut self,
        disks: Disks,
        network_end: Option<OwnedFd>,
        start: Start,
        serial_log: &Path,
    ) -> Result<(VmmProcess, Connections), String> {
        let needs_control = start.needs_control();
        let network = self.spec.network.then(NetworkAttachment::default);
        let plan = self.vmm.plan(&Hardware { machine: self.spec.machine.clone(), disks, network, start });
        let (process, connections) = launch(&plan, needs_control, network_end, serial_log, self.tasks)?;
        self.console = Some(process.console.clone());
        Ok((process, connections))
    }

    /// From the kernel's start to a guest that could be saved.
    async fn prepare_guest(&self, channel: &mut UnixStream, warm_up: bool) -> Result<String, String> {
        let hello = mux::receive_hello(channel).await.map_err(|error| chain(&error))?;
        self.stages.enter(BootStage::Guest);
        let base_filesystem = self.spec.guest.base_filesystem.clone();
        let preparation = Preparation { generation: GENERATION, base_filesystem, warm_up };
        mux::set_up(channel, preparation).await.map_err(|error| chain(&error))?;
        Ok(hello.kernel_release)
    }

    /// The network's helper, and the VMM's end of its link.
    fn start_network(&self) -> Result<Option<(Network, OwnedFd)>, String> {
        if !self.spec.network {
            return Ok(None);
        }
        self.stages.enter(BootStage::Network);
        Network::start().map(Some)
    }

    fn disks(&self) -> Disks {
        Disks {
            kernel: self.spec.guest.kernel.image().to_owned(),
            initrd: self.spec.dir.join(files::INITRD),
            base_image: self.spec.guest.base_image.clone(),
            layer: self.spec.dir.join(files::LAYER),
            layer_lifetime: self.spec.layer_lifetime(),
        }
    }

    fn running(
        &self,
        process: VmmProcess,
        channel: UnixStream,
        network: Option<Network>,
        kernel_release: String,
        start_mode: StartMode,
        warning: Option<String>,
    ) -> RunningMachine {
        let (streams, driver) = mux::drive(channel);
        self.tasks.spawn_local(driver);
        let info = BootInfo {
            kernel_release,
            boot_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            accelerator: self.spec.machine.accelerator,
            network: network.as_ref().map(Network::description),
            start_mode,
            warning,
            stages: self.stages.end(),
        };
        RunningMachine { vmm: process.child, network, streams, console: process.console, info }
    }
}

/// What makes the guest the VM with this id and no other.
pub(super) fn identity(vm_id: &str, network: Option<NetworkConfig>) -> Result<Bootstrap, String> {
    let mut random = [0; 48];
    getrandom::fill(&mut random).map_err(|error| format!("no random numbers: {error}"))?;
    let (seed, machine_id) = random.split_at(32);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Bootstrap {
        // Good until the year 2554.
        unix_time_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        seed: hex(seed),
        hostname: format!("pyro-{vm_id}"),
        machine_id: hex(machine_id),
        network,
    })
}

/// Does `work`, which needs the network's helper. If that ends, it is the reason that the work failed.
async fn with_network<T>(
    network: &mut Option<Network>,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let failure = async {
        match network {
            Some(network) => network.failure().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        done = work => done,
        reason = failure => Err(reason),
    }
}

/// An error and its causes in one line, for a message that leaves the process.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
