//! The fakes, and a supervisor that runs on them.

mod guest;
mod machine;
mod store;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use pyro_machine::fake as machine_fake;
use pyro_wire::{Frame, FrameCodec, Request};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

pub(super) use self::guest::mounts::{fuse_message, packets};
pub(super) use self::guest::services::{HTTP_PORT, SERVED_PORT};
use self::machine::FakeBoot;
pub(crate) use self::store::FakeStore;
use super::hostile_agent::Attack;
use crate::conversation::CommandOutcome;
use crate::protocol::{Event, LifelineClient, LifelineServer, Reply};
use crate::server::Clock;
use crate::server::driver::{Driver, Inbox};
use crate::spec::{LaunchSpec, Purpose, Retention};
use crate::{
    Client, EndReason, MountPoint, OwnerLock, PortMapping, PublishedPort, ServiceDefinition, ServiceStatus,
    StartError, files,
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
        vmm: pyro_machine::Vmm::Qemu,
        pace: crate::Pace::USUAL,
        reports_stages: false,
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
