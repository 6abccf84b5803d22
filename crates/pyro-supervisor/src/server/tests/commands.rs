//! Commands: their output, and the clients that run, watch and kill them.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Exec, Frame, OutputStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::fake::{Conditions, Fact, StoreBehaviour, Supervised};
use super::races::{ask, exec, run, started, until};
use crate::client::{Ran, Run};
use crate::conversation::{CommandEnd, CommandOutcome};
use crate::protocol::{Reply, Request};
use crate::server::file_name;
use crate::{RunError, files};

async fn run_command(
    supervised: &Supervised,
    exec: Exec,
    journal: bool,
) -> (Result<Ran, RunError>, [usize; 2]) {
    let mut received = [0, 0];
    let never = CancellationToken::new();
    let client = supervised.client();
    let ran = client.run(Run { exec, journal }, &never, async |chunk| {
        received[usize::from(chunk.stream == OutputStream::Stderr)] += chunk.bytes.len();
    });
    (ran.await, received)
}

fn end(outcome: CommandOutcome) -> CommandEnd {
    match outcome {
        CommandOutcome::Ended(end) => end,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn finish(mut supervised: Supervised) {
    assert_eq!(ask(&supervised, Request::Delete).await, Some(Reply::Done));
    supervised.ended().await;
}

#[test]
fn output_is_streamed_kept_and_sent_to_those_who_watch() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let sequence = client.detach(exec("print 200000")).await.unwrap();
        until(&supervised, |fact| matches!(fact, Fact::Began(_))).await;
        let file = supervised.dir.join(files::COMMANDS).join(file_name(sequence, OutputStream::Stdout));
        while std::fs::metadata(&file).map_or(0, |file| file.len()) < 200_000 {
            sleep(Duration::from_millis(1)).await;
        }
        let watching = spawn_local(async move {
            let mut received = 0;
            let end = client.watch(sequence, true, async |chunk| received += chunk.bytes.len()).await;
            (end, received)
        });
        // One that is not interested in the output, and one that does not wait for the end.
        let client = supervised.client();
        let quiet = spawn_local(async move { client.watch(sequence, false, async |_| panic!()).await });
        let mut leaving = supervised.client().connect().await.unwrap().stream;
        leaving.send(Frame::Control(Request::Watch { sequence, output: true })).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        drop(leaving);
        let killed = supervised.client().kill(sequence).await.unwrap().unwrap();
        let (watched, received) = watching.await.unwrap();
        assert_eq!((watched.unwrap().as_ref(), received), (Some(&killed), 200_000));
        assert_eq!(quiet.await.unwrap().unwrap().as_ref(), Some(&killed));
        assert!(end(killed).killed);
        // From then on, its record is what counts.
        assert_eq!(supervised.client().kill(sequence).await.unwrap(), None);
        assert_eq!(supervised.client().watch(sequence, true, async |_| ()).await.unwrap(), None);
        finish(supervised).await;
    });
}

#[test]
fn a_command_that_reaches_its_limit_says_so_on_its_standard_error() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let (ran, received) = run_command(&supervised, exec("late"), true).await;
        assert!(end(ran.unwrap().outcome).timed_out);
        let note = "command timed out after 60s\n";
        assert_eq!(received, [0, note.len()]);
        let file = supervised.dir.join(files::COMMANDS).join(file_name(1, OutputStream::Stderr));
        assert_eq!(std::fs::read_to_string(file).unwrap(), note);
        finish(supervised).await;
    });
}

#[test]
fn a_command_that_the_guest_cannot_start_or_loses_is_not_reported_as_ended() {
    run(async {
        for journal in [true, false] {
            let supervised = started(Conditions::task()).await;
            let (ran, _) = run_command(&supervised, exec("missing"), journal).await;
            let CommandOutcome::NotRun { cause, kind: Some(_) } = ran.unwrap().outcome else { panic!() };
            assert_eq!(cause, "the guest could not start the command: starting: not found");
            let (ran, _) = run_command(&supervised, exec("leave"), journal).await;
            assert_eq!(ran.unwrap().outcome, CommandOutcome::Unknown { cause: None });
            let (ran, _) = run_command(&supervised, exec("garbage"), journal).await;
            let outcome = ran.unwrap().outcome;
            assert!(matches!(outcome, CommandOutcome::Unknown { cause: Some(_) }), "{outcome:?}");
            finish(supervised).await;
        }
    });
}

/// The guest is not asked for longer than the command's own limit, its grace and a margin.
#[test]
fn a_guest_that_does_not_end_a_command_is_not_waited_for() {
    run(async {
        let supervised = started(Conditions::task()).await;
        for command in ["stubborn 100000000", "chatter"] {
            let began = Instant::now();
            let exec = Exec { kill_grace_ms: 1000, ..Exec::new(command, Duration::from_secs(10)) };
            let (ran, _) = run_command(&supervised, exec, true).await;
            let end = end(ran.unwrap().outcome);
            assert!(end.status.is_none() && end.timed_out && !end.killed, "{end:?}");
            assert!((15..35).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        }
        // It confirms nothing when it is asked to kill one.
        let sequence = supervised.client().detach(exec("stubborn 100000000")).await.unwrap();
        let killed = end(supervised.client().kill(sequence).await.unwrap().unwrap());
        assert!(killed.status.is_none() && killed.killed && !killed.timed_out, "{killed:?}");
        finish(supervised).await;
    });
}

#[test]
fn a_client_that_does_not_read_delays_neither_a_kill_nor_the_end() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let mut deaf = Vec::new();
        for sequence in [1, 2] {
            let mut stream = supervised.client().connect().await.unwrap().stream;
            let exec = Exec { kill_grace_ms: 1000, ..Exec::new("print 5000000", Duration::from_secs(10)) };
            let run = Request::Run { exec, journal: true, detach: false };
            stream.send(Frame::Control(run)).await.unwrap();
            let accepted = stream.next().await.unwrap().unwrap();
            assert_eq!(accepted, Frame::Control(Reply::Accepted { sequence: Some(sequence), id: sequence }));
            deaf.push(stream);
        }
        sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        supervised.client().kill(1).await.unwrap().unwrap();
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        // The other is no longer waited for after its time limit.
        supervised.client().watch(2, false, async |_| ()).await.unwrap().unwrap();
        assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
        finish(supervised).await;
    });
}

#[test]
fn a_client_outside_the_journal_that_does_not_read_delays_neither_a_stop_nor_its_command() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        let run_deaf = async || {
            let mut stream = supervised.client().connect().await.unwrap().stream;
            let exec = Exec { kill_grace_ms: 1000, ..Exec::new("flood 5000000", Duration::from_secs(10)) };
            let run = Request::Run { exec, journal: false, detach: false };
            stream.send(Frame::Control(run)).await.unwrap();
            let accepted = stream.next().await.unwrap().unwrap();
            assert!(
                matches!(accepted, Frame::Control(Reply::Accepted { sequence: None, .. })),
                "{accepted:?}"
            );
            stream
        };
        // One is no longer waited for after its time limit, and then not even for its outcome.
        let mut left = run_deaf().await;
        sleep(Duration::from_secs(60)).await;
        let mut received = 0;
        while let Some(Ok(Frame::Output(_, bytes))) = left.next().await {
            received += bytes.len();
        }
        assert!(received < 5_000_000, "{received}");
        let _deaf = run_deaf().await;
        sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        supervised.ended().await;
    });
}

/// On a full disk the end of a command may not be on record for as long as the VM lives.
#[test]
fn a_client_that_gives_up_a_kill_leaves_no_connection() {
    run(async {
        let conditions = Conditions { store: StoreBehaviour::FailsAtFirst, ..Conditions::task() };
        let supervised = started(conditions).await;
        let sequence = supervised.client().detach(exec("sleep 60000")).await.unwrap();
        until(&supervised, |fact| matches!(fact, Fact::Began(_))).await;
        let mut stream = supervised.client().connect().await.unwrap().stream;
        stream.send(Frame::Control(Request::Kill { sequence })).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        let mut left = stream.into_inner();
        left.shutdown().await.unwrap();
        let closed = timeout(Duration::from_millis(100), left.read(&mut [0])).await;
        assert_eq!(closed.expect("the other end is closed too").unwrap(), 0);
        assert!(!supervised.world.facts.borrow().iter().any(|fact| matches!(fact, Fact::CommandEnded(..))));
        finish(supervised).await;
    });
}

/// The end of its time limit is later than a clock can represent.
#[test]
fn a_command_without_a_reachable_time_limit_can_be_killed() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let mut stream = supervised.client().connect().await.unwrap().stream;
        let exec = Exec { timeout_ms: u64::MAX, ..exec("print 5000000") };
        let run = Request::Run { exec, journal: true, detach: false };
        stream.send(Frame::Control(run)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        // It does not read the output, and a client that watches the command leaves in the middle of it.
        sleep(Duration::from_secs(1)).await;
        let mut watching = supervised.client().connect().await.unwrap().stream;
        watching.send(Frame::Control(Request::Watch { sequence: 1, output: true })).await.unwrap();
        watching.next().await.unwrap().unwrap();
        sleep(Duration::from_secs(1)).await;
        drop(watching);
        let killed = end(supervised.client().kill(1).await.unwrap().unwrap());
        assert!(killed.killed, "{killed:?}");
        finish(supervised).await;
    });
}

#[test]
fn a_command_that_is_being_numbered_is_found() {
    run(async {
        let supervised = started(Conditions { store_ms: 500, ..Conditions::task() }).await;
        let client = supervised.client();
        let beginning = spawn_local(async move { client.detach(exec("sleep 60000")).await });
        sleep(Duration::from_millis(100)).await;
        let killed = end(supervised.client().kill(1).await.unwrap().unwrap());
        assert!(killed.killed, "{killed:?}");
        assert_eq!(beginning.await.unwrap().unwrap(), 1);
        finish(supervised).await;
    });
}

#[test]
fn a_client_that_stops_reading_for_good_does_not_end_a_command_of_the_journal() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let mut stream = supervised.client().connect().await.unwrap().stream;
        let run = Request::Run { exec: exec("print 5000000"), journal: true, detach: false };
        stream.send(Frame::Control(run)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        stream.next().await.unwrap().unwrap();
        drop(stream);
        let file = supervised.dir.join(files::COMMANDS).join(file_name(1, OutputStream::Stdout));
        while std::fs::metadata(&file).map_or(0, |file| file.len()) < 5_000_000 {
            sleep(Duration::from_millis(1)).await;
        }
        supervised.client().kill(1).await.unwrap().unwrap();
        finish(supervised).await;
    });
}

#[test]
fn a_command_that_cannot_be_recorded_does_not_run() {
    run(async {
        let supervised = started(Conditions { begins_are_refused: true, ..Conditions::task() }).await;
        let (ran, _) = run_command(&supervised, exec("true"), true).await;
        let Err(RunError::Refused { cause }) = ran else { panic!("{ran:?}") };
        assert_eq!(cause, "the disk is full");
        assert!(!supervised.began_anything());
        finish(supervised).await;
    });
}

#[test]
fn an_outcome_that_no_record_takes_is_reported_as_unknown() {
    run(async {
        let supervised =
            started(Conditions { store: StoreBehaviour::RefusesAll, ..Conditions::task() }).await;
        let (ran, _) = run_command(&supervised, exec("true"), true).await;
        assert_eq!(ran.unwrap().outcome, CommandOutcome::Unknown { cause: Some("out of range".to_owned()) });
        finish(supervised).await;
    });
}

#[test]
fn commands_that_do_not_end_do_not_keep_the_vm() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        supervised.client().detach(exec("stubborn 100000000")).await.unwrap();
        until(&supervised, |fact| matches!(fact, Fact::Began(_))).await;
        let began = Instant::now();
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        supervised.ended().await;
        assert!(supervised.world.has(&Fact::Halted));
    });
}
