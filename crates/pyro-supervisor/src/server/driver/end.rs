//! The end of the VM, from its commands to its record.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures::future::OptionFuture;
use pyro_machine::Machine;
use pyro_wire::{Failure, Halt, HaltReply};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::{Driver, Message};
use crate::mux::Streams;
use crate::protocol::Event;
use crate::server::commands::Commands;
use crate::server::services::Services;
use crate::server::state::{Cause, Input, State};
use crate::server::{Boot, Clock, Store, adoption};
use crate::{BootStage, files};

/// Time limit for a guest to write everything out before its VM is ended anyway.
const HALT_LIMIT: Duration = Duration::from_secs(20);

/// Why the guest may not have written everything to its disk.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum HaltError {
    #[error("{0}")]
    Failed(Failure),
    #[error("the guest sent no valid response")]
    NoAnswer,
    #[error("timed out after {} seconds", .0.as_secs())]
    TimedOut(Duration),
    #[error("the machine ended before it was done")]
    MachineEnded,
}

impl<'a, B: Boot + 'a, S: Store + 'static, C: Clock> Driver<'a, B, S, C> {
    /// Accepts no more commands and ends the running ones.
    pub(super) fn end_commands(&mut self) {
        let (inbox, commands, services) = (self.inbox.clone(), self.commands.clone(), self.services.clone());
        spawn_local(async move {
            let end_commands = OptionFuture::from(commands.as_ref().map(Commands::end_all));
            let end_services = OptionFuture::from(services.as_ref().map(Services::end_all));
            futures::join!(end_commands, end_services);
            inbox.input(Input::CommandsEnded);
        });
    }

    /// Stores why the guest cannot write everything out any more, if it had to.
    pub(super) fn lost_while_stopping(&mut self, loss: HaltError) {
        if matches!(self.life.state(), State::Closing(_) | State::Halting(_)) {
            self.loss = Some(loss);
        }
    }

    /// Lets the guest write everything out.
    pub(super) fn halt_guest(&mut self) {
        let (inbox, streams) = (self.inbox.clone(), self.streams.clone());
        spawn_local(async move {
            let halted = match streams {
                Some(streams) => halt(&streams).await,
                None => Err(HaltError::NoAnswer),
            };
            inbox.post(Message::Halted(halted));
        });
    }

    /// Ends the machine and its helpers. The last lines of the console explain an end that it did not request.
    pub(super) async fn kill_machine(&mut self) {
        if let Some(machine) = &mut self.machine {
            if self.has_exited || self.failure.is_some() {
                let console = machine.console().last_words().await;
                if let Some(failure) = &mut self.failure
                    && failure.stage == BootStage::Identity
                {
                    failure.console.clone_from(&console);
                }
                if !console.is_empty() {
                    self.description = format!("{}\n{}", self.description, console.join("\n"));
                }
            }
            machine.kill().await;
            self.has_exited = true;
        }
    }

    /// Waits for the commands' outcomes to be recorded.
    pub(super) fn settle_commands(&mut self) {
        let (inbox, commands, services) = (self.inbox.clone(), self.commands.clone(), self.services.clone());
        spawn_local(async move {
            let settle_commands = OptionFuture::from(commands.as_ref().map(Commands::settle));
            let settle_services = OptionFuture::from(services.as_ref().map(Services::settle));
            futures::join!(settle_commands, settle_services);
            inbox.input(Input::CommandsSettled);
        });
    }

    /// Removes the directory of the VM, or only what another start does not need.
    pub(super) fn remove_files(&mut self, all: bool) {
        if let Some(spare) = self.spare_dir.take() {
            adoption::remove(&spare);
            if self.life.terms().is_spare {
                return;
            }
            if !all {
                return adoption::clear_claimed(&self.spec.dir);
            }
        }
        if all {
            remove_dir(&self.spec.dir);
        } else {
            for name in [files::INITRD, files::CONTROL_SOCKET] {
                remove_file(&self.spec.dir.join(name));
            }
        }
    }

    /// Records the end.
    pub(super) fn record_end(&mut self, cause: Cause) {
        let Some(reason) = cause.reason(&self.description) else {
            return self.inbox.input(Input::EndRecorded);
        };
        let (store, inbox) = (Rc::clone(&self.store), self.inbox.clone());
        let (vm_id, retention) = (self.spec.vm_id.clone(), self.spec.retention);
        let loss = self
            .loss
            .take()
            .map(|error| format!("the guest may not have written everything to its disk: {error}"));
        let losses: Vec<String> = loss.into_iter().chain(std::mem::take(&mut self.not_written)).collect();
        let loss = (!losses.is_empty()).then(|| losses.join("\n"));
        spawn_local(async move {
            if let Err(error) = store.record_end(&vm_id, retention, &reason, loss.as_deref()).await {
                // The release of the lock reports the end that the record cannot.
                tracing::error!(vm_id, %error, "the end of the VM cannot be recorded");
            }
            inbox.input(Input::EndRecorded);
        });
    }

    /// Removes the record.
    pub(super) fn forget(&mut self) {
        if self.life.terms().is_spare {
            return self.inbox.input(Input::EndRecorded);
        }
        let (store, inbox, vm_id) = (Rc::clone(&self.store), self.inbox.clone(), self.spec.vm_id.clone());
        spawn_local(async move {
            if let Err(error) = store.forget(&vm_id).await {
                tracing::error!(vm_id, %error, "the record of the VM cannot be removed");
            }
            inbox.input(Input::EndRecorded);
        });
    }

    /// Reports the end to the starter.
    pub(super) async fn announce_end(&mut self, cause: Cause) {
        let event = match (cause.reason(&self.description), self.failure.take()) {
            (Some(reason), _) => Event::Ended(reason),
            (None, Some(failure)) => Event::Failed(failure),
            (None, None) => return,
        };
        self.notify_starter(event).await;
    }
}

/// Has the guest write everything out.
async fn halt(streams: &Streams) -> Result<(), HaltError> {
    let limit = streams.pace().allow(HALT_LIMIT);
    match timeout(limit, streams.ask(Halt)).await {
        Ok(Some(HaltReply::Halted)) => Ok(()),
        Ok(Some(HaltReply::Failed(failure))) => Err(HaltError::Failed(failure)),
        Ok(None) => Err(HaltError::NoAnswer),
        Err(_) => Err(HaltError::TimedOut(limit)),
    }
}

/// Removes a file. A file that remains is only logged.
pub(in crate::server) fn remove_file(path: &Path) {
    log_failure(path, std::fs::remove_file(path));
}

/// Removes a directory with everything in it. One that remains is only logged.
pub(in crate::server) fn remove_dir(path: &Path) {
    log_failure(path, crate::dir::remove(path));
}

fn log_failure(path: &Path, removed: io::Result<()>) {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(%error, path = %path.display(), "cannot be removed");
        }
        _ => {}
    }
}
