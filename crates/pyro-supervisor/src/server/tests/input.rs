//! Input, sizes of terminals, and signals for running commands.

use std::time::Duration;

use futures::{StreamExt, stream};
use pyro_wire::{Exec, Frame, OutputStream, Program, TerminalSize};
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::commands::finish;
use super::fake::{Conditions, Fact, Supervised};
use super::races::{run, started, until};
use crate::client::{CommandInput, InputStream};
use crate::conversation::CommandOutcome;
use crate::protocol::{CommandKey, InputOutcome, Request};
use crate::{OutputChunk, Run, RunError};

fn with_input(command: &str) -> Exec {
    Exec { input: true, ..Exec::new(command, Duration::from_secs(100)) }
}

fn pieces(count: usize, bytes: usize) -> impl Iterator<Item = CommandInput> + Send + 'static {
    (0..count).map(move |number| CommandInput::Data(vec![number as u8; bytes].into()))
}

fn finished(events: impl Iterator<Item = CommandInput> + Send + 'static) -> InputStream {
    stream::iter(events.chain([CommandInput::Finished])).boxed()
}

fn open(events: impl Iterator<Item = CommandInput> + Send + 'static) -> InputStream {
    stream::iter(events).boxed()
}

/// Input whose sender the test keeps.
fn channel() -> (mpsc::Sender<CommandInput>, InputStream) {
    let (sender, receiver) = mpsc::channel(1);
    let events = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    (sender, events.boxed())
}

/// Starts a command without waiting for it, and waits until the guest runs it.
async fn detached(supervised: &Supervised, command: &str) -> CommandKey {
    let sequence = supervised.client().detach(with_input(command)).await.unwrap();
    until(supervised, |fact| matches!(fact, Fact::Began(_))).await;
    CommandKey::Sequence(sequence)
}

#[test]
fn input_comes_back_byte_for_byte_and_ends_the_command() {
    run(async {
        for journal in [true, false] {
            let supervised = started(Conditions::task()).await;
            let mut output = Vec::new();
            let take = async |chunk: OutputChunk| output.extend_from_slice(&chunk.bytes);
            // More than every buffer on the way holds, in pieces larger than a frame.
            let input = finished(pieces(20, 300_000));
            let never = CancellationToken::new();
            let run = Run { exec: with_input("cat"), journal };
            let ran = supervised.client().run_with_input(run, Some(input), &never, take).await.unwrap();
            assert!(matches!(ran.outcome, CommandOutcome::Ended(_)), "{ran:?}");
            let expected: Vec<u8> = (0..20).flat_map(|number| vec![number; 300_000]).collect();
            assert!(output == expected, "{} bytes of {}", output.len(), expected.len());
            finish(supervised).await;
        }
    });
}

#[test]
fn a_command_that_ends_is_reported_although_its_input_is_open() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let (sender, input) = channel();
        let never = CancellationToken::new();
        let run = Run { exec: with_input("blocked 50"), journal: true };
        let client = supervised.client();
        let ran = client.run_with_input(run, Some(input), &never, async |_| ()).await.unwrap();
        assert!(matches!(ran.outcome, CommandOutcome::Ended(_)), "{ran:?}");
        timeout(Duration::from_secs(1), sender.closed()).await.expect("the input is dropped");
        finish(supervised).await;
    });
}

#[test]
fn a_command_that_does_not_read_holds_its_input_back_and_can_be_killed() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let key = detached(&supervised, "blocked 100000000").await;
        let CommandKey::Sequence(sequence) = key else { panic!("{key:?}") };
        let (sender, input) = channel();
        let client = supervised.client();
        let sending = spawn_local(async move { client.input(key, input).await });
        let sent = async {
            let mut sent = 0;
            for piece in pieces(1000, 100_000) {
                sender.send(piece).await.unwrap();
                sent += 1;
            }
            sent
        };
        timeout(Duration::from_secs(10), sent).await.expect_err("100 MB are not buffered");
        let began = Instant::now();
        supervised.client().kill(sequence).await.unwrap().unwrap();
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(sending.await.unwrap().unwrap(), Some(InputOutcome::Closed));
        finish(supervised).await;
    });
}

#[test]
fn input_that_a_client_leaves_open_goes_on_with_the_next() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let key = detached(&supervised, "cat").await;
        let CommandKey::Sequence(sequence) = key else { panic!("{key:?}") };
        assert_eq!(client.input(key, open(pieces(3, 1000))).await.unwrap(), None);
        // The supervisor takes what the first client sent before it notices that it has gone.
        sleep(Duration::from_millis(10)).await;
        let mut output = 0;
        let watched = client.watch(sequence, true, async |chunk| output += chunk.bytes.len());
        let second = async { client.input(key, finished(pieces(2, 1000))).await };
        let (watched, second) = tokio::join!(watched, second);
        assert!(watched.unwrap().is_some());
        assert_eq!((second.unwrap(), output), (Some(InputOutcome::Taken), 5000));
        assert_eq!(client.input(key, finished(pieces(1, 1))).await.unwrap(), Some(InputOutcome::NotRunning));
        finish(supervised).await;
    });
}

#[test]
fn one_client_at_a_time_sends_input() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let key = detached(&supervised, "cat").await;
        let (sender, input) = channel();
        let first = spawn_local(async move { client.input(key, input).await });
        sender.send(pieces(1, 10).next().unwrap()).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        let second = supervised.client().input(key, finished(pieces(1, 10))).await.unwrap();
        assert_eq!(second, Some(InputOutcome::Busy));
        sender.send(CommandInput::Finished).await.unwrap();
        assert_eq!(first.await.unwrap().unwrap(), Some(InputOutcome::Taken));
        finish(supervised).await;
    });
}

#[test]
fn a_command_without_input_takes_none() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let exec = Exec::new("sleep 100000", Duration::from_secs(200));
        let key = CommandKey::Sequence(client.detach(exec).await.unwrap());
        assert_eq!(client.input(key, finished(pieces(1, 1))).await.unwrap(), Some(InputOutcome::NoInput));
        assert!(supervised.world.steered.borrow().is_empty());
        finish(supervised).await;
    });
}

/// The guest of this test does not know the command, although it runs.
#[test]
fn a_command_that_cannot_be_given_its_input_is_ended() {
    run(async {
        for journal in [true, false] {
            let supervised = started(Conditions::task()).await;
            let client = supervised.client();
            let run = Run { exec: with_input("sleep 100000"), journal };
            let never = CancellationToken::new();
            let input = finished(pieces(1, 1));
            let ran = client.run_with_input(run, Some(input), &never, async |_| ()).await;
            let Err(RunError::InputFailed { cause }) = ran else { panic!("{ran:?}") };
            assert_eq!(cause, "the guest does not know the command");
            if journal {
                until(&supervised, |fact| matches!(fact, Fact::CommandEnded(1, _))).await;
            }
            finish(supervised).await;
        }
    });
}

/// Each needs a stream for itself and one for its input; what has none would wait forever.
#[test]
fn a_command_whose_input_could_not_be_sent_does_not_begin() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        for _ in 0..125 {
            client.detach(with_input("blocked 100000")).await.unwrap();
        }
        let error = client.detach(with_input("blocked 100000")).await.unwrap_err();
        let is_full = |error: &RunError| matches!(error, RunError::Refused { cause } if cause == "the guest runs as many commands as it can");
        assert!(is_full(&error), "{error:?}");
        let error = client.resize(CommandKey::Sequence(1), TerminalSize { columns: 1, rows: 1 }).await;
        assert!(is_full(&error.unwrap_err()));
        for sequence in [1, 125] {
            let input = open(pieces(1, 10));
            assert_eq!(client.input(CommandKey::Sequence(sequence), input).await.unwrap(), None);
        }
        finish(supervised).await;
    });
}

#[test]
fn a_client_that_goes_while_the_command_does_not_read_makes_way_for_another() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let key = detached(&supervised, "blocked 100000").await;
        let sending = client.input(key, finished(pieces(1000, 100_000)));
        timeout(Duration::from_secs(5), sending).await.expect_err("the command does not read");
        let requests = || supervised.world.steered.borrow().len();
        assert_eq!(requests(), 1);
        sleep(Duration::from_secs(2)).await;
        let _ = client.input(key, finished(pieces(1, 1))).await.unwrap();
        assert_eq!(requests(), 2, "the second reached the guest");
        finish(supervised).await;
    });
}

#[test]
fn a_login_shell_ends_with_its_client_and_other_commands_do_not() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let command = with_input("sleep 50000");
        let shell = Exec { program: Program::LoginShell, ..command.clone() };
        for exec in [command, shell] {
            let never = CancellationToken::new();
            let ran = client.run(Run { exec, journal: true }, &never, async |_| ());
            timeout(Duration::from_secs(1), ran).await.expect_err("it runs");
        }
        until(&supervised, |fact| matches!(fact, Fact::CommandEnded(2, _))).await;
        let has_ended = |fact: &Fact| matches!(fact, Fact::CommandEnded(1, _));
        assert!(!supervised.world.facts.borrow().iter().any(has_ended));
        finish(supervised).await;
    });
}

#[test]
fn commands_have_increasing_numbers_in_their_guest() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        for (journal, command) in [(true, "a"), (false, "b"), (true, "c")] {
            let run = Run { exec: Exec::new(command, Duration::from_secs(1)), journal };
            client.run(run, &CancellationToken::new(), async |_| ()).await.unwrap();
        }
        let key = detached(&supervised, "blocked 1000").await;
        assert_eq!(key, CommandKey::Sequence(3));
        until(&supervised, |_| supervised.world.inputs.borrow().contains_key(&4)).await;
        finish(supervised).await;
    });
}

#[test]
fn terminals_are_resized_and_signals_answered() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let key = detached(&supervised, "blocked 100000").await;
        let size = TerminalSize { columns: 100, rows: 40 };
        assert!(client.resize(key, size).await.unwrap());
        let error = client.signal(key, 2).await.unwrap_err();
        assert!(
            matches!(&error, RunError::Refused { cause } if cause == "signalling: not permitted"),
            "{error:?}"
        );
        for signal in [0, 32, -1] {
            let error = client.signal(key, signal).await.unwrap_err();
            assert!(matches!(error, RunError::Refused { .. }), "{error:?}");
        }
        assert!(!client.resize(CommandKey::Sequence(99), size).await.unwrap());
        assert!(!client.resize(CommandKey::Id(99), size).await.unwrap());
        let steered = supervised.world.steered.borrow().clone();
        assert_eq!(steered, [(1, "100x40".to_owned()), (1, "signal 2".to_owned())]);
        finish(supervised).await;
    });
}

/// Sizes reach a command that takes no input too.
#[test]
fn the_caller_of_a_command_sends_sizes() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let size = TerminalSize { columns: 7, rows: 8 };
        let exec = Exec { terminal: Some(size), ..Exec::new("sleep 100", Duration::from_secs(10)) };
        let run = Run { exec, journal: false };
        let input = open([CommandInput::Resize(size)].into_iter());
        let client = supervised.client();
        client.run_with_input(run, Some(input), &CancellationToken::new(), async |_| ()).await.unwrap();
        assert_eq!(*supervised.world.steered.borrow(), [(1, "7x8".to_owned())]);
        finish(supervised).await;
    });
}

#[test]
fn a_client_that_goes_leaves_no_stream_attached() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let key = detached(&supervised, "cat").await;
        let mut client = supervised.client().connect().await.unwrap().stream;
        futures::SinkExt::send(&mut client, Frame::Control(Request::Input(key))).await.unwrap();
        let piece = Frame::Output(OutputStream::Stdout, vec![0; 10].into());
        futures::SinkExt::send(&mut client, piece).await.unwrap();
        until(&supervised, |_| supervised.world.inputs.borrow().get(&1).is_some_and(Option::is_none)).await;
        drop(client);
        until(&supervised, |_| supervised.world.inputs.borrow().get(&1).is_some_and(Option::is_some)).await;
        finish(supervised).await;
    });
}
