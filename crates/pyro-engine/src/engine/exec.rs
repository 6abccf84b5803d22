//! Runs one command in a running VM.

use std::time::Duration;

use futures::{StreamExt, stream};
use pyro_api::DEFAULT_TIMEOUT_SECONDS;
use pyro_supervisor::{
    CommandInput, CommandOutcome, ConnectError, Exec, FailureKind, InputStream, Program, Ran, Run, RunError,
    WORKSPACE, timeout_note,
};

use super::Engine;
use crate::capture::{CAPTURE_LIMIT, Captured, OutputSink};
use crate::convert;
use crate::host_compat::{self, HostCommand};
use crate::limits::{CheckedCommand, CheckedInput, CheckedProgram};
use crate::registry::VmRecord;
use crate::{CallContext, Error, ErrorKind, Events, ExecutionMode, Hint, OutputMode, OutputStream};
use tokio_util::sync::CancellationToken;

/// Time limit of a command without one: longer than any lifetime, which ends its VM.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Time limit of a command on the host without one, where no lifetime ends it.
const HOST_LIMIT: Duration = Duration::from_secs(DEFAULT_TIMEOUT_SECONDS as u64);

impl Engine {
    /// Runs the command where the VM's commands run, in the guest or on the host. It is sent at most once.
    pub(super) async fn execute(
        &self,
        record: &VmRecord,
        command: &CheckedCommand,
        call: &CallContext,
    ) -> Result<Captured, Error> {
        match record.execution_mode {
            ExecutionMode::HostCompat => {
                self.execute_on_host(record, command, &call.events, &call.cancel).await
            }
            ExecutionMode::GuestVsock | ExecutionMode::Pending => {
                self.execute_in_guest(record, command, call).await
            }
        }
    }

    async fn execute_in_guest(
        &self,
        record: &VmRecord,
        command: &CheckedCommand,
        call: &CallContext,
    ) -> Result<Captured, Error> {
        let CallContext { events, cancel, .. } = call;
        let mut stdout = OutputSink::new(OutputStream::Stdout, command.output, events);
        let mut stderr = OutputSink::new(OutputStream::Stderr, command.output, events);
        let run = Run { exec: exec_request(command, &record.environment), journal: false };
        let take = async |chunk: pyro_supervisor::OutputChunk| match chunk.stream {
            pyro_supervisor::OutputStream::Stdout => stdout.accept(&chunk.bytes).await,
            pyro_supervisor::OutputStream::Stderr => stderr.accept(&chunk.bytes).await,
        };
        let input = command_input(command, call);
        let client = self.client(&record.vm_id);
        let Ran { outcome, .. } = match client.run_with_input(run, input, cancel, take).await {
            Ok(ran) => ran,
            Err(RunError::Lost { .. } | RunError::Unanswered) => {
                return Err(Error::outcome_unknown(record.kind, record.vm_id.as_str()));
            }
            Err(error) => return Err(not_delivered(error)),
        };
        let end = match outcome {
            CommandOutcome::Ended(end) => end,
            // The guest was not asked.
            CommandOutcome::NotRun { cause, kind: None } => {
                return Err(Error::transport_not_ready(&cause));
            }
            CommandOutcome::NotRun { cause, kind } => {
                return Err(with_not_started_hint(Error::new(ErrorKind::NotDelivered, cause), kind));
            }
            CommandOutcome::Unknown { cause } => {
                let error = Error::outcome_unknown(record.kind, record.vm_id.as_str());
                return Err(match cause {
                    Some(cause) => error.caused_by(cause),
                    None => error,
                });
            }
        };
        if let (true, Some(limit)) = (end.timed_out, command.timeout) {
            stderr.note(&timeout_note(limit)).await;
        }
        Ok(Captured::new(end, stdout, stderr))
    }

    pub(super) async fn execute_on_host(
        &self,
        record: &VmRecord,
        command: &CheckedCommand,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Captured, Error> {
        refuse_guest_only(command)?;
        let directory = self.vm_dir(&record.vm_id).join("workspace");
        std::fs::create_dir_all(&directory)
            .map_err(|error| super::state_unusable("make", &directory, error))?;
        let host_command = HostCommand {
            command: &command.text,
            env: &command.env,
            timeout: command.timeout.unwrap_or(HOST_LIMIT),
            directory: &directory,
            search_path: &self.config().search_path,
            mem_mib: record.sizing.mem_mib,
            output: command.output,
        };
        host_compat::run(&host_command, events, cancel).await
    }
}

/// Returns what the command is sent while it runs. `None`: neither input nor sizes of its terminal.
pub(super) fn command_input(command: &CheckedCommand, call: &CallContext) -> Option<InputStream> {
    match &command.input {
        CheckedInput::Text(text) => {
            let text = CommandInput::Data(text.clone().into());
            Some(stream::iter([text, CommandInput::Finished]).boxed())
        }
        CheckedInput::Stream => {
            // A caller that has no input does not leave its command waiting for it.
            Some(caller_input(call).unwrap_or_else(|| stream::iter([CommandInput::Finished]).boxed()))
        }
        // Only sizes are passed on.
        CheckedInput::None if command.terminal.is_some() => caller_input(call),
        CheckedInput::None => None,
    }
}

/// Returns what the caller sends. The first that is asked for shows that the command is accepted.
pub(super) fn caller_input(call: &CallContext) -> Option<InputStream> {
    let receiver = call.input.take()?;
    let accepted = call.accepted.clone();
    let events = stream::unfold((receiver, accepted), |(mut receiver, accepted)| async {
        accepted.cancel();
        let event = receiver.recv().await?;
        Some((convert::command_input(event), (receiver, accepted)))
    });
    Some(events.boxed())
}

/// Converts the command for a guest of this environment, whose shell it uses unless its caller chose one.
pub(super) fn exec_request(command: &CheckedCommand, environment: &str) -> Exec {
    Exec {
        program: match &command.program {
            CheckedProgram::Shell { text, shell } => {
                let shell = shell.as_deref().or_else(|| pyro_env::shell_of(environment));
                Program::Shell { text: text.clone(), shell: shell.map(str::to_owned) }
            }
            CheckedProgram::Argv(words) => Program::Argv(words.clone()),
            CheckedProgram::LoginShell => Program::LoginShell,
        },
        cwd: guest_cwd(command),
        env: command.env.clone(),
        user: command.user.clone(),
        input: command.input != CheckedInput::None,
        terminal: command.terminal.map(convert::terminal_size),
        output_limit: match command.output {
            OutputMode::Capture => Some(CAPTURE_LIMIT as u64),
            // All of it is sent as events. The sinks limit what the result keeps.
            OutputMode::CaptureAndStream | OutputMode::Stream => None,
        },
        ..Exec::new("", command.timeout.unwrap_or(LIFETIME))
    }
}

/// Returns the shell that runs a command's text, for its result. `None`: it has none.
pub(super) fn shell_of(command: &CheckedCommand, environment: &str, mode: ExecutionMode) -> Option<String> {
    let CheckedProgram::Shell { shell, .. } = &command.program else { return None };
    let default = match mode {
        ExecutionMode::HostCompat => "bash",
        ExecutionMode::GuestVsock | ExecutionMode::Pending => pyro_env::shell_of(environment).unwrap_or("sh"),
    };
    Some(shell.as_deref().unwrap_or(default).to_owned())
}

/// Rejects what only a guest has: the host has no `/workspace` to resolve a working directory against, and a command runs
/// there as the calling user, by Bash, and without input.
pub(super) fn refuse_guest_only(command: &CheckedCommand) -> Result<(), Error> {
    let refused =
        |what: &str| Err(Error::new(ErrorKind::InvalidInput, format!("{what} in host compatibility mode")));
    let cannot_choose =
        |name: &str| refused(&format!("{name} cannot be chosen")).map_err(|error| error.naming(name));
    match command {
        CheckedCommand { cwd: Some(_), .. } => {
            cannot_choose("cwd").map_err(|error| error.hint(Hint::ChangeDirectory))
        }
        CheckedCommand { user: Some(_), .. } => cannot_choose("user"),
        CheckedCommand { program: CheckedProgram::Shell { shell: Some(_), .. }, .. } => {
            cannot_choose("shell")
        }
        CheckedCommand { input: CheckedInput::Text(_) | CheckedInput::Stream, .. } => {
            refused("standard input is not available")
        }
        CheckedCommand { terminal: Some(_), .. } => refused("terminals are not available"),
        _ => Ok(()),
    }
}

/// Returns the command's working directory in the guest.
pub(super) fn guest_cwd(command: &CheckedCommand) -> String {
    match command.cwd.as_deref() {
        None => WORKSPACE.to_owned(),
        Some(absolute) if absolute.starts_with('/') => absolute.to_owned(),
        Some(relative) => format!("{WORKSPACE}/{relative}"),
    }
}

/// Returns the error for a command that surely did not start, or that was ended for want of its input.
pub(super) fn not_delivered(error: RunError) -> Error {
    match error {
        RunError::NotDelivered(ConnectError::Unreachable(cause)) => {
            Error::transport_not_ready(&cause.to_string())
        }
        RunError::NotDelivered(error @ ConnectError::Unresponsive) => {
            Error::transport_not_ready(&error.to_string())
        }
        RunError::NotDelivered(error) => not_asked(error),
        RunError::Refused { cause } => Error::new(ErrorKind::NotDelivered, cause).hint(Hint::SafeToRepeat),
        RunError::Cancelled => Error::cancelled(),
        // It ran, in part.
        error @ RunError::InputFailed { .. } => Error::new(ErrorKind::OutcomeUnknown, error.to_string()),
        RunError::Lost { .. } | RunError::Unanswered => Error::internal("a command that was delivered"),
    }
}

/// Returns the error for a supervisor that received no request, unless it was one for a command.
pub(super) fn not_asked(error: ConnectError) -> Error {
    match error {
        ConnectError::Unreachable(cause) => Error::unreachable(&cause.to_string()),
        ConnectError::Unresponsive => Error::unreachable(&error.to_string()),
        ConnectError::OtherVersion { .. } => {
            Error::new(ErrorKind::NotDelivered, error.to_string()).hint(Hint::StopAndStart)
        }
    }
}

/// Adds the reason and the remedy to the error of a command that could not be started.
pub(super) fn with_not_started_hint(error: Error, kind: Option<FailureKind>) -> Error {
    let reason = kind.and_then(|kind| serde_json::to_value(kind).ok()?.as_str().map(str::to_owned));
    let error = Error { reason, ..error };
    match kind.and_then(not_started_hint) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn not_started_hint(kind: FailureKind) -> Option<Hint> {
    match kind {
        FailureKind::DirectoryNotFound | FailureKind::NotADirectory => Some(Hint::ExistingDirectory),
        FailureKind::CommandNotFound | FailureKind::NotExecutable => Some(Hint::WorkingShell),
        FailureKind::ArgumentListTooLong => Some(Hint::LongCommandInFile),
        FailureKind::OutOfMemory => Some(Hint::FreeGuestMemory),
        FailureKind::NoSpace => Some(Hint::FreeGuestDisk),
        FailureKind::TooManyProcesses => Some(Hint::EndOtherCommands),
        FailureKind::ShellNotFound => Some(Hint::ExistingShell),
        FailureKind::UserNotFound | FailureKind::GroupNotFound | FailureKind::InvalidUser => {
            Some(Hint::ExistingUser)
        }
        FailureKind::FileNotFound
        | FailureKind::PermissionDenied
        | FailureKind::Unsupported
        | FailureKind::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, limits};

    #[test]
    fn a_result_names_the_shell_that_ran_its_text() {
        let of = |command: Command, environment: &str, mode: ExecutionMode| {
            let checked = limits::check_command(command, OutputMode::Capture).unwrap();
            shell_of(&checked, environment, mode)
        };
        let (guest, host) = (ExecutionMode::GuestVsock, ExecutionMode::HostCompat);
        assert_eq!(of(Command::new("true"), "debian:12", guest).as_deref(), Some("sh"));
        assert_eq!(of(Command::new("true"), "debian:12-agent", guest).as_deref(), Some("bash"));
        assert_eq!(of(Command::new("true"), "debian:12", host).as_deref(), Some("bash"));
        let chosen = Command { shell: Some("zsh".to_owned()), ..Command::new("true") };
        assert_eq!(of(chosen, "debian:12-agent", guest).as_deref(), Some("zsh"));
        assert_eq!(of(Command::argv(["true"]), "debian:12", guest), None);
    }

    #[test]
    fn a_program_is_told_why_a_command_did_not_start() {
        let reason = |kind| with_not_started_hint(Error::cancelled(), kind).reason;
        assert_eq!(reason(Some(FailureKind::UserNotFound)).as_deref(), Some("user_not_found"));
        assert_eq!(reason(None), None);
    }

    #[test]
    fn a_hint_is_given_where_the_caller_can_do_something() {
        assert_eq!(not_started_hint(FailureKind::DirectoryNotFound), Some(Hint::ExistingDirectory));
        let without = FailureKind::ALL.into_iter().filter(|kind| not_started_hint(*kind).is_none());
        assert_eq!(
            without.collect::<Vec<_>>(),
            [
                FailureKind::FileNotFound,
                FailureKind::PermissionDenied,
                FailureKind::Unsupported,
                FailureKind::Other
            ]
        );
    }
}
