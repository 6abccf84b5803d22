//! QEMU. Code outside this directory refers to it only by the type [`Qemu`].

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
use crate::network::{Network, NetworkError, NetworkHelper, Provider};
use crate::platform::{Capabilities, Fingerprint, FingerprintError, LaunchError, Platform, while_alive};
use crate::spawn::Spawn;
use arguments::{CHANNEL_FD, CONTROL_FD, NETWORK_FD};
use clock::Clock;
use qmp::Qmp;

pub use machine::QemuMachine;
#[cfg(fuzzing)]
pub(crate) use qmp::converse;

/// Name of the channel between host and guest, as payloads report it.
pub const CHANNEL: &str = "virtio-serial";

/// The platform whose machines are QEMU processes.
#[derive(Debug)]
pub struct Qemu {
    clock: Clock,
    network_helper: Option<NetworkHelper>,
}

impl Default for Qemu {
    fn default() -> Self {
        Self::new()
    }
}

impl Qemu {
    /// Has no effects. The first launch is faster if this was called a few milliseconds earlier.
    pub fn new() -> Self {
        Self { clock: Clock::start(), network_helper: None }
    }

    /// Sets the process that carries the packets of machines with a network.
    #[must_use]
    pub fn with_network_helper(self, helper: NetworkHelper) -> Self {
        Self { network_helper: Some(helper), ..self }
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

    fn start_network(&self, provider: Provider) -> Result<Network, NetworkError> {
        provider.start(self.network_helper.as_ref())
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::task::LocalSet;

    use super::*;
    use crate::console::Console;
    use crate::disk::LayerLifetime;
    use crate::exit::Interrupted;
    use crate::fake_program::fake_program;
    use crate::hardware::MachineConfig;
    use crate::platform::{Machine, MachineError};

    /// Launches a shell script, kept in `dir`, in place of QEMU. It ignores its arguments.
    async fn launch(
        dir: &tempfile::TempDir,
        script: &str,
        start: Start,
    ) -> (Result<QemuMachine, LaunchError>, Console) {
        launch_program(fake_program(dir.path(), script), start).await
    }

    async fn launch_program(
        vmm_program: std::path::PathBuf,
        start: Start,
    ) -> (Result<QemuMachine, LaunchError>, Console) {
        let console = Console::in_memory();
        let config =
            MachineConfig { vmm_program, accelerator: Accelerator::Tcg, vcpu_count: 1, mem_mib: 512 };
        let launch = Launch {
            hardware: Hardware { config, layer_lifetime: LayerLifetime::OneStart, interface: None },
            disks: Disks {
                kernel: "/none".into(),
                initrd: "/none".into(),
                base_image: "/none".into(),
                layer: "/none".into(),
            },
            network: None,
            start,
            console: console.clone(),
        };
        (Qemu::new().launch(launch).await, console)
    }

    const KERNEL: Start = Start::Kernel { memory: None };

    fn saved() -> Start {
        Start::Saved { memory: "/none".into() }
    }

    #[tokio::test]
    async fn the_channel_and_the_console_are_those_of_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let work = async {
            let (machine, console) =
                launch(&dir, "echo booting; echo oops >&2; printf hello >&3; exit 7", KERNEL).await;
            let mut machine = machine.unwrap();
            let mut channel = machine.take_channel().unwrap();
            assert!(machine.take_channel().is_none());
            let mut text = String::new();
            channel.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "hello");
            assert_eq!(machine.exited().await.status(), "exit status: 7");
            assert_eq!(machine.exited().await.status(), "exit status: 7");
            let mut words = console.last_words().await;
            words.sort();
            assert_eq!(words, ["booting", "oops"]);
            assert!(machine.network().is_none());
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn kill_ends_it_and_is_repeatable() {
        let dir = tempfile::tempdir().unwrap();
        let work = async {
            let mut machine = launch(&dir, "exec sleep 600", KERNEL).await.0.unwrap();
            machine.kill().await;
            machine.kill().await;
            assert_eq!(machine.exited().await.status(), "signal: 9 (SIGKILL)");
            let error = machine.save(Path::new("/none")).await.unwrap_err();
            assert!(matches!(error, Interrupted::Failed(MachineError::NoControl)), "{error}");
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn an_end_before_the_control_connection_is_up_explains_the_failure() {
        let dir = tempfile::tempdir().unwrap();
        let work = async {
            let (failed, console) = launch(&dir, "echo no such option >&2; exit 1", saved()).await;
            let error = failed.unwrap_err();
            assert!(error.to_string().starts_with("the VMM ended: exit status: 1"), "{error}");
            assert_eq!(console.last_words().await, ["no such option"]);
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let work = async {
            let error = launch_program("/nonexistent/vmm".into(), KERNEL).await.0.unwrap_err();
            assert_eq!(error.to_string(), "cannot run /nonexistent/vmm");
            assert!(
                matches!(error, LaunchError::Run { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
            );
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn a_command_that_the_machine_does_not_survive_is_explained_by_its_exit() {
        let script = r#"
            say() { printf '%s\n' "$1" >&5; }
            say '{"QMP": {}}'; say '{"return": {}}'; say '{"return": {}}'
            echo $$
            exec sleep 600"#;
        let dir = tempfile::tempdir().unwrap();
        let work = async {
            let (machine, console) = launch(&dir, script, saved()).await;
            let mut machine = machine.unwrap();
            let kill = async {
                let pid = loop {
                    match console.tail().first() {
                        Some(line) => break line.parse().unwrap(),
                        None => tokio::task::yield_now().await,
                    }
                };
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            };
            let (restored, ()) = tokio::join!(machine.restore(Path::new("/none")), kill);
            let error = restored.unwrap_err();
            let exit = match error {
                Interrupted::Exited(exit) | Interrupted::FailedByExit { exit, .. } => exit,
                other => panic!("{other}"),
            };
            assert_eq!(exit.status(), "signal: 9 (SIGKILL)");
        };
        LocalSet::new().run_until(work).await;
    }
}
