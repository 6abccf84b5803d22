//! Standard input of commands.

use futures::{SinkExt, StreamExt};
use pyro_wire::{
    Exec, ExecReply, Frame, Input, InputEnd, InputReply, OutputStream, Resize, Signal, Status, SteerReply,
    TerminalSize,
};

use crate::host::{CallStream, Host, chunk, end_of, expect_output, make_fifo, terminate};

fn with_input(host: &Host, id: u64, text: &str) -> Exec {
    Exec { id, input: true, ..host.exec(text) }
}

async fn finish(stream: &mut CallStream<Input>) {
    // The command may have ended, and then the agent closes the stream.
    let _ = stream.send(Frame::Control(InputEnd::Finished)).await;
}

async fn reply(mut stream: CallStream<Input>) -> InputReply {
    match stream.next().await {
        Some(Ok(Frame::Control(reply))) => reply,
        other => panic!("no reply: {other:?}"),
    }
}

#[tokio::test]
async fn bytes_arrive_unchanged_and_end() {
    let host = Host::new();
    let mut input = host.call(Input { command: 7 }).await;
    let command = host.call(with_input(&host, 7, "cat; echo end")).await;
    input.send(chunk(&b"a\0\xff\n"[..])).await.unwrap();
    finish(&mut input).await;
    assert_eq!(reply(input).await, InputReply::Taken);
    let ended = end_of(command).await;
    assert_eq!((ended.stdout.as_slice(), ended.exit().status), (&b"a\0\xff\nend\n"[..], Status::Code(0)));
}

#[tokio::test]
async fn much_input_passes_at_the_pace_of_the_command() {
    const BYTES: usize = 64 << 20;
    let host = Host::new();
    let command = host.call(with_input(&host, 1, "wc -c")).await;
    let mut input = host.call(Input { command: 1 }).await;
    let block = bytes::Bytes::from(vec![b'x'; 128 << 10]);
    for _ in 0..BYTES / block.len() {
        input.send(chunk(block.clone())).await.unwrap();
    }
    finish(&mut input).await;
    assert_eq!(reply(input).await, InputReply::Taken);
    assert_eq!(end_of(command).await.text().trim(), BYTES.to_string());
}

#[tokio::test]
async fn a_command_that_does_not_read_can_be_ended_and_holds_nothing_up() {
    let host = Host::new();
    let mut command = host.call(with_input(&host, 1, "echo ready; exec sleep 1000")).await;
    expect_output(&mut command, "ready\n").await;
    let mut input = host.call(Input { command: 1 }).await;
    let block = bytes::Bytes::from(vec![b'x'; 128 << 10]);
    let flood = async { while input.send(chunk(block.clone())).await.is_ok() {} };
    let end = async {
        assert_eq!(host.run(host.exec("echo on")).await.text(), "on\n");
        terminate(&mut command).await;
        let ended = end_of(command).await;
        assert_eq!(ended.exit().status, Status::Signal(15));
    };
    tokio::select! {
        () = async { tokio::join!(flood, std::future::pending::<()>()); } => {}
        () = end => {}
    }
}

#[tokio::test]
async fn a_reader_that_goes_is_reported() {
    let host = Host::new();
    let mut command =
        host.call(with_input(&host, 1, "head -c 1; exec <&-; echo closed; exec sleep 1000")).await;
    let mut input = host.call(Input { command: 1 }).await;
    input.send(chunk("x")).await.unwrap();
    expect_output(&mut command, "xclosed\n").await;
    assert_eq!(reply(input).await, InputReply::Closed);
    terminate(&mut command).await;
    end_of(command).await;
    assert_eq!(host.ask(Input { command: 1 }).await, InputReply::NotRunning);
}

#[tokio::test]
async fn input_of_a_command_that_ends_is_closed() {
    let host = Host::new();
    let command = host.call(with_input(&host, 1, "read line; cat <&0 > /dev/null & echo $line")).await;
    let mut input = host.call(Input { command: 1 }).await;
    input.send(chunk("word\n")).await.unwrap();
    assert_eq!(end_of(command).await.text(), "word\n");
    assert_eq!(reply(input).await, InputReply::Closed);
}

#[tokio::test]
async fn input_can_be_given_in_parts_by_one_client_at_a_time() {
    let host = Host::new();
    let mut command = host.call(with_input(&host, 1, "cat")).await;
    let mut first = host.call(Input { command: 1 }).await;
    first.send(chunk("one\n")).await.unwrap();
    expect_output(&mut command, "one\n").await;
    assert_eq!(host.ask(Input { command: 1 }).await, InputReply::Busy);
    drop(first);
    // The agent learns by a message of its own that the first has gone, and the second is not refused until then.
    let mut second = host.call(Input { command: 1 }).await;
    second.send(chunk("two\n")).await.unwrap();
    expect_output(&mut command, "two\n").await;
    finish(&mut second).await;
    assert_eq!(reply(second).await, InputReply::Taken);
    assert_eq!(end_of(command).await.exit().status, Status::Code(0));
}

#[tokio::test]
async fn a_command_without_input_takes_none() {
    let host = Host::new();
    let mut command = host.call(Exec { id: 3, ..host.exec("cat; echo end; exec sleep 1000") }).await;
    expect_output(&mut command, "end\n").await;
    assert_eq!(host.ask(Input { command: 3 }).await, InputReply::Closed);
}

#[tokio::test]
async fn input_waits_for_its_own_command_and_not_for_a_later_one() {
    let host = Host::new();
    let mut later = host.call(with_input(&host, 6, "echo ready; cat")).await;
    expect_output(&mut later, "ready\n").await;
    let mut input = host.call(Input { command: 5 }).await;
    input.send(chunk("early\n")).await.unwrap();
    finish(&mut input).await;
    assert!(futures::poll!(input.next()).is_pending());
    assert_eq!(host.run(with_input(&host, 5, "cat")).await.text(), "early\n");
    assert_eq!(reply(input).await, InputReply::Taken);
    assert_eq!(host.ask(Input { command: 5 }).await, InputReply::NotRunning);
}

#[tokio::test]
async fn input_whose_command_never_comes_ends_with_its_client() {
    let host = Host::new();
    let mut input = host.call(Input { command: 9 }).await;
    input.send(chunk("lost\n")).await.unwrap();
    drop(input);
    // The agent reads requests and ends in order of arrival.
    host.run(host.exec("true")).await;
    let mut command = host.call(with_input(&host, 9, "cat")).await;
    let mut second = host.call(Input { command: 9 }).await;
    second.send(chunk("kept\n")).await.unwrap();
    expect_output(&mut command, "kept\n").await;
    finish(&mut second).await;
    assert_eq!(end_of(command).await.exit().status, Status::Code(0));
}

#[tokio::test]
async fn input_is_free_for_the_next_client_when_one_leaves_that_the_command_does_not_read() {
    let host = Host::new();
    let text = "echo ready; read go < go; exec tail -c 5";
    make_fifo(&host.path("go"));
    let mut command = host.call(with_input(&host, 1, text)).await;
    expect_output(&mut command, "ready\n").await;
    let mut first = host.call(Input { command: 1 }).await;
    // More than a pipe holds.
    first.send(chunk(vec![b'x'; 128 << 10])).await.unwrap();
    first.send(chunk(vec![b'x'; 64 << 10])).await.unwrap();
    assert!(futures::poll!(first.next()).is_pending());
    drop(first);
    let mut second = host.call(Input { command: 1 }).await;
    host.run(host.exec("echo > go")).await;
    second.send(chunk("last\n")).await.unwrap();
    finish(&mut second).await;
    assert_eq!(reply(second).await, InputReply::Taken);
    assert_eq!(end_of(command).await.text(), "last\n");
}

/// The agent reads no more of the first, so it cannot see that it has gone.
#[tokio::test]
async fn input_is_free_for_the_next_client_when_one_leaves_that_has_sent_much() {
    let host = Host::new();
    make_fifo(&host.path("go"));
    let text = "echo ready; read go < go; exec tail -c 5";
    let mut command = host.call(with_input(&host, 1, text)).await;
    expect_output(&mut command, "ready\n").await;
    let mut first = host.call(Input { command: 1 }).await;
    let block = bytes::Bytes::from(vec![b'x'; 64 << 10]);
    // As much as the stream takes.
    let flood = async { while first.send(chunk(block.clone())).await.is_ok() {} };
    tokio::time::timeout(std::time::Duration::from_secs(2), flood).await.unwrap_err();
    drop(first);
    let mut second = host.call(Input { command: 1 }).await;
    second.send(chunk("last\n")).await.unwrap();
    finish(&mut second).await;
    let early = tokio::time::timeout(std::time::Duration::from_secs(3), second.next()).await;
    assert!(early.is_err(), "it waits for the command: {early:?}");
    host.run(host.exec("echo > go")).await;
    assert_eq!(reply(second).await, InputReply::Taken);
    assert_eq!(end_of(command).await.text(), "last\n");
}

#[tokio::test]
async fn signals_reach_the_process_group() {
    let host = Host::new();
    let mut command = host
        .call(Exec { id: 1, ..host.exec("trap 'kill $!; exit 4' USR1; echo ready; sleep 1000 & wait") })
        .await;
    expect_output(&mut command, "ready\n").await;
    assert!(matches!(host.ask(Signal { command: 1, signal: 0 }).await, SteerReply::Failed(_)));
    assert!(matches!(host.ask(Signal { command: 1, signal: 99 }).await, SteerReply::Failed(_)));
    let size = TerminalSize { columns: 80, rows: 24 };
    match host.ask(Resize { command: 1, size }).await {
        SteerReply::Failed(failure) => assert_eq!(failure.cause, "the command has no terminal"),
        other => panic!("{other:?}"),
    }
    assert_eq!(host.ask(Signal { command: 1, signal: 10 }).await, SteerReply::Done);
    let ended = end_of(command).await;
    assert!(matches!(ended.reply, ExecReply::Exited(_)));
    assert_eq!(host.ask(Signal { command: 1, signal: 10 }).await, SteerReply::NotRunning);
}

#[tokio::test]
async fn input_that_breaks_the_protocol_gets_no_reply() {
    let host = Host::new();
    let command = host.call(with_input(&host, 1, "cat")).await;
    let mut input = host.call(Input { command: 1 }).await;
    input.send(Frame::Output(OutputStream::Stderr, "x".into())).await.unwrap();
    assert!(input.next().await.is_none_or(|frame| frame.is_err()));
    drop(command);
}
