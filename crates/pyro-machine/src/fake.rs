//! A platform whose machines are values in this process, for tests of code that uses [`Platform`].
//!
//! The code under test gets a [`FakePlatform`]; the test keeps a clone. For each launched machine the test gets a
//! [`FakeHandle`]: the guest's end of the channel, and controls for everything that can happen to a machine. Nothing
//! here waits for the clock, so it may be paused.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::rc::Rc;

use pyro_confine::Confinement;
use tokio::net::UnixStream;
use tokio::sync::Notify;

use crate::accel::Accelerator;
use crate::channel::Channel;
use crate::console::Console;
use crate::exit::{Exit, Interrupted, Interruption};
use crate::hardware::{Hardware, Launch, MachineConfig};
use crate::image::{GuestImage, GuestKernel};
use crate::network::{Network, NetworkDescription, NetworkError, Provider};
use crate::platform::{
    Capabilities, Fingerprint, FingerprintError, LaunchError, Machine, MachineError, Platform, while_alive,
};

/// Settings of a machine whose VMM does not exist.
pub fn machine_config() -> MachineConfig {
    MachineConfig { vmm_program: "/none".into(), accelerator: Accelerator::Tcg, vcpu_count: 1, mem_mib: 128 }
}

/// A guest whose files do not exist.
pub fn guest_image() -> GuestImage {
    GuestImage {
        digest: "digest".to_owned(),
        kernel: GuestKernel::SelfContained { image: "/none".into() },
        base_image: "/none".into(),
        base_filesystem: "erofs".to_owned(),
        layer_template: "/none".into(),
    }
}

/// A step that a test can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// [`Platform::launch`].
    Launch,
    /// [`Machine::restore`].
    Restore,
    /// [`Machine::save`].
    Save,
    /// [`Machine::kill`].
    Kill,
}

/// A platform for tests. Clones are the same platform.
#[derive(Clone, Debug)]
pub struct FakePlatform {
    shared: Rc<Shared<PlatformState>>,
}

#[derive(Debug)]
struct PlatformState {
    network_failures: VecDeque<NetworkError>,
    launch_failures: VecDeque<LaunchError>,
    restore_failures: VecDeque<MachineError>,
    save_failures: VecDeque<MachineError>,
    held: HashSet<Step>,
    /// Machines that no test has asked for yet.
    launched: VecDeque<FakeHandle>,
    launches: usize,
}

impl Default for FakePlatform {
    fn default() -> Self {
        Self::new()
    }
}

impl FakePlatform {
    /// Creates a platform on which everything succeeds at once.
    pub fn new() -> Self {
        let state = PlatformState {
            network_failures: VecDeque::new(),
            launch_failures: VecDeque::new(),
            restore_failures: VecDeque::new(),
            save_failures: VecDeque::new(),
            held: HashSet::new(),
            launched: VecDeque::new(),
            launches: 0,
        };
        Self { shared: Rc::new(Shared::new(state)) }
    }

    /// Fails the next [`Platform::start_network`] for which no other failure is queued.
    pub fn fail_network(&self, error: NetworkError) {
        self.shared.change(|state| state.network_failures.push_back(error));
    }

    /// Fails the next launch for which no other failure is queued.
    pub fn fail_launch(&self, error: LaunchError) {
        self.shared.change(|state| state.launch_failures.push_back(error));
    }

    /// Fails the next [`Machine::restore`] for which no other failure is queued.
    pub fn fail_restore(&self, error: MachineError) {
        self.shared.change(|state| state.restore_failures.push_back(error));
    }

    /// Fails the next [`Machine::save`] for which no other failure is queued.
    pub fn fail_save(&self, error: MachineError) {
        self.shared.change(|state| state.save_failures.push_back(error));
    }

    /// Blocks every such step until [`FakePlatform::release`].
    pub fn hold(&self, step: Step) {
        self.shared.change(|state| state.held.insert(step));
    }

    /// Unblocks such steps.
    pub fn release(&self, step: Step) {
        self.shared.change(|state| state.held.remove(&step));
    }

    /// Waits for the next machine that is launched. Returns each once, in launch order.
    pub async fn launched(&self) -> FakeHandle {
        self.shared.until(|state| state.launched.pop_front()).await
    }

    /// Returns how often a launch was requested, with or without success.
    pub fn launches(&self) -> usize {
        self.shared.state.borrow().launches
    }

    async fn pass(&self, step: Step) {
        self.shared.until(|state| (!state.held.contains(&step)).then_some(())).await;
    }
}

impl Platform for FakePlatform {
    type Machine = FakeMachine;

    fn capabilities(&self) -> Capabilities {
        Capabilities { snapshots: true }
    }

    async fn fingerprint(&self, hardware: &Hardware, _cache: &Path) -> Result<Fingerprint, FingerprintError> {
        Ok(Fingerprint {
            arrangement: vec!["fake".to_owned(), format!("{hardware:?}")],
            version: "fake 1".to_owned(),
            saves_machines: true,
        })
    }

    fn is_fingerprint_cached(&self, _hardware: &Hardware, _cache: &Path) -> bool {
        true
    }

    fn start_network(&self, provider: Provider) -> Result<Network, NetworkError> {
        if let Some(error) = self.shared.state.borrow_mut().network_failures.pop_front() {
            return Err(error);
        }
        match provider {
            Provider::Unconnected => provider.start(None),
            Provider::Policed(settings) => Ok(Network::fake(NetworkDescription {
                address: Ipv4Addr::new(10, 0, 2, 15),
                prefix_len: 24,
                gateway: Ipv4Addr::new(10, 0, 2, 2),
                dns_servers: vec![Ipv4Addr::new(10, 0, 2, 3)],
                mac_address: settings.mac_address.to_string(),
                mtu: None,
                ipv6: None,
            })),
        }
    }

    async fn launch(&self, launch: Launch) -> Result<FakeMachine, LaunchError> {
        self.shared.change(|state| state.launches += 1);
        self.pass(Step::Launch).await;
        if let Some(error) = self.shared.state.borrow_mut().launch_failures.pop_front() {
            return Err(error);
        }
        let (channel, guest) = pair().map_err(LaunchError::Connection)?;
        let line = guest.try_clone().map_err(LaunchError::Connection)?;
        let channel = UnixStream::from_std(channel).map_err(LaunchError::Connection)?;
        let guest = UnixStream::from_std(guest).map_err(LaunchError::Connection)?;
        if let Some(memory) = launch.start.memory().filter(|memory| !memory.exists()) {
            std::fs::write(memory, "memory")
                .map_err(|source| LaunchError::Run { program: memory.to_owned(), source })?;
        }
        let console = launch.console.clone();
        let state = MachineState {
            guest: Some(guest),
            line,
            exit: None,
            network_failure: None,
            killed: false,
            gone: false,
            restored_from: None,
            saved_to: None,
        };
        let handle = FakeHandle { launch: Rc::new(launch), shared: Rc::new(Shared::new(state)) };
        self.shared.change(|state| state.launched.push_back(handle.clone()));
        let confinement = Confinement::none("there is no process");
        Ok(FakeMachine { platform: self.clone(), handle, channel: Some(channel), console, confinement })
    }
}

/// A machine without a process.
#[derive(Debug)]
pub struct FakeMachine {
    platform: FakePlatform,
    handle: FakeHandle,
    channel: Option<UnixStream>,
    console: Console,
    confinement: Confinement,
}

impl FakeMachine {
    /// Carries out a command to the machine, once the step is not held.
    async fn command(
        &mut self,
        step: Step,
        failures: fn(&mut PlatformState) -> &mut VecDeque<MachineError>,
        act: impl FnOnce(&mut MachineState) -> Result<(), MachineError>,
    ) -> Result<(), Interrupted<MachineError>> {
        let (platform, handle) = (self.platform.clone(), self.handle.clone());
        let work = async move {
            if handle.launch.start.memory().is_none() {
                return Err(MachineError::NoControl);
            }
            platform.pass(step).await;
            if let Some(error) = failures(&mut platform.shared.state.borrow_mut()).pop_front() {
                return Err(error);
            }
            handle.shared.change(act)
        };
        while_alive(self, work).await
    }
}

impl Machine for FakeMachine {
    fn take_channel(&mut self) -> Option<Channel> {
        self.channel.take().map(Channel::Open)
    }

    async fn restore(&mut self, state: &Path) -> Result<(), Interrupted<MachineError>> {
        let restore = |machine: &mut MachineState| {
            machine.restored_from = Some(state.to_owned());
            Ok(())
        };
        self.command(Step::Restore, |platform| &mut platform.restore_failures, restore).await
    }

    async fn save(&mut self, state: &Path) -> Result<(), Interrupted<MachineError>> {
        let save = |machine: &mut MachineState| {
            std::fs::write(state, "state").map_err(MachineError::Connection)?;
            machine.saved_to = Some(state.to_owned());
            Ok(())
        };
        self.command(Step::Save, |platform| &mut platform.save_failures, save).await
    }

    async fn exited(&mut self) -> Exit {
        self.handle.shared.until(|state| state.exit.clone()).await
    }

    async fn interrupted(&mut self) -> Interruption {
        let interruption = |state: &mut MachineState| match state.exit.clone() {
            Some(exit) => Some(Interruption::Exit(exit)),
            None => state.network_failure.take().map(Interruption::Network),
        };
        self.handle.shared.until(interruption).await
    }

    async fn kill(&mut self) {
        self.platform.pass(Step::Kill).await;
        self.handle.shared.change(|state| state.killed = true);
        self.handle.exit(killed());
    }

    fn console(&self) -> &Console {
        &self.console
    }

    fn network(&self) -> Option<&NetworkDescription> {
        self.handle.launch.network.as_ref()?.description()
    }

    fn confinement(&self) -> &Confinement {
        &self.confinement
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.handle.shared.change(|state| state.gone = true);
        self.handle.exit(killed());
    }
}

/// A test's handle on one machine. Clones refer to the same machine.
#[derive(Clone, Debug)]
pub struct FakeHandle {
    launch: Rc<Launch>,
    shared: Rc<Shared<MachineState>>,
}

#[derive(Debug)]
struct MachineState {
    guest: Option<UnixStream>,
    /// Shuts the channel down when the machine ends, whichever code holds its ends.
    line: StdUnixStream,
    exit: Option<Exit>,
    network_failure: Option<NetworkError>,
    killed: bool,
    gone: bool,
    restored_from: Option<PathBuf>,
    saved_to: Option<PathBuf>,
}

impl FakeHandle {
    /// Returns what the machine was launched with.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Returns the guest's end of the channel. `None` from the second call on.
    pub fn take_guest(&self) -> Option<UnixStream> {
        self.shared.state.borrow_mut().guest.take()
    }

    /// Prints on the machine's console.
    pub fn print(&self, text: &str) {
        self.launch.console.print(text.as_bytes());
    }

    /// Ends the machine, unless it has ended. Its channel closes, at both ends.
    pub fn exit(&self, exit: Exit) {
        self.shared.change(|state| {
            if state.exit.is_none() {
                state.exit = Some(exit);
                state.guest = None;
                // Fails only if the other end was closed already.
                let _ = state.line.shutdown(Shutdown::Both);
            }
        });
    }

    /// Fails the machine's network with this error; the machine keeps running.
    pub fn fail_network(&self, error: NetworkError) {
        self.shared.change(|state| state.network_failure = Some(error));
    }

    /// Returns how the machine ended, if it has.
    pub fn ended(&self) -> Option<Exit> {
        self.shared.state.borrow().exit.clone()
    }

    /// Returns whether [`Machine::kill`] has been carried out.
    pub fn is_killed(&self) -> bool {
        self.shared.state.borrow().killed
    }

    /// Returns whether the machine was dropped.
    pub fn is_gone(&self) -> bool {
        self.shared.state.borrow().gone
    }

    /// Waits until the machine has ended, in any way.
    pub async fn until_ended(&self) -> Exit {
        self.shared.until(|state| state.exit.clone()).await
    }

    /// Waits until its state was restored, and returns from which file.
    pub async fn until_restored(&self) -> PathBuf {
        self.shared.until(|state| state.restored_from.clone()).await
    }

    /// Returns the file in which its state was saved, if it was.
    pub fn saved_to(&self) -> Option<PathBuf> {
        self.shared.state.borrow().saved_to.clone()
    }
}

/// Returns the exit of a machine whose guest powered off.
pub fn powered_off() -> Exit {
    Exit::Status(ExitStatus::from_raw(0))
}

/// Returns the exit of a machine that was killed.
pub fn killed() -> Exit {
    Exit::Status(ExitStatus::from_raw(9))
}

fn pair() -> io::Result<(StdUnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    Ok((ours, theirs))
}

/// A value whose changes can be waited for.
struct Shared<T> {
    state: RefCell<T>,
    changed: Notify,
}

impl<T> Shared<T> {
    fn new(state: T) -> Self {
        Self { state: RefCell::new(state), changed: Notify::new() }
    }

    fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.state.borrow_mut());
        self.changed.notify_waiters();
        result
    }

    async fn until<R>(&self, mut look: impl FnMut(&mut T) -> Option<R>) -> R {
        loop {
            // Start waiting before the check, so that a change in between is not missed.
            let changed = self.changed.notified();
            if let Some(result) = look(&mut self.state.borrow_mut()) {
                return result;
            }
            changed.await;
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::disk::LayerLifetime;
    use crate::hardware::{Disks, SavedFiles, Start};
    use crate::network::{MacAddress, NetworkInterface, NetworkSettings, Policy};

    fn policed() -> Provider {
        Provider::Policed(NetworkSettings {
            mac_address: MacAddress([6, 0, 1, 2, 3, 4]),
            policy: Policy::default(),
            denials: "/none".into(),
        })
    }

    fn launch(start: Start) -> Launch {
        let config = MachineConfig {
            vmm_program: "/none".into(),
            accelerator: Accelerator::Tcg,
            vcpu_count: 1,
            mem_mib: 512,
        };
        Launch {
            hardware: Hardware {
                config,
                layer_lifetime: LayerLifetime::OneStart,
                interface: Some(NetworkInterface::default()),
            },
            disks: Disks {
                kernel: "/none".into(),
                initrd: "/none".into(),
                base_image: "/none".into(),
                layer: "/none".into(),
            },
            network: Some(FakePlatform::new().start_network(policed()).unwrap()),
            start,
            console: Console::in_memory(),
            requires_full_confinement: false,
        }
    }

    async fn machine() -> (FakeMachine, FakeHandle) {
        let platform = FakePlatform::new();
        let machine = platform.launch(launch(Start::Kernel { save_in: None })).await.unwrap();
        let handle = platform.launched().await;
        (machine, handle)
    }

    #[tokio::test(start_paused = true)]
    async fn the_channel_joins_host_and_guest_until_the_end() {
        let (mut machine, handle) = machine().await;
        let mut channel = machine.take_channel().unwrap().open().await.unwrap();
        assert!(machine.take_channel().is_none());
        let mut guest = handle.take_guest().unwrap();
        assert!(handle.take_guest().is_none());
        guest.write_all(b"hello").await.unwrap();
        let mut said = [0; 5];
        channel.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"hello");
        handle.exit(powered_off());
        assert_eq!(channel.read(&mut said).await.unwrap(), 0);
        assert_eq!(machine.exited().await, powered_off());
        // Every call returns the same.
        assert_eq!(machine.exited().await, powered_off());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_printed_is_in_the_last_words() {
        let (machine, handle) = machine().await;
        handle.print("one\ntwo\n");
        assert_eq!(machine.console().last_words().await, ["one", "two"]);
    }

    #[tokio::test(start_paused = true)]
    async fn kill_and_drop_end_it() {
        let (mut machine, handle) = machine().await;
        machine.kill().await;
        assert!(handle.is_killed() && !handle.is_gone());
        assert_eq!(handle.ended(), Some(killed()));
        machine.kill().await;
        drop(machine);
        assert!(handle.is_gone());

        let (machine, handle) = self::machine().await;
        drop(machine);
        assert_eq!(handle.until_ended().await, killed());
        assert!(!handle.is_killed());
    }

    #[tokio::test(start_paused = true)]
    async fn launches_fail_and_wait_as_asked() {
        let platform = FakePlatform::new();
        platform.fail_network(NetworkError::NoHelper);
        let error = platform.start_network(policed()).unwrap_err();
        assert_eq!(error.to_string(), "no network process was configured");
        platform
            .fail_launch(LaunchError::Run { program: "/vmm".into(), source: io::ErrorKind::NotFound.into() });
        let start = || Start::Kernel { save_in: None };
        let error = platform.launch(launch(start())).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot run /vmm");

        platform.hold(Step::Launch);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, platform.launch(launch(start()))).await.is_err());
        platform.release(Step::Launch);
        platform.launch(launch(start())).await.unwrap();
        assert_eq!(platform.launches(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_machine_with_its_memory_in_a_file_is_saved_and_restored() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let files = SavedFiles { memory: dir.path().join("memory").into(), state: state.clone().into() };
        let platform = FakePlatform::new();
        let mut machine = platform.launch(launch(Start::Kernel { save_in: None })).await.unwrap();
        assert!(matches!(machine.save(&state).await, Err(Interrupted::Failed(MachineError::NoControl))));
        let start = Start::Kernel { save_in: Some(files.clone()) };
        let mut machine = platform.launch(launch(start)).await.unwrap();
        platform.fail_save(MachineError::NotSaved { status: "failed".to_owned() });
        let error = machine.save(&state).await.unwrap_err();
        assert_eq!(error.to_string(), "the VMM could not save its state: failed");
        machine.save(&state).await.unwrap();

        let mut clone = platform.launch(launch(Start::Saved { files })).await.unwrap();
        clone.restore(&state).await.unwrap();
        let (_, saved) = (platform.launched().await, platform.launched().await);
        let restored = platform.launched().await;
        assert_eq!(saved.saved_to().as_deref(), Some(&*state));
        assert_eq!(restored.until_restored().await, state);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_may_end_while_it_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        let platform = FakePlatform::new();
        let files =
            SavedFiles { memory: dir.path().join("memory").into(), state: dir.path().join("state").into() };
        let start = Start::Saved { files };
        let mut machine = platform.launch(launch(start)).await.unwrap();
        let handle = platform.launched().await;
        platform.hold(Step::Restore);
        let ends = async { handle.exit(powered_off()) };
        let state = dir.path().join("state");
        let (restored, ()) = tokio::join!(machine.restore(&state), ends);
        assert!(matches!(restored, Err(Interrupted::Exited(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_interrupted_by_the_end_of_the_machine_or_of_its_network() {
        let (mut machine, handle) = machine().await;
        assert!(machine.network().is_some());
        let done = while_alive(&mut machine, async { Ok::<_, MachineError>(1) }).await;
        assert_eq!(done.unwrap(), 1);
        // If the machine survives for another second, it did not cause the loss.
        let failed = while_alive(&mut machine, async { Err::<(), _>(MachineError::Closed) }).await;
        assert!(matches!(failed, Err(Interrupted::Failed(MachineError::Closed))));

        let ended = NetworkError::Ended { status: "exit status: 1".to_owned(), messages: "why".to_owned() };
        handle.fail_network(ended);
        let pending = std::future::pending::<Result<(), MachineError>>;
        let error = while_alive(&mut machine, pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "the network process ended (exit status: 1): why");

        handle.exit(powered_off());
        let error = while_alive(&mut machine, pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "the VMM ended: exit status: 0");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_while_the_machine_dies_is_explained_by_its_exit() {
        let (mut machine, handle) = machine().await;
        let dies = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            handle.exit(Exit::Status(ExitStatus::from_raw(256)));
        };
        let fails = while_alive(&mut machine, async { Err::<(), _>(MachineError::Closed) });
        let (failed, ()) = tokio::join!(fails, dies);
        let error = failed.unwrap_err();
        assert_eq!(error.to_string(), "the VMM ended: exit status: 1");
        let cause = std::error::Error::source(&error).unwrap();
        assert_eq!(cause.to_string(), "the VMM closed its control connection");
    }
}
