//! `pyro mcp`.

mod install;
mod serve;

use crate::args::McpCommand;
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;

pub(crate) fn run(command: McpCommand, printer: &Printer) -> Result<Exit, CliError> {
    match command {
        McpCommand::Serve(args) => serve::run(args, printer),
        McpCommand::Install(args) => install::run(&args, printer),
    }
}
