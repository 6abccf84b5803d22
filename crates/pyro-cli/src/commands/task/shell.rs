//! `pyro task shell` and `pyro task stdin`: commands that a person or a program types into.

mod detached;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};

use clap::Args;
use pyro_engine::operations::ExecTask;
use pyro_engine::{CallContext, Engine, OutputMode};

pub(crate) use self::detached::ShellCommand;
use super::subject::TaskSequenceArgs;
use crate::commands::command::{CommandArgs, OptionsError};
use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session::{self, Interaction};
use crate::stdin::Passed;

const SHELL_EXAMPLES: &str = "\
The same as `pyro task exec -it`: a login shell, or a command, on a terminal in the guest. Ctrl-C goes to the \
guest. If the terminal is closed, a login shell is ended; a command keeps running. Unless a time limit is given, \
only the task's lifetime ends it.

A shell that is opened with `pyro task shell open` stays open without a terminal, and can be attached to. A task \
that has the name of a subcommand, such as `list`, is given by its id.

Examples:
  pyro task shell 9775b3af1eeb
  pyro task shell 9775b3af1eeb --user agent -- vi notes.txt
  pyro task shell open 9775b3af1eeb
  pyro task shell attach 9775b3af1eeb 1";

/// Start a shell in a task, on this terminal
///
/// The exit status is that of the shell. Subcommands deal with shells that stay open without a terminal.
#[derive(Debug, Args)]
#[command(
    after_help = SHELL_EXAMPLES,
    override_usage = "pyro task shell [OPTIONS] <TASK_ID> [-- <COMMAND>...]\n       pyro task shell <SUBCOMMAND>",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    subcommand_help_heading = "Subcommands",
    subcommand_value_name = "SUBCOMMAND"
)]
pub(crate) struct TaskShellArgs {
    #[command(subcommand)]
    pub(crate) detached: Option<ShellCommand>,
    /// Id that `pyro task create` printed; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID", required = true)]
    pub(crate) task_id: Option<String>,
    #[command(flatten)]
    pub(crate) command: CommandArgs,
    /// Conflicts of the options of commands refer to it
    #[arg(long, hide = true)]
    pub(crate) json: bool,
    /// Command to run instead of a login shell, best written after `--`
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) words: Vec<OsString>,
}

pub(super) fn shell(args: TaskShellArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    if let Some(command) = args.detached {
        return command.run(engine, printer);
    }
    if !io::stdin().is_terminal() {
        return Err(OptionsError::ShellNeedsTerminal.into());
    }
    let options = CommandArgs { interactive: true, tty: true, ..args.command };
    // The grammar requires it here.
    let id = &args.task_id.unwrap_or_default();
    let command = options.command(&args.words)?;
    let request = ExecTask { task: id.as_str().into(), command, output: OutputMode::Stream.into() };
    let interaction = options.interaction(false);
    let (result, _) = session::interact(printer, interaction, Some(id), async |call| {
        engine.exec_task(request, &call).await
    })?;
    Ok(Reply::nothing().exit(Exit::of_run(result.exit_code, result.timed_out)))
}

const STDIN_EXAMPLES: &str = "\
The command's input ends with this one. If this is interrupted, it stays open, and another `pyro task stdin` can \
continue it. The exit status is 1 if the command did not take all of it.

Examples:
  pyro task exec 9775b3af1eeb --detach -i -- 'sort > sorted'
  pyro task stdin 9775b3af1eeb --sequence 1 < names";

/// Pass standard input on to a command that was started with `pyro task exec --detach -i`
#[derive(Debug, Args)]
#[command(after_help = STDIN_EXAMPLES)]
pub(crate) struct TaskStdinArgs {
    #[command(flatten)]
    pub(crate) command: TaskSequenceArgs,
}

pub(super) fn stdin(args: &TaskStdinArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let TaskSequenceArgs { task, sequence } = &args.command;
    let passed = Passed { input: true, ..Passed::default() };
    let interaction = Interaction { quiet: true, passed, ..Interaction::default() };
    let (sent, _) = session::interact(printer, interaction, None, async |call: CallContext| {
        engine.input_task(&task.task_id, *sequence, &call).await
    })?;
    let reply = Reply::of(task.json, &sent, |_| String::new())?;
    Ok(match sent.complete {
        true => reply,
        false if task.json => reply.exit(Exit::Failure),
        false => {
            reply.exit(Exit::Failure).note(format!("[task-stdin] command {sequence} takes no more input"))
        }
    })
}
