//! The commands. Each has a file with its arguments, its function, and its rendering.

pub(crate) mod bench;
pub(crate) mod command;
mod completions;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod env;
mod host_settings;
pub(crate) mod internal;
mod machine;
pub(crate) mod man;
pub(crate) mod mcp;
mod mounts;
mod network;
pub(crate) mod rpc;
pub(crate) mod run;
pub(crate) mod task;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use self::bench::BenchArgs;
use self::completions::CompletionsArgs;
use self::demo::DemoArgs;
use self::doctor::DoctorArgs;
use self::env::EnvCommand;
use self::internal::InternalArgs;
use self::man::ManArgs;
use self::mcp::McpCommand;
use self::rpc::RpcArgs;
use self::run::RunArgs;
use self::task::TaskCommand;
use crate::config::Variables;
use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::{logging, render};

const ENVIRONMENT_VARIABLES: &str = "\
Environment variables:
  PYRO_BASE_DIR               State directory, whose path must be UTF-8
                              [default: $XDG_STATE_HOME/pyro-mcp, else ~/.local/state/pyro-mcp]
  PYRO_ENVIRONMENT_CACHE_DIR  Installed environments, with a path in UTF-8
                              [default: pyro-mcp/environments in $XDG_CACHE_HOME, else in ~/.cache]
  PYRO_MAX_ACTIVE_VMS         Maximum number of VMs and tasks at once, at least 1 [default: 4]
  PYRO_DISK_OVERCOMMIT        Maximum growth of all disks, as a multiple of the host's free space,
                              1 to 100, or `off`: each disk must fit by itself [default: 1]
  PYRO_MCP_ALLOW_HOST_COMPAT  1 lets clients of `pyro mcp serve` run commands on this host, without
                              isolation, if VMs cannot run here [default: 0]
  PYRO_MOUNTS                 Directories of this host that guests may have mounted, with colons
                              between them, or `off` [default: all]
  PYRO_HOST_CA                1: guests trust the certification authorities that this host trusts; or
                              the absolute path of a PEM file with others [default: 0]
  PYRO_HOST_PROXY             1: guests with a network get this host's proxy settings [default: 0]
  PYRO_REQUIRE_CONFINEMENT    full: start no VM unless this host can confine its VMM fully
                              [default: off]
  PYRO_WARM                   Spare VMs of each kind that wait for the next start [default: 0]
  PYRO_ACCEL                  Accelerator, kvm or tcg [default: chosen by a measurement]
  PYRO_VMM                    What runs VMs, qemu or firecracker [default: qemu]
  PYRO_FIRECRACKER            Firecracker program [default: firecracker, looked up in PATH]
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
/// Runs commands in disposable virtual machines, installs the environments they start from, and reports whether
/// this machine can run them.
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
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// A parsed command.
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
    Network(InternalArgs),
    MountServer(InternalArgs),
    ProbeKvm(InternalArgs),
}

/// Runs a command, and shows its end as text or JSON, as the command line asks.
pub(crate) fn execute(command: Command, printer: &Printer) -> Exit {
    let json = command.wants_json();
    render::outcome(command.carry_out(printer), json, printer)
}

impl Command {
    fn carry_out(self, printer: &Printer) -> Result<Reply, CliError> {
        // A supervisor's stderr is a file in its VM's directory.
        let default_filter = matches!(self, Self::Supervise(_)).then_some("warn");
        logging::start(&Variables::of_process(), default_filter)?;
        match self {
            Self::Run(args) => run::run(args, printer),
            Self::Task(command) => command.run(printer),
            Self::Env(command) => command.run(printer),
            Self::Mcp(command) => command.run(printer),
            Self::Rpc(args) => rpc::run(&args),
            Self::Doctor(args) => doctor::run(&args),
            Self::Demo(args) => demo::run(&args, printer),
            Self::Bench(args) => bench::run(&args, printer),
            Self::Completions(args) => completions::run(&args),
            Self::Man(args) => man::run(&args, grammar()),
            Self::Supervise(args) => internal::supervise(&args),
            Self::Network(_) => internal::carry_network(),
            Self::MountServer(args) => internal::serve_mount(&args),
            Self::ProbeKvm(_) => internal::probe_kvm(),
        }
    }

    /// Whether the result, and any error, must be one JSON document on stdout.
    fn wants_json(&self) -> bool {
        match self {
            Self::Run(args) => args.json,
            Self::Task(command) => command.wants_json(),
            Self::Env(command) => command.wants_json(),
            Self::Doctor(args) => args.json,
            Self::Demo(args) => args.command.is_none(),
            Self::Bench(args) => args.json,
            Self::Mcp(command) => command.wants_json(),
            Self::Completions(_)
            | Self::Man(_)
            | Self::Rpc(_)
            | Self::Supervise(_)
            | Self::Network(_)
            | Self::MountServer(_)
            | Self::ProbeKvm(_) => false,
        }
    }
}

/// The whole grammar, for the manual pages as well as for parsing.
pub(crate) fn grammar() -> clap::Command {
    CommandLine::command()
}

/// The grammar for completions, without the hidden commands, which they would offer too.
pub(crate) fn grammar_for_people() -> clap::Command {
    let whole = grammar();
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("pyro").version(env!("CARGO_PKG_VERSION")).subcommands(shown)
}

/// Returns the command that the grammar has matched.
pub(crate) fn parsed(matches: &clap::ArgMatches) -> Result<Command, clap::Error> {
    Ok(CommandLine::from_arg_matches(matches)?.command)
}
