//! `pyro demo` and `pyro demo ollama`.

mod ollama;

use pyro_engine::operations::RunInVm;
use pyro_engine::{Command, VmSpec};

use crate::args::{DemoArgs, DemoCommand};
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::session;

pub(crate) use ollama::DemoError;

/// What both demos run in: the smallest environment that has everything they need.
const ENVIRONMENT: &str = "debian:12";

const LOCAL_COMMAND: &str = "git --version";

/// Prints the HTTP status of a page, fetched with what the environment has: there is no Python in it, and the TLS
/// client came with the certificates. Fails without an answer, or with one from somebody else.
const NETWORK_COMMAND: &str = "printf 'GET / HTTP/1.0\\r\\nHost: example.com\\r\\n\\r\\n' \
    | openssl s_client -quiet -verify_quiet -verify_return_error -verify_hostname example.com \
    -connect example.com:443 | awk '/^HTTP/ { print $2; ok = 1; exit } END { exit !ok }'";

pub(crate) fn run(args: &DemoArgs, printer: &Printer) -> Result<Exit, CliError> {
    match &args.command {
        Some(DemoCommand::Ollama(args)) => ollama::run(args, printer),
        None => one_shot(args.network, printer),
    }
}

fn one_shot(network: bool, printer: &Printer) -> Result<Exit, CliError> {
    super::warn_of_network(network, printer);
    let engine = super::engine()?;
    let spec = VmSpec { network, ..VmSpec::new(ENVIRONMENT) };
    let command = Command::new(if network { NETWORK_COMMAND } else { LOCAL_COMMAND });
    let (mut result, _) =
        session::block_on(session::watch(printer, is_quiet(printer), async |events, cancel| {
            let request = RunInVm { spec, command, output: Default::default() };
            engine.run(request, &events, &cancel).await
        }))?;
    result.timings.clear();
    printer.json(&result)?;
    Ok(Exit::Success)
}

/// A demo speaks on standard output only, except to a person who would otherwise watch nothing for the minutes that
/// an installation may take.
fn is_quiet(printer: &Printer) -> bool {
    !printer.stderr_is_terminal()
}
