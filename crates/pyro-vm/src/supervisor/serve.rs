//! The supervisor process: boot, then wait for the first reason to end, then clean up.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_machine::{HostPlatform, Machine};
use pyro_wire::{Exec, Frame, FrameCodec};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::commands::{CommandEnd, Commands};
use super::control::{self, ControlRequest, ServerStream};
use super::machine::{self, RunningMachine};
use super::{BootInfo, EndReason, Event, files, spare, timer};
use crate::mux::Streams;
use crate::spares;
use crate::spec::{LaunchSpec, Purpose, Retention};

/// Time that a guest has to write everything out before its VM is ended anyway.
const HALT_LIMIT: Duration = Duration::from_secs(20);
/// Pause after a client that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the life of a VM is recorded. Methods may block.
pub trait Recorder: Send + Sync {
    /// Records that the VM is up. Called before anyone is told. Returns when its lifetime ends, in seconds since the
    /// epoch, which may have changed while it was starting.
    ///
    /// # Errors
    /// Why it cannot be recorded; the VM is then ended.
    fn record_start(&self, vm_id: &str, info: &BootInfo) -> Result<f64, String>;

    /// Records that the VM ended. Called when it is gone and before anyone is told. `loss` says why its guest could not
    /// write everything out, if it should have.
    fn record_end(&self, vm_id: &str, retention: Retention, reason: &EndReason, loss: Option<&str>);

    /// Records that a command begins, and gives it its number.
    ///
    /// # Errors
    /// Why it cannot be recorded; it is not run then.
    fn record_command(&self, vm_id: &str, exec: &Exec) -> Result<u64, String>;

    /// Records what became of a command. On the disk when this returns.
    ///
    /// # Errors
    /// Why it cannot be recorded; nobody is told then.
    fn record_command_end(&self, vm_id: &str, sequence: u64, end: &CommandEnd) -> Result<(), String>;
}

pub(super) type LifelineServer = Framed<UnixStream, FrameCodec<LaunchSpec, Event>>;

/// Runs the supervisor of one VM to its end. `lifeline` is the standard input that [`super::start`] made; it
/// delivers the [`LaunchSpec`]. Runs on a single-threaded runtime whose thread lives as long as the process:
/// the VMM is killed when the thread that started it ends.
///
/// # Errors
/// The lifeline is not what it should be; nothing was started then.
pub async fn run(lifeline: OwnedFd, recorder: Arc<dyn Recorder>) -> io::Result<()> {
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
                Purpose::Vm => supervise(&spec, &mut lifeline, &recorder, &tasks, &mut signals).await,
                Purpose::Template => make_template(&spec, &mut lifeline, &tasks, &mut signals).await,
                Purpose::Spare => {
                    // Whoever asked for it does not wait for it.
                    drop(lifeline);
                    return spare::supervise(&spec, &recorder, &tasks, &mut signals).await;
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
    let platform = HostPlatform::new();
    let event = tokio::select! {
        made = machine::make_template(spec, &platform, tasks) => match made {
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
    recorder: &Arc<dyn Recorder>,
    tasks: &LocalSet,
    signals: &mut Signals,
) -> Event {
    // Whoever wants to end the VM is heard from the beginning.
    let listener = match listen(spec) {
        Ok(listener) => listener,
        Err(cause) => return boot_failed(spec, &cause),
    };
    let platform = HostPlatform::new();
    let booted = tokio::select! {
        booted = machine::boot(spec, &platform, tasks) => booted,
        // Nobody waits for this VM any more, so nobody will use it.
        _ = lifeline.next() => return ended(spec, recorder, EndReason::CallerGone, None),
        () = signals.any() => return ended(spec, recorder, EndReason::Terminated, None),
        (reason, client) = early_end(&listener) => {
            let event = ended(spec, recorder, reason, None);
            control::confirm(client).await;
            return event;
        }
    };
    match booted {
        Ok(machine) => serve(spec, machine, listener, lifeline, recorder, tasks, signals).await,
        Err(failure) => {
            remove_files(spec, spec.retention == Retention::Caller);
            Event::Failed(failure)
        }
    }
}

pub(super) fn listen(spec: &LaunchSpec) -> Result<UnixListener, String> {
    control::listen(&spec.dir).map_err(|error| format!("cannot listen on the control socket: {error}"))
}

/// Waits for the first client that wants to end a VM which is not up. Whatever else is wanted cannot be had yet.
async fn early_end(listener: &UnixListener) -> (EndReason, ServerStream) {
    loop {
        let client = next_client(listener).await;
        if let Some((request, client)) = control::receive(client).await
            && let Some(reason) = end_reason(&request)
        {
            return (reason, client);
        }
    }
}

/// The next client. There may be none for a while because descriptors have run out.
async fn next_client(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((client, _)) => return client,
            Err(error) => {
                tracing::error!(%error, "a client cannot be served");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn end_reason(request: &ControlRequest) -> Option<EndReason> {
    match request {
        ControlRequest::Stop => Some(EndReason::Stopped),
        ControlRequest::Delete => Some(EndReason::Deleted),
        ControlRequest::Expire => Some(EndReason::Expired),
        ControlRequest::Guest
        | ControlRequest::Claim(_)
        | ControlRequest::Run { .. }
        | ControlRequest::Watch { .. }
        | ControlRequest::Kill { .. }
        | ControlRequest::Extend { .. } => None,
    }
}

/// From a guest that takes commands to the end of the VM.
pub(super) async fn serve(
    spec: &LaunchSpec,
    mut machine: RunningMachine<impl Machine>,
    listener: UnixListener,
    lifeline: &mut LifelineServer,
    recorder: &Arc<dyn Recorder>,
    tasks: &LocalSet,
    signals: &mut Signals,
) -> Event {
    let expires_at = match recorder.record_start(&spec.vm_id, &machine.info) {
        Ok(expires_at) => expires_at,
        Err(cause) => {
            end_processes(&mut machine).await;
            return boot_failed(spec, &cause);
        }
    };
    if lifeline.send(Frame::Control(Event::Booted(machine.info.clone()))).await.is_err()
        && spec.retention == Retention::Caller
    {
        end_processes(&mut machine).await;
        return ended(spec, recorder, EndReason::CallerGone, None);
    }

    let (end_requests, mut end_requested) = mpsc::channel(1);
    let (expiry, mut expires_at) = watch::channel(expires_at);
    let commands = Commands::new(&spec.vm_id, &spec.dir, machine.streams.clone(), Arc::clone(recorder));
    let service =
        Service { streams: machine.streams.clone(), commands: commands.clone(), expiry, end: end_requests };
    tasks.spawn_local(accept(listener, Rc::new(service)));
    tasks.spawn_local(spares::replenish(spec.clone()));
    let (reason, client) =
        wait_for_end(spec, &mut machine, lifeline, signals, &mut expires_at, &mut end_requested).await;
    // Whoever extends its lifetime from now on is told that it is too late.
    drop(expires_at);
    let mut loss = None;
    if reason.halts_guest(spec.retention) {
        commands.end_all().await;
        loss = halt_guest(&machine.streams).await.err();
    }
    end_processes(&mut machine).await;
    if !reason.removes_files(spec.retention) {
        commands.settle().await;
    }
    let event = ended(spec, recorder, reason, loss.as_deref());
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
    machine: &mut RunningMachine<impl Machine>,
    lifeline: &mut LifelineServer,
    signals: &mut Signals,
    expires_at: &mut watch::Receiver<f64>,
    end_requested: &mut mpsc::Receiver<EndRequest>,
) -> (EndReason, Option<oneshot::Sender<()>>) {
    let caller_gone = async {
        while let Some(Ok(_)) = lifeline.next().await {}
        if spec.retention != Retention::Caller {
            std::future::pending::<()>().await;
        }
    };
    let expired = async {
        loop {
            let end = *expires_at.borrow_and_update();
            tokio::select! {
                reached = timer::wall_clock_reaches(end) => {
                    if reached.is_err() {
                        // Without a timer the VM would live for ever; better none at all.
                        tracing::error!("no timer for the VM's end of life");
                    }
                    return;
                }
                Ok(()) = expires_at.changed() => {}
            }
        }
    };
    tokio::select! {
        biased;
        // First: a signal to all processes of a session may have ended the VMM as well.
        () = signals.any() => (EndReason::Terminated, None),
        exit = machine.machine.exited() => (vmm_ended(machine, &exit.status()).await, None),
        () = caller_gone => (EndReason::CallerGone, None),
        () = expired => (EndReason::Expired, None),
        Some((reason, client)) = end_requested.recv() => (reason, Some(client)),
    }
}

async fn vmm_ended(machine: &RunningMachine<impl Machine>, status: &str) -> EndReason {
    let console = machine.machine.console().last_words().await.join("\n");
    let description = if console.is_empty() { status.to_owned() } else { format!("{status}\n{console}") };
    EndReason::VmmEnded { description }
}

/// What clients are served with.
struct Service {
    streams: Streams,
    commands: Commands,
    expiry: watch::Sender<f64>,
    end: mpsc::Sender<EndRequest>,
}

async fn accept(listener: UnixListener, service: Rc<Service>) {
    loop {
        let client = next_client(&listener).await;
        tokio::task::spawn_local(serve_client(client, Rc::clone(&service)));
    }
}

async fn serve_client(client: UnixStream, service: Rc<Service>) {
    let Some((request, client)) = control::receive(client).await else { return };
    let reason = match request {
        ControlRequest::Guest => return join_guest(client, &service.streams).await,
        ControlRequest::Run { exec, detach } => return service.commands.run(exec, detach, client).await,
        ControlRequest::Watch { sequence, output } => {
            return service.commands.watch(sequence, output, client).await;
        }
        ControlRequest::Kill { sequence } => return service.commands.kill(sequence, client).await,
        ControlRequest::Extend { expires_at } => {
            if service.expiry.send(expires_at).is_ok() {
                control::confirm(client).await;
            }
            return;
        }
        // It is somebody's already.
        ControlRequest::Claim(_) => return,
        request => match end_reason(&request) {
            Some(reason) => reason,
            None => return,
        },
    };
    let (done, on_done) = oneshot::channel();
    // If another request came first, the VM ends all the same, and this client sees its connection close.
    if service.end.send((reason, done)).await.is_ok() && on_done.await.is_ok() {
        control::confirm(client).await;
    }
}

async fn join_guest(client: ServerStream, streams: &Streams) {
    let (mut client, said) = control::into_bytes(client);
    let Some((stream, _permit)) = streams.open().await else { return };
    let mut guest = stream.compat();
    if guest.write_all(&said).await.is_ok() {
        // Either side closing ends the request; what went wrong is seen at both ends.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut guest).await;
    }
}

/// Has the guest write everything out. The error says why it may not have.
async fn halt_guest(streams: &Streams) -> Result<(), String> {
    let why = match tokio::time::timeout(HALT_LIMIT, streams.ask(pyro_wire::Halt)).await {
        Ok(Some(pyro_wire::HaltReply::Halted)) => return Ok(()),
        Ok(Some(pyro_wire::HaltReply::Failed(failure))) => failure.to_string(),
        Ok(None) => "it gave no proper answer".to_owned(),
        Err(_) => format!("it was not done after {} seconds", HALT_LIMIT.as_secs()),
    };
    tracing::warn!(why, "the guest did not halt in order");
    Err(format!("the guest may not have written everything to its disk: {why}"))
}

pub(super) async fn end_processes(machine: &mut RunningMachine<impl Machine>) {
    machine.machine.kill().await;
}

fn boot_failed(spec: &LaunchSpec, cause: &str) -> Event {
    remove_files(spec, spec.retention == Retention::Caller);
    Event::Failed(super::BootFailure {
        stage: super::BootStage::Vmm,
        cause: cause.to_owned(),
        console: Vec::new(),
    })
}

pub(super) fn ended(
    spec: &LaunchSpec,
    recorder: &Arc<dyn Recorder>,
    reason: EndReason,
    loss: Option<&str>,
) -> Event {
    remove_files(spec, reason.removes_files(spec.retention));
    recorder.record_end(&spec.vm_id, spec.retention, &reason, loss);
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
