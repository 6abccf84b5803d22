//! `pyro doctor`.

mod render;

use crate::args::DoctorArgs;
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::session;

/// Succeeds even when the report is bad news: scripts read `runtime_ok`.
pub(crate) fn run(args: &DoctorArgs, printer: &Printer) -> Result<Exit, CliError> {
    let engine = super::engine()?;
    let report = session::block_on(async { Ok(engine.doctor(&args.platform).await) })?;
    if args.json {
        printer.json(&report)?
    } else {
        printer.text(&render::report(&report))?
    }
    Ok(Exit::Success)
}
