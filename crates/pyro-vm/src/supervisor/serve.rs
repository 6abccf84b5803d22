//! The supervisor process: boot, then wait for the first reason to end, then clean up.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, FrameCodec};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::control::{self, ControlRequest, ServerStream};
use super::machine::{self, RunningMachine};
use super::{BootInfo, EndReason, Event, files, spare, timer};
use crate::mux::Streams;
use crate::qemu::Qemu;
use crate::spares;
use crate::spec::{LaunchSpec, Purpose};

/// Time that a guest has to write everything out before its VM is ended anyway.
const HALT_LIMIT: Duration = Duration::from_secs(10);

/// Where the life of a VM is recorded.
pub trait Recorder {
    /// Records that the VM is up. Called before anyone is told.
    ///
    /// # Errors
    /// Why it cannot be recorded; the VM is then ended.
    fn record_start(&self, vm_id: &str, info: &BootInfo) -> Result<(), String>;

    /// Records that the VM ended. Called when it is gone and before anyone is told.
    fn record_end(&self, vm_id: &str, bound_to_caller: bool, reason: &EndReason);
}

pub(super) type LifelineServer = Framed<UnixStream, FrameCodec<LaunchSpec, Event>>;

/// Runs the supervisor of one VM to its end. `lifeline` is the standard input that [`super::start`] made; it
/// delivers the [`LaunchSpec`]. Runs on a single-threaded runtime whose thread lives as long as the process:
/// the VMM is killed when the thread that started it ends.
///
/// # Errors
/// The lifeline is not what it should be; nothing was started then.
pub async fn run(lifeline: OwnedFd, recorder: &dyn Recorder) -> io::Result<()> {
    // A session of its own: keys typed at the caller's terminal are meant for the caller.
    let _ = rustix::process::setsid();
    let lifeline = std::os::unix::net::UnixStream::from(lifeline);
    lifeline.set_nonblocking(true)?;
    let mut lifeline: LifelineServer = Framed::new(UnixStream::from_std(lifeline)?, FrameCodec::default());
    let Some(Ok(Frame::Control(spec))) = lifeline.next().await else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no launch specification on standard input"));
    };
    let tasks = LocalSet::new();
    let mut signals = Signals::new()?;
    tasks
        .run_until(async {
            let event = match spec.purpose {
                Purpose::Vm => supervise(&spec, &mut lifeline, recorder, &tasks, &mut signals).await,
                Purpose::Template => make_template(&spec, &mut lifeline, &tasks, &mut signals).await,
                Purpose::Spare => {
                    // Whoever asked for it does not wait for it.
                    drop(lifeline);
                    return spare::supervise(&spec, recorder, &tasks, &mut signals).await;
                }
            };
            // The starter may be gone, or may not care.
            let _ = lifeline.send(Frame::Control(event)).await;
        })
        .await;
    Ok(())
}

/// Sees to it that there is a template for VMs like this one.
async fn make_template(
    spec: &LaunchSpec,
    lifeline: &mut LifelineServer,
    tasks: &LocalSet,
    signals: &mut Signals,
) -> Event {
    let event = tokio::select! {
        made = machine::make_template(spec, &Qemu, tasks) => match made {
            Ok(()) => Event::TemplateReady,
            Err(failure) => Event::Failed(failure),
        },
        _ = lifeline.next() => Event::Ended(EndReason::CallerGone),
        () = signals.any() => Event::Ended(EndReason::Terminated),
    };
    remove_files(spec, true);
    event
}

async fn supervise(
    spec: &LaunchSpec,
    lifeline: &mut LifelineServer,
    recorder: &dyn Recorder,
    tasks: &LocalSet,
    signals: &mut Signals,
) -> Event {
    let booted = tokio::select! {
        booted = machine::boot(spec, &Qemu, tasks) => booted,
        // Nobody waits for this VM any more, so nobody will use it.
        _ = lifeline.next() => return ended(spec, recorder, EndReason::CallerGone),
        () = signals.any() => return ended(spec, recorder, EndReason::Terminated),
    };
    match booted {
        Ok(machine) => serve(spec, machine, lifeline, recorder, tasks, signals).await,
        Err(failure) => {
            remove_files(spec, spec.bound_to_caller);
            Event::Failed(failure)
        }
    }
}

/// From a guest that takes commands to the end of the VM.
pub(super) async fn serve(
    spec: &LaunchSpec,
    mut machine: RunningMachine,
    lifeline: &mut LifelineServer,
    recorder: &dyn Recorder,
    tasks: &LocalSet,
    signals: &mut Signals,
) -> Event {
    let announced = control::listen(&spec.dir)
        .map_err(|error| format!("cannot listen on the control socket: {error}"))
        .and_then(|listener| {
            recorder.record_start(&spec.vm_id, &machine.info)?;
            Ok(listener)
        });
    let listener = match announced {
        Ok(listener) => listener,
        Err(cause) => {
            end_processes(&mut machine).await;
            return boot_failed(spec, &cause);
        }
    };
    if lifeline.send(Frame::Control(Event::Booted(machine.info.clone()))).await.is_err()
        && spec.bound_to_caller
    {
        end_processes(&mut machine).await;
        return ended(spec, recorder, EndReason::CallerGone);
    }

    let (end_requests, mut end_requested) = mpsc::channel(1);
    tasks.spawn_local(accept(listener, machine.streams.clone(), end_requests));
    tasks.spawn_local(spares::replenish(spec.clone()));
    let (reason, client) = wait_for_end(spec, &mut machine, lifeline, signals, &mut end_requested).await;
    if reason == EndReason::Stopped {
        halt_guest(&machine.streams).await;
    }
    end_processes(&mut machine).await;
    let event = ended(spec, recorder, reason);
    if let Some(client) = client {
        // It may have gone away.
        let _ = client.send(());
        // Let the client's task say its word before the process ends.
        tokio::task::yield_now().await;
    }
    event
}

/// A client's wish to end the VM, and where to tell it that this has happened.
type EndRequest = (EndReason, oneshot::Sender<()>);

async fn wait_for_end(
    spec: &LaunchSpec,
    machine: &mut RunningMachine,
    lifeline: &mut LifelineServer,
    signals: &mut Signals,
    end_requested: &mut mpsc::Receiver<EndRequest>,
) -> (EndReason, Option<oneshot::Sender<()>>) {
    let caller_gone = async {
        while let Some(Ok(_)) = lifeline.next().await {}
        if !spec.bound_to_caller {
            std::future::pending::<()>().await;
        }
    };
    let expired = async {
        if timer::wall_clock_reaches(spec.expires_at).await.is_err() {
            // Without a timer the VM would live for ever; better none at all.
            tracing::error!("no timer for the VM's end of life");
        }
    };
    tokio::select! {
        status = machine.vmm.wait() => {
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            (vmm_ended(machine, &status).await, None)
        }
        () = caller_gone => (EndReason::CallerGone, None),
        () = expired => (EndReason::Expired, None),
        () = signals.any() => (EndReason::Terminated, None),
        Some((reason, client)) = end_requested.recv() => (reason, Some(client)),
    }
}

async fn vmm_ended(machine: &RunningMachine, status: &str) -> EndReason {
    let console = machine.console.last_words().await.join("\n");
    let description = if console.is_empty() { status.to_owned() } else { format!("{status}\n{console}") };
    EndReason::VmmEnded { description }
}

async fn accept(listener: UnixListener, streams: Streams, end: mpsc::Sender<EndRequest>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::task::spawn_local(serve_client(client, streams.clone(), end.clone()));
    }
}

async fn serve_client(client: UnixStream, streams: Streams, end: mpsc::Sender<EndRequest>) {
    let Some((request, client)) = control::receive(client).await else { return };
    let reason = match request {
        ControlRequest::Guest => return join_guest(client, streams).await,
        // It is somebody's already.
        ControlRequest::Claim(_) => return,
        ControlRequest::Stop => EndReason::Stopped,
        ControlRequest::Delete => EndReason::Deleted,
        ControlRequest::Expire => EndReason::Expired,
    };
    let (done, on_done) = oneshot::channel();
    // If another request came first, the VM ends all the same, and this client sees its connection close.
    if end.send((reason, done)).await.is_ok() && on_done.await.is_ok() {
        control::confirm(client).await;
    }
}

async fn join_guest(client: ServerStream, streams: Streams) {
    let (mut client, said) = control::into_bytes(client);
    let Some(stream) = streams.open().await else { return };
    let mut guest = stream.compat();
    if guest.write_all(&said).await.is_ok() {
        // Either side closing ends the request; what went wrong is seen at both ends.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut guest).await;
    }
}

async fn halt_guest(streams: &Streams) {
    match tokio::time::timeout(HALT_LIMIT, streams.ask(pyro_wire::Request::Halt)).await {
        Ok(Some(pyro_wire::Reply::Halted)) => {}
        other => tracing::warn!(?other, "the guest did not halt in order"),
    }
}

pub(super) async fn end_processes(machine: &mut RunningMachine) {
    // Fails only if it has ended already.
    let _ = machine.vmm.kill().await;
    if let Some(network) = &mut machine.network {
        network.stop().await;
    }
}

fn boot_failed(spec: &LaunchSpec, cause: &str) -> Event {
    remove_files(spec, spec.bound_to_caller);
    Event::Failed(super::BootFailure {
        stage: super::BootStage::Vmm,
        cause: cause.to_owned(),
        console: Vec::new(),
    })
}

pub(super) fn ended(spec: &LaunchSpec, recorder: &dyn Recorder, reason: EndReason) -> Event {
    remove_files(spec, reason.removes_files(spec.bound_to_caller));
    recorder.record_end(&spec.vm_id, spec.bound_to_caller, &reason);
    Event::Ended(reason)
}

/// Removes the VM's directory, or only what in it is of no use for another start.
fn remove_files(spec: &LaunchSpec, all: bool) {
    if all {
        report(&spec.dir, std::fs::remove_dir_all(&spec.dir));
    } else {
        for name in [files::INITRD, files::CONTROL_SOCKET] {
            let path = spec.dir.join(name);
            report(&path, std::fs::remove_file(&path));
        }
    }
}

pub(super) fn report(path: &Path, removed: io::Result<()>) {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(%error, path = %path.display(), "cannot be removed");
        }
        _ => {}
    }
}

pub(super) struct Signals([Signal; 3]);

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    pub(super) async fn any(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }
}
