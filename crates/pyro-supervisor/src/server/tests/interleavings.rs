//! What clients, the caller and the host do, in any order and at any moment.

use std::rc::Rc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use proptest::prelude::*;
use pyro_wire::{Exec, Frame};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::fake::{Conditions, Fact, StoreBehaviour, Supervised};
use crate::client::Run;
use crate::conversation::CommandOutcome;
use crate::protocol::{Event, Reply, Request};
use crate::server::driver::Message;
use crate::server::state::Input;
use crate::spec::Retention;
use crate::{EndReason, RunError, files};

#[derive(Clone, Debug)]
pub(super) enum Step {
    Stop,
    Delete,
    Expire,
    Extend(u32),
    Claim,
    Exec { command: &'static str, journal: bool, gives_up_after: Option<u16> },
    Detach(&'static str),
    Watch(u64),
    Kill(u64),
    MachineExits,
    ChannelIsLost,
    CallerGoes,
    Signal,
}

pub(super) fn steps() -> impl Strategy<Value = Vec<(u16, Step)>> {
    let commands = proptest::sample::select(&["true", "sleep 40", "sleep 3000", "stubborn 2000"][..]);
    let exec = (commands.clone(), any::<bool>(), proptest::option::of(0..400_u16))
        .prop_map(|(command, journal, gives_up_after)| Step::Exec { command, journal, gives_up_after });
    let step = prop_oneof![
        6 => exec,
        2 => commands.prop_map(Step::Detach),
        2 => (1..4_u64).prop_map(Step::Watch),
        2 => (1..4_u64).prop_map(Step::Kill),
        1 => Just(Step::Stop),
        1 => Just(Step::Delete),
        1 => Just(Step::Expire),
        1 => (0..3_u32).prop_map(Step::Extend),
        1 => Just(Step::Claim),
        1 => Just(Step::MachineExits),
        1 => Just(Step::ChannelIsLost),
        1 => Just(Step::CallerGoes),
        1 => Just(Step::Signal),
    ];
    proptest::collection::vec((pause(), step), 1..14)
}

/// Milliseconds between two steps. Short ones, so that steps meet what takes a few milliseconds.
pub(super) fn pause() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0_u16), 1..8_u16, 8..150_u16, 500..4000_u16]
}

pub(super) fn conditions() -> impl Strategy<Value = Conditions> {
    let retention = proptest::sample::select(
        &[Retention::Caller, Retention::Lifetime, Retention::Deletion, Retention::Deletion][..],
    );
    let store = proptest::sample::select(
        &[
            StoreBehaviour::Works,
            StoreBehaviour::Works,
            StoreBehaviour::FailsAtFirst,
            StoreBehaviour::RefusesEnds,
        ][..],
    );
    let times = (0..120_u64, 0..12_u64, prop_oneof![0..60_u64, Just(60_000)]);
    let odd = (proptest::bool::weighted(0.1), proptest::bool::weighted(0.1));
    (retention, any::<bool>(), times, odd, store, 1..20_u32).prop_map(
        |(
            retention,
            is_new,
            (boot_ms, store_ms, halt_ms),
            (boot_fails, start_is_refused),
            store,
            lifetime,
        )| {
            Conditions {
                retention,
                is_new,
                boot_ms,
                store_ms,
                halt_ms,
                boot_fails,
                start_is_refused,
                store,
                lifetime,
                ..Conditions::task()
            }
        },
    )
}

/// Starts one client, which records the answers that it receives.
pub(super) fn perform(supervised: &mut Supervised, step: Step) -> Option<JoinHandle<()>> {
    let (client, world) = (supervised.client(), Rc::clone(&supervised.world));
    let ask = |request: Request| {
        let (client, world) = (supervised.client(), Rc::clone(&supervised.world));
        spawn_local(async move {
            let Ok(connected) = client.connect().await else { return };
            let mut stream = connected.stream;
            let ends = matches!(request, Request::Stop | Request::Delete | Request::Expire);
            if stream.send(Frame::Control(request)).await.is_err() {
                return;
            }
            while let Some(Ok(frame)) = stream.next().await {
                match frame {
                    Frame::Control(Reply::Done) if ends => world.note(Fact::Confirmed),
                    Frame::Control(Reply::Ended(outcome)) => world.note(Fact::Answered(None, outcome)),
                    _ => {}
                }
            }
        })
    };
    Some(match step {
        Step::Stop => ask(Request::Stop),
        Step::Delete => ask(Request::Delete),
        Step::Expire => ask(Request::Expire),
        Step::Extend(seconds) => ask(Request::Extend { expires_at: f64::from(seconds * 10) }),
        Step::Claim => ask(Request::Claim(Box::new(super::fake::spec("/none".into())))),
        Step::Watch(sequence) => ask(Request::Watch { sequence, output: false }),
        Step::Kill(sequence) => ask(Request::Kill { sequence }),
        Step::Detach(command) => spawn_local(async move {
            let _ = client.detach(Exec::new(command, Duration::from_secs(60))).await;
        }),
        Step::Exec { command, journal, gives_up_after } => spawn_local(async move {
            let exec = Exec::new(command, Duration::from_secs(60));
            let cancel = CancellationToken::new();
            if let Some(ms) = gives_up_after {
                let cancel = cancel.clone();
                spawn_local(async move {
                    sleep(Duration::from_millis(ms.into())).await;
                    cancel.cancel();
                });
            }
            let ran = client.run(Run { exec, journal }, &cancel, async |_| {}).await;
            match ran {
                Ok(ran) => world.note(Fact::Answered(ran.sequence, ran.outcome)),
                Err(RunError::Cancelled | RunError::NotDelivered(_) | RunError::Refused { .. }) => {}
                Err(RunError::Lost { .. } | RunError::Unanswered | RunError::InputFailed { .. }) => {}
            }
        }),
        Step::MachineExits => {
            if world.is_alive() {
                world.machine_exit.notify_one();
            }
            return None;
        }
        Step::ChannelIsLost => {
            world.channel_loss.cancel();
            return None;
        }
        Step::CallerGoes => {
            supervised.drop_caller();
            return None;
        }
        Step::Signal => {
            supervised.inbox.post(Message::Input(Input::Signal));
            return None;
        }
    })
}

/// What must hold after every sequence of steps.
pub(super) fn check(supervised: &Supervised, conditions: &Conditions) -> Result<(), TestCaseError> {
    let facts = supervised.world.facts.borrow().clone();
    let position = |wanted: &dyn Fn(&Fact) -> bool| facts.iter().position(wanted);
    let is_end = |fact: &Fact| matches!(fact, Fact::EndRecorded(_) | Fact::Forgotten);
    let ends: Vec<_> = facts.iter().filter(|fact| is_end(fact)).collect();
    prop_assert!(ends.len() <= 1, "more than one end: {facts:?}");
    prop_assert!(!supervised.world.is_alive(), "a machine is left: {facts:?}");
    let failed = position(&|fact| matches!(fact, Fact::Notified(Event::Failed(_)))).is_some();
    prop_assert!(
        ends.len() == 1 || failed || conditions.boot_fails || conditions.start_is_refused,
        "no end: {facts:?}"
    );
    let recorded = position(&is_end);
    let up = position(&|fact| *fact == Fact::MachineUp);
    let gone = position(&|fact| *fact == Fact::MachineGone);
    prop_assert_eq!(up.is_some(), gone.is_some(), "{:?}", facts);
    for (at, fact) in facts.iter().enumerate() {
        match fact {
            Fact::Confirmed => {
                prop_assert!(recorded.is_none_or(|recorded| recorded < at), "confirmed too early: {facts:?}");
            }
            Fact::Notified(Event::Ended(reason)) => {
                prop_assert!(recorded.is_some_and(|recorded| recorded < at), "reported too early: {facts:?}");
                if let Some(Fact::EndRecorded(on_record)) = recorded.map(|at| &facts[at]) {
                    prop_assert_eq!(on_record, reason, "{:?}", facts);
                }
            }
            Fact::Notified(Event::Booted(_)) => {
                prop_assert!(facts[..at].contains(&Fact::StartRecorded), "announced too early: {facts:?}");
            }
            Fact::Began(_) => {
                prop_assert!(facts[..at].contains(&Fact::StartRecorded), "ran too early: {facts:?}");
                prop_assert!(gone.is_none_or(|gone| at < gone), "ran in nothing: {facts:?}");
            }
            // The number is the client's own.
            Fact::Answered(Some(sequence), outcome) => {
                let on_record =
                    position(&|fact| matches!(fact, Fact::CommandEnded(number, _) if number == sequence));
                match on_record {
                    Some(on_record) => {
                        prop_assert!(on_record < at, "reported before it was recorded: {facts:?}")
                    }
                    None => prop_assert!(false, "not recorded: {facts:?}"),
                }
                if conditions.store == StoreBehaviour::RefusesEnds {
                    let is_unknown = matches!(outcome, CommandOutcome::Unknown { .. });
                    prop_assert!(is_unknown, "{facts:?}");
                }
            }
            _ => {}
        }
    }
    // Every numbered command has an end, unless the record failed until the VM was gone.
    if conditions.store != StoreBehaviour::FailsAtFirst {
        for fact in &facts {
            if let Fact::CommandRecorded(sequence) = fact {
                let has_end = facts
                    .iter()
                    .any(|fact| matches!(fact, Fact::CommandEnded(number, _) if number == sequence));
                prop_assert!(has_end, "command {sequence} has no end: {facts:?}");
            }
        }
    }
    // Files.
    let end = recorded.map(|at| &facts[at]);
    let all_gone = !supervised.dir.exists();
    let expected = match end {
        Some(Fact::Forgotten | Fact::EndRecorded(EndReason::Deleted)) => true,
        Some(Fact::EndRecorded(EndReason::Expired)) => conditions.retention != Retention::Deletion,
        Some(_) | None => conditions.retention == Retention::Caller,
    };
    prop_assert_eq!(all_gone, expected, "{:?}", facts);
    prop_assert!(!supervised.dir.join(files::CONTROL_SOCKET).exists());
    prop_assert_eq!(supervised.dir.join(files::LAYER).exists(), !all_gone);
    Ok(())
}

async fn play(conditions: Conditions, steps: Vec<(u16, Step)>) -> Result<(), TestCaseError> {
    let mut supervised = Supervised::start(conditions.clone());
    let mut clients = Vec::new();
    for (pause, step) in steps {
        sleep(Duration::from_millis(pause.into())).await;
        clients.extend(perform(&mut supervised, step));
    }
    // Its lifetime ends it if nothing else did.
    supervised.ended().await;
    for client in clients {
        let answered = tokio::time::timeout(Duration::from_secs(200), client).await;
        prop_assert!(answered.is_ok(), "a client without an answer: {:?}", supervised.world.facts.borrow());
    }
    check(&supervised, &conditions)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(600), ..ProptestConfig::default() })]

    #[test]
    fn promises_hold_in_any_order(conditions in conditions(), steps in steps()) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, play(conditions, steps))?;
    }
}
