//! The life of one supervised VM as a pure function: it decides what to do and has no side effects.
//!
//! ```text
//!             ready             recorded         announced
//!   Booting ────────► Recording ────────► Announcing ────► Running
//!     │ │                  ▲                                  │ stop, end of lifetime, signal (files stay)
//!     │ │ ready (spare)    │ adopted                          ▼
//!     │ └─► Waiting ─────► Adopting              Closing ─► Halting   commands end, the guest writes out (bounded)
//!     │     claim                                             │ done, failed, timed out, overtaken by a delete
//!     │ any other end, from any state                         ▼
//!     └───────────────────────────────────────────────► Settling ─► Concluding   machine killed, ends recorded
//!                                                             │
//!                                                             ▼
//!                                                           Done: all waiting clients are answered
//! ```
//!
//! The driver performs [`Effect`]s in order. Those that take time report back as an [`Input`]. The driver must answer
//! every [`Effect::EndCommands`], [`Effect::HaltGuest`], [`Effect::SettleCommands`] and [`Effect::RecordEnd`] with one
//! input within a bounded time.

use crate::EndReason;
use crate::spec::Retention;

#[cfg(test)]
mod tests;

/// A client's connection, as the driver numbers it.
pub(crate) type ClientId = u64;

/// What a supervisor owned when a message was sent to it. The clients and the timer of a spare do not affect the VM that
/// it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Epoch {
    /// A spare that no client had claimed.
    Spare,
    /// A caller's VM, or a spare that is becoming one.
    Vm,
}

/// The terms on which a VM is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Terms {
    /// How long the VM and its files are kept.
    pub(crate) retention: Retention,
    /// The VM has never been up, and is removed if its start does not complete.
    pub(crate) is_new: bool,
    /// The VM is an unclaimed spare: it has no record, and its files are always removed.
    pub(crate) is_spare: bool,
}

/// Why a VM ends. The driver keeps the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// It did not come up, or its start could not be recorded.
    NotStarted,
    /// A spare could not become its claimer's VM; the claimer can start that VM in another way.
    NotAdopted,
    /// A client asked for it and wants the files removed too.
    Deleted,
    /// A client asked for it.
    Stopped,
    /// Its lifetime ended.
    Expired,
    /// The process it was bound to exited.
    CallerGone,
    /// The supervisor received a signal.
    Terminated,
    /// The machine ended by itself.
    MachineExited,
    /// The connection to the guest was lost while the machine was still running.
    ChannelLost,
}

/// A client's request, reduced to what matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    /// Stop the VM.
    Stop,
    /// Delete the VM.
    Delete,
    /// Do what the end of the lifetime does.
    Expire,
    /// Change the end of the lifetime.
    Extend,
    /// Turn this spare into a VM.
    Claim {
        /// The VM has the spare's network and policy, which a running machine keeps.
        fits: bool,
    },
    /// Use the guest: run a command, copy files.
    Work,
    /// Watch a command, or kill it.
    Look,
}

/// An event that the supervisor reacts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// The guest takes commands.
    Ready,
    /// The machine did not come up, and left nothing behind.
    BootFailed,
    /// The claimer has passed on the lock of its VM, which has these terms.
    HandedOver(Terms),
    /// The guest has the identity of the claimer's VM.
    Adopted,
    /// The claimer has gone, or the guest did not take its new identity.
    AdoptionFailed,
    /// The start is on record.
    StartRecorded,
    /// The start cannot be recorded.
    StartNotRecorded,
    /// The starter has been notified that the VM is up.
    StartAnnounced,
    /// A client sent a request, on a connection of this epoch.
    Request(Epoch, ClientId, Request),
    /// The lifetime of what the supervisor owned in this epoch has ended.
    LifetimeOver(Epoch),
    /// The starter's end of the lifeline is closed.
    CallerGone,
    /// SIGTERM, SIGINT or SIGHUP.
    Signal,
    /// The machine is gone.
    MachineExited,
    /// The guest channel is closed and the machine has not ended with it.
    ChannelLost,
    /// The machine has lost its network before it was the VM of any caller.
    NetworkLost,
    /// No command is running any more, or the remaining ones were given up.
    CommandsEnded,
    /// The guest has written everything out.
    Halted,
    /// The guest could not write everything out, or not in time.
    HaltFailed,
    /// The commands' outcomes are on record, as far as possible.
    CommandsSettled,
    /// The end of the VM is on record, or it is certain that it never will be.
    EndRecorded,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// The VM is not up yet.
    Starting,
    /// The VM is about to end.
    Stopping,
    /// It is an unclaimed spare.
    Unclaimed,
    /// Another client has claimed it already.
    Claimed,
    /// It is a spare with another network or policy than the claimer's VM.
    Unfit,
}

/// An action for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    /// Abort the boot. Leaves no process behind.
    AbortBoot,
    /// Let clients claim this spare.
    OpenForClaims,
    /// Make the spare the VM of this client.
    Adopt(ClientId),
    /// Abort the adoption.
    AbortAdoption,
    /// Record that the VM is up.
    RecordStart,
    /// Notify the starter that the VM is up.
    AnnounceStart,
    /// Begin to watch the lifetime.
    WatchLifetime,
    /// Serve the client's request.
    Serve(ClientId),
    /// Change the lifetime as this client requests, and confirm it.
    Extend(ClientId),
    /// Refuse the client's request, which has changed nothing.
    Refuse(ClientId, Refusal),
    /// Accept no more commands, and end the running ones.
    EndCommands,
    /// Let the guest write everything out.
    HaltGuest,
    /// End the machine and its helpers, if they are running.
    KillMachine,
    /// Record the outcomes of the commands.
    SettleCommands,
    /// Remove the VM's directory, or only the files that another start does not need.
    RemoveFiles {
        /// The whole directory.
        all: bool,
    },
    /// Record the end.
    RecordEnd(Cause),
    /// Remove the record of a VM that was never up for any caller.
    Forget,
    /// Report to the starter how the VM ended.
    AnnounceEnd(Cause),
    /// Confirm the client's request: the VM has ended.
    Confirm(ClientId),
}

/// The stage of a VM's life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// The machine is being started.
    Booting,
    /// A spare waits to be claimed.
    Waiting,
    /// A spare is being made the VM of its claimer.
    Adopting,
    /// The start is being recorded. If set, an urgent end follows.
    Recording(Option<End>),
    /// The starter is being notified.
    Announcing(Option<End>),
    /// Clients are served.
    Running,
    /// Commands are being ended.
    Closing(End),
    /// The guest is writing everything out.
    Halting(End),
    /// The machine is gone and the commands' ends are being recorded.
    Settling(End),
    /// The VM's end is being recorded.
    Concluding(End),
    /// Everything is done.
    Done,
}

/// An end that has begun, and the clients that wait for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct End {
    cause: Cause,
    waiting: Vec<ClientId>,
}

/// The state of one supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Life {
    terms: Terms,
    epoch: Epoch,
    state: State,
    /// Clients whose requests are served once the VM runs: other processes see it as started as soon as that is on
    /// record.
    held: Vec<ClientId>,
}

impl Life {
    pub(crate) fn new(terms: Terms) -> Self {
        let epoch = if terms.is_spare { Epoch::Spare } else { Epoch::Vm };
        Self { terms, epoch, state: State::Booting, held: Vec::new() }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn terms(&self) -> Terms {
        self.terms
    }

    /// Returns the epoch of connections and timers that begin now.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Advances the state by `input`, and returns what to do about it.
    pub(crate) fn apply(&mut self, input: Input) -> Vec<Effect> {
        let state = std::mem::replace(&mut self.state, State::Done);
        let (state, mut effects) = self.decide(state, input);
        if let Some(refusal) = state.end_refusal() {
            let refused = self.held.drain(..).map(|client| Effect::Refuse(client, refusal));
            effects.splice(0..0, refused);
        }
        self.state = state;
        effects
    }

    fn decide(&mut self, state: State, input: Input) -> (State, Vec<Effect>) {
        use State::{
            Adopting, Announcing, Booting, Closing, Concluding, Done, Halting, Recording, Running, Settling,
            Waiting,
        };
        if let Input::Request(epoch, client, request) = input {
            return self.decide_request(state, epoch, client, request);
        }
        match (state, input) {
            (state, Input::LifetimeOver(epoch)) if epoch != self.epoch => (state, Vec::new()),
            (Booting, Input::Ready) if self.terms.is_spare => {
                (Waiting, vec![Effect::WatchLifetime, Effect::OpenForClaims])
            }
            (Booting, Input::Ready) => (Recording(None), vec![Effect::RecordStart]),
            (Booting, Input::BootFailed) => self.conclude(End::new(Cause::NotStarted)),
            (Adopting, Input::HandedOver(terms)) => {
                self.terms = terms;
                (Adopting, Vec::new())
            }
            (Adopting, Input::Adopted) => (Recording(None), vec![Effect::RecordStart]),
            (Adopting, Input::AdoptionFailed) => self.kill(End::new(Cause::NotAdopted), Vec::new()),
            // The claimer can start its VM in another way.
            (Adopting, Input::MachineExited | Input::ChannelLost) => {
                self.kill(End::new(Cause::NotAdopted), vec![Effect::AbortAdoption])
            }
            // A VM that is reported as networked must have a network. Later, a VM goes on without it.
            (Waiting, Input::NetworkLost) => self.kill(End::new(Cause::NotAdopted), Vec::new()),
            (Adopting, Input::NetworkLost) => {
                self.kill(End::new(Cause::NotAdopted), vec![Effect::AbortAdoption])
            }
            (Recording(None), Input::StartRecorded) => (Announcing(None), vec![Effect::AnnounceStart]),
            (Recording(Some(end)), Input::StartRecorded) => self.begin(end),
            (Recording(end), Input::StartNotRecorded) => {
                self.kill(end.unwrap_or_else(|| End::new(Cause::NotStarted)), Vec::new())
            }
            (Announcing(end), Input::StartAnnounced) => {
                self.terms.is_new = false;
                match end {
                    None => {
                        let held = self.held.drain(..).map(Effect::Serve);
                        (Running, std::iter::once(Effect::WatchLifetime).chain(held).collect())
                    }
                    Some(end) => self.begin(end),
                }
            }
            (Closing(end), Input::CommandsEnded) => (Halting(end), vec![Effect::HaltGuest]),
            (Closing(end), Input::MachineExited | Input::ChannelLost)
            | (Halting(end), Input::Halted | Input::HaltFailed | Input::MachineExited | Input::ChannelLost) => {
                self.kill(end, Vec::new())
            }
            (Settling(end), Input::CommandsSettled) => self.conclude(end),
            (Concluding(end), Input::EndRecorded) => {
                let confirmations = end.waiting.into_iter().map(Effect::Confirm);
                (Done, std::iter::once(Effect::AnnounceEnd(end.cause)).chain(confirmations).collect())
            }
            (state, input) => match self.cause_of(&state, input) {
                Some(cause) => self.end(state, End::new(cause)),
                // It came too late, or has no meaning in this state.
                None => (state, Vec::new()),
            },
        }
    }

    /// Returns the cause of an end if an event other than a request ends the VM.
    fn cause_of(&self, state: &State, input: Input) -> Option<Cause> {
        match input {
            Input::LifetimeOver(_) => Some(Cause::Expired),
            Input::Signal => Some(Cause::Terminated),
            Input::MachineExited => Some(Cause::MachineExited),
            Input::ChannelLost => Some(Cause::ChannelLost),
            Input::CallerGone => {
                let is_bound = match state {
                    State::Booting | State::Adopting => true,
                    State::Recording(_) | State::Announcing(_) | State::Running => {
                        self.terms.retention == Retention::Caller || self.terms.is_new
                    }
                    // A spare's starter does not wait for it.
                    State::Waiting => false,
                    State::Closing(_)
                    | State::Halting(_)
                    | State::Settling(_)
                    | State::Concluding(_)
                    | State::Done => false,
                };
                (is_bound && !(self.terms.is_spare && *state == State::Booting)).then_some(Cause::CallerGone)
            }
            _ => None,
        }
    }

    fn decide_request(
        &mut self,
        state: State,
        epoch: Epoch,
        client: ClientId,
        request: Request,
    ) -> (State, Vec<Effect>) {
        let refusal = state.refusal();
        match (request, &state) {
            (_, State::Done) => (state, Vec::new()),
            _ if epoch != self.epoch => (state, vec![Effect::Refuse(client, Refusal::Claimed)]),
            (Request::Stop, _) => self.end(state, End::wanted(Cause::Stopped, client)),
            (Request::Delete, _) => self.end(state, End::wanted(Cause::Deleted, client)),
            (Request::Expire, _) => self.end(state, End::wanted(Cause::Expired, client)),
            (Request::Claim { fits: false }, State::Waiting) => {
                (state, vec![Effect::Refuse(client, Refusal::Unfit)])
            }
            (Request::Claim { fits: true }, State::Waiting) => {
                self.epoch = Epoch::Vm;
                (State::Adopting, vec![Effect::Adopt(client)])
            }
            (Request::Claim { .. }, _) => {
                let refusal = if self.terms.is_spare { refusal } else { Refusal::Claimed };
                (state, vec![Effect::Refuse(client, refusal)])
            }
            (
                Request::Extend,
                State::Waiting | State::Recording(None) | State::Announcing(None) | State::Running,
            ) => (state, vec![Effect::Extend(client)]),
            (Request::Work | Request::Look, State::Running) => (state, vec![Effect::Serve(client)]),
            (Request::Work | Request::Look, State::Recording(None) | State::Announcing(None)) => {
                self.held.push(client);
                (state, Vec::new())
            }
            (Request::Look, State::Closing(_)) => (state, vec![Effect::Serve(client)]),
            (Request::Extend | Request::Work | Request::Look, _) => {
                (state, vec![Effect::Refuse(client, refusal)])
            }
        }
    }

    /// Ends the VM, or joins an end that has begun. A delete takes precedence over any other reason, as long as it can
    /// be recorded.
    fn end(&mut self, state: State, end: End) -> (State, Vec<Effect>) {
        match state {
            State::Booting => {
                let (state, mut effects) = self.conclude(end);
                effects.insert(0, Effect::AbortBoot);
                (state, effects)
            }
            State::Adopting => self.kill(end, vec![Effect::AbortAdoption]),
            State::Recording(earlier) => (State::Recording(Some(End::join(earlier, end))), Vec::new()),
            State::Announcing(earlier) => {
                // The starter can no longer be notified, and no other process knows of the VM.
                let gone = end.cause == Cause::CallerGone || end.cause == Cause::MachineExited;
                let end = End::join(earlier, end);
                if gone { self.begin(end) } else { (State::Announcing(Some(end)), Vec::new()) }
            }
            State::Waiting | State::Running => self.begin(end),
            State::Closing(earlier) | State::Halting(earlier) if end.cause == Cause::Deleted => {
                self.kill(End::join(Some(earlier), end), Vec::new())
            }
            State::Closing(earlier) => (State::Closing(End::join(Some(earlier), end)), Vec::new()),
            State::Halting(earlier) => (State::Halting(End::join(Some(earlier), end)), Vec::new()),
            State::Settling(earlier) => (State::Settling(End::join(Some(earlier), end)), Vec::new()),
            State::Concluding(mut earlier) => {
                earlier.waiting.extend(end.waiting);
                (State::Concluding(earlier), Vec::new())
            }
            State::Done => (State::Done, Vec::new()),
        }
    }

    /// Ends a VM whose guest is up.
    fn begin(&mut self, end: End) -> (State, Vec<Effect>) {
        if self.terms.halts_guest(end.cause) {
            (State::Closing(end), vec![Effect::EndCommands])
        } else {
            self.kill(end, Vec::new())
        }
    }

    fn kill(&mut self, end: End, mut effects: Vec<Effect>) -> (State, Vec<Effect>) {
        effects.extend([Effect::KillMachine, Effect::SettleCommands]);
        (State::Settling(end), effects)
    }

    /// Removes files and records the end, once no process of the VM is left.
    fn conclude(&mut self, end: End) -> (State, Vec<Effect>) {
        let all = self.terms.removes_files(end.cause);
        let is_unknown = self.terms.is_forgotten(end.cause);
        let record = if is_unknown { Effect::Forget } else { Effect::RecordEnd(end.cause) };
        (State::Concluding(end), vec![Effect::RemoveFiles { all }, record])
    }
}

impl Terms {
    /// Returns whether the VM's directory is removed with the VM.
    pub(crate) fn removes_files(self, cause: Cause) -> bool {
        match cause {
            _ if self.is_spare => true,
            // Its claimer continues to use the directory.
            Cause::NotAdopted => false,
            _ if self.retention == Retention::Caller || self.is_forgotten(cause) => true,
            Cause::Deleted => true,
            Cause::Expired => self.retention == Retention::Lifetime,
            _ => false,
        }
    }

    /// Returns whether the VM's record is removed.
    fn is_forgotten(self, cause: Cause) -> bool {
        let never_up = matches!(cause, Cause::NotStarted | Cause::CallerGone);
        self.is_spare || (never_up && self.is_new)
    }

    /// Returns whether the guest writes everything out before the VM ends.
    fn halts_guest(self, cause: Cause) -> bool {
        matches!(cause, Cause::Stopped | Cause::Expired | Cause::Terminated) && !self.removes_files(cause)
    }
}

impl State {
    /// Returns why a request cannot be served now.
    fn refusal(&self) -> Refusal {
        self.end_refusal().unwrap_or(match self {
            Self::Waiting => Refusal::Unclaimed,
            Self::Running => Refusal::Claimed,
            _ => Refusal::Starting,
        })
    }

    /// Returns why requests are refused if the VM's end has begun.
    fn end_refusal(&self) -> Option<Refusal> {
        match self {
            Self::Booting
            | Self::Waiting
            | Self::Adopting
            | Self::Recording(None)
            | Self::Announcing(None)
            | Self::Running => None,
            Self::Recording(Some(_))
            | Self::Announcing(Some(_))
            | Self::Closing(_)
            | Self::Halting(_)
            | Self::Settling(_)
            | Self::Concluding(_)
            | Self::Done => Some(Refusal::Stopping),
        }
    }
}

impl End {
    fn new(cause: Cause) -> Self {
        Self { cause, waiting: Vec::new() }
    }

    fn wanted(cause: Cause, client: ClientId) -> Self {
        Self { cause, waiting: vec![client] }
    }

    /// Keeps the first reason, unless the later one is a delete.
    fn join(earlier: Option<Self>, later: Self) -> Self {
        let Some(mut end) = earlier else { return later };
        if later.cause == Cause::Deleted {
            end.cause = Cause::Deleted;
        }
        end.waiting.extend(later.waiting);
        end
    }
}

impl Cause {
    /// Returns the reason to record and report, with what the driver knows of it. `None`: the VM was never up.
    pub(crate) fn reason(self, description: &str) -> Option<EndReason> {
        Some(match self {
            Self::NotStarted | Self::NotAdopted => return None,
            Self::Deleted => EndReason::Deleted,
            Self::Stopped => EndReason::Stopped,
            Self::Expired => EndReason::Expired,
            Self::CallerGone => EndReason::CallerGone,
            Self::Terminated => EndReason::Terminated,
            Self::MachineExited => EndReason::VmmEnded { description: description.to_owned() },
            Self::ChannelLost => EndReason::ChannelLost,
        })
    }
}
