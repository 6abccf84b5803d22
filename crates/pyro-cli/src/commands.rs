//! What each command does.

mod bench;
mod completions;
mod demo;
mod doctor;
mod env;
mod internal;
mod man;
mod mcp;
mod rpc;
mod run;
mod task;

use std::time::{SystemTime, UNIX_EPOCH};

use pyro_engine::{Config, Engine};

pub(crate) use demo::DemoError;

use crate::args::Command;
use crate::config::{self, Variables};
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::logging;
use crate::printer::Printer;

/// Carries out a command, and reports its failure in the shape the command line asked for.
pub(crate) fn dispatch(command: Command, printer: &Printer) -> Exit {
    let json = command.wants_json();
    carry_out(command, printer).unwrap_or_else(|error| {
        printer.failure(&error, json);
        error.exit()
    })
}

fn carry_out(command: Command, printer: &Printer) -> Result<Exit, CliError> {
    // A supervisor's stderr is a file in its VM's directory.
    let default_filter = matches!(command, Command::Supervise(_)).then_some("warn");
    logging::start(&Variables::of_process(), default_filter)?;
    match command {
        Command::Run(args) => run::run(args, printer),
        Command::Task(command) => task::run(command, printer),
        Command::Env(command) => env::run(command, printer),
        Command::Mcp(command) => mcp::run(command, printer),
        Command::Rpc(args) => rpc::run(&args, printer),
        Command::Doctor(args) => doctor::run(&args, printer),
        Command::Demo(args) => demo::run(&args, printer),
        Command::Bench(args) => bench::run(&args, printer),
        Command::Completions(args) => completions::run(&args, printer),
        Command::Man(args) => man::run(&args),
        Command::Supervise(args) => internal::supervise(&args.words),
        Command::ProbeKvm(_) => internal::probe_kvm(printer),
    }
}

/// The engine as this process's environment variables configure it.
fn engine() -> Result<Engine, CliError> {
    Ok(Engine::new(config()?))
}

/// What this process's environment variables say.
fn config() -> Result<Config, CliError> {
    Ok(config::engine_config(&Variables::of_process())?)
}

/// Warns of what a guest with a network can reach, until that is policy.
fn warn_of_network(network: bool, printer: &Printer) {
    if network {
        printer.note(
            "[warning] a hostile guest with a network can reach all that you can reach, this host's loopback included",
        );
    }
}

/// Seconds since the epoch.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// `yes` or `no`.
fn yes_no(condition: bool) -> &'static str {
    if condition { "yes" } else { "no" }
}
