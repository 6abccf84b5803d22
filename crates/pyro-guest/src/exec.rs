//! One command: start it, forward its output, enforce its deadline, report its end.
//!
//! Three things run at once and must not wait for each other: two pumps that copy output (and stall when
//! the host does not take it), and a watcher of the process, its deadline and the host's connection.

mod oom;
mod process;
mod pump;
mod settings;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use futures::{SinkExt, Stream, StreamExt};
use pyro_wire::{Exec, ExecInput, ExecReply, Exit, Frame, OutputStream, Status};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::stream::CallStream;
use process::CommandProcess;

pub(crate) use process::prepare_agent;
pub use settings::CommandSettings;

/// Output chunks on their way to the host, per command. Few: the stream's window is the real buffer.
const CHUNKS_IN_FLIGHT: usize = 4;

type Frames = mpsc::Sender<Frame<ExecReply>>;

/// Runs the command and answers on the stream. The command dies with the stream.
pub(crate) async fn serve<S>(request: Exec, settings: &CommandSettings, stream: CallStream<S, Exec>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
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
    let inputs = source.map(|frame| match frame {
        Ok(Frame::Control(ExecInput::Terminate)) => Input::Terminate,
        // Nothing else may be sent here: a host that does so does not follow the protocol and gets no answer.
        _ => Input::Abandon,
    });
    tokio::join!(writer, run(request, settings, frames, inputs));
}

/// What the host asks for while a command runs.
enum Input {
    /// End it and report how it ended.
    Terminate,
    /// End it without a report.
    Abandon,
}

async fn run(
    request: Exec,
    settings: &CommandSettings,
    frames: Frames,
    mut inputs: impl Stream<Item = Input> + Unpin,
) {
    let started = Instant::now();
    let mut process = match CommandProcess::start(&request, settings) {
        Ok(process) => process,
        Err(failure) => {
            let _ = frames.send(Frame::Control(ExecReply::NotStarted(failure))).await;
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
        input = inputs.next() => match input {
            Some(Input::Terminate) => (process.shell.terminate(grace).await, false),
            Some(Input::Abandon) | None => {
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
        match status {
            Ok(status) => {
                let status = status_of(status);
                let exit = Exit { status, timed_out, duration_ms, stdout_dropped, stderr_dropped };
                let _ = frames.send(Frame::Control(ExecReply::Exited(exit))).await;
            }
            // The command ran, but its end is unknown: the stream closes without a reply.
            Err(error) => eprintln!("pyro-guest: waiting for a command: {error}"),
        }
    };
    let host_gone = async { while let Some(Input::Terminate) = inputs.next().await {} };
    tokio::select! {
        () = reply => {}
        () = host_gone => {}
    }
}

fn status_of(status: ExitStatus) -> Status {
    match status.signal() {
        Some(signal) => Status::Signal(signal),
        // A process that has ended and was not killed has a code.
        None => Status::Code(status.code().unwrap_or_default()),
    }
}
