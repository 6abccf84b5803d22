//! One-shot runs: create, start, run one command, remove. The VM is bound to this process: if the process dies, the
//! VM's supervisor removes everything.

use std::time::Duration;

use pyro_supervisor::{EndReason, Lifeline};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::launch::{Launch, Needs, Started};
use super::lifecycle::{cleanup, run_result};
use super::{Engine, unless_cancelled};
use crate::Kind;
use crate::capture::Captured;
use crate::clock::Timings;
use crate::limits::{self, CheckedCommand};
use crate::operations::RunInVm;
use crate::registry::{NewVm, VmRecord};
use crate::{CallContext, Error, ErrorKind, Event, Hint, RunPhase, RunResult, VmId};

/// Time limit for a supervisor that lost its guest to report why the VM ended.
const EXPLANATION_LIMIT: Duration = Duration::from_secs(10);

/// Time limit for a supervisor to remove everything after its lifeline was closed, before it is asked or killed.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// A run whose command has ended.
struct FinishedRun {
    record: VmRecord,
    captured: Captured,
    /// `None` if the command ran on the host.
    lifeline: Option<Lifeline>,
}

impl Engine {
    /// Creates a VM, runs one command in it, and removes it in every case.
    ///
    /// When this returns, nothing of the VM is left: no process, file, or record. If the removal failed, `cleanup` says so.
    ///
    /// # Errors
    /// Every kind except `NotFound` and `Expired`; the first error, not one of the cleanup.
    pub async fn run(&self, request: RunInVm, call: &CallContext) -> Result<RunResult, Error> {
        let CallContext { events, cancel, .. } = call;
        let mut timings = Timings::start();
        let RunInVm { spec, command, output } = request;
        let sizing = limits::check_spec(&spec)?;
        let mounts = self.check_mounts(&spec.mounts).await?;
        let command = limits::check_command(command, output.output)?;
        let sizing = sizing.lasting(command.timeout, self.shared.config.max_raised_ttl_seconds);
        self.check_host_settings(&spec, events).await?;
        events.send(Event::Phase(RunPhase::Create { environment: spec.environment.clone() })).await;
        let backend = self.backend(Needs::of_new(&spec), events, cancel).await?;
        timings.lap("environment");
        unless_cancelled(cancel, self.reconcile()).await?;

        let id = VmId::random()?;
        // Take the lock before writing the record: the record of a run without a lock holder is an orphan.
        let lock = self.own_vm_dir(Kind::Vm, &id).await?;
        let version = backend.as_ref().ok().map(|(_, environment)| environment.version.clone());
        let vm = NewVm { ephemeral: true, mounts, ..self.new_vm(id.clone(), &spec, sizing, version) };
        let run = async {
            let record = self.insert(vm).await?;
            timings.lap("registry");
            let launch = Launch { record, lock, backend };
            self.run_in(launch, &command, call, &mut timings).await
        };
        match run.await {
            Ok(FinishedRun { record, captured, lifeline }) => {
                let network_denials = self.denials_of_command(&record, 0.0).await;
                let left = self.leave(&id, lifeline).await;
                let cleanup = cleanup(id, left, events).await;
                timings.lap("end");
                let timings = timings.finish();
                let result = run_result(record, command, captured, cleanup);
                Ok(RunResult { timings, network_denials, ..result })
            }
            Err(error) => {
                // The first error is more useful than one of the cleanup.
                let _ = self.remove(&id).await;
                Err(error)
            }
        }
    }

    async fn run_in(
        &self,
        launch: Launch,
        command: &CheckedCommand,
        call: &CallContext,
        timings: &mut Timings,
    ) -> Result<FinishedRun, Error> {
        let CallContext { events, cancel, .. } = call;
        let id = &launch.record.vm_id.clone();
        events.send(Event::Phase(RunPhase::Start { vm_id: id.clone() })).await;
        let (lifeline, model) = match self.start(launch, events, cancel).await? {
            Started::Guest(guest) => {
                timings.lap_of_start(&guest.info);
                (Ok(guest.lifeline), guest.model)
            }
            Started::OnHost(lock) => (Err(lock), None),
        };
        let record = self.get(Kind::Vm, id).await?;
        events.send(Event::Phase(RunPhase::Execute { vm_id: id.clone() })).await;
        // A run that has its result does not wait for another process that is counting spares.
        let ended = CancellationToken::new();
        let execute = async {
            let executed = self.execute(&record, command, call).await;
            timings.lap("command");
            ended.cancel();
            executed
        };
        let refill = async {
            if let Some(model) = &model {
                self.refill(model, cancel, &ended).await;
            }
        };
        // The command begins before anything is done for a later run.
        let (executed, ()) = tokio::join!(biased; execute, refill);
        match (executed, lifeline) {
            (Ok(captured), lifeline) => Ok(FinishedRun { record, captured, lifeline: lifeline.ok() }),
            (Err(error), Ok(lifeline)) if error.kind == ErrorKind::OutcomeUnknown => {
                Err(explain(error, lifeline.ended(), cancel).await)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Removes the VM of a run that has its result. Its supervisor ends with the lifeline, which takes less than asking it,
    /// and removes the files.
    async fn leave(&self, id: &VmId, lifeline: Option<Lifeline>) -> Result<(), Error> {
        let vm = id.clone();
        // Its files may be what keeps the record from being written.
        let is_forgotten =
            lifeline.is_some() && self.registry(move |registry| registry.delete(&vm)).await.is_ok();
        drop(lifeline);
        match is_forgotten {
            true if matches!(self.client(id).released(LEAVE_LIMIT).await, Ok(None)) => Ok(()),
            _ => self.remove(id).await,
        }
    }
}

/// Adds why the VM ended, if its supervisor reports that in time. It reports nothing if it is frozen, or if the VM goes
/// on; the caller removes the VM then.
async fn explain(
    error: Error,
    ended: impl Future<Output = Option<EndReason>>,
    cancel: &CancellationToken,
) -> Error {
    let ended = tokio::select! {
        biased;
        () = cancel.cancelled() => return error,
        ended = timeout(EXPLANATION_LIMIT, ended) => ended,
    };
    match ended {
        Ok(Some(reason @ EndReason::Expired)) => {
            error.caused_by(reason.to_string()).hint(Hint::LargerTtl).naming("ttl_seconds")
        }
        Ok(Some(reason)) => error.caused_by(reason.to_string()),
        Ok(None) => error.caused_by("the VM's supervisor was lost"),
        // What is known of the command says more.
        Err(_) if error.source.is_some() => error,
        Err(_) => error.caused_by("the VM's supervisor did not report that the VM ended"),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn unknown() -> Error {
        Error::outcome_unknown(crate::Kind::Vm, "0123456789ab")
    }

    fn cause(error: &Error) -> Option<&str> {
        error.source.as_ref().map(|cause| cause.text.as_str())
    }

    /// A frozen supervisor reports nothing, and one whose guest only dropped the command's stream has no end to report.
    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_reports_nothing_is_not_awaited_forever() {
        let error = explain(unknown(), pending(), &CancellationToken::new()).await;
        assert_eq!(error.kind, ErrorKind::OutcomeUnknown);
        assert_eq!(cause(&error), Some("the VM's supervisor did not report that the VM ended"));
        let reset = unknown().caused_by("connection reset");
        assert_eq!(
            cause(&explain(reset, pending(), &CancellationToken::new()).await),
            Some("connection reset")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_gives_up_gets_its_error_at_once() {
        let cancel = CancellationToken::new();
        let begun = tokio::time::Instant::now();
        let (error, ()) = tokio::join!(explain(unknown(), pending(), &cancel), async { cancel.cancel() });
        assert_eq!((error.kind, begun.elapsed()), (ErrorKind::OutcomeUnknown, Duration::ZERO));
    }

    #[tokio::test]
    async fn an_end_is_explained_in_words() {
        let description = "exit status: 1".to_owned();
        for (reason, text) in [
            (Some(EndReason::VmmEnded { description }), "the VM ended by itself: exit status: 1"),
            (Some(EndReason::Expired), "the VM's lifetime ended"),
            (Some(EndReason::Terminated), "the VM's supervisor was terminated"),
            (None, "the VM's supervisor was lost"),
        ] {
            let error = explain(unknown(), ready(reason), &CancellationToken::new()).await;
            assert_eq!(cause(&error), Some(text));
        }
    }
}
