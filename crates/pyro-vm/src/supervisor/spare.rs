//! A spare's supervisor: start a VM that nobody has asked for, wait until someone does, and become its supervisor.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use pyro_machine::{HostPlatform, Machine};
use pyro_wire::{Exec, Frame, FrameCodec, Identify, IdentifyReply};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_util::codec::Framed;

use super::control::{self, ControlRequest, ServerStream};
use super::machine::{self, RunningMachine};
use super::serve::{self, LifelineServer, Recorder, Signals};
use super::{
    BootFailure, BootStage, EndReason, Event, OwnerLock, StageTime, StartMode, files, handover, timer,
};
use crate::spec::LaunchSpec;

/// Time for the guest of a spare to take its new identity, and for a claimer to hand over its lock.
const CLAIM_LIMIT: Duration = Duration::from_secs(10);

/// What every command does: the emulator translates that code when it first runs, which takes ten times as long as
/// running it. As in the template, nothing here may leave a trace.
const WARM_UP: [&str; 2] = ["true", "git --version"];

/// What clients can make of a spare.
enum Wish {
    Claim(Box<LaunchSpec>, ServerStream),
    Stay { expires_at: f64, client: ServerStream },
    End(ServerStream),
}

/// Runs a spare, and then what became of it, to the end.
pub(super) async fn supervise(
    spec: &LaunchSpec,
    recorder: &Arc<dyn Recorder>,
    tasks: &LocalSet,
    signals: &mut Signals,
) {
    let prepared = async {
        let machine = machine::boot(spec, &HostPlatform::new(), tasks).await?;
        warm_up(spec, &machine).await;
        Ok::<_, BootFailure>(machine)
    };
    let mut machine = tokio::select! {
        prepared = prepared => match prepared {
            Ok(machine) => machine,
            Err(failure) => {
                tracing::warn!(?failure, "no spare");
                return remove(&spec.dir);
            }
        },
        () = signals.any() => return remove(&spec.dir),
    };
    let wish = match control::listen(&spec.dir) {
        Ok(listener) => wait(spec, &mut machine, listener, tasks, signals).await,
        Err(error) => {
            tracing::warn!(%error, "no spare: nobody could claim it");
            None
        }
    };
    match wish {
        Some(Wish::Claim(claimed, client)) => {
            // Whoever comes later finds no socket, and looks for another spare.
            let _ = fs::remove_file(spec.dir.join(files::CONTROL_SOCKET));
            become_claimed(spec, *claimed, client, machine, recorder, tasks, signals).await;
        }
        Some(Wish::End(client)) => {
            end(spec, &mut machine).await;
            control::confirm(client).await;
        }
        // A wish to stay has been granted while waiting for another.
        Some(Wish::Stay { .. }) | None => end(spec, &mut machine).await,
    }
}

/// Runs what commands usually run, the way they are run.
async fn warm_up(spec: &LaunchSpec, machine: &RunningMachine<impl Machine>) {
    let limit = Duration::from_secs(spec.boot_limit_seconds);
    let work = async {
        for command in WARM_UP {
            let exec = Exec { kill_grace_ms: 0, output_limit: Some(0), ..Exec::new(command, limit) };
            machine.streams.ask(exec).await;
        }
        let identity = machine::identity(&spec.vm_id, None).ok()?;
        machine.streams.ask(Identify(identity)).await
    };
    // A guest that is stuck shows it when it is claimed.
    let _ = tokio::time::timeout(limit, work).await;
}

/// Waits for the first wish but those to stay; `None`: the spare's time is over, or it has died.
async fn wait(
    spec: &LaunchSpec,
    machine: &mut RunningMachine<impl Machine>,
    listener: UnixListener,
    tasks: &LocalSet,
    signals: &mut Signals,
) -> Option<Wish> {
    let (wishes, mut wish) = mpsc::channel(1);
    let accepting = tasks.spawn_local(async move {
        while let Ok((client, _)) = listener.accept().await {
            let wishes = wishes.clone();
            tokio::task::spawn_local(async move {
                let wish = match control::receive(client).await {
                    Some((ControlRequest::Claim(claimed), client)) => Wish::Claim(claimed, client),
                    Some((ControlRequest::Extend { expires_at }, client)) => {
                        Wish::Stay { expires_at, client }
                    }
                    // It has no guest to offer yet.
                    Some((ControlRequest::Guest, _)) | None => return,
                    Some((_, client)) => Wish::End(client),
                };
                // All but the first are dropped, which tells their clients.
                let _ = wishes.send(wish).await;
            });
        }
    });
    let mut expires_at = spec.expires_at;
    let wish = loop {
        let wish = tokio::select! {
            wish = wish.recv() => wish,
            _ = machine.machine.exited() => None,
            _ = timer::wall_clock_reaches(expires_at) => None,
            () = signals.any() => None,
        };
        match wish {
            Some(Wish::Stay { expires_at: wanted, client }) => {
                expires_at = expires_at.max(wanted);
                control::confirm(client).await;
            }
            wish => break wish,
        }
    };
    accepting.abort();
    wish
}

/// Becomes the VM that the client wants, and its supervisor.
async fn become_claimed(
    spare: &LaunchSpec,
    spec: LaunchSpec,
    client: ServerStream,
    mut machine: RunningMachine<impl Machine>,
    recorder: &Arc<dyn Recorder>,
    tasks: &LocalSet,
    signals: &mut Signals,
) {
    let started = Instant::now();
    let handed_over = tokio::time::timeout(CLAIM_LIMIT, async {
        let client = control::grant(client).await?;
        let lock = handover::receive(&client).await.ok()?;
        Some((client, OwnerLock::received(lock)))
    });
    // Without the lock nothing of the new VM's may be touched.
    let Ok(Some((client, _lock))) = handed_over.await else { return end(spare, &mut machine).await };
    let mut lifeline: LifelineServer = Framed::new(client, FrameCodec::default());
    let taken = tokio::select! {
        taken = take_over(spare, &spec, &machine) => taken.map_err(Some),
        // Nobody waits for this VM any more, so nobody will use it.
        _ = lifeline.next() => Err(None),
        () = signals.any() => Err(None),
    };
    let event = match taken.and_then(|()| serve::listen(&spec).map_err(Some)) {
        Ok(listener) => {
            let ms = started.elapsed().as_secs_f64() * 1e3;
            machine.info.boot_ms = ms as u64;
            machine.info.start_mode = StartMode::Spare;
            machine.info.stages = vec![StageTime { stage: BootStage::Identity, ms }];
            serve::serve(&spec, machine, listener, &mut lifeline, recorder, tasks, signals).await
        }
        Err(cause) => {
            let console = machine.machine.console().last_words().await;
            serve::end_processes(&mut machine).await;
            remove(&spare.dir);
            clear_claimed(&spec.dir);
            match cause {
                Some(cause) => Event::Failed(BootFailure { stage: BootStage::Identity, cause, console }),
                None => serve::ended(&spec, recorder, EndReason::CallerGone, None),
            }
        }
    };
    // The claimer may be gone, or may not care.
    let _ = lifeline.send(Frame::Control(event)).await;
}

/// What a spare's directory holds of the VM that it becomes.
const MOVED: [&str; 3] = [files::LAYER, files::SERIAL_LOG, files::SUPERVISOR_LOG];

/// Removes what a spare that died while it was being claimed may have left in the claimer's directory.
pub(crate) fn clear_claimed(dir: &Path) {
    for name in MOVED.into_iter().chain([files::CONTROL_SOCKET]) {
        let path = dir.join(name);
        serve::report(&path, fs::remove_file(&path));
    }
}

async fn take_over(
    spare: &LaunchSpec,
    spec: &LaunchSpec,
    machine: &RunningMachine<impl Machine>,
) -> Result<(), String> {
    for name in MOVED {
        fs::rename(spare.dir.join(name), spec.dir.join(name))
            .map_err(|error| format!("cannot move {name}: {error}"))?;
    }
    remove(&spare.dir);
    let identity = machine::identity(&spec.vm_id, None).map_err(|error| machine::chain(&error))?;
    match tokio::time::timeout(CLAIM_LIMIT, machine.streams.ask(Identify(identity))).await {
        Ok(Some(IdentifyReply::Identified)) => Ok(()),
        Ok(Some(IdentifyReply::Failed(failure))) => Err(failure.to_string()),
        Ok(None) => Err("the guest gave no proper answer".to_owned()),
        Err(_) => Err(format!("no answer in {} seconds", CLAIM_LIMIT.as_secs())),
    }
}

async fn end(spec: &LaunchSpec, machine: &mut RunningMachine<impl Machine>) {
    serve::end_processes(machine).await;
    remove(&spec.dir);
}

fn remove(dir: &Path) {
    serve::report(dir, fs::remove_dir_all(dir));
    // The directory of the kind goes with its last spare.
    let _ = dir.parent().map(fs::remove_dir);
}
