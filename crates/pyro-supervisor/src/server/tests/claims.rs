//! Spares: what becomes of one that is claimed, and of the clients that reached it before.

use std::rc::Rc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use proptest::prelude::*;
use pyro_wire::Frame;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep;

use super::fake::{Conditions, Fact, Supervised};
use super::interleavings::{self, Step};
use super::races::{ask, run, until};
use crate::protocol::{ClientStream, Event, Reply, Request};
use crate::server::driver::Message;
use crate::server::state::Input;
use crate::spec::LaunchSpec;
use crate::{BootStage, Client, EndReason, Owner, Phase, StartMode, files};

/// A spare that clients can reach.
async fn waiting(conditions: Conditions) -> Supervised {
    let supervised = Supervised::spare(conditions);
    let socket = supervised.spare_dir.join(files::CONTROL_SOCKET);
    for _ in 0..10_000 {
        if socket.exists() {
            return supervised;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("it never listened: {:?}", supervised.world.facts.borrow());
}

async fn claimed(conditions: Conditions) -> Supervised {
    let mut supervised = waiting(conditions).await;
    supervised.claim();
    until(&supervised, |fact| matches!(fact, Fact::Notified(_) | Fact::NotClaimed | Fact::ClaimLost)).await;
    supervised
}

async fn reach_spare(supervised: &Supervised) -> ClientStream {
    Client::new(&supervised.spare_dir).connect().await.unwrap().stream
}

async fn answer(stream: &mut ClientStream, request: Request) -> Option<Reply> {
    stream.send(Frame::Control(request)).await.ok()?;
    match stream.next().await {
        Some(Ok(Frame::Control(reply))) => Some(reply),
        _ => None,
    }
}

#[test]
fn a_spare_becomes_the_vm_of_its_claimer() {
    run(async {
        let mut supervised = claimed(Conditions::task()).await;
        let facts = supervised.world.facts.borrow().clone();
        let Some(Fact::Notified(Event::Booted(info))) = facts.last() else { panic!("{facts:?}") };
        assert_eq!(info.start_mode, StartMode::Spare);
        assert!(facts.contains(&Fact::StartRecorded));
        assert!(!supervised.spare_dir.exists() && supervised.dir.join(files::LAYER).exists());
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        supervised.ended().await;
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::Stopped)));
    });
}

#[test]
fn a_spare_that_no_client_claims_ends_and_leaves_nothing() {
    run(async {
        let mut supervised = waiting(Conditions { idle: 5, ..Conditions::task() }).await;
        supervised.ended().await;
        assert!(!supervised.spare_dir.exists() && !supervised.spare_dir.parent().unwrap().exists());
        assert!(!supervised.world.is_alive());
    });
}

/// While the claim is in progress, and while its start is being recorded.
#[test]
fn the_idle_limit_of_a_spare_does_not_end_the_vm_that_it_became() {
    run(async {
        for (identify_ms, store_ms) in [(3000, 5), (20, 3000)] {
            let conditions = Conditions { idle: 5, identify_ms, store_ms, ..Conditions::task() };
            let mut supervised = waiting(conditions).await;
            sleep(Duration::from_secs(1)).await;
            supervised.claim();
            until(&supervised, |fact| matches!(fact, Fact::Notified(_))).await;
            sleep(Duration::from_secs(10)).await;
            let facts = supervised.world.facts.borrow().clone();
            assert!(matches!(facts.last(), Some(Fact::Notified(Event::Booted(_)))), "{facts:?}");
            supervised.ended().await;
            assert!(supervised.world.expired_at.get().is_some_and(|at| (1000.0..1005.0).contains(&at)));
        }
    });
}

#[test]
fn clients_that_reached_the_spare_cannot_act_on_the_vm_that_it_became() {
    run(async {
        let mut supervised = waiting(Conditions::task()).await;
        let requests = [
            Request::Delete,
            Request::Stop,
            Request::Expire,
            Request::Extend { expires_at: 1.0 },
            Request::Copy,
            Request::Claim(Box::new(super::fake::spec("/none".into()))),
        ];
        let mut streams = Vec::new();
        // One of each acts during the claim, the other afterwards.
        for request in requests.iter().chain(&requests) {
            streams.push((reach_spare(&supervised).await, request.clone()));
        }
        supervised.claim();
        sleep(Duration::from_millis(10)).await;
        for (at, (mut stream, request)) in streams.into_iter().enumerate() {
            if at == requests.len() {
                until(&supervised, |fact| matches!(fact, Fact::Notified(Event::Booted(_)))).await;
            }
            let refused = Reply::Refused { cause: "the VM has been claimed already".to_owned() };
            assert_eq!(answer(&mut stream, request.clone()).await, Some(refused), "{request:?}");
        }
        supervised.ended().await;
        assert_eq!(supervised.world.expired_at.get().map(f64::floor), Some(1000.0));
    });
}

/// A running machine keeps its network process and policy, so its claimer would get a VM that reaches more than it may.
#[test]
fn a_claim_with_another_network_or_policy_is_refused_and_the_spare_waits_on() {
    run(async {
        let mut supervised = waiting(Conditions::task()).await;
        let networked = LaunchSpec { network: true, ..super::fake::spec(supervised.dir.clone()) };
        let mut stream = reach_spare(&supervised).await;
        let refused = Reply::Refused { cause: "the VM has another network policy".to_owned() };
        assert_eq!(answer(&mut stream, Request::Claim(Box::new(networked))).await, Some(refused));
        supervised.claim();
        until(&supervised, |fact| matches!(fact, Fact::Notified(Event::Booted(_)))).await;
        supervised.ended().await;
    });
}

/// Its claimer would get a VM without the network that the VM is reported to have.
#[test]
fn a_spare_that_loses_its_network_ends_before_a_client_can_claim_it() {
    run(async {
        let mut supervised = waiting(Conditions::task()).await;
        supervised.world.network_loss.cancel();
        supervised.ended().await;
        assert!(!supervised.spare_dir.exists() && !supervised.world.is_alive());
        assert_unchanged(&supervised);
    });
}

/// As the network process may end at any time: from the claim on, the VM is its caller's.
#[test]
fn a_vm_that_was_a_spare_goes_on_without_a_network() {
    run(async {
        let mut supervised = claimed(Conditions::task()).await;
        supervised.world.network_loss.cancel();
        sleep(Duration::from_secs(10)).await;
        assert!(supervised.world.is_alive());
        assert_eq!(ask(&supervised, Request::Delete).await, Some(Reply::Done));
        supervised.ended().await;
    });
}

/// The claimer starts its VM in another way: nothing is recorded, and its directory is unchanged.
#[test]
fn a_machine_that_is_lost_during_a_claim_leaves_the_claimer_a_free_hand() {
    run(async {
        let losses: [fn(&Supervised); 3] = [
            |supervised| supervised.world.machine_exit.notify_one(),
            |supervised| supervised.world.channel_loss.cancel(),
            |supervised| supervised.world.network_loss.cancel(),
        ];
        for lose in losses {
            let mut supervised = waiting(Conditions { identify_ms: 1000, ..Conditions::task() }).await;
            supervised.claim();
            sleep(Duration::from_millis(500)).await;
            assert!(supervised.dir.join(files::LAYER).exists(), "the claim is in progress");
            lose(&supervised);
            supervised.ended().await;
            let facts = supervised.world.facts.borrow().clone();
            let Some(Fact::Notified(Event::Failed(failure))) = facts.last() else { panic!("{facts:?}") };
            assert_eq!(failure.stage, BootStage::Identity, "{failure:?}");
            assert_unchanged(&supervised);
        }
    });
}

#[test]
fn a_guest_that_does_not_take_its_identity_leaves_the_claimer_a_free_hand() {
    run(async {
        let fails = Conditions { identity_fails: true, ..Conditions::task() };
        let hangs = Conditions { identify_ms: 60_000, ..Conditions::task() };
        for (conditions, cause) in [
            (fails, "setting the hostname: read-only"),
            (hangs, "the guest did not answer within 10 seconds"),
        ] {
            let mut supervised = Supervised::spare(conditions);
            // The guest is asked for the first time before it can be claimed, and that is bounded.
            sleep(Duration::from_secs(30)).await;
            supervised.claim();
            supervised.ended().await;
            let facts = supervised.world.facts.borrow().clone();
            let Some(Fact::Notified(Event::Failed(failure))) = facts.last() else { panic!("{facts:?}") };
            assert_eq!((failure.stage, &*failure.cause), (BootStage::Identity, cause));
            assert_unchanged(&supervised);
        }
    });
}

#[test]
fn a_spare_that_ends_before_it_has_the_lock_touches_nothing_of_the_claimer() {
    run(async {
        for exits in [true, false] {
            let mut supervised = waiting(Conditions::task()).await;
            let mut stream = reach_spare(&supervised).await;
            let claim = Request::Claim(Box::new(super::fake::spec(supervised.dir.clone())));
            assert_eq!(answer(&mut stream, claim).await, Some(Reply::Done));
            if exits {
                supervised.world.machine_exit.notify_one();
            } else {
                // A byte that carries no lock.
                stream.into_inner().try_write(b"x").unwrap();
            }
            supervised.ended().await;
            assert!(!supervised.spare_dir.exists());
            assert_unchanged(&supervised);
        }
    });
}

/// What the spare has moved there would be taken for the VM's own at its next start.
#[test]
fn a_claim_that_is_cut_short_leaves_nothing_in_the_directory_of_a_vm_that_stays() {
    run(async {
        for is_signal in [true, false] {
            let mut supervised = waiting(Conditions { identify_ms: 1000, ..Conditions::task() }).await;
            supervised.claim();
            sleep(Duration::from_millis(500)).await;
            if is_signal {
                supervised.inbox.post(Message::Input(Input::Signal));
            } else {
                supervised.drop_caller();
            }
            supervised.ended().await;
            let reason = if is_signal { EndReason::Terminated } else { EndReason::CallerGone };
            assert!(supervised.world.has(&Fact::EndRecorded(reason)));
            assert!(supervised.dir.exists() && !supervised.dir.join(files::LAYER).exists());
        }
    });
}

/// From when the claimer has handed over the VM, its new owner is known and serves those who want to end the VM.
#[test]
fn a_vm_can_be_ended_while_a_spare_is_becoming_that_vm() {
    run(async {
        for request in [Request::Stop, Request::Delete] {
            let mut supervised = waiting(Conditions { identify_ms: 5000, ..Conditions::task() }).await;
            supervised.claim();
            sleep(Duration::from_millis(500)).await;
            assert_eq!(Owner::of(&supervised.dir).map(|owner| owner.phase), Some(Phase::Starting));
            let began = tokio::time::Instant::now();
            assert_eq!(ask(&supervised, request.clone()).await, Some(Reply::Done));
            assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
            supervised.ended().await;
            let reason = if request == Request::Stop { EndReason::Stopped } else { EndReason::Deleted };
            assert!(supervised.world.has(&Fact::EndRecorded(reason.clone())));
            assert!(supervised.world.has(&Fact::Notified(Event::Ended(reason))));
            assert_eq!(supervised.dir.exists(), request == Request::Stop);
            assert!(!supervised.dir.join(files::LAYER).exists());
        }
    });
}

#[test]
fn a_spare_that_cannot_listen_for_the_vm_announces_nothing_and_leaves_the_claimer_a_free_hand() {
    run(async {
        let mut supervised = waiting(Conditions::task()).await;
        let in_the_way = supervised.dir.join(files::CONTROL_SOCKET);
        std::fs::create_dir(&in_the_way).unwrap();
        supervised.claim();
        supervised.ended().await;
        let facts = supervised.world.facts.borrow().clone();
        let Some(Fact::Notified(Event::Failed(failure))) = facts.last() else { panic!("{facts:?}") };
        assert_eq!(failure.stage, BootStage::Identity);
        assert!(!supervised.dir.join(files::OWNER).exists());
        std::fs::remove_dir(in_the_way).unwrap();
        assert_unchanged(&supervised);
    });
}

fn assert_unchanged(supervised: &Supervised) {
    let facts = supervised.world.facts.borrow();
    let is_record =
        |fact: &Fact| matches!(fact, Fact::StartRecorded | Fact::EndRecorded(_) | Fact::Forgotten);
    assert!(!facts.iter().any(is_record), "{facts:?}");
    for name in [files::LAYER, files::SERIAL_LOG, files::SUPERVISOR_LOG, files::CONTROL_SOCKET] {
        assert!(!supervised.dir.join(name).exists(), "{name}");
    }
    assert!(supervised.dir.exists());
}

#[test]
fn a_spare_runs_nothing_before_it_is_claimed() {
    run(async {
        let mut supervised = waiting(Conditions::task()).await;
        let refused = Reply::Refused { cause: "the VM waits to be claimed".to_owned() };
        for request in [Request::Copy, Request::Watch { sequence: 1, output: false }] {
            let mut stream = reach_spare(&supervised).await;
            assert_eq!(answer(&mut stream, request).await, Some(refused.clone()));
        }
        supervised.claim();
        until(&supervised, |fact| matches!(fact, Fact::Notified(_))).await;
        assert_eq!(ask(&supervised, Request::Delete).await, Some(Reply::Done));
        supervised.ended().await;
    });
}

/// Something that happens to a spare or to the VM that it became.
#[derive(Clone, Debug)]
enum SpareStep {
    Claim,
    /// A client reaches the spare, and sends its request after a pause in milliseconds.
    Reach(&'static str, u16),
    /// What also happens to a VM. Clients reach the VM, not the spare.
    Vm(Step),
}

fn steps() -> impl Strategy<Value = Vec<(u16, SpareStep)>> {
    let reach =
        (proptest::sample::select(&["delete", "expire", "stop", "extend"][..]), interleavings::pause())
            .prop_map(|(request, after)| SpareStep::Reach(request, after));
    let vm = interleavings::steps().prop_map(|mut steps| SpareStep::Vm(steps.swap_remove(0).1));
    let step = prop_oneof![3 => Just(SpareStep::Claim), 4 => reach, 4 => vm];
    proptest::collection::vec((interleavings::pause(), step), 1..14)
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let claims = (1..12_u32, prop_oneof![0..60_u64, Just(3000), Just(15_000)], proptest::bool::weighted(0.1));
    (interleavings::conditions(), claims).prop_map(|(conditions, (idle, identify_ms, identity_fails))| {
        Conditions { idle, identify_ms, identity_fails, ..conditions }
    })
}

fn request(name: &str) -> Request {
    match name {
        "delete" => Request::Delete,
        "expire" => Request::Expire,
        "stop" => Request::Stop,
        _ => Request::Extend { expires_at: 100.0 },
    }
}

fn reach(supervised: &Supervised, name: &'static str, after: u16) -> JoinHandle<()> {
    let (client, world) = (Client::new(&supervised.spare_dir), Rc::clone(&supervised.world));
    spawn_local(async move {
        let Ok(mut connected) = client.connect().await else { return };
        sleep(Duration::from_millis(after.into())).await;
        let reply = answer(&mut connected.stream, request(name)).await;
        world.note(Fact::OfSpare(name, reply));
    })
}

fn check(
    supervised: &Supervised,
    conditions: &Conditions,
    steps: &[(u16, SpareStep)],
) -> Result<(), TestCaseError> {
    let facts = supervised.world.facts.borrow().clone();
    prop_assert!(!supervised.world.is_alive(), "a machine is left: {facts:?}");
    prop_assert!(!supervised.spare_dir.exists(), "files of the spare are left: {facts:?}");
    let position = |wanted: &dyn Fn(&Fact) -> bool| facts.iter().position(wanted);
    let asks = |wanted: &dyn Fn(&Step) -> bool| {
        steps.iter().any(|(_, step)| matches!(step, SpareStep::Vm(step) if wanted(step)))
    };
    let end = facts.iter().find_map(|fact| match fact {
        Fact::EndRecorded(reason) => Some(reason.clone()),
        _ => None,
    });
    // What ended the VM was meant for the VM.
    match end {
        Some(EndReason::Deleted) => prop_assert!(asks(&|step| matches!(step, Step::Delete)), "{facts:?}"),
        Some(EndReason::Stopped) => prop_assert!(asks(&|step| matches!(step, Step::Stop)), "{facts:?}"),
        Some(EndReason::Expired) if !asks(&|step| matches!(step, Step::Expire | Step::Extend(_))) => {
            let at = supervised.world.expired_at.get().unwrap();
            prop_assert!(at >= conditions.lifetime.into(), "the end of the VM's lifetime at {at}: {facts:?}");
        }
        _ => {}
    }
    let booted = position(&|fact| matches!(fact, Fact::Notified(Event::Booted(_))));
    if let Some(booted) = booted {
        prop_assert!(
            position(&|fact| *fact == Fact::StartRecorded).is_some_and(|at| at < booted),
            "{facts:?}"
        );
        let confirmed =
            position(&|fact| matches!(fact, Fact::OfSpare("delete" | "expire" | "stop", Some(Reply::Done))));
        prop_assert!(confirmed.is_none(), "a client ended the spare that was claimed: {facts:?}");
    } else if !facts.contains(&Fact::StartRecorded) && !conditions.start_is_refused {
        prop_assert!(!supervised.dir.join(files::LAYER).exists(), "left by the spare: {facts:?}");
    }
    Ok(())
}

async fn play(conditions: Conditions, steps: Vec<(u16, SpareStep)>) -> Result<(), TestCaseError> {
    let mut supervised = Supervised::spare(conditions.clone());
    let (mut clients, mut has_claimed) = (Vec::new(), false);
    for (pause, step) in steps.clone() {
        sleep(Duration::from_millis(pause.into())).await;
        match step {
            SpareStep::Claim if has_claimed => {}
            SpareStep::Claim => {
                has_claimed = true;
                supervised.claim();
            }
            SpareStep::Reach(name, after) => clients.push(reach(&supervised, name, after)),
            SpareStep::Vm(step) => clients.extend(interleavings::perform(&mut supervised, step)),
        }
    }
    supervised.ended().await;
    for client in clients {
        let answered = tokio::time::timeout(Duration::from_secs(200), client).await;
        prop_assert!(answered.is_ok(), "a client without an answer: {:?}", supervised.world.facts.borrow());
    }
    check(&supervised, &conditions, &steps)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(300), ..ProptestConfig::default() })]

    #[test]
    fn promises_about_spares_hold_in_any_order(conditions in conditions(), steps in steps()) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, play(conditions, steps))?;
    }
}

#[test]
fn a_spare_can_be_dismissed_while_it_waits() {
    run(async {
        let mut supervised = waiting(Conditions::task()).await;
        assert!(crate::spares::dismiss(&supervised.spare_dir).await);
        supervised.ended().await;
        assert!(!supervised.spare_dir.exists());
        assert!(!crate::spares::dismiss(&supervised.spare_dir).await);
    });
}
