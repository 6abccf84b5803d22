//! One command: start it, forward its output, enforce its deadline, report its end.
//!
//! Three things run at once and must not wait for each other: two pumps that copy output (and stall when
//! the host does not take it), and a watcher of the process, its deadline and the host's connection. Input, signals and
//! sizes of the terminal come by requests of their own, which find the command by its number.

mod accounts;
mod cgroup;
mod child;
mod environment;
mod input;
mod oom;
mod process;
mod program;
mod pump;
mod running;
mod settings;
mod spawn;
mod terminal;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{SinkExt, Stream, StreamExt};
use pyro_wire::{Exec, ExecInput, ExecReply, Exit, Frame, OutputStream, Status};
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::stream::CallStream;
use process::{CommandProcess, NotStarted, Output, abandon, terminate};
use running::{CommandInput, Steering};

pub(crate) use environment::{WRITE_ENVIRONMENT, write_environment};
pub(crate) use input::serve as serve_input;
pub(crate) use process::prepare_agent;
pub use settings::CommandSettings;
pub(crate) use settings::Commands;

/// Output chunks on their way to the host, per command. Few: the stream's window is the real buffer.
const CHUNKS_IN_FLIGHT: usize = 4;

/// How long a start may go on that was cancelled. After that, a file system does not respond.
const CANCEL_LIMIT: Duration = Duration::from_secs(2);

type Frames = mpsc::Sender<Frame<ExecReply>>;

/// Runs the command and answers on the stream. The command dies with the stream.
pub(crate) async fn serve<S>(request: Exec, commands: &Arc<Commands>, stream: CallStream<S, Exec>)
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
    tokio::join!(writer, run(request, None, commands, frames, inputs));
    commands.groups().make_ready();
}

/// What the host asks for while a command runs.
enum Input {
    /// End it and report how it ended.
    Terminate,
    /// End it without a report.
    Abandon,
}

/// Runs a command without a host, in a home directory other than its user's, up to its end or its limit. Its output goes
/// nowhere.
pub(crate) async fn run_silently(request: Exec, home: &str, commands: &Arc<Commands>) {
    let (frames, mut queue) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let drain = async { while queue.recv().await.is_some() {} };
    tokio::join!(drain, run(request, Some(home), commands, frames, futures::stream::pending()));
    commands.groups().make_ready();
}

/// Returns the variables that a command gets besides those of its login environment.
pub(crate) fn with_variables(mut request: Exec, machine: BTreeMap<String, String>) -> Exec {
    request.env = crate::host_settings::for_command(machine, request.env);
    request
}

/// Starts a command. An input that comes before it has started cancels the start and is returned too. A start that waits for a
/// file system is given up then, and when the command times out.
async fn start(
    request: &Arc<Exec>,
    home: Option<&str>,
    commands: &Arc<Commands>,
    inputs: &mut (impl Stream<Item = Input> + Unpin),
) -> (Result<CommandProcess, NotStarted>, Option<Input>) {
    let cancelled = CancellationToken::new();
    let limit = commands.settings.profile_limit + Duration::from_millis(request.timeout_ms);
    let mut starts = pin!(CommandProcess::start(request, home, commands, &cancelled));
    tokio::select! {
        biased;
        started = &mut starts => (started, None),
        input = inputs.next() => {
            cancelled.cancel();
            let started = tokio::time::timeout(CANCEL_LIMIT, starts).await;
            (started.unwrap_or(Err(NotStarted::Cancelled)), Some(input.unwrap_or(Input::Abandon)))
        }
        () = tokio::time::sleep(limit) => (Err(NotStarted::TimedOut), None),
    }
}

/// The end of a command that was ended before it was executed: by the host, or because it timed out.
fn ended_before_start(timed_out: Option<Duration>) -> Exit {
    let duration_ms = timed_out.map_or(0, |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    Exit {
        status: Status::Signal(Signal::TERM.as_raw()),
        timed_out: timed_out.is_some(),
        duration_ms,
        stdout_dropped: 0,
        stderr_dropped: 0,
    }
}

async fn run(
    request: Exec,
    home: Option<&str>,
    commands: &Arc<Commands>,
    frames: Frames,
    mut inputs: impl Stream<Item = Input> + Unpin,
) {
    let registration = commands.running.begin(request.id);
    let (request, asked) = (Arc::new(request), Instant::now());
    let (started, early) = start(&request, home, commands, &mut inputs).await;
    let mut inputs = futures::stream::iter(early).chain(inputs);
    let began = Instant::now();
    let CommandProcess { mut leader, processes, input, output, warning } = match started {
        Ok(command) => command,
        Err(error) => {
            drop(registration);
            let reply = match error {
                NotStarted::Failed(failure) => ExecReply::NotStarted(failure),
                NotStarted::Cancelled => ExecReply::Exited(ended_before_start(None)),
                NotStarted::TimedOut => ExecReply::Exited(ended_before_start(Some(asked.elapsed()))),
            };
            let _ = frames.send(Frame::Control(reply)).await;
            return;
        }
    };
    let leader_ended = CancellationToken::new();
    registration.started(Steering {
        processes: processes.clone(),
        input: CommandInput::new(input),
        ended: leader_ended.clone(),
    });
    if request.report_start {
        let _ = frames.send(Frame::Control(ExecReply::Started)).await;
    }
    if let Some(warning) = warning.take() {
        let frame = match output {
            Output::Pipes { .. } => Frame::Output(OutputStream::Stderr, warning.into()),
            Output::Terminal(_) => Frame::Output(OutputStream::Stdout, warning.replace('\n', "\r\n").into()),
        };
        let _ = frames.send(frame).await;
    }
    let pumps = spawn_pumps(output, request.output_limit, &frames, &leader_ended);

    let grace = Duration::from_millis(request.kill_grace_ms);
    let (status, timed_out) = tokio::select! {
        status = leader.wait() => (status, false),
        () = tokio::time::sleep(Duration::from_millis(request.timeout_ms)) => {
            (terminate(&mut leader, &processes, grace).await, true)
        }
        input = inputs.next() => match input {
            Some(Input::Terminate) => (terminate(&mut leader, &processes, grace).await, false),
            Some(Input::Abandon) | None => {
                // The pumps end when they find that out.
                abandon(&mut leader, &processes, grace).await;
                leader_ended.cancel();
                return;
            }
        }
    };
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    drop(registration);
    // No more signals can be sent now, so its number may be another process's.
    drop(leader);
    leader_ended.cancel();

    let reply = async {
        let (stdout_dropped, stderr_dropped) = pumps.await.unwrap_or_default();
        match status {
            Ok(status) => {
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

/// Sends output to the host until the command has ended. The task returns the numbers of bytes that were not sent.
fn spawn_pumps(
    output: Output,
    limit: Option<u64>,
    frames: &Frames,
    ended: &CancellationToken,
) -> tokio::task::JoinHandle<(u64, u64)> {
    let (frames, ended) = (frames.clone(), ended.clone());
    tokio::spawn(async move {
        match output {
            Output::Pipes { stdout, stderr } => {
                tokio::join!(
                    pump::run(stdout, OutputStream::Stdout, limit, frames.clone(), ended.clone()),
                    pump::run(stderr, OutputStream::Stderr, limit, frames.clone(), ended.clone()),
                )
            }
            Output::Terminal(terminal) => (terminal::pump(&terminal, limit, frames, ended).await, 0),
        }
    })
}
