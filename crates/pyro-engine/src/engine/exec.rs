//! Running one command in a VM that runs.

use std::time::Duration;

use pyro_vm::{Exec, ExecError, ExecOutcome, ExitStatus, GuestClient};

use super::Engine;
use crate::capture::{CAPTURE_LIMIT, OutputSink};
use crate::finished::{Finished, TIMED_OUT};
use crate::host_compat::{self, HostCommand};
use crate::registry::VmRecord;
use crate::{Command, EngineError, ErrorKind, Events, ExecutionMode, OutputMode, OutputStream};
use tokio_util::sync::CancellationToken;

/// Working directory of commands in a guest.
const GUEST_DIRECTORY: &str = "/workspace";
/// Time between SIGTERM and SIGKILL for a command that reached its limit.
const KILL_GRACE: Duration = Duration::from_secs(1);

impl Engine {
    /// Runs the command where the VM's commands run. It is sent at most once.
    pub(super) async fn execute(
        &self,
        record: &VmRecord,
        command: &Command,
        timeout: Duration,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Finished, EngineError> {
        match record.execution_mode {
            ExecutionMode::HostCompat => self.execute_on_host(record, command, timeout, events, cancel).await,
            ExecutionMode::GuestVsock | ExecutionMode::Pending => {
                let run = self.execute_in_guest(record, command, timeout, events);
                super::unless_cancelled(cancel, run).await
            }
        }
    }

    async fn execute_in_guest(
        &self,
        record: &VmRecord,
        command: &Command,
        timeout: Duration,
        events: &Events,
    ) -> Result<Finished, EngineError> {
        let mut stdout = OutputSink::new(OutputStream::Stdout, command.output, events);
        let mut stderr = OutputSink::new(OutputStream::Stderr, command.output, events);
        let request = Exec {
            command: command.command.clone(),
            cwd: GUEST_DIRECTORY.to_owned(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            kill_grace_ms: u64::try_from(KILL_GRACE.as_millis()).unwrap_or(u64::MAX),
            output_limit: match command.output {
                OutputMode::Capture => Some(CAPTURE_LIMIT as u64),
                OutputMode::Stream => None,
            },
        };
        let outcome = GuestClient::new(self.vm_dir(&record.vm_id))
            .exec(request, async |chunk| match chunk.stream {
                pyro_vm::OutputStream::Stdout => stdout.accept(&chunk.bytes).await,
                pyro_vm::OutputStream::Stderr => stderr.accept(&chunk.bytes).await,
            })
            .await
            .map_err(|error| exec_error(record, error))?;
        if outcome.timed_out {
            stderr.note(&format!("command timed out after {}s", timeout.as_secs())).await;
        }
        let (stdout, stdout_over) = stdout.finish();
        let (stderr, stderr_over) = stderr.finish();
        Ok(Finished {
            exit_code: exit_code(&outcome),
            stdout,
            stderr,
            stdout_truncated: stdout_over.saturating_add(outcome.stdout_dropped),
            stderr_truncated: stderr_over.saturating_add(outcome.stderr_dropped),
            timed_out: outcome.timed_out,
            duration: outcome.duration,
        })
    }

    async fn execute_on_host(
        &self,
        record: &VmRecord,
        command: &Command,
        timeout: Duration,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Finished, EngineError> {
        let directory = self.vm_dir(&record.vm_id).join("workspace");
        std::fs::create_dir_all(&directory)
            .map_err(|error| super::state_unusable("make", &directory, error))?;
        let host_command = HostCommand {
            command: &command.command,
            timeout,
            directory: &directory,
            search_path: &self.config().search_path,
            mem_mib: record.sizing.mem_mib,
            output: command.output,
        };
        host_compat::run(&host_command, events, cancel).await
    }
}

fn exit_code(outcome: &ExecOutcome) -> i64 {
    match outcome.status {
        _ if outcome.timed_out => TIMED_OUT,
        Some(ExitStatus::Code(code)) => code.into(),
        Some(ExitStatus::Signal(signal)) => -i64::from(signal),
        // Without a status there is only the host's own limit, which is a timeout.
        None => TIMED_OUT,
    }
}

fn exec_error(record: &VmRecord, error: ExecError) -> EngineError {
    match error {
        ExecError::NotDelivered(cause) => EngineError::transport_not_ready(&cause.to_string()),
        ExecError::NotStarted { step, cause } => EngineError::new(
            ErrorKind::NotDelivered,
            format!("the guest could not start the command: {step}: {cause}"),
        ),
        ExecError::Lost(cause) => {
            let error = EngineError::outcome_unknown(record.vm_id.as_str());
            match cause {
                Some(cause) => error.caused_by(cause),
                None => error,
            }
        }
    }
}
