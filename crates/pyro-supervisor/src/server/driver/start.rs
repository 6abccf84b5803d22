//! The start of the VM: its boot, its record, and what the starter and other processes see of it.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use futures::future::LocalBoxFuture;
use futures::{FutureExt, SinkExt, StreamExt};
use pyro_machine::Machine;
use pyro_wire::Frame;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::{Driver, Message};
use crate::dir::{self, Owner, Phase};
use crate::machine::{RunningMachine, with_causes};
use crate::protocol::{Event, LifelineServer};
use crate::server::commands::Commands;
use crate::server::mounts::MountError;
use crate::server::ports::PortError;
use crate::server::services::Services;
use crate::server::state::{Input, State};
use crate::server::{Boot, Clock, REPLY_LIMIT, Store, adoption, receive};
use crate::stages::Reporter;
use crate::{BootFailure, BootStage, Retention, StageTime};

impl<'a, B: Boot + 'a, S: Store + 'static, C: Clock> Driver<'a, B, S, C> {
    /// Begins to boot the machine. Clients that want to end the VM are served from the beginning; a spare can be reached
    /// once it is up.
    pub(super) async fn begin(&mut self) {
        let listening = if self.life.terms().is_spare { Ok(()) } else { self.listen() };
        match listening {
            Ok(()) => {
                if let Err(error) = self.publish_ports() {
                    self.failure = Some(of_ports(&error));
                    return self.apply(Input::BootFailed).await;
                }
                // A client that sees the phase may connect at once.
                self.announce_phase();
                self.booting = Some(self.boot());
            }
            Err(error) => {
                let cause = format!("cannot listen on the control socket: {error}");
                self.failure = Some(BootFailure::at(BootStage::Vmm, cause));
                self.apply(Input::BootFailed).await;
            }
        }
    }

    /// Publishes the ports that the VM has from its start on. Clients wait until its guest is up.
    pub(super) fn publish_ports(&self) -> Result<(), PortError> {
        self.spec.ports.iter().try_for_each(|mapping| self.ports.publish(*mapping).map(drop))
    }

    fn boot(&mut self) -> LocalBoxFuture<'a, Result<RunningMachine<B::Machine>, BootFailure>> {
        let (boot, spec, is_spare) = (Rc::clone(&self.boot), self.spec.clone(), self.life.terms().is_spare);
        let (mounts, sockets) = (self.mounts.clone(), std::mem::take(&mut self.mount_sockets));
        let inbox = self.inbox.clone();
        let reporter: Reporter = Rc::new(move |stage| inbox.post(Message::Stage(stage)));
        async move {
            let mut up = boot.boot(&spec, Rc::clone(&reporter)).await?;
            if is_spare {
                adoption::warm_up(&spec, &up.streams).await;
            } else if !spec.mounts.is_empty() {
                reporter(BootStage::Mounts);
                let started = Instant::now();
                let mounted = mounts.mount_all(&spec, sockets, &up.streams).await;
                if let Err(error) = mounted {
                    up.machine.kill().await;
                    return Err(of_mounts(&error));
                }
                let ms = started.elapsed().as_secs_f64() * 1e3;
                up.info.stages.push(StageTime { stage: BootStage::Mounts, ms });
            }
            Ok(up)
        }
        .boxed_local()
    }

    /// Records that the VM is up. Commands can be run from then on.
    pub(super) fn record_start(&mut self) {
        if let Some(info) = &mut self.info {
            info.ports = self.ports.published();
        }
        let (Some(info), Some(streams)) = (self.info.clone(), &self.streams) else { return };
        self.ports.open(streams);
        self.commands =
            Some(Commands::new(&self.spec.vm_id, &self.spec.dir, streams.clone(), Rc::clone(&self.store)));
        self.services =
            Some(Services::new(&self.spec.vm_id, &self.spec.dir, streams.clone(), Rc::clone(&self.store)));
        let (store, inbox, vm_id) = (Rc::clone(&self.store), self.inbox.clone(), self.spec.vm_id.clone());
        // Other VMs have no state that a caller reads.
        let mounts = (self.spec.retention == Retention::Deletion).then(|| self.mount_recorder());
        spawn_local(async move {
            let recorded = store.record_start(&vm_id, &info).await;
            let mounts = mounts.filter(|_| recorded.is_ok());
            inbox.post(Message::StartRecorded(recorded));
            if let Some(mounts) = mounts {
                mounts.record_losses().await;
            }
        });
    }

    /// Reports to the starter at which step the start is, if the starter asked for that.
    pub(super) async fn announce_stage(&mut self, stage: BootStage) {
        if self.spec.reports_stages && *self.life.state() == State::Booting {
            self.notify_starter(Event::Stage(stage)).await;
        }
    }

    /// Reports to the starter that the VM is up.
    pub(super) async fn announce_start(&mut self) {
        let Some(info) = self.info.clone() else { return };
        if !self.notify_starter(Event::Booted(info)).await {
            self.inbox.input(Input::CallerGone);
        }
        self.inbox.input(Input::StartAnnounced);
        // Nothing waits for services: how they start is in their own status.
        if let (Some(services), Retention::Deletion) = (self.services.clone(), self.spec.retention) {
            spawn_local(async move { services.start_with_vm().await });
        }
    }

    /// Returns whether the starter took the event. The starter may be gone, or may not read.
    pub(super) async fn notify_starter(&mut self, event: Event) -> bool {
        let Some(lifeline) = &mut self.lifeline else { return false };
        matches!(timeout(REPLY_LIMIT, lifeline.send(Frame::Control(event))).await, Ok(Ok(())))
    }

    /// Reports to the starter on this connection, and notices when it closes.
    pub(super) fn watch_lifeline(&mut self, lifeline: LifelineServer) {
        let (sink, mut stream) = lifeline.split();
        self.lifeline = Some(sink);
        let inbox = self.inbox.clone();
        spawn_local(async move {
            while let Some(Ok(_)) = stream.next().await {}
            inbox.input(Input::CallerGone);
        });
    }

    /// Accepts clients from now on.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        let listener = dir::listen(&self.spec.dir)?;
        let accept = receive::accept(listener, self.life.epoch(), self.inbox.clone());
        self.acceptor = Some(spawn_local(accept).abort_handle());
        Ok(())
    }

    /// Publishes this supervisor's phase for other processes.
    pub(super) fn announce_phase(&mut self) {
        let phase = match self.life.state() {
            State::Waiting => return,
            State::Booting | State::Adopting | State::Recording(_) | State::Announcing(_) => Phase::Starting,
            State::Running => Phase::Running,
            State::Closing(_) | State::Halting(_) | State::Settling(_) => Phase::Stopping,
            State::Concluding(_) | State::Done => return,
        };
        if self.phase == Some(phase) || self.life.terms().is_spare {
            return;
        }
        self.phase = Some(phase);
        if let Err(error) = Owner::this(phase).announce(&self.spec.dir) {
            tracing::warn!(%error, "the phase of this supervisor cannot be published");
        }
    }
}

/// Returns the failure of a VM whose ports cannot be published.
pub(super) fn of_ports(error: &PortError) -> BootFailure {
    BootFailure::at(BootStage::Ports, error.to_string())
}

/// Returns the failure of a VM whose directories cannot be mounted.
pub(super) fn of_mounts(error: &MountError) -> BootFailure {
    BootFailure::at(BootStage::Mounts, with_causes(error))
}
