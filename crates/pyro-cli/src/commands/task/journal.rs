//! `pyro task logs`, `wait` and `kill`: running and ended commands of a task.

use clap::Args;
use pyro_engine::{Engine, Error, ErrorKind, Hint, Outcome, OutputStream, TaskLogEntry};

use super::subject::{TaskIdArgs, TaskSequenceArgs};
use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session;

const LOGS_EXAMPLES: &str = "\
Examples:
  pyro task logs 9775b3af1eeb
  pyro task logs 9775b3af1eeb --sequence 3
  pyro task logs 9775b3af1eeb --sequence 3 --follow";

/// Show the commands of a task and what they wrote
///
/// The journal keeps the latest 1,000 commands until the task is deleted. For a running command, it holds the output so
/// far.
#[derive(Debug, Args)]
#[command(after_help = LOGS_EXAMPLES)]
pub(crate) struct TaskLogsArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
    /// Show only the command with this number [default: all]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) sequence: Option<u64>,
    /// Show the output of one command until it ends; without --sequence, of the latest [default: off]
    #[arg(long)]
    pub(crate) follow: bool,
}

const WAIT_EXAMPLES: &str = "\
Exit status: that of the command, as for `pyro run`; 1 if its end is unknown.

Examples:
  pyro task wait 9775b3af1eeb --sequence 3";

/// Wait until a command of a task has ended
#[derive(Debug, Args)]
#[command(after_help = WAIT_EXAMPLES)]
pub(crate) struct TaskWaitArgs {
    #[command(flatten)]
    pub(crate) command: TaskSequenceArgs,
}

const KILL_EXAMPLES: &str = "\
Examples:
  pyro task kill 9775b3af1eeb --sequence 3";

/// End a command of a task
///
/// Sends SIGTERM to its processes and, a second later, SIGKILL. Succeeds if the command has already ended.
#[derive(Debug, Args)]
#[command(after_help = KILL_EXAMPLES)]
pub(crate) struct TaskKillArgs {
    #[command(flatten)]
    pub(crate) command: TaskSequenceArgs,
}

pub(super) fn logs(args: &TaskLogsArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let (id, json) = (&args.task.task_id, args.task.json);
    if !args.follow {
        if json {
            return Ok(Reply::document(&session::block_on(engine.logs_task(id, args.sequence))?)?);
        }
        session::block_on(show(engine, id, args.sequence, printer))?;
        return Ok(Reply::nothing());
    }
    let (entry, shown) = session::watch(printer, json, async |events, cancel| {
        let task = engine.status_task(id).await?;
        let sequence = match (args.sequence, task.command_count) {
            (Some(sequence), _) => sequence,
            (None, 0) => return Err(no_commands(id)),
            (None, latest) => latest,
        };
        match json {
            true => engine.wait_task(task.task_id.as_str(), sequence, &cancel).await,
            false => engine.follow_task(task.task_id.as_str(), sequence, &events, &cancel).await,
        }
    })?;
    if json {
        return Ok(Reply::document(&entry)?);
    }
    shown.end_line(printer);
    Ok(Reply::nothing().note(ended(id, &entry)))
}

fn no_commands(id: &str) -> Error {
    Error::new(ErrorKind::WrongState, format!("task {id} has not run any command")).hint(Hint::RunFirst)
}

/// Prints the journal one entry at a time, because it may be large. Standard error is printed on standard error.
async fn show(engine: &Engine, id: &str, sequence: Option<u64>, printer: &Printer) -> Result<(), CliError> {
    // Another task may have the name later.
    let task = engine.status_task(id).await?.task_id;
    let id = task.as_str();
    let wanted = match sequence {
        Some(sequence) => vec![sequence],
        None => engine.logged_commands(id).await?,
    };
    let latest = wanted.last().copied().unwrap_or_default();
    if sequence.is_none() && latest > wanted.len() as u64 {
        let dropped = latest - wanted.len() as u64;
        printer.note(&format!("[task-logs] the journal no longer has {dropped} older commands"));
    }
    if wanted.is_empty() {
        printer.text("No task logs found.\n")?;
    }
    for number in wanted {
        let logs = match engine.logs_task(id, Some(number)).await {
            Ok(logs) => logs,
            Err(error) if sequence.is_some() => return Err(error.into()),
            // The journal dropped it meanwhile. If the task is gone, this says so.
            Err(error) if error.kind == ErrorKind::NotFound => {
                engine.status_task(id).await?;
                continue;
            }
            Err(error) => {
                printer.note(&format!("[warning] cannot show command {number}: {error}"));
                continue;
            }
        };
        for entry in &logs.entries {
            printer.text(&heading(entry))?;
            printer.kept(OutputStream::Stdout, entry.stdout.as_bytes())?;
            printer.kept(OutputStream::Stderr, entry.stderr.as_bytes())?;
        }
    }
    Ok(())
}

/// Exits with the status of the command.
pub(super) fn wait(args: &TaskWaitArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let TaskSequenceArgs { task, sequence } = &args.command;
    let (entry, _) = session::watch(printer, task.json, async |_, cancel| {
        engine.wait_task(&task.task_id, *sequence, &cancel).await
    })?;
    let reply = match task.json {
        true => Reply::document(&entry)?,
        false => Reply::nothing().note(ended(&task.task_id, &entry)),
    };
    let exit = match (entry.exit_code, entry.outcome) {
        (Some(code), Outcome::Exited | Outcome::Killed) => Exit::of_run(code, entry.timed_out),
        _ => Exit::Failure,
    };
    Ok(reply.of_command(exit, task.json))
}

pub(super) fn kill(args: &TaskKillArgs, engine: &Engine) -> Result<Reply, CliError> {
    let TaskSequenceArgs { task, sequence } = &args.command;
    let entry = session::block_on(engine.kill_task(&task.task_id, *sequence))?;
    Ok(Reply::of(task.json, &entry, killed)?)
}

/// The summary of a command that was waited for.
fn ended(id: &str, entry: &TaskLogEntry) -> String {
    format!(
        "[task-exec] task_id={id} sequence={} cwd={} execution_mode={} {}",
        entry.sequence,
        entry.cwd,
        entry.execution_mode,
        end(entry)
    )
}

/// The answer of `kill`.
fn killed(entry: &TaskLogEntry) -> String {
    let did = if entry.outcome == Outcome::Killed { "Killed" } else { "Not running" };
    format!("{did}: #{} {}\n", entry.sequence, end(entry))
}

/// The lines before the output of an entry.
fn heading(entry: &TaskLogEntry) -> String {
    format!("#{} {} cwd={}{}\n$ {}\n", entry.sequence, end(entry), entry.cwd, kept_part(entry), entry.command)
}

/// How a command ended, or its outcome if it has no exit code.
fn end(entry: &TaskLogEntry) -> String {
    let mut text = match (entry.exit_code, entry.duration_ms) {
        (Some(code), Some(duration)) => format!("exit_code={code} duration_ms={duration}"),
        _ => format!("outcome={}", entry.outcome),
    };
    if entry.outcome == Outcome::Killed {
        text.push_str(" outcome=killed");
    }
    if let Some(error) = &entry.error {
        text.push_str(&format!(" error={error:?}"));
    }
    text
}

/// How many bytes are missing from the kept output, if any.
fn kept_part(entry: &TaskLogEntry) -> String {
    let missing = [("stdout", entry.stdout_truncated), ("stderr", entry.stderr_truncated)];
    missing
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(stream, bytes)| format!(" {stream}_truncated={bytes}"))
        .collect()
}

#[cfg(test)]
mod tests;
