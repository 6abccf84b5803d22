//! `pyro task`: guests that stay.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::number::integer;

const TASK_EXAMPLES: &str = "\
Examples:
  ID=$(pyro task create debian:12 --json | jq -r .task_id)
  pyro task exec $ID -- git clone https://example.com/project.git
  pyro task exec $ID --cwd project --timeout-seconds 600 -- make
  pyro task logs $ID
  pyro task delete $ID";

/// Create guests that stay, with a persistent /workspace, and run commands in them
///
/// A task keeps its disk and the journal of its commands until it is deleted. The end of its lifetime only
/// stops its guest; `pyro task start` starts it again.
#[derive(Debug, Subcommand)]
#[command(after_help = TASK_EXAMPLES, arg_required_else_help = true)]
pub(crate) enum TaskCommand {
    Create(TaskCreateArgs),
    Exec(TaskExecArgs),
    Status(TaskStatusArgs),
    Logs(TaskLogsArgs),
    Wait(TaskWaitArgs),
    Kill(TaskKillArgs),
    Cp(TaskCpArgs),
    List(TaskListArgs),
    Extend(TaskExtendArgs),
    Stop(TaskStopArgs),
    Start(TaskStartArgs),
    Delete(TaskDeleteArgs),
}

impl TaskCommand {
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Create(args) => args.json,
            Self::Exec(args) => args.json,
            Self::Status(args) => args.task.json,
            Self::Logs(args) => args.task.json,
            Self::Wait(args) => args.command.task.json,
            Self::Kill(args) => args.command.task.json,
            Self::Cp(args) => args.json,
            Self::List(args) => args.json,
            Self::Extend(args) => args.task.json,
            Self::Stop(args) => args.task.json,
            Self::Start(args) => args.task.json,
            Self::Delete(args) => args.task.json,
        }
    }
}

/// The task a command is about.
#[derive(Debug, Args)]
pub(crate) struct TaskIdArgs {
    /// Id that `pyro task create` printed; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    pub(crate) task_id: String,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

/// The command of a task that this is about.
#[derive(Debug, Args)]
pub(crate) struct TaskSequenceArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
    /// Number of the command, as `pyro task exec` and `pyro task logs` tell it
    #[arg(long, value_name = "NUMBER")]
    pub(crate) sequence: u64,
}

const CREATE_EXAMPLES: &str = "\
Examples:
  pyro task create debian:12
  pyro task create debian:12-build --vcpu-count 2 --mem-mib 2048 --ttl-seconds 3600
  ID=$(pyro task create debian:12 --json | jq -r .task_id)";

/// Create a task and start it
///
/// Installs the environment first if it is missing. The task does not end with this command: any process
/// of this user can use it until it is deleted.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(crate) struct TaskCreateArgs {
    /// Name from the catalog, such as debian:12; `pyro env list` shows them all
    #[arg(value_name = "ENVIRONMENT")]
    pub(crate) environment: String,
    /// Virtual CPUs of the guest, 1 to 8
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) vcpu_count: i64,
    /// Memory of the guest in MiB, 256 to 32768
    #[arg(long, value_name = "MIB", default_value = "1024", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) mem_mib: i64,
    /// Lifetime in seconds after which the guest is stopped, 60 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) ttl_seconds: i64,
    /// Size of the disk in MiB, 256 to 1048576; space is taken as it is used [default: 8192, or what fits]
    #[arg(long, value_name = "MIB", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) disk_mib: Option<i64>,
    /// Give the guest outbound network access, and a hostile one all that you can reach [default: off]
    #[arg(long)]
    pub(crate) network: bool,
    /// Agree to run commands on this machine, without isolation, if VMs cannot run here [default: off]
    #[arg(long)]
    pub(crate) allow_host_compat: bool,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

const EXEC_EXAMPLES: &str = "\
The command goes to `/bin/sh -lc` in the guest, and a single word is passed as it is written, as in `pyro run`.
Whatever it leaves running in the background goes on. Its output is kept in the task's journal, at most 16 MiB
of each stream. Ctrl-C ends the command; if pyro itself is killed, the command goes on.

Exit status: as of `pyro run`.

Examples:
  pyro task exec 9775b3af1eeb -- git status
  pyro task exec 9775b3af1eeb --cwd project --env CI=1 -- 'make test 2>&1 | tail'
  pyro task exec 9775b3af1eeb --detach --timeout-seconds 3000 -- ./server";

/// Run one command in a task
///
/// The guest's stdout and stderr come out as they are written; a summary goes to stderr. The task stays as
/// it is, whatever the exit status.
#[derive(Debug, Args)]
#[command(after_help = EXEC_EXAMPLES, override_usage = "pyro task exec [OPTIONS] <TASK_ID> -- <COMMAND>...")]
pub(crate) struct TaskExecArgs {
    /// Id that `pyro task create` printed; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    pub(crate) task_id: String,
    /// Longest time the command may take, in seconds, at least 1
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) timeout_seconds: i64,
    /// Working directory, which must exist; below /workspace unless it is absolute [default: /workspace]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) cwd: Option<String>,
    /// Set a variable for the command; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Do not wait for the command: print its number and leave it running [default: off]
    #[arg(long)]
    pub(crate) detach: bool,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
    /// Command to run in the task, best written after `--`
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) words: Vec<OsString>,
}

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

const LOGS_EXAMPLES: &str = "\
Examples:
  pyro task logs 9775b3af1eeb
  pyro task logs 9775b3af1eeb --sequence 3
  pyro task logs 9775b3af1eeb --sequence 3 --follow";

/// Show the commands of a task and what they wrote
///
/// The journal is kept until the task is deleted. Output of a command that still runs is shown as far as it
/// has come.
#[derive(Debug, Args)]
#[command(after_help = LOGS_EXAMPLES)]
pub(crate) struct TaskLogsArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
    /// Show only the command with this number [default: all]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) sequence: Option<u64>,
    /// Show the output of one command while it runs, until it ends; without --sequence that of the latest
    /// [default: off]
    #[arg(long)]
    pub(crate) follow: bool,
}

const WAIT_EXAMPLES: &str = "\
Exit status: that of the command, as of `pyro run`; 1 if it is not known how it ended.

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
/// Its processes get SIGTERM and, a second later, SIGKILL. One that has ended already is no error.
#[derive(Debug, Args)]
#[command(after_help = KILL_EXAMPLES)]
pub(crate) struct TaskKillArgs {
    #[command(flatten)]
    pub(crate) command: TaskSequenceArgs,
}

const CP_EXAMPLES: &str = "\
One of the two is in a task and written TASK_ID:PATH; PATH is below /workspace unless it is absolute. If the
destination is a directory, the copy goes there under its own name. Files that are there already are replaced.
On this machine nothing but the copy is written: symbolic links that lead out of it are left out.

Examples:
  pyro task cp src 9775b3af1eeb:project
  pyro task cp 9775b3af1eeb:project/build/report.html .
  pyro task cp 9775b3af1eeb:/etc/os-release guest-release";

/// Copy files and directories into a task or out of it
#[derive(Debug, Args)]
#[command(after_help = CP_EXAMPLES)]
pub(crate) struct TaskCpArgs {
    /// What to copy, a file or a directory
    #[arg(value_name = "SOURCE")]
    pub(crate) source: PathBuf,
    /// Where to, a directory that exists or the name of the copy
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: PathBuf,
    /// Most that all files together may have, in MiB
    #[arg(long, value_name = "MIB", default_value = "8192", value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub(crate) max_mib: u64,
    /// Most files, directories and links
    #[arg(long, value_name = "COUNT", default_value = "1000000", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_entries: u64,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
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

/// Give a task another lifetime, which begins now
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
/// Commands that run are ended, everything is written out, then the guest is ended.
#[derive(Debug, Args)]
#[command(after_help = STOP_EXAMPLES)]
pub(crate) struct TaskStopArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
}

const START_EXAMPLES: &str = "\
Examples:
  pyro task start 9775b3af1eeb";

/// Start a stopped task again, with the disk it had
///
/// If its lifetime has ended, another one of the same length begins.
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

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("not of the form NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
