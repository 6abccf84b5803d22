//! `pyro task exec`.

use std::ffi::OsString;

use clap::Args;
use pyro_engine::operations::ExecTask;
use pyro_engine::{Command, Engine, OutputMode, TaskExec};

use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session;
use crate::words::{self, integer};

const EXEC_EXAMPLES: &str = "\
The command is run by `/bin/sh -lc` in the guest, and a single word is passed unchanged, as in `pyro run`. \
Its background processes keep running. Its output is kept in the task's journal, at most 16 MiB of each \
stream. Ctrl-C ends the command; if pyro itself is killed, the command keeps running.

Exit status: as for `pyro run`.

Examples:
  pyro task exec 9775b3af1eeb -- git status
  pyro task exec 9775b3af1eeb --cwd project --env CI=1 -- 'make test 2>&1 | tail'
  pyro task exec 9775b3af1eeb --detach --timeout-seconds 3000 -- ./server";

/// Run one command in a task
///
/// Streams the guest's stdout and stderr, and prints a summary on stderr. The exit status does not affect the task.
#[derive(Debug, Args)]
#[command(after_help = EXEC_EXAMPLES, override_usage = "pyro task exec [OPTIONS] <TASK_ID> -- <COMMAND>...")]
pub(crate) struct TaskExecArgs {
    /// Id that `pyro task create` printed; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    pub(crate) task_id: String,
    /// Time limit for the command, in seconds, at least 1
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) timeout_seconds: i64,
    /// Working directory, which must exist; relative to /workspace unless it is absolute [default: /workspace]
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

fn variable(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn run(args: TaskExecArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let command = Command {
        command: words::join(&args.words)?,
        timeout_seconds: args.timeout_seconds,
        cwd: args.cwd,
        env: args.env.into_iter().collect(),
    };
    let id = &args.task_id;
    if args.detach {
        let detached = session::block_on(engine.detach_task(id, command))?;
        return Ok(Reply::of(args.json, &detached, |detached| format!("Sequence: {}\n", detached.sequence))?);
    }
    // Text output is streamed; a JSON document holds it after the end.
    let output = if args.json { OutputMode::Capture } else { OutputMode::Stream };
    let request = ExecTask { task: id.as_str().into(), command, output: output.into() };
    let (result, shown) = session::watch(printer, args.json, async |events, cancel| {
        engine.exec_task(request, &events, &cancel).await
    })?;
    let reply = if args.json {
        Reply::document(&result)?
    } else {
        shown.end_line(printer);
        Reply::nothing().note(summary(&result))
    };
    let exit = Exit::of_run(result.exit_code, result.timed_out);
    let advice = exit.advice().filter(|_| !args.json);
    Ok(advice.into_iter().fold(reply, Reply::note).exit(exit))
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
