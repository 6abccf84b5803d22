//! The only event loop of a supervisor. It owns the machine, takes events from one queue, and performs what [`Life`]
//! decides, in order.

mod claim;
mod clients;
mod end;
mod lifetime;
mod mounting;
mod start;

use std::collections::HashMap;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use futures::stream::SplitSink;
use pyro_machine::{Exit, Interruption, Machine};
use pyro_wire::Frame;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, spawn_local};

use self::claim::Adoption;
use self::clients::kind;
use self::end::HaltError;
pub(super) use self::end::{remove_dir, remove_file};
use self::mounting::MountRecorder;
use super::adoption::{HandedOver, TakeOverError};
use super::commands::Commands;
use super::mounts::Mounts;
use super::ports::Ports;
use super::services::Services;
use super::state::{ClientId, Effect, Epoch, Input, Life, State, Terms};
use super::{Boot, Clock, Store, StoreError};
use crate::dir::{self, Phase};
use crate::machine::{RunningMachine, with_causes};
use crate::mux::Streams;
use crate::protocol::{Event, LifelineServer, Reply, Request, ServerStream};
use crate::spec::{LaunchSpec, Purpose};
use crate::{BootFailure, BootInfo, BootStage, OwnerLock};

/// Time limit for noticing that a machine has exited after its guest channel closed.
const MACHINE_EXIT_LIMIT: Duration = Duration::from_secs(3);

/// A message to the driver.
pub(super) enum Message {
    /// An input without further data.
    Input(Input),
    /// A request from a client that was accepted in this epoch.
    Client(Epoch, Box<Request>, ServerStream),
    /// Whether the start was recorded.
    StartRecorded(Result<f64, StoreError>),
    /// The start is at this step.
    Stage(BootStage),
    /// The guest has written everything out, or why it may not have.
    Halted(Result<(), HaltError>),
}

/// The sending end of the driver's queue.
#[derive(Clone)]
pub(super) struct Inbox(mpsc::UnboundedSender<Message>);

impl Inbox {
    pub(super) fn post(&self, message: Message) {
        // The driver may have finished.
        let _ = self.0.send(message);
    }

    fn input(&self, input: Input) {
        self.post(Message::Input(input));
    }
}

/// An event that the loop waits for.
enum LoopEvent<M> {
    Message(Message),
    Booted(Result<RunningMachine<M>, BootFailure>),
    HandedOver(Option<HandedOver>),
    TakenOver(Instant, Result<(), TakeOverError>),
    Exited(Exit),
    /// The network of a spare that no caller has yet.
    NetworkLost(String),
}

/// The supervisor of one VM.
pub(super) struct Driver<'a, B: Boot, S, C> {
    spec: LaunchSpec,
    life: Life,
    boot: Rc<B>,
    store: Rc<S>,
    clock: Rc<C>,
    inbox: Inbox,
    queue: mpsc::UnboundedReceiver<Message>,
    lifeline: Option<SplitSink<LifelineServer, Frame<Event>>>,
    booting: Option<LocalBoxFuture<'a, Result<RunningMachine<B::Machine>, BootFailure>>>,
    adoption: Option<Adoption>,
    machine: Option<B::Machine>,
    has_exited: bool,
    streams: Option<Streams>,
    info: Option<BootInfo>,
    commands: Option<Commands<S>>,
    services: Option<Services<S>>,
    ports: Ports,
    mounts: Mounts,
    /// Those of the servers of the directories that the VM has from its start on.
    mount_sockets: Vec<OwnedFd>,
    clients: HashMap<ClientId, (Request, ServerStream)>,
    next_client: ClientId,
    acceptor: Option<AbortHandle>,
    lifetime: watch::Sender<f64>,
    /// A client has changed the lifetime; the previously recorded end does not count.
    is_extended: bool,
    timer: Option<AbortHandle>,
    /// Lock of a VM that was a spare.
    lock: Option<OwnerLock>,
    /// Directory of a spare, until it is removed.
    spare_dir: Option<PathBuf>,
    phase: Option<Phase>,
    failure: Option<BootFailure>,
    /// How the machine ended by itself.
    description: String,
    /// Why the guest may not have written everything out.
    loss: Option<HaltError>,
    /// What may be missing on the host, and why.
    not_written: Vec<String>,
}

impl<'a, B: Boot + 'a, S: Store + 'static, C: Clock> Driver<'a, B, S, C> {
    pub(super) fn new(spec: LaunchSpec, boot: Rc<B>, store: Rc<S>, clock: Rc<C>) -> Self {
        let (sender, queue) = mpsc::unbounded_channel();
        let terms = terms(&spec);
        Self {
            spare_dir: terms.is_spare.then(|| spec.dir.clone()),
            lifetime: watch::Sender::new(spec.expires_at),
            life: Life::new(terms),
            inbox: Inbox(sender),
            spec,
            boot,
            store,
            clock,
            queue,
            lifeline: None,
            booting: None,
            adoption: None,
            machine: None,
            has_exited: false,
            streams: None,
            info: None,
            commands: None,
            services: None,
            ports: Ports::new(),
            mounts: Mounts::default(),
            mount_sockets: Vec::new(),
            clients: HashMap::new(),
            next_client: 0,
            acceptor: None,
            is_extended: false,
            timer: None,
            lock: None,
            phase: None,
            failure: None,
            description: String::new(),
            loss: None,
            not_written: Vec::new(),
        }
    }

    /// Takes the sockets of the servers of the VM's directories.
    pub(super) fn with_mount_sockets(self, mount_sockets: Vec<OwnedFd>) -> Self {
        Self { mount_sockets, ..self }
    }

    /// Reports progress to the starter, and ends a VM that is bound to the starter when it disconnects.
    pub(super) fn follow(&mut self, lifeline: LifelineServer) {
        // The process that started a spare does not wait for it.
        if !self.life.terms().is_spare {
            self.watch_lifeline(lifeline);
        }
    }

    pub(super) fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// Supervises the VM to its end.
    pub(super) async fn run(mut self) {
        self.begin().await;
        while !self.life.is_done() {
            let event = self.next().await;
            dir::bound_log();
            if let LoopEvent::Message(Message::Stage(stage)) = event {
                self.announce_stage(stage).await;
            } else if let Some(input) = self.input_of(event) {
                self.apply(input).await;
            }
        }
    }

    /// Waits for the next event.
    async fn next(&mut self) -> LoopEvent<B::Machine> {
        let is_spare = matches!(self.life.state(), State::Waiting | State::Adopting);
        let Self { queue, booting, adoption, machine, has_exited, .. } = self;
        let booted = async {
            match booting {
                Some(booting) => booting.await,
                None => pending().await,
            }
        };
        let adopted = async {
            match adoption {
                Some(Adoption::HandOver(_, future)) => LoopEvent::HandedOver(future.await),
                Some(Adoption::TakeOver(started, future)) => LoopEvent::TakenOver(*started, future.await),
                None => pending().await,
            }
        };
        let exited = async {
            match machine {
                Some(machine) if !*has_exited && is_spare => match machine.interrupted().await {
                    Interruption::Exit(exit) => LoopEvent::Exited(exit),
                    Interruption::Network(error) => LoopEvent::NetworkLost(with_causes(&error)),
                },
                Some(machine) if !*has_exited => LoopEvent::Exited(machine.exited().await),
                _ => pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(message) = queue.recv() => LoopEvent::Message(message),
            booted = booted => LoopEvent::Booted(booted),
            // A claimer cannot use a spare that is lost at the moment at which it becomes a VM.
            exited = exited => exited,
            adopted = adopted => adopted,
        }
    }

    /// Stores what an event carries, and returns the input it stands for.
    fn input_of(&mut self, event: LoopEvent<B::Machine>) -> Option<Input> {
        Some(match event {
            LoopEvent::Message(Message::Input(input)) => {
                if input == Input::ChannelLost {
                    self.lost_while_claimed("the connection to the guest was lost");
                    self.lost_while_stopping(HaltError::NoAnswer);
                }
                input
            }
            LoopEvent::Message(Message::Client(epoch, request, client)) => {
                self.next_client += 1;
                let kind = kind(&request, &self.spec)?;
                self.clients.insert(self.next_client, (*request, client));
                Input::Request(epoch, self.next_client, kind)
            }
            // Changes nothing.
            LoopEvent::Message(Message::Stage(_)) => return None,
            LoopEvent::Message(Message::StartRecorded(Ok(expires_at))) => {
                if !self.is_extended {
                    self.lifetime.send_replace(expires_at);
                }
                Input::StartRecorded
            }
            LoopEvent::Message(Message::StartRecorded(Err(error))) => {
                self.failure = Some(BootFailure::at(BootStage::Vmm, error.cause));
                Input::StartNotRecorded
            }
            LoopEvent::Message(Message::Halted(Ok(()))) => Input::Halted,
            LoopEvent::Message(Message::Halted(Err(error))) => {
                tracing::warn!(%error, "the guest did not halt in order");
                self.loss = Some(error);
                Input::HaltFailed
            }
            LoopEvent::Booted(Ok(up)) => {
                self.booting = None;
                self.watch_channel(&up.streams);
                let RunningMachine { machine, streams, info } = up;
                (self.machine, self.streams, self.info) = (Some(machine), Some(streams), Some(info));
                Input::Ready
            }
            LoopEvent::Booted(Err(failure)) => {
                self.booting = None;
                tracing::warn!(?failure, "the VM did not come up");
                self.failure = Some(failure);
                Input::BootFailed
            }
            LoopEvent::HandedOver(None) => {
                self.adoption = None;
                Input::AdoptionFailed
            }
            LoopEvent::HandedOver(Some(handed_over)) => self.handed_over(handed_over),
            LoopEvent::TakenOver(started, taken) => self.taken_over(started, taken),
            LoopEvent::Exited(exit) => {
                self.has_exited = true;
                self.lost_while_claimed(&exit.to_string());
                self.description = exit.status();
                self.lost_while_stopping(HaltError::MachineEnded);
                Input::MachineExited
            }
            LoopEvent::NetworkLost(cause) => {
                tracing::warn!(cause, "a spare has lost its network");
                self.lost_while_claimed(&format!("the network is lost: {cause}"));
                Input::NetworkLost
            }
        })
    }

    /// A guest channel that closes means either that the machine has ended, noticed early, or that the guest is lost.
    fn watch_channel(&self, streams: &Streams) {
        let (streams, inbox) = (streams.clone(), self.inbox.clone());
        spawn_local(async move {
            streams.closed().await;
            tokio::time::sleep(MACHINE_EXIT_LIMIT).await;
            inbox.input(Input::ChannelLost);
        });
    }

    fn mount_recorder(&self) -> MountRecorder<S> {
        MountRecorder {
            mounts: self.mounts.clone(),
            store: Rc::clone(&self.store),
            vm_id: self.spec.vm_id.clone(),
        }
    }

    async fn apply(&mut self, input: Input) {
        let effects = self.life.apply(input);
        self.announce_phase();
        for effect in effects {
            self.perform(effect).await;
        }
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::AbortBoot => self.booting = None,
            Effect::OpenForClaims => {
                if let Err(error) = self.listen() {
                    tracing::warn!(%error, "no client can claim this spare");
                    self.inbox.input(Input::LifetimeOver(self.life.epoch()));
                }
            }
            Effect::Adopt(client) => self.adopt(client),
            Effect::AbortAdoption => self.adoption = None,
            Effect::RecordStart => self.record_start(),
            Effect::AnnounceStart => self.announce_start().await,
            Effect::WatchLifetime => self.watch_lifetime(),
            Effect::Serve(client) => self.serve(client),
            Effect::Extend(client) => self.extend(client).await,
            Effect::Refuse(client, refusal) => self.refuse(client, refusal).await,
            Effect::EndCommands => {
                self.ports.close();
                self.mounts.seal();
                self.end_commands();
            }
            Effect::HaltGuest => self.halt_guest(),
            Effect::KillMachine => {
                self.ports.close();
                self.kill_machine().await;
                self.not_written = self.mounts.close().await;
            }
            Effect::SettleCommands => self.settle_commands(),
            Effect::RemoveFiles { all } => self.remove_files(all),
            Effect::RecordEnd(cause) => self.record_end(cause),
            Effect::Forget => self.forget(),
            Effect::AnnounceEnd(cause) => self.announce_end(cause).await,
            Effect::Confirm(client) => self.reply(client, Reply::Done).await,
        }
    }
}

/// Returns the terms on which the VM is kept.
fn terms(spec: &LaunchSpec) -> Terms {
    Terms { retention: spec.retention, is_new: spec.is_new, is_spare: spec.purpose == Purpose::Spare }
}
