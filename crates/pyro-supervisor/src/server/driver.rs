//! The only event loop of a supervisor. It owns the machine, takes events from one queue, and performs what [`Life`]
//! decides, in order.

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use futures::stream::SplitSink;
use futures::{FutureExt, SinkExt, StreamExt};
use pyro_machine::Machine;
use pyro_wire::Frame;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, spawn_local};
use tokio_util::codec::FramedParts;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::commands::Commands;
use super::state::{self, Cause, ClientId, Effect, Input, Life, Refusal, State, Terms};
use super::{Boot, Clock, Store, StoreError, adoption, receive};
use crate::dir::{self, Owner, Phase};
use crate::machine::RunningMachine;
use crate::mux::Streams;
use crate::protocol::{Event, LifelineServer, Reply, Request, ServerStream};
use crate::spec::{LaunchSpec, Purpose};
use crate::{BootFailure, BootInfo, BootStage, OwnerLock, StageTime, StartMode, files};

/// Time limit for a guest to write everything out before its VM is ended anyway.
const HALT_LIMIT: Duration = Duration::from_secs(20);
/// Time limit for noticing that a machine has exited after its guest channel closed.
const EXIT_LIMIT: Duration = Duration::from_secs(3);
/// Time limit for a client or a starter to take a few bytes.
const TELL_LIMIT: Duration = Duration::from_secs(3);

/// A message to the driver.
pub(super) enum Message {
    /// An input without further data.
    Input(Input),
    /// A request from a client.
    Client(Request, ServerStream),
    /// Whether the start was recorded.
    StartRecorded(Result<f64, StoreError>),
    /// The guest has written everything out, or why it may not have.
    Halted(Result<(), String>),
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
enum Happening<M> {
    Message(Message),
    Booted(Result<RunningMachine<M>, BootFailure>),
    HandedOver(Option<(LifelineServer, OwnerLock)>),
    TakenOver(Result<(), String>),
    Exited(String),
}

/// Progress of the adoption of a spare.
enum Adoption {
    HandOver(Box<LaunchSpec>, LocalBoxFuture<'static, Option<(LifelineServer, OwnerLock)>>),
    TakeOver(Instant, LocalBoxFuture<'static, Result<(), String>>),
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
    loss: Option<String>,
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
        }
    }

    /// Reports progress to the starter, and ends whatever is bound to the starter when it disconnects.
    pub(super) fn follow(&mut self, lifeline: LifelineServer) {
        let (sink, mut stream) = lifeline.split();
        if self.life.terms().is_spare {
            return;
        }
        self.lifeline = Some(sink);
        let inbox = self.inbox.clone();
        spawn_local(async move {
            while let Some(Ok(_)) = stream.next().await {}
            inbox.input(Input::CallerGone);
        });
    }

    pub(super) fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// Supervises the VM to its end.
    pub(super) async fn run(mut self) {
        self.announce_phase();
        // Clients that want to end the VM are served from the beginning; a spare has no owner until it is up.
        if !self.life.terms().is_spare
            && let Err(failure) = self.listen()
        {
            self.failure = Some(failure);
            self.apply(Input::BootFailed).await;
        } else {
            self.booting = Some(self.start_boot());
        }
        while !self.life.is_done() {
            let happening = self.next().await;
            dir::bound_log();
            if let Some(input) = self.note(happening) {
                self.apply(input).await;
            }
        }
    }

    fn start_boot(&self) -> LocalBoxFuture<'a, Result<RunningMachine<B::Machine>, BootFailure>> {
        let (boot, spec, is_spare) = (Rc::clone(&self.boot), self.spec.clone(), self.life.terms().is_spare);
        async move {
            let up = boot.boot(&spec).await?;
            if is_spare {
                adoption::warm_up(&spec, &up.streams).await;
            }
            Ok(up)
        }
        .boxed_local()
    }

    /// Waits for the next event.
    async fn next(&mut self) -> Happening<B::Machine> {
        let Self { queue, booting, adoption, machine, has_exited, .. } = self;
        let booted = async {
            match booting {
                Some(booting) => booting.await,
                None => pending().await,
            }
        };
        let adopted = async {
            match adoption {
                Some(Adoption::HandOver(_, future)) => Happening::HandedOver(future.await),
                Some(Adoption::TakeOver(_, future)) => Happening::TakenOver(future.await),
                None => pending().await,
            }
        };
        let exited = async {
            match machine {
                Some(machine) if !*has_exited => machine.exited().await.status(),
                _ => pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(message) = queue.recv() => Happening::Message(message),
            booted = booted => Happening::Booted(booted),
            adopted = adopted => adopted,
            description = exited => Happening::Exited(description),
        }
    }

    /// Stores what an event carries, and returns the input it stands for.
    fn note(&mut self, happening: Happening<B::Machine>) -> Option<Input> {
        Some(match happening {
            Happening::Message(Message::Input(input)) => input,
            Happening::Message(Message::Client(request, client)) => {
                self.next_client += 1;
                let kind = kind(&request)?;
                self.clients.insert(self.next_client, (request, client));
                Input::Request(self.next_client, kind)
            }
            Happening::Message(Message::StartRecorded(Ok(expires_at))) => {
                if !self.is_extended {
                    self.lifetime.send_replace(expires_at);
                }
                Input::StartRecorded
            }
            Happening::Message(Message::StartRecorded(Err(error))) => {
                self.failure =
                    Some(BootFailure { stage: BootStage::Vmm, cause: error.cause, console: Vec::new() });
                Input::StartNotRecorded
            }
            Happening::Message(Message::Halted(Ok(()))) => Input::Halted,
            Happening::Message(Message::Halted(Err(why))) => {
                tracing::warn!(why, "the guest did not halt in order");
                self.loss = Some(loss(&why));
                Input::HaltFailed
            }
            Happening::Booted(Ok(up)) => {
                self.booting = None;
                self.watch_channel(&up.streams);
                let RunningMachine { machine, streams, info } = up;
                (self.machine, self.streams, self.info) = (Some(machine), Some(streams), Some(info));
                Input::Ready
            }
            Happening::Booted(Err(failure)) => {
                self.booting = None;
                tracing::warn!(?failure, "the VM did not come up");
                self.failure = Some(failure);
                Input::BootFailed
            }
            Happening::HandedOver(None) => {
                self.adoption = None;
                Input::AdoptionFailed
            }
            Happening::HandedOver(Some((lifeline, lock))) => self.handed_over(lifeline, lock)?,
            Happening::TakenOver(taken) => self.taken_over(taken),
            Happening::Exited(status) => {
                self.has_exited = true;
                self.description = status;
                if matches!(self.life.state(), State::Closing(_) | State::Halting(_)) {
                    self.loss = Some(loss("the machine ended before it was done"));
                }
                Input::MachineExited
            }
        })
    }

    fn handed_over(&mut self, lifeline: LifelineServer, lock: OwnerLock) -> Option<Input> {
        let Some(Adoption::HandOver(spec, _)) = self.adoption.take() else { return None };
        let spare_dir = std::mem::replace(&mut self.spec, *spec).dir;
        self.lock = Some(lock);
        let terms = terms(&self.spec);
        let (streams, spec) = (self.streams.clone()?, self.spec.clone());
        let future = adoption::take_over(spare_dir, spec, streams).boxed_local();
        self.adoption = Some(Adoption::TakeOver(Instant::now(), future));
        let (sink, mut stream) = lifeline.split();
        self.lifeline = Some(sink);
        let inbox = self.inbox.clone();
        spawn_local(async move {
            while let Some(Ok(_)) = stream.next().await {}
            inbox.input(Input::CallerGone);
        });
        Some(Input::HandedOver(terms))
    }

    fn taken_over(&mut self, taken: Result<(), String>) -> Input {
        let started = match self.adoption.take() {
            Some(Adoption::TakeOver(started, _)) => started,
            _ => Instant::now(),
        };
        let failed = |cause| BootFailure { stage: BootStage::Identity, cause, console: Vec::new() };
        if let Err(failure) = taken.map_err(failed).and_then(|()| self.listen()) {
            self.failure = Some(failure);
            return Input::AdoptionFailed;
        }
        if let Some(info) = &mut self.info {
            let ms = started.elapsed().as_secs_f64() * 1e3;
            info.boot_ms = ms as u64;
            info.start_mode = StartMode::Spare;
            info.stages = vec![StageTime { stage: BootStage::Identity, ms }];
        }
        self.spare_dir = None;
        Input::Adopted
    }

    /// A guest channel that closes means either that the machine has ended, noticed early, or that the guest is lost.
    fn watch_channel(&self, streams: &Streams) {
        let (streams, inbox) = (streams.clone(), self.inbox.clone());
        spawn_local(async move {
            streams.closed().await;
            tokio::time::sleep(EXIT_LIMIT).await;
            inbox.input(Input::ChannelLost);
        });
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
                if let Err(failure) = self.listen() {
                    tracing::warn!(?failure, "nobody can claim this spare");
                    self.inbox.input(Input::LifetimeOver);
                }
            }
            Effect::Adopt(client) => self.adopt(client),
            Effect::AbortAdoption => self.adoption = None,
            Effect::RecordStart => self.record_start(),
            Effect::AnnounceStart => self.announce_start().await,
            Effect::WatchLifetime => self.watch_lifetime(),
            Effect::Admit(client) => self.admit(client),
            Effect::Extend(client) => self.extend(client).await,
            Effect::Refuse(client, refusal) => {
                if let Some((_, client)) = self.clients.remove(&client) {
                    tell(client, Reply::Refused { cause: refusal.text().to_owned() }).await;
                }
            }
            Effect::EndCommands => self.end_commands(),
            Effect::HaltGuest => self.halt_guest(),
            Effect::KillMachine => self.kill_machine().await,
            Effect::SettleCommands => self.settle_commands(),
            Effect::RemoveFiles { all } => self.remove_files(all),
            Effect::RecordEnd(cause) => self.record_end(cause),
            Effect::Forget => self.forget(),
            Effect::AnnounceEnd(cause) => self.announce_end(cause).await,
            Effect::Confirm(client) => {
                if let Some((_, client)) = self.clients.remove(&client) {
                    tell(client, Reply::Done).await;
                }
            }
        }
    }

    fn listen(&mut self) -> Result<(), BootFailure> {
        let listener = dir::listen(&self.spec.dir).map_err(|error| BootFailure {
            stage: BootStage::Vmm,
            cause: format!("cannot listen on the control socket: {error}"),
            console: Vec::new(),
        })?;
        let acceptor = spawn_local(receive::accept(listener, self.inbox.clone())).abort_handle();
        self.acceptor = Some(acceptor);
        Ok(())
    }

    fn adopt(&mut self, client: ClientId) {
        // A later client finds no socket, and looks for another spare.
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.abort();
        }
        let socket = self.spec.dir.join(files::CONTROL_SOCKET);
        report(&socket, std::fs::remove_file(&socket));
        if let Some((Request::Claim(spec), client)) = self.clients.remove(&client) {
            self.adoption = Some(Adoption::HandOver(spec, adoption::hand_over(client).boxed_local()));
        }
    }

    fn record_start(&mut self) {
        let (Some(info), Some(streams)) = (self.info.clone(), &self.streams) else { return };
        self.commands =
            Some(Commands::new(&self.spec.vm_id, &self.spec.dir, streams.clone(), Rc::clone(&self.store)));
        let (store, inbox, vm_id) = (Rc::clone(&self.store), self.inbox.clone(), self.spec.vm_id.clone());
        spawn_local(async move {
            inbox.post(Message::StartRecorded(store.record_start(&vm_id, &info).await));
        });
    }

    async fn announce_start(&mut self) {
        let Some(info) = self.info.clone() else { return };
        if !self.tell_starter(Event::Booted(info)).await {
            self.inbox.input(Input::CallerGone);
        }
        self.inbox.input(Input::StartAnnounced);
    }

    fn watch_lifetime(&mut self) {
        let (clock, inbox) = (Rc::clone(&self.clock), self.inbox.clone());
        let mut lifetime = self.lifetime.subscribe();
        let timer = spawn_local(async move {
            loop {
                let end = *lifetime.borrow_and_update();
                tokio::select! {
                    reached = clock.reaches(end) => {
                        if reached.is_err() {
                            // Without a timer the VM would live forever; better no VM at all.
                            tracing::error!("no timer for the VM's end of life");
                        }
                        break;
                    }
                    changed = lifetime.changed() => if changed.is_err() { return },
                }
            }
            inbox.input(Input::LifetimeOver);
        });
        if let Some(earlier) = self.timer.replace(timer.abort_handle()) {
            earlier.abort();
        }
    }

    fn admit(&mut self, client: ClientId) {
        let Some((request, client)) = self.clients.remove(&client) else { return };
        let Some(commands) = self.commands.clone() else { return };
        let streams = self.streams.clone();
        spawn_local(async move {
            match request {
                Request::Copy => {
                    if let Some(streams) = streams {
                        join_guest(client, &streams).await;
                    }
                }
                Request::Run { exec, journal, detach } => commands.run(exec, journal, detach, client).await,
                Request::Watch { sequence, output } => commands.watch(sequence, output, client).await,
                Request::Kill { sequence } => commands.kill(sequence, client).await,
                Request::Claim(_)
                | Request::Cancel
                | Request::Extend { .. }
                | Request::Stop
                | Request::Delete
                | Request::Expire => {}
            }
        });
    }

    async fn extend(&mut self, client: ClientId) {
        let Some((Request::Extend { expires_at }, client)) = self.clients.remove(&client) else { return };
        let is_spare = self.life.terms().is_spare;
        // Several pool keepers do not shorten each other's lifetime of a spare.
        self.lifetime.send_modify(|end| *end = if is_spare { end.max(expires_at) } else { expires_at });
        self.is_extended = !is_spare;
        tell(client, Reply::Done).await;
    }

    fn end_commands(&mut self) {
        let (inbox, commands) = (self.inbox.clone(), self.commands.clone());
        spawn_local(async move {
            if let Some(commands) = commands {
                commands.end_all().await;
            }
            inbox.input(Input::CommandsEnded);
        });
    }

    fn halt_guest(&mut self) {
        let (inbox, streams) = (self.inbox.clone(), self.streams.clone());
        spawn_local(async move {
            let halted = match streams {
                Some(streams) => halt(&streams).await,
                None => Err("there is no guest".to_owned()),
            };
            inbox.post(Message::Halted(halted));
        });
    }

    async fn kill_machine(&mut self) {
        if let Some(machine) = &mut self.machine {
            if self.has_exited || self.failure.is_some() {
                let console = machine.console().last_words().await;
                if let Some(failure) = &mut self.failure
                    && failure.stage == BootStage::Identity
                {
                    failure.console.clone_from(&console);
                }
                if !console.is_empty() {
                    self.description = format!("{}\n{}", self.description, console.join("\n"));
                }
            }
            machine.kill().await;
            self.has_exited = true;
        }
    }

    fn settle_commands(&mut self) {
        let (inbox, commands) = (self.inbox.clone(), self.commands.clone());
        spawn_local(async move {
            if let Some(commands) = commands {
                commands.settle().await;
            }
            inbox.input(Input::CommandsSettled);
        });
    }

    fn remove_files(&mut self, all: bool) {
        if let Some(spare) = self.spare_dir.take() {
            adoption::remove(&spare);
            if self.life.terms().is_spare {
                return;
            }
            if self.lock.is_some() && self.failure.is_some() && !all {
                return adoption::clear_claimed(&self.spec.dir);
            }
        }
        if all {
            report(&self.spec.dir, std::fs::remove_dir_all(&self.spec.dir));
        } else {
            for name in [files::INITRD, files::CONTROL_SOCKET] {
                let path = self.spec.dir.join(name);
                report(&path, std::fs::remove_file(&path));
            }
        }
    }

    fn record_end(&mut self, cause: Cause) {
        let Some(reason) = cause.reason(&self.description) else {
            return self.inbox.input(Input::EndRecorded);
        };
        let (store, inbox) = (Rc::clone(&self.store), self.inbox.clone());
        let (vm_id, retention, loss) = (self.spec.vm_id.clone(), self.spec.retention, self.loss.clone());
        spawn_local(async move {
            if let Err(error) = store.record_end(&vm_id, retention, &reason, loss.as_deref()).await {
                // The release of the lock reports the end that the record cannot.
                tracing::error!(vm_id, %error, "the end of the VM cannot be recorded");
            }
            inbox.input(Input::EndRecorded);
        });
    }

    fn forget(&mut self) {
        if self.life.terms().is_spare {
            return self.inbox.input(Input::EndRecorded);
        }
        let (store, inbox, vm_id) = (Rc::clone(&self.store), self.inbox.clone(), self.spec.vm_id.clone());
        spawn_local(async move {
            if let Err(error) = store.forget(&vm_id).await {
                tracing::error!(vm_id, %error, "the record of the VM cannot be removed");
            }
            inbox.input(Input::EndRecorded);
        });
    }

    async fn announce_end(&mut self, cause: Cause) {
        let event = match (cause.reason(&self.description), self.failure.take()) {
            (Some(reason), _) => Event::Ended(reason),
            (None, Some(failure)) => Event::Failed(failure),
            (None, None) => return,
        };
        self.tell_starter(event).await;
    }

    /// Returns whether the starter took the event. The starter may be gone, or may not read.
    async fn tell_starter(&mut self, event: Event) -> bool {
        let Some(lifeline) = &mut self.lifeline else { return false };
        matches!(tokio::time::timeout(TELL_LIMIT, lifeline.send(Frame::Control(event))).await, Ok(Ok(())))
    }

    /// Publishes this supervisor's phase for other processes.
    fn announce_phase(&mut self) {
        let phase = match self.life.state() {
            State::Waiting => return,
            State::Booting | State::Adopting | State::Recording(_) | State::Announcing(_) => Phase::Starting,
            State::Running => Phase::Running,
            State::Closing(_) | State::Halting(_) | State::Settling(_) => Phase::Stopping,
            State::Concluding(_) | State::Done => return,
        };
        if self.phase == Some(phase) || self.life.terms().is_spare {
            return;
        }
        self.phase = Some(phase);
        if let Err(error) = Owner::this(phase).announce(&self.spec.dir) {
            tracing::warn!(%error, "others cannot see what this supervisor does");
        }
    }
}

/// Returns the terms on which the VM is kept.
fn terms(spec: &LaunchSpec) -> Terms {
    Terms { retention: spec.retention, is_new: spec.is_new, is_spare: spec.purpose == Purpose::Spare }
}

/// Translates a request for the state machine; `None` if it belongs to another VM.
fn kind(request: &Request) -> Option<state::Request> {
    Some(match request {
        Request::Copy | Request::Run { .. } => state::Request::Work,
        Request::Watch { .. } | Request::Kill { .. } => state::Request::Look,
        Request::Claim(_) => state::Request::Claim,
        Request::Extend { .. } => state::Request::Extend,
        Request::Stop => state::Request::Stop,
        Request::Delete => state::Request::Delete,
        Request::Expire => state::Request::Expire,
        Request::Cancel => return None,
    })
}

impl Refusal {
    fn text(self) -> &'static str {
        match self {
            Self::Starting => "the VM is still being started",
            Self::Stopping => "the VM is being stopped",
            Self::Unclaimed => "the VM waits to be claimed",
            Self::Claimed => "the VM has been claimed already",
        }
    }
}

async fn join_guest(client: ServerStream, streams: &Streams) {
    let FramedParts { io: mut client, read_buf, .. } = client.into_parts();
    let Some((stream, _permit)) = streams.open().await else { return };
    let mut guest = stream.compat();
    if guest.write_all(&read_buf).await.is_ok() {
        // Either side closing ends the request; both ends see what went wrong.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut guest).await;
    }
}

/// Has the guest write everything out. The error says why it may not have.
async fn halt(streams: &Streams) -> Result<(), String> {
    match tokio::time::timeout(HALT_LIMIT, streams.ask(pyro_wire::Halt)).await {
        Ok(Some(pyro_wire::HaltReply::Halted)) => Ok(()),
        Ok(Some(pyro_wire::HaltReply::Failed(failure))) => Err(failure.to_string()),
        Ok(None) => Err("it gave no proper answer".to_owned()),
        Err(_) => Err(format!("it was not done after {} seconds", HALT_LIMIT.as_secs())),
    }
}

fn loss(why: &str) -> String {
    format!("the guest may not have written everything to its disk: {why}")
}

/// Sends a reply to a client, which may have disconnected or may not read.
async fn tell(mut client: ServerStream, reply: Reply) {
    let _ = tokio::time::timeout(TELL_LIMIT, client.send(Frame::Control(reply))).await;
}

pub(super) fn report(path: &Path, removed: io::Result<()>) {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(%error, path = %path.display(), "cannot be removed");
        }
        _ => {}
    }
}
