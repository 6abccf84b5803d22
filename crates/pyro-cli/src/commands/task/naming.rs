//! Names and labels of tasks, as arguments, and `pyro task update`.

use clap::{Args, ValueEnum};
use pyro_engine::{Engine, Naming, TaskChanges, TtlFrom};

use super::state;
use super::subject::TaskIdArgs;
use crate::error::CliError;
use crate::reply::Reply;
use crate::session;

/// Name and labels of a new task.
#[derive(Debug, Args)]
pub(crate) struct NamingArgs {
    /// Name for the task, usable wherever its id is; no other task of the same owner may have it
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Label the task, for `pyro task list --label`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
}

impl NamingArgs {
    pub(super) fn naming(self) -> Naming {
        Naming { name: self.name, labels: self.label.into_iter().collect() }
    }
}

/// When a lifetime of a task begins.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TtlFromArg {
    /// When the task is created or extended
    Create,
    /// Also with each use of the task, such as a command or a copy
    Use,
}

impl From<TtlFromArg> for TtlFrom {
    fn from(when: TtlFromArg) -> Self {
        match when {
            TtlFromArg::Create => Self::Create,
            TtlFromArg::Use => Self::Use,
        }
    }
}

const UPDATE_EXAMPLES: &str = "\
Examples:
  pyro task update 9775b3af1eeb --name build
  pyro task update build --label team=infra --remove-label ci
  pyro task update build --no-name --ttl-from use";

/// What to change, at least one thing.
#[derive(Debug, Args)]
#[group(id = "change", required = true, multiple = true)]
pub(crate) struct TaskChangeArgs {
    /// New name of the task
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Take the name away [default: off]
    #[arg(long, conflicts_with = "name")]
    pub(crate) no_name: bool,
    /// Add a label, or replace its value; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
    /// Remove the label with this key; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) remove_label: Vec<String>,
    /// When a lifetime begins from now on
    #[arg(long, value_name = "WHEN", value_enum)]
    pub(crate) ttl_from: Option<TtlFromArg>,
}

/// Change the name, the labels, or the renewal of a task
///
/// Works in every state of the task, and does not disturb what runs in it.
#[derive(Debug, Args)]
#[command(after_help = UPDATE_EXAMPLES)]
pub(crate) struct TaskUpdateArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
    #[command(flatten)]
    pub(crate) changes: TaskChangeArgs,
}

pub(super) fn update(args: TaskUpdateArgs, engine: &Engine) -> Result<Reply, CliError> {
    let TaskUpdateArgs { task, changes } = args;
    let changes = TaskChanges {
        name: if changes.no_name { Some(String::new()) } else { changes.name },
        labels: changes.label.into_iter().collect(),
        remove_labels: changes.remove_label,
        ttl_from: changes.ttl_from.map(Into::into),
    };
    let updated = session::block_on(engine.update_task(&task.task_id, changes))?;
    Ok(Reply::of(task.json, &updated, state::task)?)
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
