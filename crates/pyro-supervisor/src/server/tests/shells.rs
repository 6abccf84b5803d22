//! Shells: what they write, who types into them, and how they end.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt, stream};
use pyro_wire::{Exec, Frame, OutputStream, Program, Status, TerminalSize};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::commands::finish;
use super::fake::{Conditions, Fact, Supervised};
use super::races::{ask, run, started, until};
use crate::conversation::CommandOutcome;
use crate::protocol::{
    CommandKey, InputOutcome, MAX_OPEN_SHELLS, ReadReason, ReadShell, Reply, Request, SCROLLBACK_BYTES,
    ShellPart,
};
use crate::server::file_name;
use crate::{AttachEnd, Client, CommandInput, RunError, ShellAnswer, ShellOutput, files};

const SIZE: TerminalSize = TerminalSize { columns: 120, rows: 30 };

fn shell(command: &str) -> Exec {
    Exec { input: true, terminal: Some(SIZE), ..Exec::new(command, Duration::from_secs(24 * 3600)) }
}

/// Opens a shell, and waits until the guest runs it.
async fn open(supervised: &Supervised, command: &str) -> u64 {
    let sequence = supervised.client().open_shell(shell(command)).await.unwrap();
    until(supervised, |fact| matches!(fact, Fact::Began(_))).await;
    sequence
}

/// Waits at most a virtual minute for what comes after a cursor.
fn after(sequence: u64, cursor: u64) -> ReadShell {
    ReadShell {
        sequence,
        cursor: Some(cursor),
        fresh: false,
        max_bytes: SCROLLBACK_BYTES,
        wait_ms: 60_000,
        idle_ms: 0,
        before: 0,
    }
}

async fn read(supervised: &Supervised, request: ReadShell) -> (Bytes, ShellPart) {
    let ShellOutput { bytes, part, .. } =
        supervised.client().read_shell(request).await.unwrap().expect("a shell");
    (bytes, part)
}

async fn keys(supervised: &Supervised, sequence: u64, keys: &'static str) -> Option<InputOutcome> {
    type_into(&supervised.client(), sequence, keys).await
}

async fn type_into(client: &Client, sequence: u64, keys: &'static str) -> Option<InputOutcome> {
    let input = stream::iter([CommandInput::Data(keys.into()), CommandInput::Finished]).boxed();
    client.input(CommandKey::Sequence(sequence), input).await.unwrap()
}

#[test]
fn each_client_reads_on_where_its_cursor_is() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let sequence = open(&supervised, "cat").await;
        assert_eq!(keys(&supervised, sequence, "first").await, Some(InputOutcome::Taken));
        let (bytes, part) = read(&supervised, after(sequence, 0)).await;
        assert_eq!((&*bytes, part.reason, part.dropped), (&b"first"[..], ReadReason::Output, 0));
        assert_eq!((part.shell.written, part.shell.outcome), (5, None));
        keys(&supervised, sequence, "second").await;
        let (bytes, _) = read(&supervised, after(sequence, 5)).await;
        assert_eq!(&*bytes, b"second");
        let (bytes, part) = read(&supervised, ReadShell { max_bytes: 4, ..after(sequence, 3) }).await;
        assert_eq!((&*bytes, part.start, part.reason), (&b"stse"[..], 3, ReadReason::Full));
        let latest = ReadShell { cursor: None, max_bytes: 3, ..after(sequence, 0) };
        let (bytes, part) = read(&supervised, latest).await;
        assert_eq!((&*bytes, part.start), (&b"ond"[..], 8));
        let beyond = supervised.client().read_shell(after(sequence, 12)).await;
        assert!(matches!(beyond, Err(RunError::Refused { .. })), "{beyond:?}");
        assert_eq!(supervised.client().read_shell(after(99, 0)).await.unwrap(), None);
        finish(supervised).await;
    });
}

#[test]
fn typing_and_reading_is_one_request() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let sequence = open(&supervised, "cat").await;
        let client = supervised.client();
        let write = async |keys: &'static str, request| {
            client.write_shell(keys.into(), request).await.unwrap().expect("a shell")
        };
        let fresh = ReadShell { cursor: None, ..after(sequence, 0) };
        let ShellAnswer::Output(first) = write("first", fresh).await else { panic!("no output") };
        assert_eq!(
            (&*first.bytes, first.part.start, first.part.reason),
            (&b"first"[..], 0, ReadReason::Output)
        );
        // Output from before does not end the wait, but is returned with a cursor or as what is before.
        let ShellAnswer::Output(second) = write("second", after(sequence, 2)).await else {
            panic!("no output")
        };
        assert_eq!((&*second.bytes, second.part.start), (&b"rstsecond"[..], 2));
        let ShellAnswer::Output(third) = write("third", ReadShell { before: 7, ..fresh }).await else {
            panic!("no output")
        };
        assert_eq!((&*third.before, &*third.bytes), (&b"tsecond"[..], &b"third"[..]));
        assert_eq!((third.part.start, third.part.before), (11, 7));
        let began = Instant::now();
        let read = client.read_shell(ReadShell { fresh: true, ..fresh }).await.unwrap().expect("a shell");
        assert_eq!((read.bytes.len(), read.part.start, read.part.reason), (0, 16, ReadReason::Time));
        assert!(began.elapsed() >= Duration::from_secs(60), "{:?}", began.elapsed());
        let beyond = client.write_shell("x".into(), after(sequence, 17)).await;
        assert!(matches!(beyond, Err(RunError::Refused { .. })), "{beyond:?}");
        assert_eq!(client.write_shell("x".into(), after(99, 0)).await.unwrap(), None);
        client.kill(sequence).await.unwrap().expect("it ran");
        assert_eq!(write("x", fresh).await, ShellAnswer::Ended);
        finish(supervised).await;
    });
}

#[test]
fn a_read_ends_when_the_terminal_is_idle_or_the_time_is_over() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let sequence = open(&supervised, "cat").await;
        let client = supervised.client();
        let typing = spawn_local(async move {
            for _ in 0..5 {
                type_into(&client, sequence, "x").await;
                sleep(Duration::from_millis(300)).await;
            }
        });
        let began = Instant::now();
        let (bytes, part) = read(&supervised, ReadShell { idle_ms: 500, ..after(sequence, 0) }).await;
        assert_eq!((&*bytes, part.reason), (&b"xxxxx"[..], ReadReason::Idle));
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(1700) && took < Duration::from_millis(1900), "{took:?}");
        typing.await.unwrap();
        // It has been idle for long.
        sleep(Duration::from_secs(10)).await;
        let began = Instant::now();
        read(&supervised, ReadShell { idle_ms: 500, ..after(sequence, 0) }).await;
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
        // Output before the cursor does not count.
        let (bytes, part) = read(&supervised, ReadShell { idle_ms: 500, ..after(sequence, 5) }).await;
        assert_eq!((bytes.len(), part.reason), (0, ReadReason::Time));
        assert!(began.elapsed() >= Duration::from_secs(60), "{:?}", began.elapsed());
        let (_, part) = read(&supervised, ReadShell { wait_ms: 0, ..after(sequence, 5) }).await;
        assert_eq!(part.reason, ReadReason::Time);
        finish(supervised).await;
    });
}

#[test]
fn what_nobody_reads_does_not_hold_a_shell_up_and_is_dropped() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let sequence = open(&supervised, "flood 5000000").await;
        let (_, part) =
            read(&supervised, ReadShell { idle_ms: 1000, max_bytes: 10, ..after(sequence, 0) }).await;
        assert_eq!(part.reason, ReadReason::Full);
        let all = ReadShell { max_bytes: SCROLLBACK_BYTES, ..after(sequence, 4_000_000) };
        while read(&supervised, all).await.1.shell.written < 5_000_000 {}
        // It is not sent with a gap.
        let behind = supervised.client().attach_shell(sequence, 0, async |_| {}).await;
        assert_eq!(behind.unwrap(), AttachEnd::Behind);
        supervised.client().kill(sequence).await.unwrap().expect("it ran");
        let (bytes, part) = read(&supervised, after(sequence, 0)).await;
        assert_eq!((part.start, part.dropped), (5_000_000 - bytes.len() as u64, part.start));
        assert_eq!((part.reason, part.shell.written), (ReadReason::Ended, 5_000_000));
        // A client that is still reading misses nothing because of the end.
        assert_eq!(bytes.len() as u64, SCROLLBACK_BYTES);
        // The journal has its end and none of its output, and says how much that was.
        let ended = supervised.world.facts.borrow().iter().find_map(|fact| match fact {
            Fact::CommandEnded(1, CommandOutcome::Ended(end)) => Some(end.stdout_dropped),
            _ => None,
        });
        assert_eq!(ended, Some(5_000_000));
        let commands = supervised.dir.join(files::COMMANDS);
        assert!(!commands.join(file_name(sequence, OutputStream::Stdout)).exists());
        finish(supervised).await;
    });
}

#[test]
fn several_clients_type_while_another_is_attached_and_one_that_goes_ends_nothing() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let sequence = open(&supervised, "cat").await;
        let mut leaving = supervised.client().connect().await.unwrap().stream;
        leaving.send(Frame::Control(Request::AttachShell { sequence, cursor: 0 })).await.unwrap();
        let mut typing = supervised.client().connect().await.unwrap().stream;
        typing.send(Frame::Control(Request::Input(CommandKey::Sequence(sequence)))).await.unwrap();
        typing.send(Frame::Output(OutputStream::Stdout, "one ".into())).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        keys(&supervised, sequence, "two ").await;
        typing.send(Frame::Output(OutputStream::Stdout, "three".into())).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        drop((leaving, typing));
        let client = supervised.client();
        let attached = spawn_local(async move {
            let mut seen = Vec::new();
            let end = client.attach_shell(sequence, 4, async |bytes| seen.extend_from_slice(&bytes)).await;
            (end, seen)
        });
        sleep(Duration::from_secs(2)).await;
        keys(&supervised, sequence, " four").await;
        sleep(Duration::from_millis(10)).await;
        let killed = supervised.client().kill(sequence).await.unwrap().expect("it ran");
        let (end, seen) = attached.await.unwrap();
        assert_eq!(end.unwrap(), AttachEnd::Ended(killed));
        assert_eq!(String::from_utf8(seen).unwrap(), "two three four");
        let (bytes, part) = read(&supervised, after(sequence, 0)).await;
        assert_eq!((bytes.len(), part.reason), (18, ReadReason::Ended));
        assert_eq!(keys(&supervised, sequence, "late").await, Some(InputOutcome::Closed));
        finish(supervised).await;
    });
}

#[test]
fn a_shell_whose_input_failed_once_takes_what_is_typed_next() {
    run(async {
        let supervised = started(Conditions { first_input_fails: true, ..Conditions::task() }).await;
        let sequence = open(&supervised, "cat").await;
        // It is on its way when the guest refuses it.
        assert_eq!(keys(&supervised, sequence, "lost").await, Some(InputOutcome::Taken));
        sleep(Duration::from_millis(10)).await;
        assert_eq!(keys(&supervised, sequence, "typed").await, Some(InputOutcome::Taken));
        let (bytes, part) = read(&supervised, after(sequence, 0)).await;
        assert_eq!((&*bytes, part.shell.outcome), (&b"typed"[..], None));
        finish(supervised).await;
    });
}

#[test]
fn a_login_shell_goes_on_without_a_client_until_it_is_closed() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let login = Exec { program: Program::LoginShell, ..shell("") };
        let sequence = supervised.client().open_shell(login).await.unwrap();
        sleep(Duration::from_secs(100)).await;
        let size = TerminalSize { columns: 80, rows: 24 };
        assert!(supervised.client().resize(CommandKey::Sequence(sequence), size).await.unwrap());
        let shells = supervised.client().list_shells().await.unwrap();
        assert_eq!((shells.len(), shells[0].size, &shells[0].outcome), (1, size, &None));
        supervised.client().kill(sequence).await.unwrap().expect("it ran");
        let shells = supervised.client().list_shells().await.unwrap();
        let Some(CommandOutcome::Ended(end)) = &shells[0].outcome else { panic!("{shells:?}") };
        assert_eq!((end.status, end.killed), (Some(Status::Signal(15)), true));
        finish(supervised).await;
    });
}

#[test]
fn as_many_run_as_may_and_the_latest_that_ended_can_be_read() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        for _ in 0..MAX_OPEN_SHELLS {
            client.open_shell(shell("sleep 100000000")).await.unwrap();
        }
        let refused = client.open_shell(shell("true")).await;
        assert!(matches!(&refused, Err(RunError::Refused { cause }) if cause.contains("16")), "{refused:?}");
        // The first one is the last to end.
        for sequence in (1..=MAX_OPEN_SHELLS as u64).rev() {
            client.kill(sequence).await.unwrap().expect("it ran");
        }
        for sequence in 17..=20 {
            assert_eq!(client.open_shell(shell("true")).await.unwrap(), sequence);
            client.watch(sequence, false, async |_| {}).await.unwrap();
            sleep(Duration::from_millis(10)).await;
        }
        let left: Vec<u64> = client.list_shells().await.unwrap().iter().map(|shell| shell.sequence).collect();
        let expected: Vec<u64> = (1..=12).chain(17..=20).collect();
        assert_eq!(left, expected);
        let plain = ask(&supervised, Request::OpenShell(Exec::new("true", Duration::from_secs(1)))).await;
        assert!(matches!(plain, Some(Reply::Refused { .. })), "{plain:?}");
        finish(supervised).await;
    });
}

#[test]
fn the_end_of_the_vm_ends_shells_and_those_who_wait_for_them() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        let sequence = open(&supervised, "sleep 100000000").await;
        let client = supervised.client();
        let reading = spawn_local(async move { client.read_shell(after(sequence, 0)).await });
        sleep(Duration::from_millis(10)).await;
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        supervised.ended().await;
        let read = timeout(Duration::from_secs(5), reading).await.expect("an answer").unwrap();
        if let Ok(Some(ShellOutput { part, .. })) = &read {
            assert_eq!(part.reason, ReadReason::Ended);
        }
        let killed =
            |fact: &Fact| matches!(fact, Fact::CommandEnded(1, CommandOutcome::Ended(end)) if end.killed);
        assert!(supervised.world.facts.borrow().iter().any(killed));
    });
}
