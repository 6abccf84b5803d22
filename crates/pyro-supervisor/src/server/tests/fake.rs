//! The fakes, and a supervisor that runs on them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::poll_fn;
use futures::{SinkExt, StreamExt};
use pyro_machine::network::{NetworkDescription, NetworkError};
use pyro_machine::{
    Accelerator, Confinement, Console, Exit as MachineExit, Interrupted, Interruption, Machine, MachineError,
    fake as machine_fake,
};
use pyro_wire::{
    ArchiveReply, ArchiveReport, Connect, ConnectInput, ConnectReply, Exec, ExecInput, ExecReply, Exit,
    Failure, FailureKind, FileInfo, FileKind, Frame, FrameCodec, HaltReply, IdentifyReply, Input, InputEnd,
    InputReply, Mount, MountInput, MountReply, NoInput, OutputStream, Pack, ProbeReply, Program, Request,
    Resize, Signal, StatReply, Status, SteerReply, Unpack,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet, spawn_local};
use tokio::time::{Instant, sleep};
use tokio_util::codec::Framed;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::sync::CancellationToken;
use yamux::{Config, Connection, Mode};

use super::hostile_agent::{self, Attack};
use crate::conversation::CommandOutcome;
use crate::machine::RunningMachine;
use crate::mux;
use crate::protocol::{Event, LifelineClient, LifelineServer, Reply};
use crate::server::driver::{Driver, Inbox};
use crate::server::{Boot, Clock, Store, StoreError};
use crate::spec::{LaunchSpec, Purpose, Retention};
use crate::{
    BootFailure, BootInfo, BootStage, Client, EndReason, MountPoint, OwnerLock, PortMapping, PublishedPort,
    ServiceDefinition, ServiceStatus, StartError, StartMode, files,
};

/// How the world behaves in one case.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    pub(crate) retention: Retention,
    pub(crate) is_new: bool,
    /// Virtual milliseconds that things take.
    pub(crate) boot_ms: u64,
    pub(crate) store_ms: u64,
    pub(crate) halt_ms: u64,
    pub(crate) boot_fails: bool,
    pub(crate) start_is_refused: bool,
    pub(crate) store: StoreBehaviour,
    /// Virtual seconds until the end of the lifetime.
    pub(crate) lifetime: u32,
    /// Virtual seconds until a spare ends that no client claims.
    pub(crate) idle: u32,
    pub(crate) identify_ms: u64,
    pub(crate) identity_fails: bool,
    pub(crate) halt_fails: bool,
    /// Commands cannot be recorded when they begin.
    pub(crate) begins_are_refused: bool,
    /// Neither the end of the VM nor its removal can be recorded.
    pub(crate) end_is_refused: bool,
    pub(crate) clock_fails: bool,
    /// The first request for the input of a command is refused.
    pub(crate) first_input_fails: bool,
    /// Services on record from the start.
    pub(crate) services: Vec<ServiceDefinition>,
    /// Ports that are published from the start.
    pub(crate) mounts: Vec<MountPoint>,
    pub(crate) ports: Vec<PortMapping>,
    /// What an agent does that attacks the host.
    pub(crate) attack: Option<Attack>,
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
            idle: 600,
            identify_ms: 20,
            identity_fails: false,
            halt_fails: false,
            begins_are_refused: false,
            end_is_refused: false,
            clock_fails: false,
            first_input_fails: false,
            services: Vec::new(),
            ports: Vec::new(),
            mounts: Vec::new(),
            attack: None,
        }
    }
}

/// What becomes of records of commands' ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreBehaviour {
    Works,
    /// What becomes of services is not taken, as on a full disk.
    RefusesStatus,
    /// The first attempts fail, as on a full disk.
    FailsAtFirst,
    /// None is taken, as one with a number that is too large.
    RefusesEnds,
    /// Not even that the outcome is unknown.
    RefusesAll,
}

/// What happened, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fact {
    StartRecorded,
    MountsRecorded(Vec<String>),
    PortsRecorded(Vec<PublishedPort>),
    ServiceRecorded(String, ServiceStatus),
    ServiceForgotten(String),
    CommandRecorded(u64),
    CommandEnded(u64, CommandOutcome),
    EndRecorded(EndReason),
    Forgotten,
    /// The guest began to run a command.
    Began(String),
    Halted,
    MachineUp,
    MachineGone,
    /// The starter received this event.
    Notified(Event),
    /// A client received the confirmation that the VM has ended.
    Confirmed,
    /// A client received the outcome of its command.
    Answered(Option<u64>, CommandOutcome),
    /// A client that reached the spare sent this request, and this is the answer.
    OfSpare(&'static str, Option<Reply>),
    /// The claim was not granted.
    NotClaimed,
    /// The supervisor was lost during the claim.
    ClaimLost,
    /// The host took more from the agent than it may.
    TookTooMuch,
}

/// Everything that the fakes share.
pub(crate) struct World {
    pub(crate) conditions: Conditions,
    pub(crate) facts: RefCell<Vec<Fact>>,
    pub(crate) machine_exit: Notify,
    pub(crate) channel_loss: CancellationToken,
    pub(crate) network_loss: CancellationToken,
    /// What the machine prints before it exits.
    pub(crate) last_words: RefCell<String>,
    /// The recorded reason why the guest may not have written everything out.
    pub(crate) loss: RefCell<Option<String>>,
    /// When the end of the lifetime was recorded, in seconds since the begin of the case.
    pub(crate) expired_at: Cell<Option<f64>>,
    began: Instant,
    /// Directories are unmounted before the machine halts.
    halting: CancellationToken,
    mounted: Cell<u32>,
    is_alive: Cell<bool>,
    sequence: Cell<u64>,
    ends_refused: Cell<u32>,
    services: RefCell<Vec<ServiceDefinition>>,
    /// Whether the ports and files that are asked for exist.
    pub(super) is_ready: Cell<bool>,
    /// Attempts to find out whether they do.
    pub(super) probes: RefCell<Vec<Request>>,
    running: RefCell<BTreeMap<u64, bool>>,
    /// Commands that take input, by their number in the guest. `None`: a stream is attached.
    pub(super) inputs: RefCell<BTreeMap<u64, Option<mpsc::Sender<Bytes>>>>,
    /// Sizes that terminals were given, signals that were sent, and inputs that were requested, with the command's number.
    pub(super) steered: RefCell<Vec<(u64, String)>>,
}

impl World {
    pub(crate) fn new(conditions: Conditions) -> Rc<Self> {
        Rc::new(Self {
            services: RefCell::new(conditions.services.clone()),
            is_ready: Cell::new(false),
            probes: RefCell::default(),
            conditions,
            facts: RefCell::default(),
            machine_exit: Notify::new(),
            channel_loss: CancellationToken::new(),
            network_loss: CancellationToken::new(),
            last_words: RefCell::default(),
            loss: RefCell::default(),
            expired_at: Cell::new(None),
            began: Instant::now(),
            halting: CancellationToken::new(),
            mounted: Cell::new(0),
            is_alive: Cell::new(false),
            sequence: Cell::new(0),
            ends_refused: Cell::new(0),
            running: RefCell::default(),
            inputs: RefCell::default(),
            steered: RefCell::default(),
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
            ports: Vec::new(),
            confinement: None,
            network_confinement: None,
            supervisor_restricted: None,
            start_mode: StartMode::Cold,
            warning: None,
            stages: Vec::new(),
        };
        let console = Console::create(&spec.dir.join(files::SERIAL_LOG)).unwrap();
        let confinement = Confinement::none("there is no process");
        Ok(RunningMachine { machine: FakeMachine { world, guest, console, confinement }, streams, info })
    }
}

pub(super) struct FakeMachine {
    world: Rc<World>,
    guest: JoinHandle<()>,
    console: Console,
    confinement: Confinement,
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
        self.console.print(self.world.last_words.borrow().as_bytes());
        self.end();
        MachineExit::Status(ExitStatus::default())
    }

    async fn interrupted(&mut self) -> Interruption {
        let world = Rc::clone(&self.world);
        tokio::select! {
            biased;
            exit = self.exited() => Interruption::Exit(exit),
            () = world.network_loss.cancelled() => Interruption::Network(NetworkError::Ended {
                status: "signal: 9 (SIGKILL)".to_owned(),
                messages: "none".to_owned(),
            }),
        }
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

    fn confinement(&self) -> &Confinement {
        &self.confinement
    }
}

/// A guest that understands `sleep MS`, `fail MS`, which ends with exit code 3, `stubborn MS`, which does not end when asked to, `print BYTES`, which then waits
/// to be ended and is slow to end, `flood BYTES`, which prints and ends at once when asked to, `burst BYTES`, which prints and ends, `late`, which reaches its
/// time limit, `missing`, which cannot be started, `chatter`, which prints until its stream is closed, `leave`, which
/// closes its stream, `garbage`, which breaks the protocol, `cat`, which prints its input, `blocked MS`, which never reads
/// its input, a login shell, which waits to be ended, and anything else, which ends at once.
async fn run_guest(channel: UnixStream, world: Rc<World>) {
    if let Some(attack) = world.conditions.attack {
        if hostile_agent::serve(channel, attack).await {
            world.note(Fact::TookTooMuch);
        }
        return;
    }
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
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, HaltReply>::default());
            world.halting.cancel();
            while world.mounted.get() > 0 {
                tokio::task::yield_now().await;
            }
            let reply = if world.conditions.halt_fails {
                HaltReply::Failed(failure("writing out", "I/O error"))
            } else {
                world.note(Fact::Halted);
                HaltReply::Halted
            };
            let _ = stream.send(Frame::Control(reply)).await;
        }
        Some(Ok(Frame::Control(Request::Input(Input { command })))) => {
            world.steered.borrow_mut().push((command, "input".to_owned()));
            let mut stream = stream.map_codec(|_| FrameCodec::<InputEnd, InputReply>::default());
            if let Some(reply) = take_input(&mut stream, command, &world).await {
                let _ = stream.send(Frame::Control(reply)).await;
            }
        }
        Some(Ok(Frame::Control(Request::Resize(Resize { command, size })))) => {
            world.steered.borrow_mut().push((command, format!("{}x{}", size.columns, size.rows)));
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, SteerReply>::default());
            let _ = stream.send(Frame::Control(SteerReply::Done)).await;
        }
        Some(Ok(Frame::Control(Request::Signal(Signal { command, signal })))) => {
            world.steered.borrow_mut().push((command, format!("signal {signal}")));
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, SteerReply>::default());
            let reply = SteerReply::Failed(failure("signalling", "not permitted"));
            let _ = stream.send(Frame::Control(reply)).await;
        }
        // Neither answers nor reads what it is sent.
        Some(Ok(Frame::Control(Request::Unpack(Unpack { path, .. }) | Request::Pack(Pack { path, .. }))))
            if path == "silent" =>
        {
            std::future::pending().await
        }
        Some(Ok(Frame::Control(Request::Unpack(_)))) => {
            world.note(Fact::Began("copy".to_owned()));
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, ArchiveReply>::default());
            let reply = ArchiveReply::Archived(ArchiveReport::default());
            let _ = stream.send(Frame::Control(reply)).await;
            // The client sends the rest before it looks for an answer.
            while let Some(Ok(Frame::Output(..))) = stream.next().await {}
        }
        Some(Ok(Frame::Control(Request::Connect(Connect { port })))) => {
            let mut stream = stream.map_codec(|_| FrameCodec::<ConnectInput, ConnectReply>::default());
            let reply = match port {
                SERVED_PORT => echo(&mut stream).await,
                HTTP_PORT => respond(&mut stream, &world).await,
                _ => Some(ConnectReply::Failed(failure("connecting", "refused"))),
            };
            if let Some(reply) = reply {
                let _ = stream.send(Frame::Control(reply)).await;
                let _ = stream.close().await;
            }
        }
        Some(Ok(Frame::Control(Request::Stat(stat)))) => {
            let info = FileInfo {
                path: stat.path.clone(),
                kind: FileKind::Special,
                size: 0,
                mode: 0o600,
                uid: 0,
                gid: 0,
                modified_ms: 0,
                target: None,
            };
            world.probes.borrow_mut().push(Request::Stat(stat));
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, StatReply>::default());
            let reply = match world.is_ready.get() {
                true => StatReply::Found(info),
                false => StatReply::Failed(failure("looking", "not there")),
            };
            let _ = stream.send(Frame::Control(reply)).await;
        }
        Some(Ok(Frame::Control(Request::Probe(probe)))) => {
            world.probes.borrow_mut().push(Request::Probe(probe));
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, ProbeReply>::default());
            let reply = match world.is_ready.get() {
                true => ProbeReply::Ready,
                false => ProbeReply::NotReady(failure("looking", "not there")),
            };
            let _ = stream.send(Frame::Control(reply)).await;
        }
        Some(Ok(Frame::Control(Request::Mount(mount)))) => {
            serve_mount(&world, mount, stream.map_codec(|_| FrameCodec::default())).await;
        }
        Some(Ok(Frame::Control(Request::Identify(_)))) => {
            sleep(Duration::from_millis(world.conditions.identify_ms)).await;
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, IdentifyReply>::default());
            let reply = if world.conditions.identity_fails {
                IdentifyReply::Failed(failure("setting the hostname", "read-only"))
            } else {
                IdentifyReply::Identified
            };
            let _ = stream.send(Frame::Control(reply)).await;
        }
        _ => {}
    }
}

/// The port on which the guest has an HTTP server, which answers 503 until it is ready and then with a redirection.
pub(super) const HTTP_PORT: u16 = 8080;

async fn respond(
    stream: &mut Framed<
        impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
        FrameCodec<ConnectInput, ConnectReply>,
    >,
    world: &World,
) -> Option<ConnectReply> {
    let Frame::Output(kind, request) = stream.next().await?.ok()? else { return None };
    let status = match world.is_ready.get() {
        true => "302 Found",
        false => "503 Service Unavailable",
    };
    world.steered.borrow_mut().push((0, String::from_utf8_lossy(&request).into_owned()));
    let answer = format!("HTTP/1.1 {status}\r\nLocation: /\r\nContent-Length: 1000000\r\n\r\n");
    stream.send(Frame::Output(kind, answer.into())).await.ok()?;
    // Its body never comes.
    std::future::pending().await
}

/// The port on which the guest has a server, which sends back what it gets.
pub(super) const SERVED_PORT: u16 = 80;

async fn echo(
    stream: &mut Framed<
        impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
        FrameCodec<ConnectInput, ConnectReply>,
    >,
) -> Option<ConnectReply> {
    loop {
        match stream.next().await?.ok()? {
            Frame::Output(kind, bytes) => stream.send(Frame::Output(kind, bytes)).await.ok()?,
            Frame::Control(ConnectInput::Finished) => return Some(ConnectReply::Finished),
        }
    }
}

fn failure(step: &str, cause: &str) -> Failure {
    let (step, cause) = (step.to_owned(), cause.to_owned());
    Failure { kind: FailureKind::Other, step, cause, errno: None }
}

/// Passes input on to a command. One that is not read for a while is still waited for.
async fn take_input(
    stream: &mut Framed<
        impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
        FrameCodec<InputEnd, InputReply>,
    >,
    command: u64,
    world: &World,
) -> Option<InputReply> {
    let requested = world.steered.borrow().iter().filter(|(_, what)| what == "input").count();
    if world.conditions.first_input_fails && requested == 1 {
        return Some(InputReply::Failed(failure("opening its input", "too many open files")));
    }
    let input = match world.inputs.borrow_mut().get_mut(&command).map(Option::take) {
        Some(Some(input)) => input,
        Some(None) => return Some(InputReply::Busy),
        None => return Some(InputReply::NotRunning),
    };
    loop {
        let frame = tokio::select! {
            frame = stream.next() => frame,
            () = input.closed() => return Some(InputReply::Closed),
        };
        match frame {
            Some(Ok(Frame::Output(_, bytes))) => {
                if input.send(bytes).await.is_err() {
                    return Some(InputReply::Closed);
                }
            }
            Some(Ok(Frame::Control(InputEnd::Finished))) => return Some(InputReply::Taken),
            // Another stream may follow.
            _ => {
                world.inputs.borrow_mut().insert(command, Some(input));
                return None;
            }
        }
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
    let command = exec.program.label();
    world.note(Fact::Began(command.clone()));
    if exec.report_start && command != "missing" {
        stream.send(Frame::Control(ExecReply::Started)).await.ok()?;
    }
    let started = Instant::now();
    let mut words = command.split(' ');
    let is_stubborn = words.next() == Some("stubborn");
    let mut ms = match exec.program {
        Program::LoginShell => 1_000_000,
        _ => words.next().and_then(|ms| ms.parse().ok()).unwrap_or(0),
    };
    let print = |bytes: usize| Frame::Output(OutputStream::Stdout, vec![b'x'; bytes].into());
    match command.split(' ').next() {
        Some(name @ ("print" | "flood" | "burst")) => {
            let mut left = ms as usize;
            while left > 0 {
                stream.feed(print(left.min(60_000))).await.ok()?;
                left -= left.min(60_000);
            }
            stream.flush().await.ok()?;
            match name {
                "print" => drop(stream.next().await?.ok()?),
                "burst" => ms = 0,
                _ => {}
            }
        }
        Some("cat") => {
            let (sender, mut input) = mpsc::channel(1);
            world.inputs.borrow_mut().insert(exec.id, Some(sender));
            while let Some(bytes) = input.recv().await {
                stream.send(Frame::Output(OutputStream::Stdout, bytes)).await.ok()?;
            }
        }
        // Its input is never read, and open until it ends.
        Some("blocked") => {
            let (sender, _input) = mpsc::channel(1);
            world.inputs.borrow_mut().insert(exec.id, Some(sender));
            sleep(Duration::from_millis(ms)).await;
        }
        Some("missing") => return Some(ExecReply::NotStarted(failure("starting", "not found"))),
        Some("chatter") => loop {
            stream.send(print(10)).await.ok()?;
            sleep(Duration::from_millis(100)).await;
        },
        Some("leave") => return None,
        Some("garbage") => {
            stream.get_mut().write_all(&[0xff; 64]).await.ok()?;
            stream.get_mut().flush().await.ok()?;
            return None;
        }
        _ => {}
    }
    let wait = sleep(Duration::from_millis(ms));
    tokio::pin!(wait);
    let status = loop {
        tokio::select! {
            () = &mut wait => break Status::Code(if command.starts_with("fail") { 3 } else { 0 }),
            frame = stream.next() => match frame {
                Some(Ok(Frame::Control(ExecInput::Terminate))) if is_stubborn => {}
                Some(Ok(Frame::Control(ExecInput::Terminate))) => break Status::Signal(15),
                _ => return None,
            },
        }
    };
    Some(ExecReply::Exited(Exit {
        status,
        timed_out: command == "late",
        duration_ms: started.elapsed().as_millis() as u64,
        stdout_dropped: 0,
        stderr_dropped: 0,
    }))
}

/// Two connected sockets whose packets are messages.
pub(super) fn packets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// A message of 100 bytes.
pub(super) fn fuse_message() -> Bytes {
    let mut message = vec![7; 100];
    message[0..4].copy_from_slice(&100_u32.to_le_bytes());
    message.into()
}

/// Stands for the guest's kernel: it sends one message and reads the answers of the host. It cannot mount on `/busy`.
async fn serve_mount(
    world: &World,
    mount: Mount,
    mut stream: Framed<
        impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
        FrameCodec<MountInput, MountReply>,
    >,
) {
    if mount.path == "/busy" {
        let reply = MountReply::Failed(failure("mounting on /busy", "it is busy"));
        let _ = stream.send(Frame::Control(reply)).await;
        return;
    }
    let _ = stream.send(Frame::Control(MountReply::Mounted)).await;
    let _ = stream.send(Frame::Output(OutputStream::Stdout, fuse_message())).await;
    let mut lost = false;
    world.mounted.set(world.mounted.get() + 1);
    loop {
        let frame = tokio::select! {
            frame = stream.next() => frame,
            () = world.halting.cancelled() => break,
        };
        match frame {
            Some(Ok(Frame::Output(..))) => {}
            Some(Ok(Frame::Control(MountInput::Lost))) => lost = true,
            Some(Ok(Frame::Control(MountInput::Unmount)) | Err(_)) | None => break,
        }
    }
    // The host must say that the server of `/lost` has ended before it asks for anything else.
    let is_full = mount.path == "/full" || (mount.path == "/lost" && !lost);
    let not_written = is_full.then(|| failure("writing it out", "no space left on device"));
    let _ = stream.send(Frame::Control(MountReply::Unmounted { not_written })).await;
    let _ = stream.close().await;
    world.mounted.set(world.mounted.get() - 1);
}

fn full() -> StoreError {
    StoreError { is_permanent: false, cause: "the disk is full".to_owned() }
}

pub(crate) struct FakeStore(pub(crate) Rc<World>);

impl FakeStore {
    async fn take_time(&self) {
        sleep(Duration::from_millis(self.0.conditions.store_ms)).await;
    }

    /// Fails for this many attempts in total, as on a disk that is full for a while.
    fn fail_at_first(&self, attempts: u32) -> Result<(), StoreError> {
        let refused = self.0.ends_refused.get();
        if self.0.conditions.store != StoreBehaviour::FailsAtFirst || refused >= attempts {
            return Ok(());
        }
        self.0.ends_refused.set(refused + 1);
        Err(full())
    }
}

impl Store for FakeStore {
    async fn record_start(&self, _vm_id: &str, _info: &BootInfo) -> Result<f64, StoreError> {
        self.take_time().await;
        if self.0.conditions.start_is_refused {
            return Err(full());
        }
        self.0.note(Fact::StartRecorded);
        Ok(self.0.conditions.lifetime.into())
    }

    async fn record_end(
        &self,
        _vm_id: &str,
        _retention: Retention,
        reason: &EndReason,
        loss: Option<&str>,
    ) -> Result<(), StoreError> {
        self.take_time().await;
        if self.0.conditions.end_is_refused {
            return Err(full());
        }
        *self.0.loss.borrow_mut() = loss.map(str::to_owned);
        if *reason == EndReason::Expired {
            self.0.expired_at.set(Some(self.0.began.elapsed().as_secs_f64()));
        }
        self.0.note(Fact::EndRecorded(reason.clone()));
        Ok(())
    }

    async fn record_ports(&self, _vm_id: &str, ports: &[PublishedPort]) -> Result<(), StoreError> {
        self.take_time().await;
        if self.0.conditions.begins_are_refused {
            return Err(full());
        }
        self.0.note(Fact::PortsRecorded(ports.to_vec()));
        Ok(())
    }

    async fn services(&self, _vm_id: &str) -> Result<Vec<ServiceDefinition>, StoreError> {
        if !self.0.services.borrow().is_empty() {
            self.fail_at_first(2)?;
        }
        Ok(self.0.services.borrow().clone())
    }

    async fn record_service(
        &self,
        _vm_id: &str,
        definition: &ServiceDefinition,
        status: &ServiceStatus,
    ) -> Result<(), StoreError> {
        self.take_time().await;
        if self.0.conditions.begins_are_refused {
            return Err(full());
        }
        let mut services = self.0.services.borrow_mut();
        services.retain(|known| known.name != definition.name);
        services.push(definition.clone());
        self.0.note(Fact::ServiceRecorded(definition.name.clone(), status.clone()));
        Ok(())
    }

    async fn record_service_status(
        &self,
        _vm_id: &str,
        name: &str,
        status: &ServiceStatus,
    ) -> Result<(), StoreError> {
        self.take_time().await;
        self.fail_at_first(3)?;
        if self.0.conditions.store == StoreBehaviour::RefusesStatus {
            return Err(full());
        }
        self.0.note(Fact::ServiceRecorded(name.to_owned(), status.clone()));
        Ok(())
    }

    async fn forget_service(&self, _vm_id: &str, name: &str) -> Result<(), StoreError> {
        self.take_time().await;
        self.0.services.borrow_mut().retain(|known| known.name != name);
        self.0.note(Fact::ServiceForgotten(name.to_owned()));
        Ok(())
    }

    async fn record_mounts(
        &self,
        _vm_id: &str,
        mounts: &[MountPoint],
        lost: &[String],
    ) -> Result<(), StoreError> {
        self.take_time().await;
        if self.0.conditions.begins_are_refused {
            return Err(full());
        }
        let shown = |mount: &MountPoint| {
            let is_lost = lost.contains(&mount.guest);
            if is_lost { format!("{} (lost)", mount.guest) } else { mount.guest.clone() }
        };
        self.0.note(Fact::MountsRecorded(mounts.iter().map(shown).collect()));
        Ok(())
    }

    async fn forget(&self, _vm_id: &str) -> Result<(), StoreError> {
        self.take_time().await;
        if self.0.conditions.end_is_refused {
            return Err(full());
        }
        self.0.note(Fact::Forgotten);
        Ok(())
    }

    async fn record_command(&self, _vm_id: &str, _exec: &Exec) -> Result<u64, StoreError> {
        self.take_time().await;
        if self.0.conditions.begins_are_refused {
            return Err(full());
        }
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
                return Err(full());
            }
            StoreBehaviour::RefusesAll => {
                return Err(StoreError { is_permanent: true, cause: "out of range".to_owned() });
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

/// Seconds since the begin of the case; it may have no timers.
pub(super) struct FakeClock(Instant, bool);

impl Clock for FakeClock {
    async fn reaches(&self, seconds: f64) -> io::Result<()> {
        if self.1 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        tokio::time::sleep_until(self.0 + Duration::from_secs_f64(seconds.max(0.0))).await;
        Ok(())
    }
}

/// A supervisor that runs, and the other ends of its connections.
pub(crate) struct Supervised {
    pub(crate) world: Rc<World>,
    pub(super) inbox: Inbox,
    pub(crate) dir: PathBuf,
    /// Where it waited to be claimed, if it is a spare.
    pub(crate) spare_dir: PathBuf,
    caller: Option<JoinHandle<()>>,
    driver: JoinHandle<()>,
    /// The ends of the servers of its directories.
    pub(super) servers: Vec<OwnedFd>,
    _base: tempfile::TempDir,
}

impl Supervised {
    pub(super) fn start(conditions: Conditions) -> Self {
        Self::launch(conditions, Purpose::Vm)
    }

    /// A spare that waits to be claimed.
    pub(super) fn spare(conditions: Conditions) -> Self {
        Self::launch(conditions, Purpose::Spare)
    }

    fn launch(conditions: Conditions, purpose: Purpose) -> Self {
        let world = World::new(conditions);
        let base = tempfile::tempdir().unwrap();
        let (dir, spare_dir) = (base.path().join("vm"), base.path().join("spares/kind/spare"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::create_dir_all(&spare_dir).unwrap();
        let spec = match purpose {
            Purpose::Spare => LaunchSpec {
                purpose,
                is_new: true,
                expires_at: world.conditions.idle.into(),
                ..spec(spare_dir.clone())
            },
            _ => vm_spec(&dir, &world.conditions),
        };
        for name in [files::LAYER, files::SUPERVISOR_LOG] {
            std::fs::write(spec.dir.join(name), "").unwrap();
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let lifeline: LifelineServer = Framed::new(theirs, FrameCodec::default());
        let mut caller: LifelineClient = Framed::new(ours, FrameCodec::default());
        let listening = Rc::clone(&world);
        let caller = spawn_local(async move {
            while let Some(Ok(Frame::Control(event))) = caller.next().await {
                listening.note(Fact::Notified(event));
            }
        });
        let boot = Rc::new(FakeBoot(Rc::clone(&world)));
        let store = Rc::new(FakeStore(Rc::clone(&world)));
        let clock = FakeClock(Instant::now(), world.conditions.clock_fails);
        // Their other ends wait to be taken.
        let pairs: Vec<_> = spec.mounts.iter().map(|_| packets().expect("a pair of sockets")).collect();
        let (servers, sockets) = pairs.into_iter().unzip();
        let mut driver = Driver::new(spec, boot, store, Rc::new(clock)).with_mount_sockets(sockets);
        driver.follow(lifeline);
        let inbox = driver.inbox();
        let driver = spawn_local(driver.run());
        Self { inbox, world, dir, spare_dir, caller: Some(caller), driver, servers, _base: base }
    }

    /// Makes the spare the VM in `dir`, as a starter does, and follows it to its end.
    pub(super) fn claim(&mut self) {
        let (world, spare_dir, dir) = (Rc::clone(&self.world), self.spare_dir.clone(), self.dir.clone());
        let claimer = spawn_local(async move {
            let lock = OwnerLock::try_acquire(&dir).unwrap().unwrap();
            let claimed = crate::client::claim(&spare_dir, vm_spec(&dir, &world.conditions), &lock).await;
            let event = match claimed {
                None => return world.note(Fact::NotClaimed),
                Some(Ok((lifeline, info))) => {
                    world.note(Fact::Notified(Event::Booted(info)));
                    lifeline.ended().await.map(Event::Ended)
                }
                Some(Err(StartError::Boot(failure))) => Some(Event::Failed(failure)),
                Some(Err(StartError::Ended(reason))) => Some(Event::Ended(reason)),
                Some(Err(StartError::Lost)) => return world.note(Fact::ClaimLost),
                Some(Err(error)) => panic!("{error}"),
            };
            if let Some(event) = event {
                world.note(Fact::Notified(event));
            }
        });
        self.caller = Some(claimer);
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.dir)
    }

    /// The process that started the VM exits.
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

/// Describes the VM of a caller.
fn vm_spec(dir: &Path, conditions: &Conditions) -> LaunchSpec {
    LaunchSpec {
        retention: conditions.retention,
        is_new: conditions.is_new,
        expires_at: conditions.lifetime.into(),
        ports: conditions.ports.clone(),
        mounts: conditions.mounts.clone(),
        ..spec(dir.to_owned())
    }
}

pub(crate) fn spec(dir: PathBuf) -> LaunchSpec {
    LaunchSpec {
        vm_id: "0123456789ab".to_owned(),
        dir,
        retention: Retention::Deletion,
        is_new: false,
        in_use_lock: None,
        expires_at: 1000.0,
        boot_limit_seconds: 10,
        machine: machine_fake::machine_config(),
        guest: machine_fake::guest_image(),
        artifacts_are_open: false,
        template_dir: None,
        purpose: Purpose::Vm,
        requires_full_confinement: false,
        ports: Vec::new(),
        mounts: Vec::new(),
        mount_sockets: Default::default(),
        variables: Vec::new(),
        network: false,
        network_policy: Default::default(),
        host_settings: Default::default(),
    }
}
