//! Brings one machine up, from a template if there can be one, otherwise from its kernel. Each step has a name, so that
//! a failure can report where it happened.

mod patience;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pyro_machine::disk::LayerError;
use pyro_machine::initrd::InitrdError;
use pyro_machine::network::{
    MacAddress, Network, NetworkDescription, NetworkError, NetworkSettings, Provider,
};
use pyro_machine::snapshot::{Begun, Partial, Snapshot, SnapshotError, Store};
use pyro_machine::{
    Channel, Console, ConsoleError, Disks, Interrupted, Launch, LaunchError, Machine, MachineError, Platform,
    SavedFiles, Start, disk, initrd, while_alive,
};
use pyro_wire::{Bootstrap, GENERATION, Ipv6Config, NetworkConfig, Preparation};
use tokio::net::UnixStream;
use tokio::task::LocalSet;

use self::patience::{Late, Watched};
use super::stages::Reporter;
use super::{BootFailure, BootInfo, BootStage, StartMode, files};
use crate::mux::{self, HandshakeError, Streams};
use crate::spec::LaunchSpec;

/// A machine whose guest takes commands.
pub(super) struct RunningMachine<M> {
    pub(super) machine: M,
    pub(super) streams: Streams,
    pub(super) info: BootInfo,
}

/// Boots the machine, and reports which step it is at. Dropping the future, or an error, leaves no process behind.
pub(super) async fn boot<P: Platform>(
    spec: &LaunchSpec,
    platform: &P,
    tasks: &LocalSet,
    reporter: Reporter,
) -> Result<RunningMachine<P::Machine>, BootFailure> {
    let attempt = Attempt::new(spec, platform, tasks, reporter);
    let outcome = attempt.boot().await;
    attempt.conclude(outcome).await
}

/// Makes the template for machines like this one, unless it exists, and reports which step that is at. Dropping the
/// future, or an error, leaves no process behind.
pub(super) async fn make_template<P: Platform>(
    spec: &LaunchSpec,
    platform: &P,
    tasks: &LocalSet,
    reporter: Reporter,
) -> Result<(), BootFailure> {
    let attempt = Attempt::new(spec, platform, tasks, reporter);
    let make = async {
        let Some(dir) = &spec.template_dir else { return Err(BootError::NoTemplates) };
        let store = attempt.open_store(dir).await?;
        attempt.find_or_make_template(&store).await.map(drop)
    };
    let outcome = make.await;
    attempt.conclude(outcome).await
}

/// Why a machine did not come up.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("this host has no templates")]
    NoTemplates,
    #[error("{0}")]
    FailedRecently(String),
    #[error("timed out after {} seconds waiting for the template", .0.as_secs())]
    TemplateTimedOut(Duration),
    #[error("timed out after {} seconds waiting for the guest that was started from the template", .0.as_secs())]
    RestoreTimedOut(Duration),
    #[error(transparent)]
    Late(#[from] Late),
    #[error(transparent)]
    Template(#[from] SnapshotError),
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Machine(#[from] Interrupted<MachineError>),
    #[error(transparent)]
    Guest(#[from] Interrupted<GuestError>),
}

impl BootError {
    /// Returns whether a machine started from a template failed in a way that means the next start must not use that
    /// template. A network failure is unrelated to the template.
    fn condemns_template(&self) -> bool {
        match self {
            Self::Launch(LaunchError::Failed(Interrupted::Network(_)))
            | Self::Machine(Interrupted::Network(_))
            | Self::Guest(Interrupted::Network(_)) => false,
            Self::Launch(LaunchError::Failed(_)) | Self::Machine(_) | Self::Guest(_) => true,
            // Its guest may have been saved in a state in which it does not answer.
            Self::RestoreTimedOut(_) => true,
            _ => false,
        }
    }
}

/// Why a guest was not set up.
#[derive(Debug, thiserror::Error)]
enum GuestError {
    #[error("the guest's channel is in use")]
    NoChannel,
    #[error("cannot accept the guest's connection")]
    Accept(#[source] io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// The host provided no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("no random numbers")]
pub(super) struct NoRandomness(#[source] getrandom::Error);

struct Attempt<'a, P> {
    spec: &'a LaunchSpec,
    platform: &'a P,
    tasks: &'a LocalSet,
    started: Instant,
    watched: Watched,
}

/// How a machine came up.
struct CameUp {
    kernel_release: String,
    start_mode: StartMode,
    warning: Option<String>,
}

impl<'a, P: Platform> Attempt<'a, P> {
    fn new(spec: &'a LaunchSpec, platform: &'a P, tasks: &'a LocalSet, reporter: Reporter) -> Self {
        let watched = Watched::new(BootStage::Disks, reporter);
        Self { spec, platform, tasks, started: Instant::now(), watched }
    }

    /// The limit for a machine to boot its kernel.
    fn limit(&self) -> Duration {
        Duration::from_secs(self.spec.boot_limit_seconds)
    }

    /// The limit for everything else. What takes longer is left, and the kernel is booted instead.
    fn template_limit(&self) -> Duration {
        self.limit() / 2
    }

    fn enter(&self, stage: BootStage) {
        self.watched.stages.enter(stage);
    }

    async fn conclude<T>(self, outcome: Result<T, BootError>) -> Result<T, BootFailure> {
        let error = match outcome {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let console = match self.watched.console.take() {
            Some(console) => console.last_words().await,
            None => Vec::new(),
        };
        let timed_out = matches!(error, BootError::Late(_) | BootError::TemplateTimedOut(_));
        let (stage, cause) = (self.watched.stages.current(), with_causes(&error));
        Err(BootFailure { stage, cause, console, timed_out })
    }

    async fn boot(&self) -> Result<RunningMachine<P::Machine>, BootError> {
        let mut warning = None;
        // A layer from an earlier start contains data that no template has.
        if let (Some(dir), false) = (&self.spec.template_dir, self.spec.dir.join(files::LAYER).exists()) {
            let booted = match self.open_store(dir).await {
                Ok(store) => self.boot_from_template(&store).await,
                Err(error) => Err(error),
            };
            match booted {
                Ok(machine) => return Ok(machine),
                Err(error) => {
                    let reason = with_causes(&error);
                    tracing::warn!(reason, "no start from a template");
                    let _ = std::fs::remove_file(self.spec.dir.join(files::LAYER));
                    warning = Some(reason);
                }
            }
        }
        self.watched.within(self.limit(), self.boot_kernel(warning)).await?
    }

    async fn open_store(&self, dir: &Path) -> Result<Store, BootError> {
        Ok(Store::open(dir, &self.spec.subject(), self.platform).await?)
    }

    async fn boot_kernel(&self, warning: Option<String>) -> Result<RunningMachine<P::Machine>, BootError> {
        let network = self.start_network()?;
        let mut machine = self.launch_kernel(&self.spec.dir, network, None).await?;
        let channel = machine.take_channel();
        let config = machine.network().map(network_config);
        let up = async {
            let mut channel = open(channel).await?;
            let release = self.prepare_guest(&mut channel, false).await?;
            self.identify(&mut channel, config).await?;
            Ok::<_, GuestError>((release, channel))
        };
        let (kernel_release, channel) = while_alive(&mut machine, up).await?;
        let came_up = CameUp { kernel_release, start_mode: StartMode::Cold, warning };
        Ok(self.running(machine, channel, came_up))
    }

    async fn boot_from_template(&self, store: &Store) -> Result<RunningMachine<P::Machine>, BootError> {
        let template = self.find_or_make_template(store).await?;
        self.enter(BootStage::Disks);
        let disks = self.disks();
        disk::instantiate(template.layer(), &disks.layer)?;
        let network = self.start_network()?;
        let limit = self.template_limit();
        let restored = self.watched.within(limit, self.restore(&template, disks, network)).await;
        let restored = restored.unwrap_or_else(|_| {
            let late = BootError::RestoreTimedOut(limit);
            // Another attempt would cost as much again.
            store.failed(&with_causes(&late));
            Err(late)
        });
        let (machine, channel) = restored.inspect_err(|error| {
            if error.condemns_template() {
                store.discard(&template);
            }
        })?;
        let kernel_release = template.kernel_release().to_owned();
        let came_up = CameUp { kernel_release, start_mode: StartMode::Template, warning: None };
        Ok(self.running(machine, channel, came_up))
    }

    /// Starts a machine from a template and makes its guest this VM.
    async fn restore(
        &self,
        template: &Snapshot,
        disks: Disks,
        network: Option<Network>,
    ) -> Result<(P::Machine, UnixStream), BootError> {
        self.enter(BootStage::Vmm);
        let start = Start::Saved { files: template.saved_files() };
        let mut machine = self.launch(disks, network, start, &self.spec.dir.join(files::SERIAL_LOG)).await?;
        self.enter(BootStage::Restore);
        machine.restore(template.state()).await?;
        let channel = machine.take_channel();
        let config = machine.network().map(network_config);
        let identified = async {
            let mut channel = open(channel).await?;
            self.identify(&mut channel, config).await?;
            Ok::<_, GuestError>(channel)
        };
        let channel = while_alive(&mut machine, identified).await?;
        Ok((machine, channel))
    }

    async fn find_or_make_template(&self, store: &Store) -> Result<Snapshot, BootError> {
        if let Some(template) = store.find() {
            return Ok(template);
        }
        match store.recent_failure() {
            Some(reason) => Err(BootError::FailedRecently(reason)),
            None => self.make_template(store).await,
        }
    }

    /// One process makes the template, the others wait for it. Has half of the limit of a boot, so that the kernel can be
    /// booted instead.
    async fn make_template(&self, store: &Store) -> Result<Snapshot, BootError> {
        let layer_bytes = std::fs::metadata(&self.spec.guest.layer_template).map_or(0, |file| file.len());
        let wanted = layer_bytes + (u64::from(self.spec.machine.mem_mib) << 20);
        let limit = self.template_limit();
        let failed = |error: BootError| {
            store.failed(&with_causes(&error));
            error
        };
        let partial = match self.watched.within(limit, store.begin(wanted)).await {
            Ok(Ok(Begun::Partial(partial))) => partial,
            Ok(Ok(Begun::MadeMeanwhile(template))) => return Ok(*template),
            // It is recorded already.
            Ok(Ok(Begun::FailedMeanwhile(reason))) => return Err(BootError::FailedRecently(reason)),
            Ok(Err(error)) => return Err(failed(error.into())),
            Err(_) => return Err(failed(BootError::TemplateTimedOut(limit))),
        };
        // A failure is recorded before the next process gets the lock, so that it does not try the same again.
        let saved = self.watched.within(limit, self.save_template(&partial)).await;
        let saved = saved.unwrap_or(Err(BootError::TemplateTimedOut(limit)));
        let release = saved.map_err(failed)?;
        let guest = &self.spec.guest;
        let finished = store.finish(partial, release, &guest.digest, guest.base_image.path());
        finished.map_err(|error| failed(error.into()))
    }

    /// Boots a throwaway machine, saves it and ends it. Returns its kernel's release.
    async fn save_template(&self, partial: &Partial) -> Result<String, BootError> {
        let dir = partial.dir().to_owned();
        // Only a clone's interface is connected.
        let network = self.connect(Provider::Unconnected)?;
        let mut machine = self.launch_kernel(&dir, network, Some(partial.saved_files())).await?;
        let channel = machine.take_channel();
        let prepared = async {
            let mut channel = open(channel).await?;
            let release = self.prepare_guest(&mut channel, true).await?;
            // The guest must not see its channel close before it is saved.
            Ok::<_, GuestError>((release, channel))
        };
        let (release, _channel) = while_alive(&mut machine, prepared).await?;
        machine.save(&partial.state()).await?;
        machine.kill().await;
        for name in [files::INITRD, files::SERIAL_LOG] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        Ok(release)
    }

    /// Starts the machine's kernel, with its files in `dir`.
    async fn launch_kernel(
        &self,
        dir: &Path,
        network: Option<Network>,
        save_in: Option<SavedFiles>,
    ) -> Result<P::Machine, BootError> {
        self.enter(BootStage::Disks);
        let disks = Disks { initrd: dir.join(files::INITRD), layer: dir.join(files::LAYER), ..self.disks() };
        initrd::write(&disks.initrd, self.spec.guest.kernel.modules())?;
        disk::instantiate(&self.spec.guest.layer_template.clone().into(), &disks.layer)?;
        self.enter(BootStage::Vmm);
        let start = Start::Kernel { save_in };
        let machine = self.launch(disks, network, start, &dir.join(files::SERIAL_LOG)).await?;
        self.enter(BootStage::Kernel);
        Ok(machine)
    }

    async fn launch(
        &self,
        disks: Disks,
        network: Option<Network>,
        start: Start,
        serial_log: &Path,
    ) -> Result<P::Machine, BootError> {
        let console = Console::create(serial_log)?;
        self.watched.console.replace(Some(console.clone()));
        let launch = Launch {
            hardware: self.spec.hardware(),
            disks,
            network,
            start,
            console,
            requires_full_confinement: self.spec.requires_full_confinement,
        };
        let machine = self.platform.launch(launch).await?;
        self.watched.follow(&machine);
        Ok(machine)
    }

    /// Brings the guest from the kernel's start to a state that could be saved.
    async fn prepare_guest(&self, channel: &mut UnixStream, warm_up: bool) -> Result<String, HandshakeError> {
        let hello = mux::receive_hello(channel).await?;
        self.enter(BootStage::Guest);
        let base_filesystem = self.spec.guest.base_filesystem.clone();
        let preparation = Preparation { generation: GENERATION, base_filesystem, warm_up };
        mux::set_up(channel, preparation).await?;
        Ok(hello.kernel_release)
    }

    /// Gives the guest the identity of this VM.
    async fn identify(
        &self,
        channel: &mut UnixStream,
        network: Option<NetworkConfig>,
    ) -> Result<(), GuestError> {
        self.enter(BootStage::Identity);
        Ok(mux::set_up(channel, identity(self.spec, network)?).await?)
    }

    /// Starts what carries the VM's packets, if it has a network.
    fn start_network(&self) -> Result<Option<Network>, NetworkError> {
        if self.spec.network {
            self.enter(BootStage::Network);
        }
        self.connect(Provider::Policed(NetworkSettings {
            mac_address: mac_address(&self.spec.vm_id),
            policy: self.spec.network_policy.clone(),
            denials: self.spec.dir.join(files::NETWORK_DENIALS),
        }))
    }

    fn connect(&self, provider: Provider) -> Result<Option<Network>, NetworkError> {
        self.spec.network.then(|| self.platform.start_network(provider)).transpose()
    }

    fn disks(&self) -> Disks {
        Disks {
            kernel: self.spec.guest.kernel.image().clone(),
            initrd: self.spec.dir.join(files::INITRD),
            base_image: self.spec.guest.base_image.clone(),
            layer: self.spec.dir.join(files::LAYER),
        }
    }

    fn running(
        &self,
        machine: P::Machine,
        channel: UnixStream,
        came_up: CameUp,
    ) -> RunningMachine<P::Machine> {
        let CameUp { kernel_release, start_mode, warning } = came_up;
        let (streams, driver) = mux::drive(channel, self.spec.pace);
        self.tasks.spawn_local(driver);
        let info = BootInfo {
            kernel_release,
            boot_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            accelerator: self.spec.machine.accelerator,
            vmm: self.spec.vmm,
            network: machine.network().cloned(),
            ports: Vec::new(),
            confinement: Some(Box::new(machine.confinement().clone())),
            network_confinement: machine.network_confinement().map(Box::new),
            supervisor_restricted: None,
            start_mode,
            warning,
            stages: self.watched.stages.end(),
        };
        RunningMachine { machine, streams, info }
    }
}

/// Waits until the guest's channel is open.
async fn open(channel: Option<Channel>) -> Result<UnixStream, GuestError> {
    channel.ok_or(GuestError::NoChannel)?.open().await.map_err(GuestError::Accept)
}

/// Returns the network settings for the guest.
fn network_config(description: &NetworkDescription) -> NetworkConfig {
    let NetworkDescription { address, prefix_len, gateway, dns_servers, mac_address, mtu, ipv6 } =
        description.clone();
    let ipv6 = ipv6.map(|ipv6| Ipv6Config {
        address: ipv6.address,
        prefix_len: ipv6.prefix_len,
        gateway: ipv6.gateway,
    });
    NetworkConfig { address, prefix_len, gateway, dns_servers, mac_address: Some(mac_address), mtu, ipv6 }
}

/// Returns the hardware address of a VM: `06:00:` and the first four bytes of its id.
fn mac_address(vm_id: &str) -> MacAddress {
    let mut address = [0x06, 0, 0, 0, 0, 0];
    // An id consists of twelve hexadecimal digits.
    let _ = vm_id.get(..8).map(|digits| hex::decode_to_slice(digits, &mut address[2..]));
    MacAddress(address)
}

/// Returns the bootstrap that makes the guest this VM and no other.
pub(super) fn identity(spec: &LaunchSpec, network: Option<NetworkConfig>) -> Result<Bootstrap, NoRandomness> {
    let mut random = [0; 48];
    getrandom::fill(&mut random).map_err(NoRandomness)?;
    let (seed, machine_id) = random.split_at(32);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Bootstrap {
        // Valid until the year 2554.
        unix_time_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        seed: hex::encode(seed),
        hostname: format!("pyro-{}", spec.vm_id),
        machine_id: hex::encode(machine_id),
        network,
        host: spec.host_settings.clone(),
    })
}

/// Formats an error and its causes in one line, for a message that leaves the process.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
