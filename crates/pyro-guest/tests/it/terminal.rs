//! Commands on a terminal.

use futures::{SinkExt, StreamExt};
use pyro_wire::{
    Exec, Frame, Input, InputEnd, InputReply, OutputStream, Program, Resize, Signal, Status, SteerReply,
    TerminalSize,
};

use crate::host::{CallStream, Host, chunk, end_of, expect_output, terminate};

const SIZE: TerminalSize = TerminalSize { columns: 100, rows: 40 };

fn on_terminal(host: &Host, text: &str) -> Exec {
    Exec { id: 1, terminal: Some(SIZE), ..host.exec(text) }
}

/// Reads output until it ends with `expected`, and returns all of it.
async fn output_until(stream: &mut CallStream<Exec>, expected: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(expected) {
        match stream.next().await.unwrap().unwrap() {
            Frame::Output(OutputStream::Stdout, bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            other => panic!("{other:?} after {text:?}"),
        }
    }
    text
}

#[tokio::test]
async fn all_three_descriptors_are_a_terminal_that_the_command_controls() {
    let host = Host::new();
    let text = "for fd in 0 1 2; do test -t $fd && echo $fd; done; stty size; echo err >&2; echo tty > /dev/tty; \
                ps -o sid=,tpgid= -p $$ | xargs echo $$";
    let ended = host.run(on_terminal(&host, text)).await;
    let lines: Vec<_> = ended.text().lines().collect();
    assert_eq!(lines[..6], ["0", "1", "2", "40 100", "err", "tty"], "{ended:?}");
    let ids: Vec<_> = lines[6].split(' ').collect();
    assert!(ids[0] == ids[1] && ids[0] == ids[2], "{ids:?}");
    assert_eq!((ended.exit().status, ended.stderr.as_slice()), (Status::Code(0), &b""[..]));
}

#[tokio::test]
async fn keys_are_echoed_and_interrupt_the_foreground_job() {
    let host = Host::new();
    let mut command = host
        .call(on_terminal(&host, "trap 'echo again' INT; read line; echo got $line; cat; echo end"))
        .await;
    let mut input = host.call(Input { command: 1 }).await;
    input.send(chunk("word\n")).await.unwrap();
    output_until(&mut command, "word\r\ngot word\r\n").await;
    input.send(chunk("x\n")).await.unwrap();
    output_until(&mut command, "x\r\nx\r\n").await;
    input.send(chunk("\x03")).await.unwrap();
    // The shell acts on its trap when its job has ended by the same signal.
    assert_eq!(output_until(&mut command, "end\r\n").await, "^Cagain\r\nend\r\n");
    assert_eq!(end_of(command).await.exit().status, Status::Code(0));
    drop(input);
}

#[tokio::test]
async fn input_on_a_terminal_can_end_and_be_continued() {
    let host = Host::new();
    let mut command = host.call(on_terminal(&host, "stty -echo; echo ready; cat")).await;
    expect_output(&mut command, "ready\r\n").await;
    for (keys, shown) in [("one\n", "one\r\n"), ("two\n", "two\r\n")] {
        let mut input = host.call(Input { command: 1 }).await;
        input.send(chunk(keys)).await.unwrap();
        input.send(Frame::Control(InputEnd::Finished)).await.unwrap();
        assert!(matches!(input.next().await, Some(Ok(Frame::Control(InputReply::Taken)))));
        expect_output(&mut command, shown).await;
    }
    let mut input = host.call(Input { command: 1 }).await;
    input.send(chunk("\x04")).await.unwrap();
    assert_eq!(end_of(command).await.exit().status, Status::Code(0));
}

#[tokio::test]
async fn a_new_size_is_announced_to_the_foreground_job() {
    let host = Host::new();
    let text = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut command = host.call(on_terminal(&host, text)).await;
    expect_output(&mut command, "ready\r\n").await;
    let size = TerminalSize { columns: 132, rows: 50 };
    assert_eq!(host.ask(Resize { command: 1, size }).await, SteerReply::Done);
    assert_eq!(end_of(command).await.text(), "50 132\r\n");
}

#[tokio::test]
async fn signals_reach_the_foreground_job_and_not_the_shell() {
    let host = Host::new();
    let program = Program::Shell {
        text: "set -m; sh -c 'echo ready; exec sleep 1000'; echo status $?".to_owned(),
        shell: Some("bash".to_owned()),
    };
    let mut command = host.call(Exec { program, ..on_terminal(&host, "") }).await;
    expect_output(&mut command, "ready\r\n").await;
    assert_eq!(host.ask(Signal { command: 1, signal: 15 }).await, SteerReply::Done);
    let ended = end_of(command).await;
    assert!(ended.text().ends_with("status 143\r\n"), "{ended:?}");
}

#[tokio::test]
async fn the_last_output_arrives_although_a_job_keeps_the_terminal() {
    let host = Host::new();
    let text = "(trap '' HUP; exec sleep 1000) & echo $!; i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done";
    let ended = host.run(on_terminal(&host, text)).await;
    assert!(ended.text().ends_with("line 499\r\n"), "{ended:?}");
    let job = ended.text().lines().next().unwrap().to_owned();
    assert_eq!(host.run(host.exec(&format!("kill -9 {job} && echo was alive"))).await.text(), "was alive\n");
}

#[tokio::test]
async fn a_login_shell_is_interactive_and_ends_when_asked() {
    let host = Host::new();
    let env = [("TERM".to_owned(), "vt100".to_owned())];
    let exec = Exec {
        program: Program::LoginShell,
        env: env.into(),
        kill_grace_ms: 100_000,
        ..on_terminal(&host, "")
    };
    let mut command = host.call(exec).await;
    let mut input = host.call(Input { command: 1 }).await;
    input.send(chunk("echo $0 $- $TERM | sed s/^/is:/\n")).await.unwrap();
    let mut text = String::new();
    while !text.contains("is:-bash ") {
        match command.next().await.unwrap().unwrap() {
            Frame::Output(_, bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} after {text:?}"),
        }
    }
    // An interactive shell ignores SIGTERM; the hang-up ends it within its grace.
    terminate(&mut command).await;
    let ended = end_of(command).await;
    assert_eq!(ended.exit().status, Status::Signal(1), "{text} {ended:?}");
    let all = text + ended.text();
    let line = all.split("is:-bash ").nth(1).unwrap();
    assert!(
        line.starts_with('h') && line.contains("vt100") && line.split(' ').next().unwrap().contains('i'),
        "{all}"
    );
}

#[tokio::test]
async fn a_terminal_has_a_type_that_programs_know_unless_the_caller_names_one() {
    let host = Host::new();
    assert_eq!(host.run(on_terminal(&host, "echo $TERM")).await.text(), "xterm-256color\r\n");
    let env = [("TERM".to_owned(), "vt100".to_owned())].into();
    let exec = Exec { env, ..on_terminal(&host, "echo $TERM") };
    assert_eq!(host.run(exec).await.text(), "vt100\r\n");
    assert_eq!(host.run(host.exec("echo $TERM")).await.text(), "dumb\n");
}

#[tokio::test]
async fn the_shell_of_a_login_shell_is_the_one_that_runs() {
    let host = Host::new();
    let exec = Exec { program: Program::LoginShell, ..on_terminal(&host, "") };
    let command = host.call(exec).await;
    let mut input = host.call(Input { command: 1 }).await;
    input.send(chunk("echo is:$SHELL:$BASH; exit\n")).await.unwrap();
    let ended = end_of(command).await;
    assert!(ended.text().contains("is:/bin/bash:/bin/bash"), "{ended:?}");
}

/// The profile of most systems replaces `PATH`.
#[tokio::test]
async fn the_callers_variables_win_in_a_login_shell() {
    let host = Host::new();
    std::fs::write(host.path(".profile"), "export FROM=profile OURS=profile PATH=/usr/bin:/bin\numask 027\n")
        .unwrap();
    let home = host.path("").to_str().unwrap().to_owned();
    let env = [("HOME", &*home), ("OURS", "the caller's $1"), ("PATH", "/ours:/usr/bin:/bin")];
    let env = env.map(|(name, value)| (name.into(), value.into())).into();
    let exec = Exec { program: Program::LoginShell, env, ..on_terminal(&host, "") };
    let command = host.call(exec).await;
    let mut input = host.call(Input { command: 1 }).await;
    input.send(chunk("echo \"is:$FROM:$OURS:$PATH:$(umask):$-\"; exit\n")).await.unwrap();
    let ended = end_of(command).await;
    let (_, options) =
        ended.text().split_once("is:profile:the caller's $1:/ours:/usr/bin:/bin:0027:").unwrap();
    assert!(options.lines().next().unwrap().contains('i'), "{ended:?}");
}

#[tokio::test]
async fn a_command_whose_terminal_is_gone_is_hung_up() {
    let host = Host::new();
    let mark = host.path("mark");
    crate::host::make_fifo(&mark);
    let text = "trap 'echo hung up > mark; exit' HUP; echo ready; while :; do sleep 0.05; done";
    let mut command = host.call(Exec { kill_grace_ms: 100_000, ..on_terminal(&host, text) }).await;
    expect_output(&mut command, "ready\r\n").await;
    drop(command);
    let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(mark).unwrap());
    assert_eq!(read.await.unwrap(), "hung up\n");
}
