//! Commands and shells.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{
    Exec, ExecInput, ExecReply, Exit, Frame, InputEnd, InputReply, OutputStream, Program, Status,
};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::super::{Fact, World};
use super::{GuestStream, failure};

/// Passes input on to a command. One that is not read for a while is still waited for.
pub(super) async fn take_input(
    stream: &mut GuestStream<InputEnd, InputReply>,
    command: u64,
    world: &World,
) -> Option<InputReply> {
    let requested = world.steered.borrow().iter().filter(|(_, what)| what == "input").count();
    if world.conditions.first_input_fails && requested == 1 {
        return Some(InputReply::Failed(failure("opening its input", "too many open files")));
    }
    let input = match world.inputs.borrow_mut().get_mut(&command).map(Option::take) {
        Some(Some(input)) => input,
        Some(None) => return Some(InputReply::Busy),
        None => return Some(InputReply::NotRunning),
    };
    loop {
        let frame = tokio::select! {
            frame = stream.next() => frame,
            () = input.closed() => return Some(InputReply::Closed),
        };
        match frame {
            Some(Ok(Frame::Output(_, bytes))) => {
                if input.send(bytes).await.is_err() {
                    return Some(InputReply::Closed);
                }
            }
            Some(Ok(Frame::Control(InputEnd::Finished))) => return Some(InputReply::Taken),
            // Another stream may follow.
            _ => {
                world.inputs.borrow_mut().insert(command, Some(input));
                return None;
            }
        }
    }
}

pub(super) async fn run(
    stream: &mut GuestStream<ExecInput, ExecReply>,
    exec: &Exec,
    world: &World,
) -> Option<ExecReply> {
    // Its task may be polled once more before it is aborted, and a machine that is gone runs nothing.
    if !world.is_alive() {
        return None;
    }
    let command = exec.program.label();
    world.note(Fact::Began(command.clone()));
    if exec.report_start && command != "missing" {
        stream.send(Frame::Control(ExecReply::Started)).await.ok()?;
    }
    let started = Instant::now();
    let mut words = command.split(' ');
    let is_stubborn = words.next() == Some("stubborn");
    let mut ms = match exec.program {
        Program::LoginShell => 1_000_000,
        _ => words.next().and_then(|ms| ms.parse().ok()).unwrap_or(0),
    };
    let print = |bytes: usize| Frame::Output(OutputStream::Stdout, vec![b'x'; bytes].into());
    match command.split(' ').next() {
        Some(name @ ("print" | "flood" | "burst")) => {
            let mut left = ms as usize;
            while left > 0 {
                stream.feed(print(left.min(60_000))).await.ok()?;
                left -= left.min(60_000);
            }
            stream.flush().await.ok()?;
            match name {
                "print" => drop(stream.next().await?.ok()?),
                "burst" => ms = 0,
                _ => {}
            }
        }
        Some("cat") => {
            let (sender, mut input) = mpsc::channel(1);
            world.inputs.borrow_mut().insert(exec.id, Some(sender));
            while let Some(bytes) = input.recv().await {
                stream.send(Frame::Output(OutputStream::Stdout, bytes)).await.ok()?;
            }
        }
        // Its input is never read, and open until it ends.
        Some("blocked") => {
            let (sender, _input) = mpsc::channel(1);
            world.inputs.borrow_mut().insert(exec.id, Some(sender));
            sleep(Duration::from_millis(ms)).await;
        }
        Some("missing") => return Some(ExecReply::NotStarted(failure("starting", "not found"))),
        Some("chatter") => loop {
            stream.send(print(10)).await.ok()?;
            sleep(Duration::from_millis(100)).await;
        },
        Some("leave") => return None,
        Some("garbage") => {
            stream.get_mut().write_all(&[0xff; 64]).await.ok()?;
            stream.get_mut().flush().await.ok()?;
            return None;
        }
        _ => {}
    }
    let wait = sleep(Duration::from_millis(ms));
    tokio::pin!(wait);
    let status = loop {
        tokio::select! {
            () = &mut wait => break Status::Code(if command.starts_with("fail") { 3 } else { 0 }),
            frame = stream.next() => match frame {
                Some(Ok(Frame::Control(ExecInput::Terminate))) if is_stubborn => {}
                Some(Ok(Frame::Control(ExecInput::Terminate))) => break Status::Signal(15),
                _ => return None,
            },
        }
    };
    Some(ExecReply::Exited(Exit {
        status,
        timed_out: command == "late",
        duration_ms: started.elapsed().as_millis() as u64,
        stdout_dropped: 0,
        stderr_dropped: 0,
    }))
}
