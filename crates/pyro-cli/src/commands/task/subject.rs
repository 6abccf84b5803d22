//! What a command of `pyro task` is about, as several of them name it.

use clap::Args;

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
