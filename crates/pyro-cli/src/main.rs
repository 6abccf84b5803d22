//! `pyro`: disposable microVMs for AI agents, on the command line.
//!
//! ```text
//! args ─► commands ─► session (events, signals) ─► pyro-engine
//!             │            │
//!             └────────────┴──► printer (the only writer) ─► exit
//! ```
//!
//! Everything a user can see is decided here: words, formats, exit codes and the meaning of environment
//! variables. The engine below gets its configuration as a value and never prints.

#![expect(clippy::disallowed_methods, reason = "arguments and variables come in here and nowhere else")]

mod args;
mod client_config;
mod commands;
mod config;
mod error_report;
mod exit;
mod json;
mod logging;
mod printer;
mod progress;
mod session;
mod signals;
mod words;

use std::process::ExitCode;

fn main() -> ExitCode {
    let printer = printer::Printer::new();
    let exit = match args::parse(std::env::args_os()) {
        Ok(command) => commands::dispatch(command, &printer),
        // Help and the version arrive here too: clap calls every early end an error.
        Err(early_end) => printer.clap_message(&early_end),
    };
    exit.into()
}
