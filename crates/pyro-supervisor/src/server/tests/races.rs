//! Races that were found by trying.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{
    ArchiveLimits, Exec, Frame, FrameCodec, OutputStream, Pack, Request as GuestRequest, Unpack,
};
use tokio::task::LocalSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::fake::{Conditions, Fact, StoreBehaviour, Supervised};
use crate::client::Run;
use crate::conversation::CommandOutcome;
use crate::protocol::{Event, Reply, Request};
use crate::server::driver::Message;
use crate::server::state::Input;
use crate::spec::Retention;
use crate::{Client, CopyError, EndReason, Owner, Phase, RunError, files};

pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

pub(crate) async fn started(conditions: Conditions) -> Supervised {
    let supervised = Supervised::start(conditions);
    until(&supervised, |fact| matches!(fact, Fact::Notified(Event::Booted(_)))).await;
    supervised
}

pub(super) async fn until(supervised: &Supervised, wanted: impl Fn(&Fact) -> bool) {
    for _ in 0..10_000 {
        if supervised.world.facts.borrow().iter().any(&wanted) {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("it never happened: {:?}", supervised.world.facts.borrow());
}

pub(super) async fn ask(supervised: &Supervised, request: Request) -> Option<Reply> {
    let mut stream = supervised.client().connect().await.unwrap().stream;
    stream.send(Frame::Control(request)).await.unwrap();
    match stream.next().await {
        Some(Ok(Frame::Control(reply))) => Some(reply),
        _ => None,
    }
}

pub(super) fn exec(command: &str) -> Exec {
    Exec::new(command, Duration::from_secs(60))
}

#[test]
fn a_stop_during_the_start_is_done_at_once() {
    run(async {
        let mut supervised = Supervised::start(Conditions { boot_ms: 100_000, ..Conditions::task() });
        sleep(Duration::from_millis(10)).await;
        let began = tokio::time::Instant::now();
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
        supervised.ended().await;
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::Stopped)));
        assert!(!supervised.world.has(&Fact::MachineUp));
    });
}

#[test]
fn a_command_for_a_vm_that_starts_is_refused_and_never_runs() {
    run(async {
        let mut supervised = Supervised::start(Conditions::task());
        sleep(Duration::from_millis(10)).await;
        let run = Run { exec: exec("early"), journal: true };
        let never = CancellationToken::new();
        let ran = supervised.client().run(run, &never, async |_| {}).await;
        assert!(matches!(ran, Err(RunError::Refused { .. })), "{ran:?}");
        assert_eq!(ask(&supervised, Request::Delete).await, Some(Reply::Done));
        supervised.ended().await;
        assert!(!supervised.world.has(&Fact::Began("early".to_owned())));
    });
}

/// Other processes see the VM as started as soon as that is on record, and may send requests at once.
#[test]
fn a_command_for_a_vm_whose_start_is_being_recorded_runs_once_it_is_up() {
    run(async {
        let mut supervised = Supervised::start(Conditions { store_ms: 500, ..Conditions::task() });
        sleep(Duration::from_millis(300)).await;
        assert!(supervised.world.is_alive() && !supervised.world.has(&Fact::StartRecorded));
        let run = Run { exec: exec("early"), journal: false };
        let never = CancellationToken::new();
        let ran = supervised.client().run(run, &never, async |_| {}).await.unwrap();
        assert!(matches!(ran.outcome, CommandOutcome::Ended(_)), "{ran:?}");
        let facts = supervised.world.facts.borrow().clone();
        let booted = facts.iter().position(|fact| matches!(fact, Fact::Notified(Event::Booted(_)))).unwrap();
        let began = facts.iter().position(|fact| *fact == Fact::Began("early".to_owned())).unwrap();
        assert!(booted < began, "{facts:?}");
        ask(&supervised, Request::Delete).await;
        supervised.ended().await;
    });
}

#[test]
fn a_command_that_is_held_is_refused_when_the_vm_ends_instead() {
    run(async {
        for start_is_refused in [true, false] {
            let conditions = Conditions { store_ms: 500, start_is_refused, ..Conditions::task() };
            let mut supervised = Supervised::start(conditions);
            sleep(Duration::from_millis(300)).await;
            let client = supervised.client();
            let running = tokio::task::spawn_local(async move {
                let run = Run { exec: exec("early"), journal: true };
                client.run(run, &CancellationToken::new(), async |_| {}).await
            });
            sleep(Duration::from_millis(50)).await;
            assert!(!running.is_finished(), "it is held");
            if !start_is_refused {
                supervised.inbox.post(Message::Input(Input::Signal));
            }
            let ran = running.await.unwrap();
            assert!(matches!(ran, Err(RunError::Refused { .. })), "{ran:?}");
            supervised.ended().await;
            assert!(!supervised.began_anything());
        }
    });
}

async fn copy_in(client: &Client) -> Result<(), CopyError> {
    let unpack = Unpack {
        path: "file".to_owned(),
        name: "file".to_owned(),
        limits: ArchiveLimits { max_entries: 1, max_bytes: 10 },
        exact: true,
    };
    client.write_file(b"contents".to_vec(), 0o644, unpack).await
}

/// The guest is asked only after the supervisor has accepted, so a client knows that nothing was copied.
#[test]
fn a_copy_that_is_refused_copies_nothing_and_says_so() {
    run(async {
        let mut supervised = Supervised::start(Conditions::task());
        sleep(Duration::from_millis(10)).await;
        let error = copy_in(&supervised.client()).await.unwrap_err();
        assert_eq!(error.to_string(), "nothing was copied: the VM is still being started");
        until(&supervised, |fact| matches!(fact, Fact::Notified(Event::Booted(_)))).await;
        copy_in(&supervised.client()).await.unwrap();
        let copies =
            |facts: &[Fact]| facts.iter().filter(|fact| **fact == Fact::Began("copy".to_owned())).count();
        assert_eq!(copies(&supervised.world.facts.borrow()), 1);
        // The channel is gone, and the VM is not yet.
        supervised.world.channel_loss.cancel();
        sleep(Duration::from_millis(500)).await;
        let error = copy_in(&supervised.client()).await.unwrap_err();
        assert_eq!(error.to_string(), "nothing was copied: the guest is gone");
        assert_eq!(copies(&supervised.world.facts.borrow()), 1);
        supervised.ended().await;
    });
}

/// Asks the silent guest to copy something, sends it `bytes` bytes, and hangs up.
async fn abandon_copy(supervised: &Supervised, request: GuestRequest, bytes: usize) {
    let mut stream = supervised.client().connect().await.unwrap().stream;
    stream.send(Frame::Control(Request::Copy)).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), Frame::Control(Reply::Done));
    let mut stream = stream.map_codec(|_| FrameCodec::<Reply, GuestRequest>::default());
    stream.send(Frame::Control(request)).await.unwrap();
    let mut left = bytes;
    while left > 0 {
        let piece = Frame::Output(OutputStream::Stdout, vec![0; left.min(60_000)].into());
        left -= left.min(60_000);
        // The guest takes no more than fits into the buffers.
        if tokio::time::timeout(Duration::from_millis(10), stream.send(piece)).await.is_err() {
            return;
        }
    }
}

/// A guest can keep a stream open that no client wants any more. There are 250.
#[test]
fn copies_that_a_silent_guest_does_not_end_are_ended_with_their_clients() {
    run(async {
        let mut supervised = started(Conditions { lifetime: 3000, ..Conditions::task() }).await;
        let limits = ArchiveLimits { max_entries: 1, max_bytes: 1 << 30 };
        let path = || "silent".to_owned();
        for _ in 0..250 {
            abandon_copy(&supervised, Pack { path: path(), limits }.into(), 0).await;
        }
        sleep(Duration::from_millis(10)).await;
        copy_in(&supervised.client()).await.unwrap();
        for _ in 0..250 {
            let unpack = Unpack { path: path(), name: path(), limits, exact: true };
            abandon_copy(&supervised, unpack.into(), 4 << 20).await;
        }
        sleep(Duration::from_secs(200)).await;
        copy_in(&supervised.client()).await.unwrap();
        ask(&supervised, Request::Delete).await;
        supervised.ended().await;
    });
}

/// A delete does not wait for a guest that writes out.
#[test]
fn a_delete_overtakes_a_stop() {
    run(async {
        let mut supervised = started(Conditions { halt_ms: 15_000, ..Conditions::task() }).await;
        let (stopping, deleting) = (supervised.client(), supervised.client());
        let stop = tokio::task::spawn_local(async move {
            let mut stream = stopping.connect().await.unwrap().stream;
            stream.send(Frame::Control(Request::Stop)).await.unwrap();
            stream.next().await.unwrap().unwrap()
        });
        sleep(Duration::from_millis(100)).await;
        let began = tokio::time::Instant::now();
        let mut stream = deleting.connect().await.unwrap().stream;
        stream.send(Frame::Control(Request::Delete)).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), Frame::Control(Reply::Done));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(stop.await.unwrap(), Frame::Control(Reply::Done), "both are answered");
        supervised.ended().await;
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::Deleted)));
        assert!(!supervised.dir.exists());
    });
}

#[test]
fn a_creator_that_dies_leaves_neither_files_nor_a_record() {
    run(async {
        // While it boots, and while its start is being recorded.
        for (boot_ms, store_ms) in [(1000, 0), (0, 1000)] {
            let conditions = Conditions { is_new: true, boot_ms, store_ms, ..Conditions::task() };
            let mut supervised = Supervised::start(conditions);
            sleep(Duration::from_millis(500)).await;
            supervised.drop_caller();
            supervised.ended().await;
            assert!(supervised.world.has(&Fact::Forgotten), "{:?}", supervised.world.facts.borrow());
            assert!(!supervised.dir.exists());
        }
    });
}

#[test]
fn a_starter_that_dies_changes_nothing() {
    run(async {
        let mut supervised = Supervised::start(Conditions { boot_ms: 1000, ..Conditions::task() });
        sleep(Duration::from_millis(500)).await;
        supervised.drop_caller();
        supervised.ended().await;
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::CallerGone)));
        assert!(supervised.dir.join(crate::files::LAYER).exists());
    });
}

#[test]
fn a_lost_channel_ends_the_vm_with_its_own_reason() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let running = tokio::task::spawn_local(async move {
            let run = Run { exec: exec("sleep 600000"), journal: true };
            client.run(run, &CancellationToken::new(), async |_| {}).await
        });
        until(&supervised, |fact| matches!(fact, Fact::Began(_))).await;
        let began = tokio::time::Instant::now();
        supervised.world.channel_loss.cancel();
        let ran = running.await.unwrap().unwrap();
        assert!(matches!(ran.outcome, CommandOutcome::Unknown { .. }), "{ran:?}");
        supervised.ended().await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::ChannelLost)));
        assert!(!supervised.world.is_alive());
    });
}

/// The machine that ends takes its channel with it; that is one end, not two.
#[test]
fn a_machine_that_exits_is_no_lost_channel() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        supervised.world.channel_loss.cancel();
        sleep(Duration::from_millis(200)).await;
        supervised.world.machine_exit.notify_one();
        supervised.ended().await;
        let description = "exit status: 0".to_owned();
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::VmmEnded { description })));
    });
}

#[test]
fn a_record_that_is_never_taken_ends_in_an_unknown_outcome() {
    run(async {
        let mut supervised =
            started(Conditions { store: StoreBehaviour::RefusesEnds, ..Conditions::task() }).await;
        let run = Run { exec: exec("true"), journal: true };
        let never = CancellationToken::new();
        let ran = supervised.client().run(run, &never, async |_| {}).await.unwrap();
        let unknown = CommandOutcome::Unknown { cause: Some("out of range".to_owned()) };
        assert_eq!(ran.outcome, unknown);
        assert!(supervised.world.has(&Fact::CommandEnded(1, unknown)));
        ask(&supervised, Request::Delete).await;
        supervised.ended().await;
    });
}

#[test]
fn a_full_disk_delays_the_end_of_a_command_and_does_not_lose_it() {
    run(async {
        let mut supervised =
            started(Conditions { store: StoreBehaviour::FailsAtFirst, ..Conditions::task() }).await;
        let run = Run { exec: exec("true"), journal: true };
        let never = CancellationToken::new();
        let ran = supervised.client().run(run, &never, async |_| {}).await.unwrap();
        assert!(matches!(ran.outcome, CommandOutcome::Ended(_)), "{ran:?}");
        ask(&supervised, Request::Delete).await;
        supervised.ended().await;
    });
}

/// A request that lay in the socket's buffer while its client gave up, as it does when the supervisor is frozen.
#[test]
fn a_command_that_was_cancelled_before_it_was_read_never_runs() {
    run(async {
        let mut supervised = started(Conditions { store_ms: 100, ..Conditions::task() }).await;
        for cancel in [true, false] {
            let mut stream = supervised.client().connect().await.unwrap().stream;
            let run = Request::Run { exec: exec("withdrawn"), journal: true, detach: false };
            stream.send(Frame::Control(run)).await.unwrap();
            if cancel {
                stream.send(Frame::Control(Request::Cancel)).await.unwrap();
            }
            drop(stream);
        }
        // The next has its turn after them, and is numbered as if they had never been.
        let run = Run { exec: exec("true"), journal: true };
        let never = CancellationToken::new();
        let ran = supervised.client().run(run, &never, async |_| {}).await.unwrap();
        assert_eq!(ran.sequence, Some(1));
        assert!(!supervised.world.has(&Fact::Began("withdrawn".to_owned())));

        // While it is being given its number.
        let mut stream = supervised.client().connect().await.unwrap().stream;
        let run = Request::Run { exec: exec("withdrawn"), journal: true, detach: false };
        stream.send(Frame::Control(run)).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        stream.send(Frame::Control(Request::Cancel)).await.unwrap();
        drop(stream);
        until(&supervised, |fact| matches!(fact, Fact::CommandEnded(2, CommandOutcome::NotRun { .. }))).await;
        assert!(!supervised.world.has(&Fact::Began("withdrawn".to_owned())));
        ask(&supervised, Request::Delete).await;
        supervised.ended().await;
    });
}

/// In the journal a command needs no client; without one it ends.
#[test]
fn a_client_that_goes_away_ends_what_is_in_no_journal() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        for (command, journal) in [("sleep 500", true), ("sleep 501", false)] {
            let mut stream = supervised.client().connect().await.unwrap().stream;
            let run = Request::Run { exec: exec(command), journal, detach: false };
            stream.send(Frame::Control(run)).await.unwrap();
            until(&supervised, |fact| *fact == Fact::Began(command.to_owned())).await;
        }
        until(&supervised, |fact| matches!(fact, Fact::CommandEnded(1, CommandOutcome::Ended(_)))).await;
        ask(&supervised, Request::Stop).await;
        supervised.ended().await;
        let facts = supervised.world.facts.borrow();
        let Some(Fact::CommandEnded(_, CommandOutcome::Ended(end))) =
            facts.iter().find(|fact| matches!(fact, Fact::CommandEnded(..)))
        else {
            panic!("{facts:?}")
        };
        assert!(!end.killed, "it went on: {end:?}");
    });
}

#[test]
fn a_guest_that_never_halts_is_ended_after_its_time_and_the_loss_is_known() {
    run(async {
        let mut supervised = started(Conditions { halt_ms: 3_600_000, ..Conditions::task() }).await;
        let began = tokio::time::Instant::now();
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        assert!((20..30).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        supervised.ended().await;
    });
}

#[test]
fn a_lifetime_that_was_extended_while_the_start_was_recorded_holds() {
    run(async {
        let conditions = Conditions { store_ms: 500, boot_ms: 0, lifetime: 5, ..Conditions::task() };
        let mut supervised = Supervised::start(conditions);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(ask(&supervised, Request::Extend { expires_at: 100.0 }).await, Some(Reply::Done));
        sleep(Duration::from_secs(50)).await;
        assert!(supervised.world.is_alive());
        supervised.ended().await;
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::Expired)));
        assert!(supervised.dir.exists(), "a task's files stay");
    });
}

#[test]
fn others_see_what_a_supervisor_does() {
    run(async {
        let supervised = Supervised::start(Conditions { halt_ms: 5000, ..Conditions::task() });
        let lock = crate::OwnerLock::try_acquire(&supervised.dir).unwrap().unwrap();
        let phase = || Owner::of(&supervised.dir).map(|owner| owner.phase);
        sleep(Duration::from_millis(10)).await;
        assert_eq!(phase(), Some(Phase::Starting));
        until(&supervised, |fact| matches!(fact, Fact::Notified(Event::Booted(_)))).await;
        sleep(Duration::from_millis(10)).await;
        assert_eq!(phase(), Some(Phase::Running));
        let stopping = supervised.client();
        tokio::task::spawn_local(async move {
            let mut stream = stopping.connect().await.unwrap().stream;
            stream.send(Frame::Control(Request::Stop)).await.unwrap();
            stream.next().await
        });
        sleep(Duration::from_millis(500)).await;
        assert_eq!(phase(), Some(Phase::Stopping));
        drop(lock);
        assert_eq!(phase(), None, "no process owns it");
    });
}

/// A client that sees the phase of a supervisor may connect at once.
#[test]
fn a_supervisor_that_cannot_listen_does_not_announce_itself() {
    run(async {
        let mut supervised = Supervised::start(Conditions::task());
        std::fs::create_dir(supervised.dir.join(files::CONTROL_SOCKET)).unwrap();
        supervised.ended().await;
        let facts = supervised.world.facts.borrow().clone();
        let [Fact::Notified(Event::Failed(failure))] = &facts[..] else { panic!("{facts:?}") };
        assert!(failure.cause.starts_with("cannot listen on the control socket: "), "{failure:?}");
        assert!(!supervised.dir.join(files::OWNER).exists());
    });
}

#[test]
fn a_vm_that_is_bound_to_its_caller_goes_with_it() {
    run(async {
        let conditions = Conditions { retention: Retention::Caller, is_new: true, ..Conditions::task() };
        let mut supervised = started(conditions).await;
        supervised.drop_caller();
        supervised.ended().await;
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::CallerGone)));
        assert!(!supervised.dir.exists());
    });
}
