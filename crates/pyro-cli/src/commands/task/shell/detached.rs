//! The subcommands of `pyro task shell`: shells that stay open without a terminal.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};

use clap::{Args, Subcommand, ValueEnum};
use pyro_engine::operations::{
    AttachTaskShell, CloseTaskShell, OpenTaskShell, ReadTaskShell, SignalTaskShell, WriteTaskShell,
};
use pyro_engine::{
    Engine, ShellCommand as NewShell, ShellFormat, ShellName, ShellRead, ShellSignal, ShellText, TaskShell,
    TaskShellOutput, TaskShells, TerminalSize,
};
use tokio_util::sync::CancellationToken;

use crate::commands::command::{OptionsError, Variable, variable, variables};
use crate::commands::task::subject::TaskIdArgs;
use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session::{self, Interaction};
use crate::stdin::Passed;
use crate::terminal;
use crate::words;

#[derive(Debug, Subcommand)]
pub(crate) enum ShellCommand {
    Open(ShellOpenArgs),
    List(ShellListArgs),
    Attach(ShellAttachArgs),
    Read(ShellReadArgs),
    Write(ShellWriteArgs),
    Signal(ShellSignalArgs),
    Close(ShellCloseArgs),
}

impl ShellCommand {
    pub(super) fn run(self, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
        match self {
            Self::Open(args) => open(args, engine),
            Self::List(args) => list(&args, engine),
            Self::Attach(args) => attach(&args, engine, printer),
            Self::Read(args) => read(&args, engine, printer),
            Self::Write(args) => write(args, engine, printer),
            Self::Signal(args) => signal(args, engine),
            Self::Close(args) => close(&args, engine),
        }
    }

    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Open(args) => args.json,
            Self::List(args) => args.task.json,
            Self::Attach(_) => false,
            Self::Read(args) => args.shell.task.json,
            Self::Write(args) => args.shell.task.json,
            Self::Signal(args) => args.shell.task.json,
            Self::Close(args) => args.shell.task.json,
        }
    }
}

/// A shell of a task.
#[derive(Debug, Args)]
pub(crate) struct ShellIdArgs {
    #[command(flatten)]
    task: TaskIdArgs,
    /// Number of the shell, as `pyro task shell open` and `list` print it
    #[arg(value_name = "SHELL")]
    shell: u64,
}

impl ShellIdArgs {
    fn name(&self) -> ShellName {
        ShellName { shell_id: self.shell }
    }
}

const OPEN_EXAMPLES: &str = "\
The shell ends with its program, with `pyro task shell close`, or when the task stops. At most 16 are open in a \
task at once. It is a command in the task's journal, which does not keep its output; the latest 1 MiB of that can \
be read and attached to.

Examples:
  pyro task shell open 9775b3af1eeb
  pyro task shell open 9775b3af1eeb --cwd project -- python3";

/// Open a shell that stays open without a terminal, and print its number
#[derive(Debug, Args)]
#[command(after_help = OPEN_EXAMPLES, override_usage = "pyro task shell open [OPTIONS] <TASK_ID> [-- <COMMAND>...]")]
pub(crate) struct ShellOpenArgs {
    /// Id or name of the task, or the first digits of its id; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    task_id: String,
    /// Set a variable for the shell, or pass on one of yours; may be repeated
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = variable)]
    env: Vec<Variable>,
    /// Working directory, which must exist; relative to /workspace unless it is absolute [default: /workspace]
    #[arg(short = 'w', long, value_name = "DIRECTORY")]
    cwd: Option<String>,
    /// User of the guest to run it as: NAME or UID, with :GROUP or :GID if needed [default: root]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Run the words of the command without a shell [default: off]
    #[arg(long)]
    argv: bool,
    /// Columns of its terminal, 1 to 1000
    #[arg(long, value_name = "NUMBER", default_value_t = 120)]
    columns: u16,
    /// Rows of its terminal, 1 to 1000
    #[arg(long, value_name = "NUMBER", default_value_t = 30)]
    rows: u16,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    json: bool,
    /// Command to run instead of a login shell, best written after `--`
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) words: Vec<OsString>,
}

const LIST_EXAMPLES: &str = "\
Examples:
  pyro task shell list 9775b3af1eeb";

/// List the shells of a task
///
/// Shows those that run, and the latest 16 that have ended since the task was started.
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct ShellListArgs {
    #[command(flatten)]
    task: TaskIdArgs,
}

const ATTACH_EXAMPLES: &str = "\
Ctrl-P Ctrl-Q detaches and leaves the shell running, and so does closing the terminal. The shell gets the size of \
this terminal. Several terminals can be attached at once. The exit status is that of the shell, or 0 after \
detaching.

Examples:
  pyro task shell attach 9775b3af1eeb 1";

/// Attach this terminal to a shell
#[derive(Debug, Args)]
#[command(after_help = ATTACH_EXAMPLES)]
pub(crate) struct ShellAttachArgs {
    /// Id or name of the task, or the first digits of its id; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    task_id: String,
    /// Number of the shell, as `pyro task shell open` and `list` print it
    #[arg(value_name = "SHELL")]
    shell: u64,
}

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// Lines without escape sequences
    Plain,
    /// The bytes of the terminal
    Raw,
    /// The rows of the screen as they are now
    Screen,
}

/// What to show of a shell's output.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Begin where an earlier read ended, as its JSON document says [default: the latest output]
    #[arg(long, value_name = "NUMBER")]
    cursor: Option<u64>,
    /// Maximum number of bytes to show, 4 to 1048576
    #[arg(long, value_name = "BYTES", default_value_t = 65_536)]
    max_bytes: u64,
    /// Maximum time to wait for output, in seconds [default: 0, or 10 with --idle-seconds]
    #[arg(long, value_name = "SECONDS")]
    wait_seconds: Option<f64>,
    /// Wait until there is output and then none for this time, in seconds [default: do not wait for a pause]
    #[arg(long, value_name = "SECONDS")]
    idle_seconds: Option<f64>,
    /// Form of the output
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = FormatArg::Plain)]
    format: FormatArg,
}

impl OutputArgs {
    fn read(&self) -> ShellRead {
        let default_wait = if self.idle_seconds.is_some() { 10.0 } else { 0.0 };
        ShellRead {
            cursor: self.cursor,
            max_bytes: self.max_bytes,
            wait_seconds: self.wait_seconds.unwrap_or(default_wait),
            idle_seconds: self.idle_seconds.unwrap_or_default(),
            format: match self.format {
                FormatArg::Plain => ShellFormat::Plain,
                FormatArg::Raw => ShellFormat::Raw,
                FormatArg::Screen => ShellFormat::Screen,
            },
        }
    }
}

const READ_EXAMPLES: &str = "\
Examples:
  pyro task shell read 9775b3af1eeb 1
  pyro task shell read 9775b3af1eeb 1 --cursor 4096 --idle-seconds 1 --json
  pyro task shell read 9775b3af1eeb 1 --format screen";

/// Show output of a shell
///
/// Reading removes nothing. A JSON document has the cursor where the next read continues.
#[derive(Debug, Args)]
#[command(after_help = READ_EXAMPLES)]
pub(crate) struct ShellReadArgs {
    #[command(flatten)]
    shell: ShellIdArgs,
    #[command(flatten)]
    output: OutputArgs,
}

const WRITE_EXAMPLES: &str = "\
Examples:
  pyro task shell write 9775b3af1eeb 1 'make test' --key Enter --idle-seconds 2
  pyro task shell write 9775b3af1eeb 1 --key Ctrl-C";

/// Type text into a shell, and press keys
///
/// Shows the output that follows, for as long as the options say.
#[derive(Debug, Args)]
#[command(after_help = WRITE_EXAMPLES)]
pub(crate) struct ShellWriteArgs {
    #[command(flatten)]
    shell: ShellIdArgs,
    /// Text to type, at most 64 KiB; nothing is added to it
    #[arg(value_name = "TEXT", allow_hyphen_values = true, default_value = "", hide_default_value = true)]
    text: String,
    /// Key to press after the text, such as Enter, Ctrl-C, Escape, Tab, Up, or F1; may be repeated
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

const SIGNAL_EXAMPLES: &str = "\
Examples:
  pyro task shell signal 9775b3af1eeb 1 INT";

/// Send a signal to what runs in the foreground of a shell
#[derive(Debug, Args)]
#[command(after_help = SIGNAL_EXAMPLES)]
pub(crate) struct ShellSignalArgs {
    #[command(flatten)]
    shell: ShellIdArgs,
    /// Name of the signal, such as INT, TERM, KILL, or HUP
    #[arg(value_name = "SIGNAL")]
    signal: String,
}

const CLOSE_EXAMPLES: &str = "\
Examples:
  pyro task shell close 9775b3af1eeb 1";

/// End a shell and everything that runs in it
///
/// The same as if its terminal was closed: everything in it gets SIGHUP and SIGTERM, and SIGKILL a second later.
#[derive(Debug, Args)]
#[command(after_help = CLOSE_EXAMPLES)]
pub(crate) struct ShellCloseArgs {
    #[command(flatten)]
    shell: ShellIdArgs,
}

fn open(args: ShellOpenArgs, engine: &Engine) -> Result<Reply, CliError> {
    if args.argv && args.words.is_empty() {
        return Err(OptionsError::NeedsCommand("--argv").into());
    }
    let (command, argv) = match (args.words.as_slice(), args.argv) {
        ([], _) => (None, None),
        (words, true) => {
            (None, Some(words::texts(words)?.into_iter().map(str::to_owned).collect::<Vec<_>>()))
        }
        (words, false) => (Some(words::join(words)?), None),
    };
    let shell = NewShell {
        command,
        argv,
        shell: None,
        cwd: args.cwd,
        env: variables(args.env, |name| std::env::var_os(name))?,
        user: args.user,
        size: TerminalSize { columns: args.columns, rows: args.rows },
    };
    let request = OpenTaskShell { task: args.task_id.as_str().into(), shell };
    let opened = session::block_on(engine.open_task_shell(request))?;
    Ok(Reply::of(args.json, &opened, |opened| format!("Shell: {}\n", opened.shell_id))?)
}

fn list(args: &ShellListArgs, engine: &Engine) -> Result<Reply, CliError> {
    let shells = session::block_on(engine.list_task_shells(&args.task.task_id))?;
    Ok(Reply::of(args.task.json, &shells, listed)?)
}

fn attach(args: &ShellAttachArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(OptionsError::AttachNeedsTerminal.into());
    }
    let request = AttachTaskShell {
        task: args.task_id.as_str().into(),
        shell: ShellName { shell_id: args.shell },
        size: terminal::size().unwrap_or_default(),
    };
    let interaction = Interaction {
        quiet: false,
        passed: Passed { input: true, sizes: true, detachable: true },
        is_raw: true,
        on_terminal: true,
        puts_back: true,
        ends_line: true,
    };
    let task = Some(args.task_id.as_str());
    let (shell, _) = session::interact(printer, interaction, task, async |call| {
        engine.attach_task_shell(request, &call).await
    })
    .map_err(|error| match error {
        CliError::Left(task) => CliError::LeftShell { task, shell: args.shell },
        error => error,
    })?;
    let reply = Reply::nothing();
    Ok(match (shell.running, shell.exit_code) {
        (true, _) => reply.note(format!("[task-shell] detached; shell {} keeps running", args.shell)),
        (false, Some(code)) => reply.exit(Exit::of_run(code, false)),
        (false, None) => reply.exit(Exit::Failure),
    })
}

fn read(args: &ShellReadArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let request = ReadTaskShell {
        task: args.shell.task.task_id.as_str().into(),
        shell: args.shell.name(),
        read: args.output.read(),
    };
    let json = args.shell.task.json;
    let (output, _) = session::watch(printer, json, async |_, cancel: CancellationToken| {
        engine.read_task_shell(request, &cancel).await
    })?;
    shown(&output, &args.output, json, printer)
}

fn write(args: ShellWriteArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let request = WriteTaskShell {
        task: args.shell.task.task_id.as_str().into(),
        shell: args.shell.name(),
        typed: ShellText { text: args.text, keys: args.keys },
        read: args.output.read(),
    };
    let json = args.shell.task.json;
    let (output, _) = session::watch(printer, json, async |_, cancel: CancellationToken| {
        engine.write_task_shell(request, &cancel).await
    })?;
    shown(&output, &args.output, json, printer)
}

fn signal(args: ShellSignalArgs, engine: &Engine) -> Result<Reply, CliError> {
    let request = SignalTaskShell {
        task: args.shell.task.task_id.as_str().into(),
        shell: args.shell.name(),
        signal: ShellSignal { signal: args.signal },
    };
    let shell = session::block_on(engine.signal_task_shell(request))?;
    Ok(Reply::of(args.shell.task.json, &shell, |_| String::new())?)
}

fn close(args: &ShellCloseArgs, engine: &Engine) -> Result<Reply, CliError> {
    let request = CloseTaskShell { task: args.shell.task.task_id.as_str().into(), shell: args.shell.name() };
    let shell = session::block_on(engine.close_task_shell(request))?;
    Ok(Reply::of(args.shell.task.json, &shell, |shell| format!("Closed: {}\n", state(shell)))?)
}

/// Output of a shell: as it is for a file, escaped for a terminal, which it could control.
fn shown(
    output: &TaskShellOutput,
    args: &OutputArgs,
    json: bool,
    printer: &Printer,
) -> Result<Reply, CliError> {
    if json {
        return Ok(Reply::document(output)?);
    }
    let reply = match args.format {
        FormatArg::Raw => Reply::bytes(output.text.clone().into_bytes()),
        FormatArg::Plain | FormatArg::Screen => {
            printer.kept(pyro_engine::OutputStream::Stdout, output.text.as_bytes())?;
            Reply::nothing()
        }
    };
    Ok(match output.dropped_bytes {
        0 => reply,
        dropped => reply.note(format!("[task-shell] {dropped} bytes are no longer kept")),
    })
}

fn listed(shells: &TaskShells) -> String {
    match shells.shells.as_slice() {
        [] => "No shells.\n".to_owned(),
        shells => shells.iter().map(|shell| format!("{} {}\n", state(shell), shell.command)).collect(),
    }
}

/// `3 running 120x30`, or `3 exited exit_code=0`.
fn state(shell: &TaskShell) -> String {
    match (shell.running, shell.exit_code) {
        (true, _) => format!("{} running {}x{}", shell.shell_id, shell.columns, shell.rows),
        (false, Some(code)) => format!("{} {} exit_code={code}", shell.shell_id, shell.outcome),
        (false, None) => format!("{} {}", shell.shell_id, shell.outcome),
    }
}
