//! Shows how a command ended.

use crate::error::CliError;
use crate::exit::Exit;
use crate::json;
use crate::printer::{OutputError, Printer};
use crate::reply::{Content, Reply};
use crate::report::Report;

/// Shows how a command ended. With `json`, a failure is one document on stdout.
pub(crate) fn outcome(outcome: Result<Reply, CliError>, json: bool, printer: &Printer) -> Exit {
    let failed = match outcome {
        Ok(reply) => match show(&reply, printer) {
            Ok(()) => return reply.exit,
            Err(error) => error.into(),
        },
        Err(error) => error,
    };
    failure(&failed, json, printer);
    failed.exit()
}

fn show(reply: &Reply, printer: &Printer) -> Result<(), OutputError> {
    reply.notes.iter().for_each(|line| printer.note(line));
    match &reply.result {
        Content::Nothing => Ok(()),
        Content::Text(text) => printer.text(text),
        Content::Bytes(bytes) => printer.bytes(bytes),
        Content::Failure(text) => {
            match printer.text(text) {
                // Print it elsewhere if the disk is full, but not if the reader has closed its end.
                Err(failed) if !failed.is_broken_pipe() => drop(printer.stderr_text(text)),
                _ => {}
            }
            Ok(())
        }
    }
}

fn failure(error: &CliError, json: bool, printer: &Printer) {
    let Some(report) = Report::of(error) else { return };
    if json && json::document(&report.json()).is_ok_and(|document| printer.bytes(&document).is_ok()) {
        return;
    }
    // There is nowhere else to report it.
    let _ = printer.stderr_text(&report.human());
}
