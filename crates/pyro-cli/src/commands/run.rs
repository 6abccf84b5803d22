//! `pyro run`: one command in one disposable VM.

use std::ffi::OsString;

use clap::Args;
use pyro_engine::operations::RunInVm;
use pyro_engine::{Command, Engine, OutputMode, RunResult, VmSpec};

use crate::commands::command::CommandArgs;
use crate::commands::host_settings::HostSettingsArgs;
use crate::commands::machine::{ConfinementArgs, MachineArgs};
use crate::commands::mounts::MountArgs;
use crate::commands::network::{self, NetworkArgs};
use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::words::integer;
use crate::{config, session};

const RUN_EXAMPLES: &str = "\
The command is run by a shell in the guest, with the environment of a login shell. A single word is \
passed unchanged, so it may be a whole shell line; several words are quoted, so that each reaches the \
program unchanged. With --argv, the words are run without a shell.

Standard input is only read with -i. -it without a command is a login shell. The VM lives for \
at least the time limit and 60 s.

Exit status: that of the command; 124 if it timed out; 256 minus the signal number if a signal ended it; \
1 if pyro itself failed; 2 for an invalid command line; 129, 130, 131, or 143 after SIGHUP, Ctrl-C, SIGQUIT, or SIGTERM; \
141 if the reader of stdout closed it.

Examples:
  pyro run debian:12 -- git --version
  pyro run debian:12 -- 'cd /tmp && ls -la | wc -l'
  echo hi | pyro run -i debian:12 -- cat
  pyro run -it debian:12
  pyro run debian:12 --network -- git clone https://example.com/project.git
  pyro run debian:12-build --mount .:/workspace:rw --cwd /workspace -- make
  pyro run debian:12-build --vcpu-count 2 --mem-mib 2048 --json -- make -j2";

/// Run one command in a new VM, then remove the VM
///
/// Installs the environment first if it is missing. Streams the guest's stdout and stderr; prints progress and a
/// summary on stderr.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES, override_usage = "pyro run [OPTIONS] <ENVIRONMENT> -- <COMMAND>...")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    #[command(flatten)]
    pub(crate) command: CommandArgs,
    /// Lifetime of the VM in seconds, 60 to 3600; after it the VM is removed
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) ttl_seconds: i64,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) mounts: MountArgs,
    #[command(flatten)]
    pub(crate) host_settings: HostSettingsArgs,
    /// Run the command on this machine, without isolation, if VMs cannot run here [default: off]
    #[arg(long)]
    pub(crate) allow_host_compat: bool,
    #[command(flatten)]
    pub(crate) confinement: ConfinementArgs,
    /// Keep a VM of this kind waiting for the next run, for five minutes [default: off, or PYRO_WARM]
    #[arg(long)]
    pub(crate) warm: bool,
    /// Report how long each step took, on stderr or in the JSON document [default: off]
    #[arg(long)]
    pub(crate) timings: bool,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
    /// Command to run in the guest, best written after `--`
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) words: Vec<OsString>,
}

pub(crate) fn run(args: RunArgs, printer: &Printer) -> Result<Reply, CliError> {
    let command = args.command.command(&args.words)?;
    let mut config = config::of_process()?;
    if args.warm {
        config.warm_spares = config.warm_spares.max(1);
    }
    args.confinement.apply(&mut config);
    let engine = Engine::new(config);
    let request = request(&args, command)?;
    args.command.note_ignored_input(args.json, printer);
    let interaction = args.command.interaction(args.json);
    let (mut result, shown) =
        session::interact(
            printer,
            interaction,
            None,
            |call| async move { engine.run(request, &call).await },
        )?;
    if !args.timings {
        result.timings.clear();
    }
    let reply = if args.json {
        Reply::document(&result)?
    } else if args.command.tty {
        Reply::nothing()
    } else {
        shown.end_line(printer);
        let denials = result.network_denials.iter().fold(Reply::nothing(), |reply, denial| {
            reply.note(format!("[network] {}", network::denial(denial)))
        });
        let timings = result.timings.iter().fold(denials, |reply, phase| {
            reply.note(format!("[timing] {:<12}{:9.1} ms", phase.name, phase.ms))
        });
        timings.note(summary(&result))
    };
    let exit = Exit::of_run(result.exit_code, result.timed_out);
    Ok(reply.of_command(exit, args.json))
}

/// Returns the request that the arguments describe.
///
/// # Errors
/// A path in them cannot be made absolute.
fn request(args: &RunArgs, command: Command) -> Result<RunInVm, CliError> {
    let spec = VmSpec {
        environment: args.machine.environment.clone(),
        vcpu_count: args.machine.vcpu_count,
        mem_mib: args.machine.mem_mib,
        ttl_seconds: args.ttl_seconds,
        network: args.network.network,
        network_policy: args.network.policy(),
        host_ca: args.host_settings.host_ca()?,
        host_proxy: args.host_settings.host_proxy(),
        mounts: args.mounts.mounts()?,
        allow_host_compat: args.allow_host_compat,
    };
    // Text output is streamed; a JSON document holds it after the end.
    let output = if args.json { OutputMode::Capture } else { OutputMode::Stream };
    Ok(RunInVm { spec, command, output: output.into() })
}

fn summary(result: &RunResult) -> String {
    format!(
        "[run] environment={} execution_mode={} exit_code={} duration_ms={}",
        result.environment, result.execution_mode, result.exit_code, result.duration_ms
    )
}
