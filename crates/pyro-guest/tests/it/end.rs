//! Commands that are ended: by their limit, by the host, or because the host is gone.
//!
//! A fifo that every process of a command holds open for writing shows that all of them are dead: only then does its
//! reader see the end.

use futures::{SinkExt, StreamExt};
use pyro_wire::{Exec, Frame, Request, Status};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::host::{Host, chunk, end_of, expect_output, make_fifo, terminate};

/// A fifo called `alive` in the workspace, open for reading.
fn alive(host: &Host) -> pipe::Receiver {
    make_fifo(&host.path("alive"));
    pipe::OpenOptions::new().open_receiver(host.path("alive")).unwrap()
}

/// Waits until no process has it open.
async fn all_dead(mut alive: pipe::Receiver) {
    assert_eq!(alive.read(&mut [0; 1]).await.unwrap(), 0);
}

/// Waits until a command has opened a fifo called `alive` in the workspace for writing.
async fn opened(host: &Host) -> pipe::Receiver {
    let path = host.path("alive");
    // Opening a fifo waits for its other end.
    let file = tokio::task::spawn_blocking(move || std::fs::File::open(path)).await.unwrap().unwrap();
    pipe::Receiver::from_file(file).unwrap()
}

#[tokio::test]
async fn a_command_that_reaches_its_limit_is_ended_with_all_its_children() {
    let host = Host::new();
    let alive = alive(&host);
    let command = "exec 3> alive; sleep 1000 & sleep 1000";
    let ended = host.run(Exec { timeout_ms: 300, ..host.exec(command) }).await;
    assert!(ended.exit().timed_out);
    assert_eq!(ended.exit().status, Status::Signal(15));
    assert!(ended.exit().duration_ms >= 300);
    all_dead(alive).await;
}

#[tokio::test]
async fn a_limit_of_nothing_is_a_limit() {
    let host = Host::new();
    let ended = host.run(Exec { timeout_ms: 0, kill_grace_ms: 0, ..host.exec("sleep 1000") }).await;
    assert!(ended.exit().timed_out);
    assert_eq!(ended.exit().status, Status::Signal(9));
}

#[tokio::test]
async fn a_limit_beyond_every_clock_is_none() {
    let host = Host::new();
    let exec = Exec { timeout_ms: u64::MAX, kill_grace_ms: u64::MAX, ..host.exec("echo done") };
    assert_eq!(host.run(exec).await.text(), "done\n");
}

#[tokio::test]
async fn a_command_is_ended_when_the_host_asks() {
    let host = Host::new();
    let mut stream = host.call(host.exec("echo ready; exec sleep 1000")).await;
    expect_output(&mut stream, "ready\n").await;
    terminate(&mut stream).await;
    let ended = end_of(stream).await;
    assert_eq!((ended.exit().status, ended.exit().timed_out), (Status::Signal(15), false));
}

#[tokio::test]
async fn a_command_may_use_its_grace() {
    let host = Host::new();
    let command = "trap 'echo bye; exit 7' TERM; echo ready; sleep 1000 & wait";
    let mut stream = host.call(Exec { kill_grace_ms: 100_000, ..host.exec(command) }).await;
    expect_output(&mut stream, "ready\n").await;
    terminate(&mut stream).await;
    let ended = end_of(stream).await;
    assert_eq!((ended.exit().status, ended.text()), (Status::Code(7), "bye\n"));
}

#[tokio::test]
async fn a_command_that_ignores_the_request_is_killed_after_its_grace() {
    let host = Host::new();
    let alive = alive(&host);
    let command = "trap '' TERM; exec 3> alive; echo ready; while :; do sleep 1000; done";
    let mut stream = host.call(Exec { kill_grace_ms: 50, ..host.exec(command) }).await;
    expect_output(&mut stream, "ready\n").await;
    terminate(&mut stream).await;
    assert_eq!(end_of(stream).await.exit().status, Status::Signal(9));
    all_dead(alive).await;
}

#[tokio::test]
async fn a_command_without_a_grace_is_killed_at_once() {
    let host = Host::new();
    let command = "trap 'echo bye; exit 7' TERM; echo ready; sleep 1000 & wait";
    let mut stream = host.call(Exec { kill_grace_ms: 0, ..host.exec(command) }).await;
    expect_output(&mut stream, "ready\n").await;
    terminate(&mut stream).await;
    let ended = end_of(stream).await;
    assert_eq!((ended.exit().status, ended.text()), (Status::Signal(9), ""));
}

#[tokio::test]
async fn a_child_that_ignores_the_request_is_killed_when_its_shell_has_ended() {
    let host = Host::new();
    let alive = alive(&host);
    let command = "(trap '' TERM; exec 3> alive; echo ready; sleep 1000) & wait";
    let mut stream = host.call(Exec { kill_grace_ms: 100_000, ..host.exec(command) }).await;
    expect_output(&mut stream, "ready\n").await;
    terminate(&mut stream).await;
    assert_eq!(end_of(stream).await.exit().status, Status::Signal(15));
    all_dead(alive).await;
}

#[tokio::test]
async fn a_second_request_to_end_changes_nothing() {
    let host = Host::new();
    let command = "trap 'exit 7' TERM; echo ready; sleep 1000 & wait";
    let mut stream = host.call(Exec { kill_grace_ms: 100_000, ..host.exec(command) }).await;
    expect_output(&mut stream, "ready\n").await;
    terminate(&mut stream).await;
    terminate(&mut stream).await;
    assert_eq!(end_of(stream).await.exit().status, Status::Code(7));
}

#[tokio::test]
async fn a_command_dies_with_its_stream() {
    let host = Host::new();
    let alive = alive(&host);
    let command = "trap '' TERM; exec 3> alive; echo ready; sleep 1000";
    let mut stream = host.call(host.exec(command)).await;
    expect_output(&mut stream, "ready\n").await;
    drop(stream);
    all_dead(alive).await;
    assert_eq!(host.run(host.exec("echo on")).await.text(), "on\n", "the agent goes on");
}

#[tokio::test]
async fn a_command_dies_with_the_channel() {
    let host = Host::new();
    let alive = alive(&host);
    let mut stream = host.call(host.exec("trap '' TERM; exec 3> alive; echo ready; sleep 1000")).await;
    expect_output(&mut stream, "ready\n").await;
    let _dir = host.hang_up().await;
    all_dead(alive).await;
}

#[tokio::test]
async fn a_host_that_breaks_the_protocol_gets_no_reply_and_its_command_is_ended() {
    let host = Host::new();
    let alive = alive(&host);
    let mut stream = host.call(host.exec("trap '' TERM; exec 3> alive; echo ready; sleep 1000")).await;
    expect_output(&mut stream, "ready\n").await;
    stream.send(chunk("what a command cannot be sent")).await.unwrap();
    all_dead(alive).await;
    assert!(stream.next().await.is_none());

    // A second request on the same stream.
    let mut stream = host.call(host.exec("echo ready; sleep 1000")).await;
    expect_output(&mut stream, "ready\n").await;
    let mut stream = stream.map_codec(|_| pyro_wire::FrameCodec::<pyro_wire::ExecReply, Request>::default());
    stream.send(Frame::Control(host.exec("echo second").into())).await.unwrap();
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_host_that_does_not_read_cannot_stretch_the_limit() {
    let host = Host::new();
    make_fifo(&host.path("alive"));
    let command = "exec 3> alive; exec yes";
    let stream = host.call(Exec { timeout_ms: 2000, ..host.exec(command) }).await;
    all_dead(opened(&host).await).await;
    let ended = end_of(stream).await;
    assert!(ended.exit().timed_out);
    assert!(!ended.stdout.is_empty());
}

#[tokio::test]
async fn a_host_that_does_not_read_can_still_end_its_command() {
    let host = Host::new();
    make_fifo(&host.path("alive"));
    let mut stream = host.call(host.exec("exec 3> alive; exec yes")).await;
    let alive = opened(&host).await;
    terminate(&mut stream).await;
    all_dead(alive).await;
    let ended = end_of(stream).await;
    assert_eq!((ended.exit().status, ended.exit().timed_out), (Status::Signal(15), false));
}
