//! One-shot runs: create, start, run one command, remove. The VM is bound to this process: if it dies, the
//! VM's supervisor removes everything.

use std::time::Duration;

use pyro_vm::supervisor::{EndReason, Lifeline, OwnerLock};
use tokio_util::sync::CancellationToken;

use super::exec::Finished;
use super::lifecycle::run_result;
use super::{Engine, unless_cancelled};
use crate::limits::{self, Sizing};
use crate::registry::VmRecord;
use crate::{Command, EngineError, ErrorKind, Event, Events, RunPhase, RunResult, VmId, VmSpec};

impl Engine {
    /// Makes a VM, runs one command in it and removes it, whatever happens.
    ///
    /// When this returns, with or without an error, nothing of the VM is left.
    ///
    /// # Errors
    /// Every kind but `NotFound` and `Expired`; the first error, not those of the cleanup.
    pub async fn run(
        &self,
        spec: VmSpec,
        command: Command,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<RunResult, EngineError> {
        let sizing = limits::check_spec(&spec)?;
        let timeout = limits::check_command(&command)?;
        events.send(Event::Phase(RunPhase::Create { environment: spec.environment.clone() })).await;
        self.inspect_environment(&spec.environment).await?;
        // Before an environment is installed for nothing.
        if let (Err(reason), false) = (self.host().await, spec.allow_host_compat) {
            return Err(EngineError::boot_unavailable(&reason));
        }
        let version = self.prepare_environment(&spec, events, cancel).await?;
        unless_cancelled(cancel, self.reconcile()).await?;

        let id = VmId::random()?;
        // The lock comes before the record: a record of a run that nobody holds is an orphan.
        let lock = self.own_vm_dir(&id).await?;
        let result = self.run_in(&id, lock, &spec, sizing, version, &command, timeout, events, cancel).await;
        let removed = self.remove(&id).await;
        let (record, finished) = result?;
        removed?;
        Ok(run_result(record, command, finished))
    }

    #[expect(clippy::too_many_arguments, reason = "the halves of `run` on both sides of its cleanup")]
    async fn run_in(
        &self,
        id: &VmId,
        lock: OwnerLock,
        spec: &VmSpec,
        sizing: Sizing,
        version: Option<String>,
        command: &Command,
        timeout: Duration,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<(VmRecord, Finished), EngineError> {
        let record = self.insert(id, spec, sizing, version, true).await?;
        events.send(Event::Phase(RunPhase::Start { vm_id: id.clone() })).await;
        let (record, lifeline) = match self.host().await {
            Ok(host) => {
                let start = async {
                    let environment = self.environment(&spec.environment, events, cancel).await?;
                    self.start_guest(&record, environment, host, lock).await
                };
                let lifeline = unless_cancelled(cancel, start).await?;
                (self.get(id).await?, Ok(lifeline))
            }
            Err(reason) if spec.allow_host_compat => (self.start_on_host(id, &reason).await?, Err(lock)),
            Err(reason) => return Err(EngineError::boot_unavailable(&reason)),
        };
        events.send(Event::Phase(RunPhase::Execute { vm_id: id.clone() })).await;
        match self.execute(&record, command, timeout, events, cancel).await {
            Ok(finished) => Ok((record, finished)),
            Err(error) => Err(match lifeline {
                Ok(lifeline) if error.kind == ErrorKind::OutcomeUnknown => explain(error, lifeline).await,
                _ => error,
            }),
        }
    }
}

/// Adds what the supervisor knows about the end of the VM.
async fn explain(error: EngineError, lifeline: Lifeline) -> EngineError {
    match lifeline.ended().await {
        Some(EndReason::VmmEnded { description }) => {
            error.caused_by(format!("the VM ended by itself: {description}"))
        }
        Some(EndReason::Expired) => {
            error.caused_by("the VM's lifetime ended").hint("give it a larger ttl_seconds")
        }
        Some(reason) => error.caused_by(format!("the VM was ended: {reason:?}")),
        None => error.caused_by("the VM's supervisor was lost"),
    }
}
