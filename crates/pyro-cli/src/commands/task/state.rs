//! `pyro task status`, `list`, `extend`, `stop`, `start` and `delete`: tasks as a whole.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use pyro_engine::{Engine, Task, TaskFilter, TaskList};

use super::ports::port;
use super::subject::TaskIdArgs;
use crate::commands::network::denial;
use crate::error::CliError;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session;
use crate::words::integer;

/// Maximum number of denials that the state of a task shows, the latest ones; `--json` has all.
const SHOWN_DENIALS: usize = 10;

const STATUS_EXAMPLES: &str = "\
Examples:
  pyro task status 9775b3af1eeb
  pyro task status 9775b3af1eeb --json | jq .state";

/// Show a task
#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub(crate) struct TaskStatusArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
}

const LIST_EXAMPLES: &str = "\
Examples:
  pyro task list
  pyro task list --json | jq -r '.tasks[] | select(.state == \"stopped\") | .task_id'";

/// List all tasks
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct TaskListArgs {
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

const EXTEND_EXAMPLES: &str = "\
Examples:
  pyro task extend 9775b3af1eeb --ttl-seconds 3600";

/// Start a new lifetime of a task now
#[derive(Debug, Args)]
#[command(after_help = EXTEND_EXAMPLES)]
pub(crate) struct TaskExtendArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
    /// Lifetime in seconds from now, 60 to 3600
    #[arg(long, value_name = "SECONDS", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) ttl_seconds: i64,
}

const STOP_EXAMPLES: &str = "\
Examples:
  pyro task stop 9775b3af1eeb";

/// Stop a task; its disk and its journal are kept
///
/// Ends running commands, writes all data to disk, then ends the guest.
#[derive(Debug, Args)]
#[command(after_help = STOP_EXAMPLES)]
pub(crate) struct TaskStopArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
}

const START_EXAMPLES: &str = "\
Examples:
  pyro task start 9775b3af1eeb";

/// Start a stopped task again with its disk
///
/// If its lifetime has ended, a new one of the same length begins.
#[derive(Debug, Args)]
#[command(after_help = START_EXAMPLES)]
pub(crate) struct TaskStartArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
}

const DELETE_EXAMPLES: &str = "\
Examples:
  pyro task delete 9775b3af1eeb";

/// Remove a task with its disk and its journal
#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub(crate) struct TaskDeleteArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
}

pub(super) fn status(args: &TaskStatusArgs, engine: &Engine) -> Result<Reply, CliError> {
    let found = session::block_on(engine.status_task(&args.task.task_id))?;
    Ok(Reply::of(args.task.json, &found, task)?)
}

pub(super) fn list(args: &TaskListArgs, engine: &Engine) -> Result<Reply, CliError> {
    let list = session::block_on(engine.list_tasks(TaskFilter::default()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Ok(Reply::of(args.json, &list, |list| listed(list, now))?)
}

pub(super) fn extend(args: &TaskExtendArgs, engine: &Engine) -> Result<Reply, CliError> {
    let extended = session::block_on(engine.extend_task(&args.task.task_id, args.ttl_seconds))?;
    Ok(Reply::of(args.task.json, &extended, task)?)
}

pub(super) fn stop(args: &TaskStopArgs, engine: &Engine) -> Result<Reply, CliError> {
    let stopped = session::block_on(engine.stop_task(&args.task.task_id))?;
    Ok(Reply::of(args.task.json, &stopped, task)?)
}

pub(super) fn start(args: &TaskStartArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let TaskIdArgs { task_id, json } = &args.task;
    let (started, _) = session::watch(printer, *json, async |events, cancel| {
        engine.start_task(task_id, &events, &cancel).await
    })?;
    Ok(Reply::of(*json, &started, task)?)
}

pub(super) fn delete(args: &TaskDeleteArgs, engine: &Engine) -> Result<Reply, CliError> {
    let deleted = session::block_on(engine.delete_task(&args.task.task_id))?;
    Ok(Reply::of(args.task.json, &deleted, |deleted| format!("Deleted task: {}\n", deleted.task_id))?)
}

/// The text for every command that returns a task. The contract's lines come first.
pub(super) fn task(task: &Task) -> String {
    let mut lines = vec![
        format!("Task ID: {}", task.task_id),
        format!("Environment: {}", task.environment),
        format!("State: {}", task.state),
        format!("Workspace: {}", task.workspace_path),
        format!("Execution mode: {}", task.execution_mode),
        format!("Resources: {} vCPU / {} MiB", task.vcpu_count, task.mem_mib),
        format!("Command count: {}", task.command_count),
    ];
    if let Some(last) = &task.last_command {
        lines.push(format!("Last command: {} (exit_code={})", one_line(&last.command), last.exit_code));
    }
    if let Some(disk_mib) = task.disk_mib {
        lines.push(format!("Disk: {} MiB used of {disk_mib} MiB", mib(task.disk_used_bytes)));
    }
    if let Some(owner) = &task.owner {
        lines.push(format!("Owner: {owner}"));
    }
    if let Some(reason) = task.stop_reason {
        lines.push(format!("Stop reason: {reason}"));
    }
    if let Some(error) = &task.last_error {
        lines.push(format!("Last error: {}", error.trim_end().replace('\n', "\n    ")));
    }
    lines.extend(task.published_ports.iter().map(|published| format!("Published: {}", port(published))));
    let more = task.network_denials.len().saturating_sub(SHOWN_DENIALS);
    lines.extend(
        task.network_denials.iter().skip(more).map(|refused| format!("Network: {}", denial(refused))),
    );
    lines.join("\n") + "\n"
}

/// One line per task: id, state, environment, age, time left, number of commands, and the owner, if it has one.
fn listed(list: &TaskList, now: f64) -> String {
    if list.count == 0 {
        return "No tasks found.\n".to_owned();
    }
    let row = |task: &Task| {
        let left = if task.stop_reason.is_some() { "-".to_owned() } else { duration(task.expires_at - now) };
        let owner = task.owner.as_ref().map(|owner| format!(" owner={owner}")).unwrap_or_default();
        format!(
            "{} {:<8} {:<16} age={} left={left} commands={}{owner}\n",
            task.task_id,
            task.state,
            task.environment,
            duration(now - task.created_at),
            task.command_count
        )
    };
    let mut text: String = list.tasks.iter().map(row).collect();
    for id in &list.damaged_task_ids {
        text.push_str(&format!("{id} damaged\n"));
    }
    text
}

fn one_line(text: &str) -> String {
    text.replace('\n', "\\n")
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// `1h 2m`, `3m 4s`, `5s`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, _) => format!("{h}h{m}m"),
    }
}

#[cfg(test)]
mod tests;
