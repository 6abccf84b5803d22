//! `pyro task status`, `list`, `extend`, `stop`, `start` and `delete`: tasks as a whole.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use pyro_engine::{DiskState, Engine, Task, TaskFilter, TaskList, TtlFrom};

use super::ports::port;
use super::several;
use super::subject::{TaskIdArgs, TaskIdsArgs};
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
  pyro task list --label team=infra
  pyro task list -q
  pyro task list --json | jq -r '.tasks[] | select(.state == \"stopped\") | .task_id'";

/// List tasks, oldest first
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct TaskListArgs {
    /// List only tasks with this label, with any value or with VALUE; if repeated, with all of them
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Print only the ids, one per line [default: off]
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
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
  pyro task stop 9775b3af1eeb
  pyro task stop build test";

/// Stop tasks; their disks and journals are kept
///
/// Ends running commands, writes all data to disk, then ends the guest. Each of several tasks is tried. The exit status is that of
/// the worst failure. With --json, one task gives an object, and several give an array in their order.
#[derive(Debug, Args)]
#[command(after_help = STOP_EXAMPLES)]
pub(crate) struct TaskStopArgs {
    #[command(flatten)]
    pub(crate) tasks: TaskIdsArgs,
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
  pyro task delete 9775b3af1eeb
  pyro task delete $(pyro task list -q --label team=infra)";

/// Remove tasks with their disks and journals
///
/// Each of several tasks is tried. The exit status is that of the worst failure. With --json, one task gives an object, and
/// several give an array in their order.
#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub(crate) struct TaskDeleteArgs {
    #[command(flatten)]
    pub(crate) tasks: TaskIdsArgs,
}

pub(super) fn status(args: &TaskStatusArgs, engine: &Engine) -> Result<Reply, CliError> {
    let found = session::block_on(engine.status_task(&args.task.task_id))?;
    Ok(Reply::of(args.task.json, &found, task)?)
}

pub(super) fn list(args: &TaskListArgs, engine: &Engine) -> Result<Reply, CliError> {
    let filter = TaskFilter { labels: args.label.clone() };
    let list = session::block_on(engine.list_tasks(filter))?;
    Ok(Reply::of(args.json, &list, |list| if args.quiet { ids(list) } else { listed(list, now()) })?)
}

pub(super) fn extend(args: &TaskExtendArgs, engine: &Engine) -> Result<Reply, CliError> {
    let extended = session::block_on(engine.extend_task(&args.task.task_id, args.ttl_seconds))?;
    Ok(Reply::of(args.task.json, &extended, task)?)
}

pub(super) fn stop(args: &TaskStopArgs, engine: &Engine) -> Result<Reply, CliError> {
    several::each(&args.tasks, async |id: &str| engine.stop_task(id).await, task)
}

pub(super) fn start(args: &TaskStartArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let TaskIdArgs { task_id, json } = &args.task;
    let (started, _) = session::watch(printer, *json, async |events, cancel| {
        engine.start_task(task_id, &events, &cancel).await
    })?;
    Ok(Reply::of(*json, &started, task)?)
}

pub(super) fn delete(args: &TaskDeleteArgs, engine: &Engine) -> Result<Reply, CliError> {
    several::each(
        &args.tasks,
        async |id: &str| engine.delete_task(id).await,
        |deleted| format!("Deleted task: {}\n", deleted.task_id),
    )
}

/// The text for every command that returns a task. The contract's lines come first.
pub(super) fn task(task: &Task) -> String {
    shown(task, now())
}

pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn shown(task: &Task, now: f64) -> String {
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
    if let Some(state @ (DiskState::Missing | DiskState::Damaged)) = task.disk_state {
        lines.push(format!("Disk state: {state}"));
    }
    if let Some(disk_mib) = task.disk_mib {
        lines.push(format!("Disk: {} MiB used of {disk_mib} MiB", mib(task.disk_used_bytes)));
    }
    if let Some(name) = &task.name {
        lines.push(format!("Name: {name}"));
    }
    if !task.labels.is_empty() {
        let labels: Vec<String> = task.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        lines.push(format!("Labels: {}", labels.join(", ")));
    }
    if task.stop_reason.is_none() {
        let renewed = if task.ttl_from == TtlFrom::Use { ", renewed by each use" } else { "" };
        lines.push(format!("Time left: {}{renewed}", duration(task.expires_at - now)));
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
    if !task.services.is_empty() {
        let services: Vec<String> =
            task.services.iter().map(|service| format!("{} ({})", service.name, service.state)).collect();
        lines.push(format!("Services: {}", services.join(", ")));
    }
    lines.extend(mounts(task).map(|mount| format!("Mounted: {mount}")));
    let more = task.network_denials.len().saturating_sub(SHOWN_DENIALS);
    lines.extend(
        task.network_denials.iter().skip(more).map(|refused| format!("Network: {}", denial(refused))),
    );
    lines.join("\n") + "\n"
}

/// What the task has mounted, and what became of it.
pub(super) fn mounts(task: &Task) -> impl Iterator<Item = String> {
    task.mounts.iter().map(|mount| match task.lost_mounts.contains(&mount.guest) {
        true => format!("{mount} (lost: unmount it, then mount it again)"),
        false => mount.to_string(),
    })
}

/// The ids alone, for other commands.
fn ids(list: &TaskList) -> String {
    let ids = list.tasks.iter().map(|task| &task.task_id).chain(&list.damaged_task_ids);
    ids.map(|id| format!("{id}\n")).collect()
}

/// Maximum width of a name in a list, so that a line fits 80 columns.
const NAME_COLUMNS: usize = 16;

/// A table of at most 80 columns, or more if tasks have owners. What is wrong with a disk is in a line of its own.
fn listed(list: &TaskList, now: f64) -> String {
    if list.count == 0 {
        return "No tasks found.\n".to_owned();
    }
    let has_owners = list.tasks.iter().any(|task| task.owner.is_some());
    let header = ["TASK ID", "STATE", "ENVIRONMENT", "AGE", "LEFT", "RAN", "NAME"].map(str::to_owned);
    let mut rows = vec![with_owner(header, has_owners.then(|| "OWNER".to_owned()))];
    rows.extend(list.tasks.iter().map(|task| {
        let left = match task.stop_reason {
            Some(_) => "-".to_owned(),
            None => duration(task.expires_at - now),
        };
        let cells = [
            task.task_id.to_string(),
            task.state.to_string(),
            cut(&task.environment, 15),
            duration(now - task.created_at),
            left,
            task.command_count.to_string(),
            task.name.as_deref().map_or("-".to_owned(), |name| cut(name, NAME_COLUMNS)),
        ];
        with_owner(cells, has_owners.then(|| task.owner.clone().unwrap_or_else(|| "-".to_owned())))
    }));
    let mut text = table(&rows);
    for task in &list.tasks {
        if let Some(state @ (DiskState::Missing | DiskState::Damaged)) = task.disk_state {
            text.push_str(&format!("{}: its disk is {state}\n", task.task_id));
        }
    }
    for id in &list.damaged_task_ids {
        text.push_str(&format!("{id} damaged\n"));
    }
    text
}

fn with_owner(cells: [String; 7], owner: Option<String>) -> Vec<String> {
    cells.into_iter().chain(owner).collect()
}

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// `text`, with its end replaced by an ellipsis if it is longer than `columns`.
pub(super) fn cut(text: &str, columns: usize) -> String {
    match text.chars().count() > columns {
        true => text.chars().take(columns.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

pub(super) fn one_line(text: &str) -> String {
    text.replace('\n', "\\n")
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// `1h 2m`, `3m 4s`, `5s`.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, _) => format!("{h}h{m}m"),
    }
}

#[cfg(test)]
mod tests;
