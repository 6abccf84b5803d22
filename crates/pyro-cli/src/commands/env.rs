//! `pyro env list`, `pull`, `inspect` and `prune`.

mod render;

use crate::args::EnvCommand;
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::session;

pub(crate) fn run(command: EnvCommand, printer: &Printer) -> Result<Exit, CliError> {
    let json = command.wants_json();
    match command {
        EnvCommand::List(_) => list(json, printer)?,
        EnvCommand::Pull(args) => pull(&args.name.environment, json, printer)?,
        EnvCommand::Inspect(args) => inspect(&args.name.environment, json, printer)?,
        EnvCommand::Prune(_) => prune(json, printer)?,
    }
    Ok(Exit::Success)
}

fn list(json: bool, printer: &Printer) -> Result<(), CliError> {
    let engine = super::engine()?;
    let list = session::block_on(async { Ok(engine.list_environments().await?) })?;
    if json {
        printer.json(&list)?
    } else {
        printer.text(&render::list(&list))?
    }
    Ok(())
}

fn inspect(name: &str, json: bool, printer: &Printer) -> Result<(), CliError> {
    let engine = super::engine()?;
    let environment = session::block_on(async { Ok(engine.inspect_environment(name).await?) })?;
    if json {
        printer.json(&environment)?
    } else {
        printer.text(&render::inspected(&environment))?
    }
    Ok(())
}

fn prune(json: bool, printer: &Printer) -> Result<(), CliError> {
    let engine = super::engine()?;
    let report = session::block_on(async { Ok(engine.prune_environments().await?) })?;
    if json {
        printer.json(&report)?
    } else {
        printer.text(&render::pruned(&report))?
    }
    Ok(())
}

fn pull(name: &str, json: bool, printer: &Printer) -> Result<(), CliError> {
    let engine = super::engine()?;
    let (pulled, shown) = session::block_on(session::watch(printer, json, |events, cancel| async move {
        engine.pull_environment(name, &events, &cancel).await
    }))?;
    if json {
        printer.json(&pulled)?;
        return Ok(());
    }
    if !shown.pull_started {
        // Installed before. The two lines are promised for every pull, so that a script can wait for them.
        printer.note(&format!("[pull] phase=install environment={name}"));
        printer.note(&format!("[pull] phase=ready environment={name}"));
    }
    printer.text(&render::pulled(&pulled))?;
    Ok(())
}
