//! `pyro task mount` and `unmount`: directories of this host in a task.

use clap::Args;
use pyro_engine::{DirectoryMount, Engine, Task};

use super::state::mounts;
use crate::commands::mounts::absolute;
use crate::error::CliError;
use crate::reply::Reply;
use crate::session;

const MOUNT_EXAMPLES: &str = "\
Examples:
  pyro task mount 9775b3af1eeb .:/workspace/project
  pyro task mount 9775b3af1eeb ~/src/project:/workspace/project:rw
  pyro task mount 9775b3af1eeb";

/// Mount a directory of this host in a running task, or list those that are mounted
///
/// Changes on this host are seen in the task within a second, and the reverse at once. Every user of the guest has the same
/// rights in it: with `:rw`, those of the user who runs pyro. A stopped task gets its mounts back when it starts.
#[derive(Debug, Args)]
#[command(after_help = MOUNT_EXAMPLES)]
pub(crate) struct TaskMountArgs {
    /// Id or name of the task, or the first digits of its id; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    pub(crate) task_id: String,
    /// The directory, and where the guest has it; read-only unless `:rw` follows [default: list the mounts]
    #[arg(value_name = "HOST:GUEST[:ro|:rw]")]
    pub(crate) mount: Option<DirectoryMount>,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

const UNMOUNT_EXAMPLES: &str = "\
Examples:
  pyro task unmount 9775b3af1eeb /workspace/project";

/// Unmount a directory of this host from a task
///
/// What the guest has written is on this host when the command returns. Processes in the guest that still use the
/// directory get errors.
#[derive(Debug, Args)]
#[command(after_help = UNMOUNT_EXAMPLES)]
pub(crate) struct TaskUnmountArgs {
    /// Id or name of the task, or the first digits of its id; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    pub(crate) task_id: String,
    /// Where the guest has the directory
    #[arg(value_name = "GUEST")]
    pub(crate) guest: String,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) fn mount(args: TaskMountArgs, engine: &Engine) -> Result<Reply, CliError> {
    let TaskMountArgs { task_id, mount, json } = args;
    let Some(mount) = mount else {
        let task = session::block_on(engine.status_task(&task_id))?;
        return Ok(Reply::of(json, &task.mounts, |_| listed(&task))?);
    };
    let mount = absolute(mount)?;
    let guest = mount.guest.clone();
    let task = session::block_on(engine.mount_task(&task_id, mount))?;
    Ok(Reply::of(json, &task, |task| {
        task.mounts
            .iter()
            .filter(|mount| mount.guest == guest)
            .map(|mount| format!("Mounted: {mount}\n"))
            .collect()
    })?)
}

pub(super) fn unmount(args: &TaskUnmountArgs, engine: &Engine) -> Result<Reply, CliError> {
    let task = session::block_on(engine.unmount_task(&args.task_id, &args.guest))?;
    Ok(Reply::of(args.json, &task, |_| format!("Unmounted: {}\n", args.guest))?)
}

fn listed(task: &Task) -> String {
    match task.mounts.is_empty() {
        true => "No directories mounted.\n".to_owned(),
        false => mounts(task).map(|mount| format!("{mount}\n")).collect(),
    }
}
