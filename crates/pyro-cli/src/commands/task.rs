//! `pyro task`: persistent VMs.

pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod file;
pub(crate) mod journal;
pub(crate) mod mounts;
pub(crate) mod naming;
pub(crate) mod ports;
pub(crate) mod service;
mod several;
pub(crate) mod shell;
pub(crate) mod state;
mod subject;

use clap::Subcommand;
use pyro_engine::Engine;

use self::cp::TaskCpArgs;
use self::create::TaskCreateArgs;
use self::exec::TaskExecArgs;
use self::file::TaskFileCommand;
use self::journal::{TaskKillArgs, TaskLogsArgs, TaskWaitArgs};
use self::mounts::{TaskMountArgs, TaskUnmountArgs};
use self::naming::TaskUpdateArgs;
use self::ports::{TaskPublishArgs, TaskUnpublishArgs};
use self::service::ServiceSubcommand;
use self::shell::{ShellCommand, TaskShellArgs, TaskStdinArgs};
use self::state::{
    TaskDeleteArgs, TaskExtendArgs, TaskListArgs, TaskStartArgs, TaskStatusArgs, TaskStopArgs,
};
use crate::config;
use crate::error::CliError;
use crate::printer::Printer;
use crate::reply::Reply;

const TASK_EXAMPLES: &str = "\
Examples:
  ID=$(pyro task create debian:12 --json | jq -r .task_id)
  pyro task exec $ID -- git clone https://example.com/project.git
  pyro task exec $ID --cwd project --timeout-seconds 300 -- make
  pyro task logs $ID
  pyro task delete $ID

A task can be given by its id, by its name, or by the first digits of its id, at least 3.";

/// Create persistent guests with a /workspace, and run commands in them
///
/// A task keeps its disk and the journal of its commands until it is deleted. The end of its lifetime only
/// stops its guest; `pyro task start` starts it again.
#[derive(Debug, Subcommand)]
#[command(after_help = TASK_EXAMPLES, arg_required_else_help = true)]
pub(crate) enum TaskCommand {
    Create(TaskCreateArgs),
    Exec(TaskExecArgs),
    Shell(TaskShellArgs),
    Stdin(TaskStdinArgs),
    Status(TaskStatusArgs),
    Logs(TaskLogsArgs),
    Wait(TaskWaitArgs),
    Kill(TaskKillArgs),
    Cp(TaskCpArgs),
    #[command(subcommand)]
    File(TaskFileCommand),
    Publish(TaskPublishArgs),
    Unpublish(TaskUnpublishArgs),
    #[command(subcommand)]
    Service(ServiceSubcommand),
    Mount(TaskMountArgs),
    Unmount(TaskUnmountArgs),
    #[command(visible_alias = "ps")]
    List(TaskListArgs),
    Extend(TaskExtendArgs),
    Update(TaskUpdateArgs),
    Stop(TaskStopArgs),
    Start(TaskStartArgs),
    #[command(visible_alias = "rm")]
    Delete(TaskDeleteArgs),
}

impl TaskCommand {
    pub(crate) fn run(self, printer: &Printer) -> Result<Reply, CliError> {
        let mut config = config::of_process()?;
        if let Self::Create(args) = &self {
            args.confinement.apply(&mut config);
        }
        let engine = &Engine::new(config);
        match self {
            Self::Create(args) => create::run(args, engine, printer),
            Self::Exec(args) => exec::run(args, engine, printer),
            Self::Shell(args) => shell::shell(args, engine, printer),
            Self::Stdin(args) => shell::stdin(&args, engine, printer),
            Self::Status(args) => state::status(&args, engine),
            Self::Logs(args) => journal::logs(&args, engine, printer),
            Self::Wait(args) => journal::wait(&args, engine, printer),
            Self::Kill(args) => journal::kill(&args, engine),
            Self::Cp(args) => cp::run(&args, engine, printer),
            Self::File(command) => command.run(engine, printer),
            Self::Publish(args) => ports::publish(args, engine, printer),
            Self::Unpublish(args) => ports::unpublish(&args, engine),
            Self::Service(command) => command.run(engine, printer),
            Self::Mount(args) => mounts::mount(args, engine),
            Self::Unmount(args) => mounts::unmount(&args, engine),
            Self::List(args) => state::list(&args, engine),
            Self::Extend(args) => state::extend(&args, engine),
            Self::Update(args) => naming::update(args, engine),
            Self::Stop(args) => state::stop(&args, engine),
            Self::Start(args) => state::start(&args, engine, printer),
            Self::Delete(args) => state::delete(&args, engine),
        }
    }

    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Create(args) => args.json,
            Self::Exec(args) => args.json,
            Self::Shell(args) => args.detached.as_ref().is_some_and(ShellCommand::wants_json),
            Self::Stdin(args) => args.command.task.json,
            Self::Status(args) => args.task.json,
            Self::Logs(args) => args.task.json,
            Self::Wait(args) => args.command.task.json,
            Self::Kill(args) => args.command.task.json,
            Self::Cp(args) => args.json,
            Self::File(command) => command.wants_json(),
            Self::Publish(args) => args.json,
            Self::Unpublish(args) => args.json,
            Self::Service(command) => command.wants_json(),
            Self::Mount(args) => args.json,
            Self::Unmount(args) => args.json,
            Self::List(args) => args.json,
            Self::Extend(args) => args.task.json,
            Self::Update(args) => args.task.json,
            Self::Stop(args) => args.tasks.json,
            Self::Start(args) => args.task.json,
            Self::Delete(args) => args.tasks.json,
        }
    }
}
