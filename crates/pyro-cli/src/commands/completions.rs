//! `pyro completions`.

use crate::args::{self, CompletionsArgs};
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;

pub(crate) fn run(args: &CompletionsArgs, printer: &Printer) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::grammar_for_people(), "pyro", &mut script);
    printer.bytes(&script)?;
    Ok(Exit::Success)
}
