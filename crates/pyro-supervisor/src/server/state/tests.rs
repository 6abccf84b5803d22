//! The decisions against an independent model, and against every order in which things can happen.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const CLIENTS: [ClientId; 2] = [1, 2];
const REQUESTS: [Request; 8] = [
    Request::Stop,
    Request::Delete,
    Request::Expire,
    Request::Extend,
    Request::Claim { fits: true },
    Request::Claim { fits: false },
    Request::Work,
    Request::Look,
];
const EVENTS: [Input; 7] = [
    Input::LifetimeOver(Epoch::Spare),
    Input::LifetimeOver(Epoch::Vm),
    Input::CallerGone,
    Input::Signal,
    Input::MachineExited,
    Input::ChannelLost,
    Input::NetworkLost,
];

fn all_terms() -> Vec<Terms> {
    let retentions = [Retention::Caller, Retention::Lifetime, Retention::Deletion];
    let vms = retentions
        .into_iter()
        .flat_map(|retention| [true, false].map(|is_new| Terms { retention, is_new, is_spare: false }));
    vms.chain([SPARE]).collect()
}

const SPARE: Terms = Terms { retention: Retention::Caller, is_new: true, is_spare: true };
const CLAIMED: Terms = Terms { retention: Retention::Deletion, is_new: true, is_spare: false };

/// What the driver may report next, because it was asked to do something.
fn reports(state: &State, terms: Terms) -> Vec<Input> {
    match state {
        State::Booting => vec![Input::Ready, Input::BootFailed],
        State::Waiting | State::Running | State::Done => Vec::new(),
        State::Adopting if terms.is_spare => vec![Input::HandedOver(CLAIMED), Input::AdoptionFailed],
        State::Adopting => vec![Input::Adopted, Input::AdoptionFailed],
        State::Recording(_) => vec![Input::StartRecorded, Input::StartNotRecorded],
        State::Announcing(_) => vec![Input::StartAnnounced],
        State::Closing(_) => vec![Input::CommandsEnded],
        State::Halting(_) => vec![Input::Halted, Input::HaltFailed],
        State::Settling(_) => vec![Input::CommandsSettled],
        State::Concluding(_) => vec![Input::EndRecorded],
    }
}

/// What an observer of inputs and effects knows, and what it insists on.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
struct Observer {
    /// A client's claim was granted.
    claimed: bool,
    /// The spare became the claimer's VM.
    adopted: bool,
    start_recorded: bool,
    machine_gone: bool,
    sealed: bool,
    end_recorded: bool,
    end_announced: bool,
    closed: bool,
    delete_wanted: bool,
    all_removed: bool,
    /// Clients that wait for an answer.
    open: Vec<ClientId>,
}

impl Observer {
    fn input(&mut self, input: Input) {
        match input {
            Input::BootFailed => self.machine_gone = true,
            Input::Adopted => self.adopted = true,
            Input::StartRecorded => self.start_recorded = true,
            Input::EndRecorded => self.end_recorded = true,
            Input::Request(epoch, client, request) => {
                self.open.push(client);
                self.delete_wanted |= request == Request::Delete && !self.sealed && !self.is_stale(epoch);
            }
            _ => {}
        }
    }

    /// Returns whether a message of this epoch belongs to a spare that has been claimed since.
    fn is_stale(&self, epoch: Epoch) -> bool {
        self.claimed && epoch == Epoch::Spare
    }

    fn effect(&mut self, effect: Effect) {
        assert!(
            !self.end_announced || matches!(effect, Effect::Confirm(_)),
            "{effect:?} after the last word"
        );
        match effect {
            Effect::AbortBoot | Effect::KillMachine => self.machine_gone = true,
            Effect::AbortAdoption => assert!(!self.machine_gone),
            Effect::RecordStart => assert!(!self.sealed && !self.machine_gone),
            Effect::AnnounceStart => assert!(self.start_recorded, "announced before it is recorded"),
            Effect::OpenForClaims | Effect::WatchLifetime => assert!(!self.machine_gone),
            Effect::EndCommands => self.closed = true,
            Effect::HaltGuest => assert!(self.closed && !self.machine_gone),
            Effect::SettleCommands => assert!(self.machine_gone),
            Effect::RemoveFiles { all } => {
                assert!(self.machine_gone, "files of a machine that runs");
                self.all_removed |= all;
            }
            Effect::RecordEnd(_) | Effect::Forget => {
                assert!(self.machine_gone, "a machine that runs has no end");
                assert!(!self.sealed, "a second end");
                self.sealed = true;
                let is_loss = matches!(effect, Effect::RecordEnd(Cause::MachineExited | Cause::ChannelLost));
                assert!(!is_loss || !self.claimed || self.adopted, "{effect:?} of a VM that never was one");
                if self.delete_wanted {
                    assert!(self.all_removed, "a client deleted the VM");
                    assert!(
                        matches!(effect, Effect::Forget | Effect::RecordEnd(Cause::Deleted)),
                        "{effect:?} although it was to be deleted"
                    );
                }
            }
            Effect::AnnounceEnd(_) => {
                assert!(self.end_recorded, "reported before it is recorded");
                self.end_announced = true;
            }
            Effect::Confirm(client) => {
                assert!(self.end_recorded, "reported before it is recorded");
                self.answered(client);
            }
            Effect::Serve(client) => {
                assert!(self.start_recorded && !self.machine_gone);
                self.answered(client);
            }
            Effect::Extend(client) | Effect::Adopt(client) | Effect::Refuse(client, _) => {
                assert!(!self.machine_gone || matches!(effect, Effect::Refuse(..)));
                self.claimed |= matches!(effect, Effect::Adopt(_));
                self.answered(client);
            }
        }
    }

    fn answered(&mut self, client: ClientId) {
        let at = self.open.iter().position(|open| *open == client);
        self.open.remove(at.expect("an answer to a client that asked"));
    }

    fn check(&self, life: &Life) {
        if life.is_done() {
            assert!(self.machine_gone && self.sealed && self.end_recorded && self.end_announced, "{self:?}");
            assert!(self.open.is_empty(), "clients without an answer: {self:?}");
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    life: Life,
    /// It began as a spare.
    is_spare: bool,
    observer: Observer,
    /// Things that happen at most once, and have not happened yet.
    events: Vec<Input>,
    /// Clients that have not asked for anything yet.
    clients: Vec<ClientId>,
}

impl World {
    fn new(terms: Terms) -> Self {
        Self {
            life: Life::new(terms),
            is_spare: terms.is_spare,
            observer: Observer::default(),
            events: EVENTS.to_vec(),
            clients: CLIENTS.to_vec(),
        }
    }

    fn next(&self) -> Vec<Input> {
        let mut inputs = reports(self.life.state(), self.life.terms());
        let epochs = self.epochs();
        let can_happen = |event: &Input| match event {
            Input::LifetimeOver(epoch) => epochs.contains(epoch),
            _ => true,
        };
        inputs.extend(self.events.iter().copied().filter(can_happen));
        if let Some(client) = self.clients.first() {
            for epoch in epochs {
                inputs.extend(REQUESTS.map(|request| Input::Request(*epoch, *client, request)));
            }
        }
        inputs
    }

    /// The epochs of messages that can arrive now.
    fn epochs(&self) -> &'static [Epoch] {
        match (self.is_spare, self.observer.claimed) {
            (false, _) => &[Epoch::Vm],
            (true, false) => &[Epoch::Spare],
            (true, true) => &[Epoch::Spare, Epoch::Vm],
        }
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Request(_, client, _) => self.clients.retain(|other| *other != client),
            input => self.events.retain(|other| *other != input),
        }
        let was_done = self.life.is_done();
        let was = self.life.state().clone();
        if !was_done {
            self.observer.input(input);
        }
        let is_stale = match input {
            Input::Request(epoch, ..) | Input::LifetimeOver(epoch) => self.observer.is_stale(epoch),
            _ => false,
        };
        let effects = self.life.apply(input);
        if is_stale && !was_done {
            let refusal = match input {
                Input::Request(_, client, _) => vec![Effect::Refuse(client, Refusal::Claimed)],
                _ => Vec::new(),
            };
            assert_eq!(effects, refusal, "{input:?} of a spare that was claimed");
            assert_eq!(*self.life.state(), was);
        }
        assert!(!was_done || effects.is_empty(), "{input:?} after the end did {effects:?}");
        for effect in &effects {
            self.observer.effect(*effect);
        }
        if was == State::Booting && matches!(input, Input::Request(_, _, Request::Stop | Request::Delete)) {
            assert_eq!(effects.first(), Some(&Effect::AbortBoot), "a start is given up at once");
        }
        self.observer.check(&self.life);
        effects
    }

    /// With nothing but the driver's reports, an end that has begun comes to its end.
    fn finish(mut self) {
        let begun = self.observer.machine_gone || self.observer.closed;
        let is_spare = self.life.epoch() == Epoch::Spare;
        for _ in 0..8 {
            match reports(self.life.state(), self.life.terms()).first() {
                Some(report) => drop(self.step(*report)),
                None => break,
            }
        }
        assert!(!begun || self.life.is_done(), "stuck in {:?}", self.life);
        let is_settled = self.life.is_done() || *self.life.state() == State::Running;
        assert!(is_settled || is_spare, "stuck in {:?}", self.life);
        assert!(self.observer.open.is_empty(), "clients without an answer: {:?}", self.observer);
    }
}

/// Every state that can be reached with two clients and each event at most once, in every order.
#[test]
fn every_order_of_events_keeps_the_promises() {
    let mut transitions = 0_u64;
    for terms in all_terms() {
        let mut seen = HashSet::new();
        let mut todo = vec![World::new(terms)];
        while let Some(world) = todo.pop() {
            if !seen.insert(world.clone()) {
                continue;
            }
            world.clone().finish();
            if world.life.is_done() {
                let mut after = world.clone();
                for input in world.next() {
                    after.step(input);
                }
                continue;
            }
            for input in world.next() {
                let mut next = world.clone();
                next.step(input);
                transitions += 1;
                todo.push(next);
            }
        }
        println!("{terms:?}: {} states", seen.len());
    }
    println!("{transitions} transitions");
    assert!(transitions > 10_000, "{transitions}");
}

#[test]
fn what_is_on_record_and_on_the_disk_afterwards() {
    // Cause, and for each retention whether the files go.
    let table = [
        (Cause::NotStarted, [true, false, false]),
        (Cause::NotAdopted, [false, false, false]),
        (Cause::Deleted, [true, true, true]),
        (Cause::Stopped, [true, false, false]),
        (Cause::Expired, [true, true, false]),
        (Cause::CallerGone, [true, false, false]),
        (Cause::Terminated, [true, false, false]),
        (Cause::MachineExited, [true, false, false]),
        (Cause::ChannelLost, [true, false, false]),
    ];
    for (cause, expected) in table {
        let retentions = [Retention::Caller, Retention::Lifetime, Retention::Deletion];
        for (retention, expected) in retentions.into_iter().zip(expected) {
            let terms = Terms { retention, is_new: false, is_spare: false };
            assert_eq!(terms.removes_files(cause), expected, "{cause:?} {retention:?}");
            assert!(Terms { is_spare: true, ..terms }.removes_files(cause), "nothing of a spare stays");
        }
    }
}

/// A task whose creator dies goes with everything; one that is started again keeps what it has.
#[test]
fn a_creator_that_dies_leaves_nothing_and_a_starter_changes_nothing() {
    for (is_new, effects) in [
        (true, vec![Effect::AbortBoot, Effect::RemoveFiles { all: true }, Effect::Forget]),
        (
            false,
            vec![Effect::AbortBoot, Effect::RemoveFiles { all: false }, Effect::RecordEnd(Cause::CallerGone)],
        ),
    ] {
        let mut life = Life::new(Terms { retention: Retention::Deletion, is_new, is_spare: false });
        assert_eq!(life.apply(Input::CallerGone), effects);
    }
    // Once it was announced, the task is its owner's and needs no caller.
    let mut life = Life::new(CLAIMED);
    for input in [Input::Ready, Input::StartRecorded, Input::StartAnnounced] {
        life.apply(input);
    }
    assert_eq!(life.apply(Input::CallerGone), []);
    assert_eq!(*life.state(), State::Running);
}

/// A supervisor in a few lines: the reason of the end is the first one, unless a client deletes the VM before the end is sealed.
#[derive(Debug)]
struct Model {
    terms: Terms,
    phase: u8,
    cause: Option<Cause>,
    /// The driver is about to report a step of the start, which the end waits for.
    waits: bool,
    /// Reports of the driver until the end is sealed, after that.
    left: u8,
}

const BOOT: u8 = 0;
const ANNOUNCE: u8 = 2;
const RUN: u8 = 3;

impl Model {
    fn wants_end(&mut self, cause: Cause) {
        let is_first = self.cause.is_none();
        if is_first {
            self.cause = Some(cause);
            self.waits = self.phase > BOOT && self.phase < RUN;
            self.left = if self.phase == BOOT { 0 } else { self.steps(cause) };
        } else if cause == Cause::Deleted && !self.is_sealed() {
            self.cause = Some(cause);
            self.left = 1;
        }
        // There is no starter to notify.
        if cause == Cause::CallerGone && self.phase == ANNOUNCE {
            self.waits = false;
            self.phase = RUN;
        }
    }

    fn reported(&mut self) {
        if self.cause.is_none() || self.waits {
            self.phase = if self.cause.is_none() { self.phase + 1 } else { RUN };
            self.waits = false;
        } else {
            self.left = self.left.saturating_sub(1);
        }
    }

    fn is_sealed(&self) -> bool {
        self.cause.is_some() && !self.waits && self.left == 0
    }

    /// Commands end, the guest writes out, and what is left is settled; or only the last.
    fn steps(&self, cause: Cause) -> u8 {
        let keeps = match self.terms.retention {
            Retention::Caller => false,
            Retention::Lifetime => cause != Cause::Expired,
            Retention::Deletion => true,
        };
        if keeps && matches!(cause, Cause::Stopped | Cause::Expired | Cause::Terminated) { 3 } else { 1 }
    }
}

fn events() -> impl Strategy<Value = Input> {
    prop_oneof![
        4 => Just(None),
        1 => proptest::sample::select(&[Input::LifetimeOver(Epoch::Vm), Input::CallerGone, Input::Signal][..]).prop_map(Some),
        2 => (1..9_u64, proptest::sample::select(&REQUESTS[..]))
            .prop_map(|(client, request)| Some(Input::Request(Epoch::Vm, client, request))),
    ]
    // Placeholder for the driver's next report.
    .prop_map(|event| event.unwrap_or(Input::Ready))
}

proptest! {
    #[test]
    fn agrees_with_the_model(
        retention in proptest::sample::select(&[Retention::Caller, Retention::Lifetime, Retention::Deletion][..]),
        is_new in any::<bool>(),
        events in proptest::collection::vec(events(), 0..30),
    ) {
        let terms = Terms { retention, is_new, is_spare: false };
        let mut life = Life::new(terms);
        let mut model = Model { terms, phase: BOOT, cause: None, waits: false, left: 0 };
        let mut sealed = None;
        let mut stepped = Vec::new();
        for event in events {
            let input = match event {
                Input::Ready => match reports(life.state(), life.terms()).first() {
                    Some(report) => *report,
                    None => continue,
                },
                event => event,
            };
            stepped.push(input);
            let effects = life.apply(input);
            match input {
                Input::Request(_, _, Request::Stop) => model.wants_end(Cause::Stopped),
                Input::Request(_, _, Request::Delete) => model.wants_end(Cause::Deleted),
                Input::Request(_, _, Request::Expire) | Input::LifetimeOver(_) => model.wants_end(Cause::Expired),
                Input::Signal => model.wants_end(Cause::Terminated),
                Input::CallerGone
                    if model.phase == BOOT
                        || retention == Retention::Caller
                        || (is_new && model.phase < RUN) =>
                {
                    model.wants_end(Cause::CallerGone);
                }
                Input::Request(..) | Input::CallerGone => {}
                _report => model.reported(),
            }
            for effect in effects {
                match effect {
                    Effect::RecordEnd(cause) => {
                        prop_assert!(sealed.is_none());
                        sealed = Some(cause);
                    }
                    Effect::Forget => {
                        prop_assert!(is_new && model.cause == Some(Cause::CallerGone));
                        sealed = Some(Cause::CallerGone);
                    }
                    _ => {}
                }
            }
            let expected = model.cause.filter(|_| model.is_sealed());
            prop_assert_eq!(sealed, expected, "after {:?}: {:?} {:?}", stepped, life, model);
        }
    }
}
