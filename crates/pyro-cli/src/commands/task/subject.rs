//! Arguments that name a task or a command of it.

use clap::Args;

/// A task.
#[derive(Debug, Args)]
pub(crate) struct TaskIdArgs {
    /// Id or name of the task, or the first digits of its id; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    pub(crate) task_id: String,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

/// One task or several.
#[derive(Debug, Args)]
pub(crate) struct TaskIdsArgs {
    /// Ids or names of tasks, or the first digits of their ids; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID", required = true)]
    pub(crate) task_ids: Vec<String>,
    /// Print one JSON document on stdout instead of text: an array if there are several tasks [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

/// A command of a task.
#[derive(Debug, Args)]
pub(crate) struct TaskSequenceArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
    /// Number of the command, as `pyro task exec` and `pyro task logs` print it
    #[arg(long, value_name = "NUMBER")]
    pub(crate) sequence: u64,
}
