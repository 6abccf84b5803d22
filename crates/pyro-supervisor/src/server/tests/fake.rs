//! The fakes, and a supervisor that runs on them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use futures::future::poll_fn;
use futures::{SinkExt, StreamExt};
use pyro_machine::network::NetworkDescription;
use pyro_machine::{
    Accelerator, Console, Exit as MachineExit, GuestImage, GuestKernel, Interrupted, Interruption, Machine,
    MachineConfig, MachineError,
};
use pyro_wire::{Exec, ExecInput, ExecReply, Exit, Frame, FrameCodec, HaltReply, NoInput, Request, Status};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet, spawn_local};
use tokio::time::{Instant, sleep};
use tokio_util::codec::Framed;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::sync::CancellationToken;
use yamux::{Config, Connection, Mode};

use crate::conversation::CommandOutcome;
use crate::machine::RunningMachine;
use crate::mux;
use crate::protocol::{Event, LifelineClient, LifelineServer};
use crate::server::driver::{Driver, Inbox};
use crate::server::{Boot, Clock, Store, StoreError};
use crate::spec::{LaunchSpec, Purpose, Retention};
use crate::{BootFailure, BootInfo, BootStage, Client, EndReason, StartMode, files};

/// How the world behaves in one case.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    pub(super) retention: Retention,
    pub(super) is_new: bool,
    /// Virtual milliseconds that things take.
    pub(super) boot_ms: u64,
    pub(super) store_ms: u64,
    pub(super) halt_ms: u64,
    pub(super) boot_fails: bool,
    pub(super) start_is_refused: bool,
    pub(super) store: StoreBehaviour,
    /// Virtual seconds until the end of the lifetime.
    pub(super) lifetime: u32,
}

impl Conditions {
    pub(crate) fn task() -> Self {
        Self {
            retention: Retention::Deletion,
            is_new: false,
            boot_ms: 100,
            store_ms: 5,
            halt_ms: 50,
            boot_fails: false,
            start_is_refused: false,
            store: StoreBehaviour::Works,
            lifetime: 1000,
        }
    }
}

/// What becomes of records of commands' ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreBehaviour {
    Works,
    /// The first attempts fail, as on a full disk.
    FailsAtFirst,
    /// None is taken, as one with a number that is too large.
    RefusesEnds,
}

/// What happened, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fact {
    StartRecorded,
    CommandRecorded(u64),
    CommandEnded(u64, CommandOutcome),
    EndRecorded(EndReason),
    Forgotten,
    /// The guest began to run a command.
    Began(String),
    Halted,
    MachineUp,
    MachineGone,
    /// The starter was told.
    Told(Event),
    /// A client was told that the VM has ended.
    Confirmed,
    /// A client was told how its command ended.
    Answered(Option<u64>, CommandOutcome),
}

/// Everything that the fakes share.
pub(super) struct World {
    pub(super) conditions: Conditions,
    pub(super) facts: RefCell<Vec<Fact>>,
    pub(super) machine_exit: Notify,
    pub(super) channel_loss: CancellationToken,
    is_alive: Cell<bool>,
    sequence: Cell<u64>,
    ends_refused: Cell<u32>,
    running: RefCell<BTreeMap<u64, bool>>,
}

impl World {
    pub(super) fn new(conditions: Conditions) -> Rc<Self> {
        Rc::new(Self {
            conditions,
            facts: RefCell::default(),
            machine_exit: Notify::new(),
            channel_loss: CancellationToken::new(),
            is_alive: Cell::new(false),
            sequence: Cell::new(0),
            ends_refused: Cell::new(0),
            running: RefCell::default(),
        })
    }

    pub(super) fn note(&self, fact: Fact) {
        self.facts.borrow_mut().push(fact);
    }

    pub(super) fn has(&self, fact: &Fact) -> bool {
        self.facts.borrow().contains(fact)
    }

    pub(super) fn is_alive(&self) -> bool {
        self.is_alive.get()
    }
}

pub(super) struct FakeBoot(pub(super) Rc<World>);

impl Boot for FakeBoot {
    type Machine = FakeMachine;

    async fn boot(&self, spec: &LaunchSpec) -> Result<RunningMachine<FakeMachine>, BootFailure> {
        let world = Rc::clone(&self.0);
        sleep(Duration::from_millis(world.conditions.boot_ms)).await;
        if world.conditions.boot_fails {
            return Err(BootFailure {
                stage: BootStage::Kernel,
                cause: "panic".to_owned(),
                console: Vec::new(),
            });
        }
        let (host, guest) = UnixStream::pair().unwrap();
        let (streams, driver) = mux::drive(host);
        spawn_local(driver);
        let guest = spawn_local(run_guest(guest, Rc::clone(&world)));
        world.is_alive.set(true);
        world.note(Fact::MachineUp);
        let info = BootInfo {
            kernel_release: "6.1".to_owned(),
            boot_ms: 1,
            accelerator: Accelerator::Tcg,
            network: None,
            start_mode: StartMode::Cold,
            warning: None,
            stages: Vec::new(),
        };
        let console = Console::create(&spec.dir.join(files::SERIAL_LOG)).unwrap();
        Ok(RunningMachine { machine: FakeMachine { world, guest, console }, streams, info })
    }
}

pub(super) struct FakeMachine {
    world: Rc<World>,
    guest: JoinHandle<()>,
    console: Console,
}

impl FakeMachine {
    fn end(&self) {
        self.guest.abort();
        if self.world.is_alive.replace(false) {
            self.world.note(Fact::MachineGone);
        }
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.end();
    }
}

impl Machine for FakeMachine {
    fn take_channel(&mut self) -> Option<UnixStream> {
        None
    }

    async fn restore(&mut self, _state: &Path) -> Result<(), Interrupted<MachineError>> {
        unreachable!("no driver restores a machine")
    }

    async fn save(&mut self, _state: &Path) -> Result<(), Interrupted<MachineError>> {
        unreachable!("no driver saves a machine")
    }

    async fn exited(&mut self) -> MachineExit {
        self.world.machine_exit.notified().await;
        self.end();
        MachineExit::Status(ExitStatus::default())
    }

    async fn interrupted(&mut self) -> Interruption {
        std::future::pending().await
    }

    async fn kill(&mut self) {
        self.end();
    }

    fn console(&self) -> &Console {
        &self.console
    }

    fn network(&self) -> Option<&NetworkDescription> {
        None
    }
}

/// A guest that understands `sleep MS`, `stubborn MS`, which does not end when asked to, and anything else, which ends
/// at once.
async fn run_guest(channel: UnixStream, world: Rc<World>) {
    let mut connection = Connection::new(channel.compat(), Config::default(), Mode::Server);
    // Everything that runs in a guest ends with it.
    let mut streams = JoinSet::new();
    let serve = async {
        while let Some(Ok(stream)) = poll_fn(|context| connection.poll_next_inbound(context)).await {
            streams.spawn_local(serve_stream(stream, Rc::clone(&world)));
        }
    };
    tokio::select! {
        () = serve => {}
        () = world.channel_loss.cancelled() => {}
    }
}

async fn serve_stream(stream: yamux::Stream, world: Rc<World>) {
    let mut stream = Framed::new(stream.compat(), FrameCodec::<Request, ()>::default());
    match stream.next().await {
        Some(Ok(Frame::Control(Request::Exec(exec)))) => {
            let mut stream = stream.map_codec(|_| FrameCodec::<ExecInput, ExecReply>::default());
            if let Some(reply) = run_command(&mut stream, &exec, &world).await {
                let _ = stream.send(Frame::Control(reply)).await;
            }
        }
        Some(Ok(Frame::Control(Request::Halt))) => {
            sleep(Duration::from_millis(world.conditions.halt_ms)).await;
            world.note(Fact::Halted);
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, HaltReply>::default());
            let _ = stream.send(Frame::Control(HaltReply::Halted)).await;
        }
        _ => {}
    }
}

async fn run_command(
    stream: &mut Framed<
        impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
        FrameCodec<ExecInput, ExecReply>,
    >,
    exec: &Exec,
    world: &World,
) -> Option<ExecReply> {
    // Its task may be polled once more before it is aborted, and a machine that is gone runs nothing.
    if !world.is_alive() {
        return None;
    }
    world.note(Fact::Began(exec.command.clone()));
    let started = Instant::now();
    let mut words = exec.command.split(' ');
    let is_stubborn = words.next() == Some("stubborn");
    let ms = words.next().and_then(|ms| ms.parse().ok()).unwrap_or(0);
    let wait = sleep(Duration::from_millis(ms));
    tokio::pin!(wait);
    let status = loop {
        tokio::select! {
            () = &mut wait => break Status::Code(0),
            frame = stream.next() => match frame {
                Some(Ok(Frame::Control(ExecInput::Terminate))) if is_stubborn => {}
                Some(Ok(Frame::Control(ExecInput::Terminate))) => break Status::Signal(15),
                _ => return None,
            },
        }
    };
    Some(ExecReply::Exited(Exit {
        status,
        timed_out: false,
        duration_ms: started.elapsed().as_millis() as u64,
        stdout_dropped: 0,
        stderr_dropped: 0,
    }))
}

pub(super) struct FakeStore(pub(super) Rc<World>);

impl FakeStore {
    async fn take_time(&self) {
        sleep(Duration::from_millis(self.0.conditions.store_ms)).await;
    }
}

impl Store for FakeStore {
    async fn record_start(&self, _vm_id: &str, _info: &BootInfo) -> Result<f64, StoreError> {
        self.take_time().await;
        if self.0.conditions.start_is_refused {
            return Err(StoreError { is_permanent: false, cause: "the disk is full".to_owned() });
        }
        self.0.note(Fact::StartRecorded);
        Ok(self.0.conditions.lifetime.into())
    }

    async fn record_end(
        &self,
        _vm_id: &str,
        _retention: Retention,
        reason: &EndReason,
        _loss: Option<&str>,
    ) -> Result<(), StoreError> {
        self.take_time().await;
        self.0.note(Fact::EndRecorded(reason.clone()));
        Ok(())
    }

    async fn forget(&self, _vm_id: &str) -> Result<(), StoreError> {
        self.take_time().await;
        self.0.note(Fact::Forgotten);
        Ok(())
    }

    async fn record_command(&self, _vm_id: &str, _exec: &Exec) -> Result<u64, StoreError> {
        self.take_time().await;
        let sequence = self.0.sequence.get() + 1;
        self.0.sequence.set(sequence);
        self.0.running.borrow_mut().insert(sequence, true);
        self.0.note(Fact::CommandRecorded(sequence));
        Ok(sequence)
    }

    async fn record_command_end(
        &self,
        _vm_id: &str,
        sequence: u64,
        outcome: &CommandOutcome,
    ) -> Result<(), StoreError> {
        self.take_time().await;
        let refused = self.0.ends_refused.get();
        match self.0.conditions.store {
            StoreBehaviour::FailsAtFirst if refused < 2 => {
                self.0.ends_refused.set(refused + 1);
                return Err(StoreError { is_permanent: false, cause: "the disk is full".to_owned() });
            }
            StoreBehaviour::RefusesEnds if !matches!(outcome, CommandOutcome::Unknown { .. }) => {
                return Err(StoreError { is_permanent: true, cause: "out of range".to_owned() });
            }
            _ => {}
        }
        let was_running = self.0.running.borrow_mut().insert(sequence, false);
        assert_eq!(was_running, Some(true), "a second end of command {sequence}");
        self.0.note(Fact::CommandEnded(sequence, outcome.clone()));
        Ok(())
    }
}

/// Seconds since the begin of the case.
pub(super) struct FakeClock(Instant);

impl Clock for FakeClock {
    async fn reaches(&self, seconds: f64) -> io::Result<()> {
        tokio::time::sleep_until(self.0 + Duration::from_secs_f64(seconds.max(0.0))).await;
        Ok(())
    }
}

/// A supervisor that runs, and the other ends of its connections.
pub(crate) struct Supervised {
    pub(super) world: Rc<World>,
    pub(super) inbox: Inbox,
    pub(crate) dir: PathBuf,
    caller: Option<JoinHandle<()>>,
    driver: JoinHandle<()>,
    _base: tempfile::TempDir,
}

impl Supervised {
    pub(super) fn start(conditions: Conditions) -> Self {
        let world = World::new(conditions);
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("vm");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(files::LAYER), "").unwrap();
        let spec = LaunchSpec {
            retention: world.conditions.retention,
            is_new: world.conditions.is_new,
            ..spec(dir.clone())
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let lifeline: LifelineServer = Framed::new(theirs, FrameCodec::default());
        let mut caller: LifelineClient = Framed::new(ours, FrameCodec::default());
        let listening = Rc::clone(&world);
        let caller = spawn_local(async move {
            while let Some(Ok(Frame::Control(event))) = caller.next().await {
                listening.note(Fact::Told(event));
            }
        });
        let boot = Rc::new(FakeBoot(Rc::clone(&world)));
        let store = Rc::new(FakeStore(Rc::clone(&world)));
        let mut driver = Driver::new(spec, boot, store, Rc::new(FakeClock(Instant::now())));
        driver.follow(lifeline);
        let inbox = driver.inbox();
        let driver = spawn_local(driver.run());
        Self { inbox, world, dir, caller: Some(caller), driver, _base: base }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.dir)
    }

    /// The process that started the VM goes away.
    pub(crate) fn drop_caller(&mut self) {
        if let Some(caller) = self.caller.take() {
            caller.abort();
        }
    }

    /// Whether the guest has run anything.
    pub(crate) fn began_anything(&self) -> bool {
        self.world.facts.borrow().iter().any(|fact| matches!(fact, Fact::Began(_)))
    }

    /// Waits for the supervisor's end.
    pub(crate) async fn ended(&mut self) {
        let limit = Duration::from_secs(5000);
        tokio::time::timeout(limit, &mut self.driver).await.expect("an end").expect("no panic");
        // Let everyone read what they were sent.
        sleep(Duration::from_millis(1)).await;
    }
}

pub(super) fn spec(dir: PathBuf) -> LaunchSpec {
    LaunchSpec {
        vm_id: "0123456789ab".to_owned(),
        dir,
        retention: Retention::Deletion,
        is_new: false,
        in_use_lock: None,
        expires_at: 1000.0,
        boot_limit_seconds: 10,
        machine: MachineConfig {
            vmm_program: "/none".into(),
            accelerator: Accelerator::Tcg,
            vcpu_count: 1,
            mem_mib: 128,
        },
        guest: GuestImage {
            digest: "digest".to_owned(),
            kernel: GuestKernel::SelfContained { image: "/none".into() },
            base_image: "/none".into(),
            base_filesystem: "erofs".to_owned(),
            layer_template: "/none".into(),
        },
        template_dir: None,
        purpose: Purpose::Vm,
        network: false,
    }
}
