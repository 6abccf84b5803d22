//! QEMU. Code outside this directory refers to it only by the type [`Qemu`].

mod arguments;
pub(crate) mod cage;
mod clock;
mod machine;
pub(crate) mod process;
mod qmp;
pub(crate) mod version;

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyro_confine::{Access, Confinement, Identity, Program, StartError, Visible};
use tokio::net::UnixStream;

use crate::accel::{self, Accelerator};
use crate::hardware::{Disks, Hardware, Launch, SavedFiles, Start};
use crate::network::{Network, NetworkError, NetworkHelper, Provider};
use crate::platform::{
    Capabilities, Fingerprint, FingerprintError, LaunchError, Machine, Platform, while_alive,
};
use arguments::{CHANNEL_FD, CONTROL_FD, KVM_FD, NETWORK_FD};
use clock::Clock;
use process::VmmProcess;
use qmp::Qmp;

pub use machine::QemuMachine;
#[cfg(fuzzing)]
pub(crate) use qmp::converse;

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

/// Starts `program`, which prints its version, confined like a VMM, and returns how far this host confines it. Blocks.
///
/// # Errors
/// The program cannot be started.
pub fn probe_confinement(program: &Path) -> Result<Confinement, LaunchError> {
    let nothing =
        || File::options().read(true).write(true).open("/dev/null").map_err(LaunchError::Connection);
    let descriptors = vec![(nothing()?.into(), 0), (nothing()?.into(), 1), (nothing()?.into(), 2)];
    let command = Program {
        program: program.to_owned(),
        arguments: vec!["--version".into()],
        descriptors,
        blocked_signals: Vec::new(),
        huge_pages: true,
    };
    let policy = cage::policy_of_program(program, Identity::for_program());
    // Kept until the process is gone: a group that has one cannot be removed.
    let group = cage::group_of_program();
    let mut started = pyro_confine::start_in(group.clone(), command, &policy)
        .map_err(|error| launch_error(program.to_owned(), error))?;
    started.process.kill();
    // It was killed, so its status says nothing.
    let _ = started.process.wait();
    drop(group);
    Ok(started.confinement)
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
        let files = SavedFiles { memory: "memory".into(), state: "state".into() };
        let start = Start::Kernel { save_in: Some(files) };
        let arguments = arguments::arguments(hardware, &disks, &start, None);
        let mut arrangement: Vec<_> =
            arguments.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
        if hardware.config.accelerator == Accelerator::Kvm {
            // The guest's processor is the host's.
            arrangement.push(accel::processor());
        }
        Ok(Fingerprint { arrangement, saves_machines: version::saves_machines(&version), version })
    }

    fn is_fingerprint_cached(&self, hardware: &Hardware, cache: &Path) -> bool {
        version::is_remembered(cache, &hardware.config.vmm_program)
    }

    fn start_network(&self, provider: Provider) -> Result<Network, NetworkError> {
        provider.start(self.network_helper.as_ref())
    }

    async fn launch(&self, launch: Launch) -> Result<QemuMachine, LaunchError> {
        let Launch { hardware, disks, mut network, start, console, requires_full_confinement } = launch;
        let tsc_khz = match (&start, hardware.config.accelerator) {
            (Start::Kernel { .. }, Accelerator::Tcg) => self.clock.khz().await,
            _ => None,
        };
        if let Start::Kernel { save_in: Some(files) } = &start {
            create(files.memory.path())?;
            create(files.state.path())?;
        }
        let mut identity = Identity::for_program();
        let (channel, channel_end) = connection()?;
        let (stdout, stdout_end) = io::pipe().map_err(LaunchError::Connection)?;
        let (stderr, stderr_end) = io::pipe().map_err(LaunchError::Connection)?;
        let nothing = File::open("/dev/null").map_err(LaunchError::Connection)?;
        let mut descriptors: Vec<(OwnedFd, RawFd)> = vec![
            (nothing.into(), 0),
            (stdout_end.into(), 1),
            (stderr_end.into(), 2),
            (channel_end, CHANNEL_FD),
        ];
        if let Some(link) = network.as_mut().and_then(Network::take_link) {
            descriptors.push((link, NETWORK_FD));
        }
        let (control, control_end) = connection()?;
        descriptors.push((control_end, CONTROL_FD));
        let mut arguments = arguments::arguments(&hardware, &disks, &start, tsc_khz);
        let mut opens_kvm = false;
        if hardware.config.accelerator == Accelerator::Kvm {
            let unusable = |source| LaunchError::File { path: cage::KVM.into(), source };
            let device = std::fs::metadata(cage::KVM).map_err(unusable)?;
            match identity.for_device(&device) {
                Some(able) => (identity, opens_kvm) = (able, true),
                // Only root can open it. Not every version of QEMU takes it as a descriptor.
                None => {
                    let device = File::options().read(true).write(true).open(cage::KVM).map_err(unusable)?;
                    descriptors.push((device.into(), KVM_FD));
                    arguments = arguments::with_kvm_by_descriptor(arguments);
                }
            }
        }
        let mut policy = cage::policy(&hardware, &disks, &start, identity)?;
        if opens_kvm {
            policy.files.push(Visible::new(cage::KVM, Access::Device));
        }
        let program = hardware.config.vmm_program.clone();
        let command = Program {
            program: program.clone(),
            arguments,
            descriptors,
            // The supervisor ends it in an orderly way. QEMU does not change its signal mask.
            blocked_signals: vec![libc::SIGTERM, libc::SIGINT, libc::SIGHUP],
            huge_pages: arguments::huge_pages(hardware.config.accelerator),
        };
        let group = cage::group(&hardware.config, &disks, &start);
        let moving = group.as_ref().ok().zip(network.as_ref().and_then(Network::process_id));
        // The kernel may take some milliseconds, in which the VMM is started.
        let moving = moving.map(|(group, network)| {
            let group = Arc::clone(group);
            tokio::task::spawn_blocking(move || group.add(network))
        });
        let started = pyro_confine::start_in(group.clone(), command, &policy);
        if let Some(moving) = moving
            && let Err(error) = moving.await.unwrap_or_else(|error| Err(io::Error::other(error)))
        {
            tracing::warn!(%error, "the process that carries the network has no control group");
        }
        let process = started.map_err(|error| launch_error(program, error)).and_then(|started| {
            let process = VmmProcess::new(started.process, [stdout, stderr]);
            Ok((process.map_err(LaunchError::Connection)?, started.confinement))
        });
        let process = match process {
            Ok(process) => process,
            Err(error) => {
                // Before its group is dropped, which cannot be removed while the process is in it.
                if let Some(network) = &mut network {
                    network.stop().await;
                }
                return Err(error);
            }
        };
        let (qmp, pauses, serve) = qmp::connect(control, console.clone());
        // The machine runs already. Only one that is to be sent commands waits until QEMU takes them.
        tokio::task::spawn_local(serve);
        let qmp = arguments::takes_commands(&start).then_some(qmp);
        let mut machine = QemuMachine::new(process, channel, pauses, network, console);
        machine.end_with(group.ok());
        match finish(&mut machine, qmp, requires_full_confinement).await {
            Ok(()) => Ok(machine),
            Err(error) => {
                machine.kill().await;
                Err(error)
            }
        }
    }
}

/// Checks the confinement of a machine whose process was started, and prepares it for commands.
async fn finish(
    machine: &mut QemuMachine,
    qmp: Option<Qmp>,
    requires_full_confinement: bool,
) -> Result<(), LaunchError> {
    if requires_full_confinement {
        machine.fully_confined().await.map_err(|missing| LaunchError::NotFullyConfined { missing })?;
    }
    if let Some(qmp) = qmp {
        while_alive(machine, qmp.prepare()).await?;
        machine.control_with(qmp);
    }
    Ok(())
}

/// Creates a file for a VMM to write to. It sees existing files only.
pub(crate) fn create(path: &Path) -> Result<(), LaunchError> {
    let created = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    created.map(drop).map_err(|source| LaunchError::File { path: path.to_owned(), source })
}

/// Creates a connection: our end, and QEMU's.
fn connection() -> Result<(UnixStream, OwnedFd), LaunchError> {
    let pair = || {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs.into()))
    };
    pair().map_err(LaunchError::Connection)
}

/// Tells a program that cannot be executed from a confinement that cannot be set up.
pub(crate) fn launch_error(program: PathBuf, error: StartError) -> LaunchError {
    match error {
        StartError::Execute(source) => LaunchError::Run { program, source },
        StartError::File { path, source } if path == program => LaunchError::Run { program, source },
        StartError::File { path, source } => LaunchError::File { path, source },
        source => LaunchError::Confine { program, source },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::task::LocalSet;

    use super::*;
    use crate::artifact::Artifact;
    use crate::console::Console;
    use crate::disk::LayerLifetime;
    use crate::exit::Interrupted;
    use crate::fake_program::fake_program;
    use crate::hardware::MachineConfig;
    use crate::platform::MachineError;

    /// Launches a shell script, kept in `dir`, in place of QEMU. It ignores its arguments.
    async fn launch(
        dir: &tempfile::TempDir,
        script: &str,
        start: Start,
    ) -> (Result<QemuMachine, LaunchError>, Console) {
        launch_program(dir, fake_program(dir.path(), script), start).await
    }

    async fn launch_program(
        dir: &tempfile::TempDir,
        vmm_program: PathBuf,
        start: Start,
    ) -> (Result<QemuMachine, LaunchError>, Console) {
        launch_changed(dir, vmm_program, start, |_| {}).await
    }

    /// `change` has the files of the machine after they were checked.
    async fn launch_changed(
        dir: &tempfile::TempDir,
        vmm_program: PathBuf,
        start: Start,
        change: impl FnOnce(&Path),
    ) -> (Result<QemuMachine, LaunchError>, Console) {
        let checked = |path: PathBuf| Artifact::open(path).unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            path
        };
        let console = Console::in_memory();
        let config =
            MachineConfig { vmm_program, accelerator: Accelerator::Tcg, vcpu_count: 1, mem_mib: 512 };
        let disks = Disks {
            kernel: checked(file("kernel")),
            initrd: file("initrd"),
            base_image: checked(file("base")),
            layer: file("layer"),
        };
        let start = match start {
            Start::Saved { files: SavedFiles { memory, state } } => Start::Saved {
                files: SavedFiles {
                    memory: checked(memory.path().to_owned()),
                    state: checked(state.path().to_owned()),
                },
            },
            start @ Start::Kernel { .. } => start,
        };
        change(dir.path());
        let launch = Launch {
            hardware: Hardware { config, layer_lifetime: LayerLifetime::OneStart, interface: None },
            disks,
            network: None,
            start,
            console: console.clone(),
            requires_full_confinement: false,
        };
        (Qemu::new().launch(launch).await, console)
    }

    const KERNEL: Start = Start::Kernel { save_in: None };

    fn saved(dir: &tempfile::TempDir) -> Start {
        let files =
            SavedFiles { memory: dir.path().join("memory").into(), state: dir.path().join("state").into() };
        for file in [&files.memory, &files.state] {
            std::fs::write(file.path(), "").unwrap();
        }
        Start::Saved { files }
    }

    #[tokio::test]
    async fn the_channel_and_the_console_are_those_of_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let work = async {
            let (machine, console) =
                launch(&dir, "echo booting; echo oops >&2; printf hello >&3; exit 7", KERNEL).await;
            let mut machine = machine.unwrap();
            let mut channel = machine.take_channel().unwrap().open().await.unwrap();
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
    async fn a_file_that_is_replaced_after_its_check_is_not_used() {
        let work = async {
            for name in ["none", "kernel", "base", "memory", "state"] {
                let dir = tempfile::tempdir().unwrap();
                // It cannot create processes, so the shell reads the files itself.
                let script = format!(
                    "for name in kernel base memory state layer; do
                        if [ -r {dir}/$name ]; then read -r line < {dir}/$name; echo \"$line\"; fi
                    done
                    exit 7",
                    dir = dir.path().display()
                );
                let program = fake_program(dir.path(), &script);
                let start = if ["memory", "state"].contains(&name) { saved(&dir) } else { KERNEL };
                let replace = |dir: &Path| {
                    // It has not been checked, so it may change.
                    std::fs::write(dir.join("layer"), "visible\n").unwrap();
                    std::fs::write(dir.join("other"), "another\n").unwrap();
                    std::fs::rename(dir.join("other"), dir.join(name)).unwrap();
                };
                let (launched, console) = launch_changed(&dir, program, start, replace).await;
                let confine_error = match launched {
                    Ok(mut machine) => {
                        machine.exited().await;
                        None
                    }
                    Err(LaunchError::Failed(_)) => None,
                    Err(error) => Some(error),
                };
                let words = console.last_words().await.join(" ");
                assert!(!words.contains("another"), "{name}: {words}");
                match confine_error {
                    // With this file unchanged, or where only Landlock refuses the new one.
                    None => assert!(words.contains("visible"), "{name}: {words}"),
                    Some(error) => {
                        assert!(name != "none" && matches!(error, LaunchError::Confine { .. }), "{error:?}");
                    }
                }
            }
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
            let (failed, console) = launch(&dir, "echo no such option >&2; exit 1", saved(&dir)).await;
            let error = failed.unwrap_err();
            assert!(error.to_string().starts_with("the VMM ended: exit status: 1"), "{error}");
            assert_eq!(console.last_words().await, ["no such option"]);
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let work = async {
            let error = launch_program(&dir, "/nonexistent/vmm".into(), KERNEL).await.0.unwrap_err();
            assert_eq!(error.to_string(), "cannot run /nonexistent/vmm");
            assert!(
                matches!(error, LaunchError::Run { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
            );
        };
        LocalSet::new().run_until(work).await;
    }

    /// Nothing asks for it, and nothing waits for the greeting.
    #[tokio::test]
    async fn a_machine_that_its_vmm_pauses_is_ended_with_the_reason() {
        let script = r#"
            say() { printf '%s\n' "$1" >&5; }
            say '{"QMP": {}}'
            read -r line <&5; say '{"return": {}}'
            read -r line <&5; say '{"return": {"status": "running", "running": true}}'
            echo "KVM internal error. Suberror: 1" >&2
            say '{"event": "STOP"}'
            read -r line <&5; say '{"return": {"status": "internal-error", "running": false}}'
            exec sleep 600"#;
        let dir = tempfile::tempdir().unwrap();
        let work = async {
            for start in [KERNEL, saved(&dir)] {
                let (machine, console) = launch(&dir, script, start).await;
                let cause = "internal error: the accelerator cannot run the code of this guest".to_owned();
                let exit = match machine {
                    Ok(mut machine) => {
                        let exit = machine.exited().await;
                        assert_eq!(machine.exited().await, exit);
                        machine.kill().await;
                        assert_eq!(machine.exited().await, exit, "the reason counts");
                        exit
                    }
                    // It is paused while it is prepared for commands.
                    Err(LaunchError::Failed(Interrupted::Exited(exit))) => exit,
                    Err(error) => panic!("{error}"),
                };
                assert_eq!(exit, crate::exit::Exit::Paused { cause });
                assert_eq!(console.last_words().await, ["KVM internal error. Suberror: 1"]);
            }
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn a_command_that_the_machine_does_not_survive_is_explained_by_its_exit() {
        let script = r#"
            say() { printf '%s\n' "$1" >&5; }
            say '{"QMP": {}}'; say '{"return": {}}'; say '{"return": {}}'; say '{"return": {}}'
            echo ready
            exec sleep 600"#;
        let dir = tempfile::tempdir().unwrap();
        let work = async {
            let (machine, console) = launch(&dir, script, saved(&dir)).await;
            let mut machine = machine.unwrap();
            let pid = machine.id();
            let kill = async {
                while console.tail().is_empty() {
                    tokio::task::yield_now().await;
                }
                let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
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
