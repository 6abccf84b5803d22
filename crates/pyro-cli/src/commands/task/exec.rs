//! `pyro task exec`.

use std::ffi::OsString;

use clap::Args;
use pyro_engine::operations::{DetachTask, ExecTask};
use pyro_engine::{Engine, Lasting, OutputMode, TaskExec};

use crate::commands::command::CommandArgs;
use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session;

const EXEC_EXAMPLES: &str = "\
The command is run as by `pyro run`. What it leaves running in the background (`&`) goes on after it has \
ended; a command that is ended, by Ctrl-C, its time limit or `pyro task kill`, is ended with everything that \
it started. Its output is kept in the task's journal, at most 16 MiB of each stream. If the terminal is closed \
or pyro itself is killed, the command keeps running.

Standard input is only read with -i. A detached command that was started with -i gets its input from \
`pyro task stdin`.

Exit status: as for `pyro run`.

Examples:
  pyro task exec 9775b3af1eeb -- git status
  pyro task exec 9775b3af1eeb --cwd project --env CI=1 -- 'make test 2>&1 | tail'
  tar c . | pyro task exec -i 9775b3af1eeb -- tar x
  pyro task exec 9775b3af1eeb --detach --timeout-seconds 500 -- ./server";

/// Run one command in a task
///
/// Streams the guest's stdout and stderr, and prints a summary on stderr. The exit status does not affect the task.
#[derive(Debug, Args)]
#[command(after_help = EXEC_EXAMPLES, override_usage = "pyro task exec [OPTIONS] <TASK_ID> -- <COMMAND>...")]
pub(crate) struct TaskExecArgs {
    /// Id or name of the task, or the first digits of its id; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    pub(crate) task_id: String,
    #[command(flatten)]
    pub(crate) command: CommandArgs,
    /// Do not wait for the command: print its number and leave it running [default: off]
    #[arg(long, conflicts_with = "tty")]
    pub(crate) detach: bool,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
    /// Command to run in the task, best written after `--`
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) words: Vec<OsString>,
}

pub(super) fn run(args: TaskExecArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let command = args.command.command(&args.words)?;
    let id = &args.task_id;
    args.command.note_ignored_input(args.json, printer);
    let (task, lasting) = (id.as_str().into(), Lasting::default());
    if args.detach {
        let request = DetachTask { task, command, lasting };
        let detached = session::block_on(engine.detach_task(request))?;
        args.command.note_unsent_input(id, detached.sequence, args.json, printer);
        return Ok(Reply::of(args.json, &detached, |detached| format!("Sequence: {}\n", detached.sequence))?);
    }
    // Text output is streamed; a JSON document holds it after the end.
    let output = if args.json { OutputMode::Capture } else { OutputMode::Stream };
    let request = ExecTask { task, command, lasting, output: output.into() };
    let interaction = args.command.interaction(args.json);
    let (result, shown) = session::interact(printer, interaction, Some(id), async |call| {
        engine.exec_task(request, &call).await
    })?;
    let reply = if args.json {
        Reply::document(&result)?
    } else if args.command.tty {
        Reply::nothing()
    } else {
        shown.end_line(printer);
        Reply::nothing().note(summary(&result))
    };
    let exit = Exit::of_run(result.exit_code, result.timed_out);
    Ok(reply.of_command(exit, args.json))
}

fn summary(result: &TaskExec) -> String {
    format!(
        "[task-exec] task_id={} sequence={} cwd={} execution_mode={} exit_code={} duration_ms={}",
        result.task_id,
        result.sequence,
        result.cwd,
        result.execution_mode,
        result.exit_code,
        result.duration_ms
    )
}
