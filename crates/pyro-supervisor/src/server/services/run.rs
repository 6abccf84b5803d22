//! One service from its start to its end, over all runs of its command.

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::Duration;

use futures::future::pending;
use pyro_wire::{Exec, FrameCodec, Status};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::ready::{NotReady, until_ready};
use crate::conversation::{CommandOutcome, OutputChunk, converse};
use crate::mux::{OpenError, Streams};
use crate::service::{ServiceDefinition, ServiceState, ServiceStatus};
use crate::service_log::ServiceLog;

/// Time limit of a service's command: longer than any VM lives, and a number that every clock can hold.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Time between SIGTERM and SIGKILL, in milliseconds. The end of the VM does not wait for so long.
const STOP_GRACE_MS: u64 = 10_000;

/// What one service needs.
pub(super) struct Runner {
    pub(super) definition: ServiceDefinition,
    pub(super) streams: Streams,
    /// Ends the command, which is not run again.
    pub(super) stop: CancellationToken,
    pub(super) status: watch::Sender<ServiceStatus>,
    pub(super) log: ServiceLog,
}

/// How one run of the command ended.
#[derive(Debug, Default)]
struct RunEnd {
    status: Option<Status>,
    reason: Option<String>,
    /// Its processes may still run: the guest did not confirm their end.
    is_unconfirmed: bool,
    /// The guest is gone.
    is_last: bool,
    /// Time from when it was ready.
    steady: Duration,
}

impl RunEnd {
    fn failed(reason: impl ToString) -> Self {
        Self { reason: Some(reason.to_string()), ..Self::default() }
    }

    fn succeeded(&self) -> bool {
        self.reason.is_none() && self.status == Some(Status::Code(0))
    }
}

impl Runner {
    /// Runs the command until it ends for good.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            // The VM may end while the service is being recorded.
            if self.stop.is_cancelled() {
                return self.status.send_modify(|status| status.state = ServiceState::Stopped);
            }
            let end = self.run_once().await;
            let is_stopped = self.stop.is_cancelled();
            let succeeded = end.succeeded();
            // A second copy must not run next to the first.
            let runs_again = !is_stopped
                && !end.is_last
                && !end.is_unconfirmed
                && self.definition.restart.applies(succeeded);
            self.status.send_modify(|status| {
                status.state = match (is_stopped, runs_again) {
                    (true, _) => ServiceState::Stopped,
                    (false, true) => ServiceState::Restarting,
                    (false, false) if succeeded => ServiceState::Exited,
                    (false, false) => ServiceState::Failed,
                };
                // What was wrong with one that was stopped does not matter, unless it still runs.
                let reason = end.reason.filter(|_| !is_stopped || end.is_unconfirmed);
                (status.end, status.reason) = (end.status, reason);
            });
            if !runs_again {
                return;
            }
            let pause = backoff.after(end.steady);
            if timeout(pause, self.stop.cancelled()).await.is_ok() {
                continue;
            }
            self.status.send_modify(|status| {
                status.state = ServiceState::Starting;
                status.restarts += 1;
            });
        }
    }

    async fn run_once(&mut self) -> RunEnd {
        let Self { definition, streams, stop, status, log } = self;
        let (stream, _permit) = match streams.open().await {
            Ok(open) => open,
            Err(error @ OpenError::Closed) => return RunEnd { is_last: true, ..RunEnd::failed(error) },
            Err(error @ OpenError::TooMany) => return RunEnd::failed(error),
        };
        let stream = (Framed::new(stream.compat(), FrameCodec::default()), streams.pace());
        let timeout_ms = u64::try_from(FOREVER.as_millis()).unwrap_or(u64::MAX);
        let exec = Exec {
            id: 0,
            report_start: true,
            timeout_ms,
            kill_grace_ms: STOP_GRACE_MS,
            output_limit: None,
            ..definition.exec.clone()
        };
        let (end, sent) = (stop.child_token(), Notify::new());
        let mut take = async |chunk: OutputChunk| log.append(&chunk.bytes);
        let command = converse(stream, exec, || sent.notify_one(), end.clone().cancelled_owned(), &mut take);
        let mut readiness = None;
        let become_ready = async {
            let error = become_ready(definition, streams, sent.notified(), status).await.err();
            if error.is_some() {
                end.cancel();
            }
            readiness = Some((Instant::now(), error));
            pending::<Infallible>().await
        };
        let outcome = tokio::select! {
            biased;
            outcome = command => outcome,
            never = become_ready => match never {},
        };
        let (steady, not_ready) = match readiness {
            Some((since, None)) => (since.elapsed(), None),
            Some((_, Some(error))) => (Duration::ZERO, Some(error.to_string())),
            None => (Duration::ZERO, None),
        };
        let end = match outcome {
            CommandOutcome::Ended(end) if end.status.is_none() => {
                let unconfirmed = "the guest did not confirm its end";
                let reason =
                    not_ready.map_or(unconfirmed.to_owned(), |cause| format!("{cause}; {unconfirmed}"));
                RunEnd { is_unconfirmed: true, ..RunEnd::failed(reason) }
            }
            CommandOutcome::Ended(end) => {
                RunEnd { status: end.status, reason: not_ready, ..RunEnd::default() }
            }
            CommandOutcome::NotRun { cause, .. } => RunEnd::failed(cause),
            CommandOutcome::Unknown { cause } => {
                RunEnd::failed(cause.as_deref().unwrap_or("the connection to it was lost"))
            }
        };
        RunEnd { steady, ..end }
    }
}

/// The service was not ready in time.
#[derive(Debug, thiserror::Error)]
#[error("not ready within {} seconds: {}", .limit.as_secs_f64(), .cause.as_ref().map_or("no answer".to_owned(), ToString::to_string))]
struct ReadyTimeout {
    limit: Duration,
    /// Why it was not ready at the last attempt.
    cause: Option<NotReady>,
}

/// Sets the state when the command has been started and is ready.
async fn become_ready(
    definition: &ServiceDefinition,
    streams: &Streams,
    started: impl Future<Output = ()>,
    status: &watch::Sender<ServiceStatus>,
) -> Result<(), ReadyTimeout> {
    let limit = Duration::from_millis(definition.ready_timeout_ms);
    let cause = RefCell::new(None);
    let ready = async {
        started.await;
        match &definition.ready {
            None => ServiceState::Running,
            Some(check) => {
                until_ready(streams, check, &cause).await;
                ServiceState::Ready
            }
        }
    };
    let Ok(state) = timeout(limit, ready).await else {
        return Err(ReadyTimeout { limit, cause: cause.into_inner() });
    };
    // What was wrong with an earlier run does not count any more.
    status.send_modify(|status| (status.state, status.reason) = (state, None));
    Ok(())
}
