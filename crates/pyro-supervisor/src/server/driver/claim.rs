//! The claim of a spare: the driver's part in making it the VM of its claimer.

use std::time::Instant;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::end::remove_file;
use super::start::{of_mounts, of_ports};
use super::{Driver, terms};
use crate::machine::with_causes;
use crate::protocol::Request;
use crate::server::adoption::{self, HandedOver, TakeOverError};
use crate::server::state::{ClientId, Input, State};
use crate::server::{Boot, Clock, Store};
use crate::spec::LaunchSpec;
use crate::{BootFailure, BootStage, StageTime, StartMode, files};

/// Progress of the adoption of a spare.
pub(super) enum Adoption {
    /// The claimer is passing on the lock of the VM that it described.
    HandOver(Box<LaunchSpec>, LocalBoxFuture<'static, Option<HandedOver>>),
    /// The spare is becoming that VM, since this time.
    TakeOver(Instant, LocalBoxFuture<'static, Result<(), TakeOverError>>),
}

impl<'a, B: Boot + 'a, S: Store + 'static, C: Clock> Driver<'a, B, S, C> {
    /// Grants the claim of a client, and closes the spare to all others.
    pub(super) fn adopt(&mut self, client: ClientId) {
        // A later client finds no socket, and looks for another spare.
        for task in [self.acceptor.take(), self.timer.take()].into_iter().flatten() {
            task.abort();
        }
        remove_file(&self.spec.dir.join(files::CONTROL_SOCKET));
        if let Some((Request::Claim(spec), client)) = self.clients.remove(&client) {
            let handed_over = adoption::hand_over(client, spec.mounts.len()).boxed_local();
            self.adoption = Some(Adoption::HandOver(spec, handed_over));
        }
    }

    /// From now on this is the supervisor of the claimer's VM.
    pub(super) fn handed_over(&mut self, handed_over: HandedOver) -> Input {
        let HandedOver { lifeline, lock, sockets } = handed_over;
        let (Some(Adoption::HandOver(spec, _)), Some(streams)) = (self.adoption.take(), self.streams.clone())
        else {
            return Input::AdoptionFailed;
        };
        let spare_dir = std::mem::replace(&mut self.spec, *spec).dir;
        self.lifetime.send_replace(self.spec.expires_at);
        self.lock = Some(lock);
        self.watch_lifeline(lifeline);
        if let Err(error) = self.listen() {
            self.adoption_failed(&format!("cannot listen on the control socket: {error}"));
            return Input::AdoptionFailed;
        }
        if let Err(error) = self.publish_ports() {
            self.failure = Some(of_ports(&error));
            return Input::AdoptionFailed;
        }
        let future =
            adoption::take_over(spare_dir, self.spec.clone(), streams, (self.mounts.clone(), sockets))
                .boxed_local();
        self.adoption = Some(Adoption::TakeOver(Instant::now(), future));
        Input::HandedOver(terms(&self.spec))
    }

    /// Stores why the machine was lost, if that is what prevents a claim.
    pub(super) fn lost_while_claimed(&mut self, cause: &str) {
        if *self.life.state() == State::Adopting {
            self.adoption_failed(cause);
        }
    }

    fn adoption_failed(&mut self, cause: &str) {
        self.failure = Some(BootFailure::at(BootStage::Identity, cause));
    }

    /// The guest has its new identity, or why it does not.
    pub(super) fn taken_over(&mut self, started: Instant, taken: Result<(), TakeOverError>) -> Input {
        self.adoption = None;
        if let Err(error) = taken {
            match error {
                TakeOverError::Mount(error) => self.failure = Some(of_mounts(&error)),
                error => self.adoption_failed(&with_causes(&error)),
            }
            return Input::AdoptionFailed;
        }
        if let Some(info) = &mut self.info {
            let ms = started.elapsed().as_secs_f64() * 1e3;
            info.boot_ms = ms as u64;
            info.start_mode = StartMode::Spare;
            info.stages = vec![StageTime { stage: BootStage::Identity, ms }];
        }
        self.spare_dir = None;
        Input::Adopted
    }
}
