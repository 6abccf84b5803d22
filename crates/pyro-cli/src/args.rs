//! What may be written after `pyro`: the commands, their flags and their help.
//!
//! Types here know no engine type; the commands convert in one place each.

mod bench;
mod demo;
mod env;
mod mcp;
mod number;
mod rpc;
mod run;
mod task;
mod trailing;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub(crate) use bench::BenchArgs;
pub(crate) use demo::{DemoArgs, DemoCommand, DemoOllamaArgs};
pub(crate) use env::EnvCommand;
pub(crate) use mcp::{
    McpCommand, McpHttpArgs, McpInstallArgs, McpLimitArgs, McpProfile, McpServeArgs, McpTransport,
};
pub(crate) use rpc::RpcArgs;
pub(crate) use run::RunArgs;
pub(crate) use task::{TaskCommand, TaskCpArgs, TaskCreateArgs, TaskExecArgs, TaskLogsArgs};

const ENVIRONMENT_VARIABLES: &str = "\
Environment variables:
  PYRO_BASE_DIR               State directory
                              [default: $XDG_STATE_HOME/pyro-mcp, else ~/.local/state/pyro-mcp]
  PYRO_ENVIRONMENT_CACHE_DIR  Installed environments [default: pyro-mcp/environments in
                              $XDG_CACHE_HOME, else in ~/.cache]
  PYRO_MAX_ACTIVE_VMS         Most VMs and tasks that may exist at once, at least 1 [default: 4]
  PYRO_WARM                   How many VMs of each kind wait for the next start [default: 0]
  PYRO_ACCEL                  Accelerator, kvm or tcg [default: chosen by a measurement]
  PYRO_QEMU                   QEMU program [default: qemu-system-x86_64, looked up in PATH]
  PYRO_GUEST_KERNEL           Guest kernel, or `environment` for each environment's own
                              [default: the one that was built on this machine, if any]
  PYRO_DEBIAN_MIRROR          Debian mirror to install from, http:// or https://
  PYRO_LOG                    Log filter, such as debug or pyro_engine=trace [default: no log]

Examples:
  pyro run debian:12 -- git --version
  pyro task create debian:12
  pyro env list
  pyro doctor";

/// Disposable microVMs for AI agents
///
/// Runs commands inside throw-away virtual machines, prepares the environments they start from, and says
/// whether this machine can do so.
#[derive(Debug, Parser)]
#[command(
    name = "pyro",
    bin_name = "pyro",
    version,
    max_term_width = 110,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = ENVIRONMENT_VARIABLES
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// One command, ready to be carried out.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    #[command(subcommand)]
    Task(TaskCommand),
    #[command(subcommand)]
    Env(EnvCommand),
    #[command(subcommand)]
    Mcp(McpCommand),
    Rpc(RpcArgs),
    Doctor(DoctorArgs),
    Demo(DemoArgs),
    Bench(BenchArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
    Supervise(InternalArgs),
    ProbeKvm(InternalArgs),
}

const DOCTOR_EXAMPLES: &str = "\
The exit status is 0 even when problems are found; read `Runtime:` or, with --json, `runtime_ok`.

Examples:
  pyro doctor
  pyro doctor --json | jq .issues";

/// Report whether this machine can run VMs, and what to do if it cannot
///
/// Looks at the accelerator, the virtual machine monitor, rootless prerequisites, networking and disk
/// space. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// Platform to report on
    #[arg(long, value_name = "PLATFORM", default_value = "linux-x86_64")]
    pub(crate) platform: String,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  pyro completions bash > ~/.local/share/bash-completion/completions/pyro
  pyro completions zsh > ~/.zfunc/_pyro
  pyro completions fish > ~/.config/fish/completions/pyro.fish";

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

const MAN_EXAMPLES: &str = "\
Examples:
  pyro man ~/.local/share/man/man1";

/// Write the manual pages into a directory
///
/// One page per command, `pyro.1`, `pyro-run.1` and so on. The directory is made if it is missing; pages
/// of the same name are replaced.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct ManArgs {
    /// Directory for the pages
    #[arg(value_name = "DIRECTORY")]
    pub(crate) directory: PathBuf,
}

/// A helper process of pyro itself; not for people
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct InternalArgs {
    /// Taken as they are by the library that starts the helper
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) words: Vec<OsString>,
}

impl Command {
    /// Whether the result, and any error, must be one JSON document on stdout.
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Run(args) => args.json,
            Self::Task(command) => command.wants_json(),
            Self::Env(command) => command.wants_json(),
            Self::Doctor(args) => args.json,
            Self::Demo(args) => args.command.is_none(),
            Self::Bench(args) => args.json,
            Self::Mcp(command) => command.wants_json(),
            Self::Completions(_) | Self::Man(_) | Self::Rpc(_) | Self::Supervise(_) | Self::ProbeKvm(_) => {
                false
            }
        }
    }
}

/// Reads a command line, program name included. The error is also how help and the version are asked for.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let words: Vec<OsString> = words.into_iter().collect();
    let mut grammar = grammar();
    let matches = grammar.try_get_matches_from_mut(&words)?;
    let mut command = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut grammar))?.command;
    let trailing = match &command {
        Command::Run(args) => Some((&args.words, grammar.find_subcommand_mut("run"))),
        Command::Task(TaskCommand::Exec(args)) => {
            let task = grammar.find_subcommand_mut("task");
            Some((&args.words, task.and_then(|task| task.find_subcommand_mut("exec"))))
        }
        _ => None,
    };
    if let Some((trailing, Some(grammar))) = trailing {
        trailing::refuse_misplaced_flags(trailing, &words, grammar)?;
    }
    // A client starts the server out of sight: a mistake in the flags has to be seen now.
    if let Command::Mcp(McpCommand::Install(args)) = &mut command
        && let Command::Mcp(McpCommand::Serve(serve)) = parse(args.server_words("pyro").map(OsString::from))?
    {
        let over_http = (serve.transport == McpTransport::Http).then(|| "--transport http".to_owned());
        if let Some(flag) = over_http.or_else(|| args.flag_for_http()) {
            let text = format!(
                "{flag} is for HTTP; clients of this kind start the server themselves and talk to its standard input \
                 and output"
            );
            return Err(grammar.error(clap::error::ErrorKind::ArgumentConflict, text));
        }
        args.environments = serve.limits.environment;
    }
    Ok(command)
}

/// The whole grammar, for the manual pages as well as for parsing.
pub(crate) fn grammar() -> clap::Command {
    Cli::command()
}

/// The grammar for completions, which would offer hidden commands too.
pub(crate) fn grammar_for_people() -> clap::Command {
    let whole = grammar();
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("pyro").version(env!("CARGO_PKG_VERSION")).subcommands(shown)
}

#[cfg(test)]
mod tests;
