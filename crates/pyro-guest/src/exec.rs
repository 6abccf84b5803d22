//! One command: start it, pass its output on, keep its deadline, report its end.
//!
//! Three things run at once and must not wait for each other: two pumps that copy output (and stall when
//! the host does not take it), and the watcher of the process, its deadline and the host's interest.

mod process;
mod pump;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use futures::{SinkExt, Stream, StreamExt};
use pyro_wire::{Exec, ExecFailure, Exit, Frame, OutputStream, Reply, Request, Status};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::agent::HostStream;
use crate::fault::Fault;
use process::CommandProcess;

pub(crate) use process::prepare_agent;

/// Output chunks on their way to the host, per command. Few: the stream's window is the real buffer.
const CHUNKS_IN_FLIGHT: usize = 4;

type Frames = mpsc::Sender<Frame<Reply>>;

/// Runs the command and answers on the stream. The command dies with the stream.
pub(crate) async fn serve(request: Exec, stream: HostStream) {
    let (mut sink, source) = stream.split();
    let (frames, mut queue) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let writer = async move {
        while let Some(frame) = queue.recv().await {
            if sink.send(frame).await.is_err() {
                // The watcher learns from the stream's other half that the host is gone.
                return;
            }
        }
        let _ = sink.close().await;
    };
    let wishes = source.map(|frame| match frame {
        Ok(Frame::Control(Request::Terminate)) => Wish::Terminate,
        // It has nothing else to say on this stream; whatever comes means that it has lost interest.
        _ => Wish::Forget,
    });
    tokio::join!(writer, run(request, frames, wishes));
}

/// What the host may want of a command that runs.
enum Wish {
    /// End it, and say how it ended.
    Terminate,
    /// End it; there is nobody left to tell.
    Forget,
}

/// Sends the only frame of an answer and closes the stream.
pub(crate) async fn finish(mut stream: HostStream, reply: Reply) {
    // If the host is gone there is nobody left to tell.
    let _ = stream.send(Frame::Control(reply)).await;
    let _ = stream.close().await;
}

async fn run(request: Exec, frames: Frames, mut wishes: impl Stream<Item = Wish> + Unpin) {
    let started = Instant::now();
    let mut process = match CommandProcess::start(&request) {
        Ok(process) => process,
        Err(Fault { step, cause, errno }) => {
            let reply = Reply::NotStarted(ExecFailure { step, errno, cause });
            let _ = frames.send(Frame::Control(reply)).await;
            return;
        }
    };
    let shell_ended = CancellationToken::new();
    let pump = |pipe, stream| {
        tokio::spawn(pump::run(pipe, stream, request.output_limit, frames.clone(), shell_ended.clone()))
    };
    let stdout = pump(process.stdout, OutputStream::Stdout);
    let stderr = pump(process.stderr, OutputStream::Stderr);

    let grace = Duration::from_millis(request.kill_grace_ms);
    let (status, timed_out) = tokio::select! {
        status = process.shell.wait() => (status, false),
        () = tokio::time::sleep(Duration::from_millis(request.timeout_ms)) => {
            (process.shell.terminate(grace).await, true)
        }
        wish = wishes.next() => match wish {
            Some(Wish::Terminate) => (process.shell.terminate(grace).await, false),
            Some(Wish::Forget) | None => {
                // The pumps end when they find that out.
                let _ = process.shell.terminate(Duration::ZERO).await;
                shell_ended.cancel();
                return;
            }
        }
    };
    let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    shell_ended.cancel();

    let reply = async {
        let (stdout_dropped, stderr_dropped) =
            (stdout.await.unwrap_or_default(), stderr.await.unwrap_or_default());
        let reply = match status {
            Ok(status) => {
                let status = status_of(status);
                Reply::Exited(Exit { status, timed_out, duration_ms, stdout_dropped, stderr_dropped })
            }
            Err(error) => Reply::NotStarted(ExecFailure {
                step: "waiting for the command".into(),
                errno: error.raw_os_error().unwrap_or(0),
                cause: error.to_string(),
            }),
        };
        let _ = frames.send(Frame::Control(reply)).await;
    };
    let host_gone = async { while let Some(Wish::Terminate) = wishes.next().await {} };
    tokio::select! {
        () = reply => {}
        () = host_gone => {}
    }
}

fn status_of(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Code(code),
        (None, Some(signal)) => Status::Signal(signal),
        // wait(2) reports one or the other for a process that has ended.
        (None, None) => Status::Code(-1),
    }
}
