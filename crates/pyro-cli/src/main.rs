//! `pyro`: disposable microVMs for AI agents, on the command line.
//!
//! ```text
//! command_line ─► commands ─► session (events, signals) ─► pyro-engine
//!                     │           │
//!                  reply          └──────────────┐
//!                     └─► render ─► report ─► printer (the only writer)
//! ```
//!
//! This crate decides everything that a user sees: texts, formats, exit codes and the meaning of environment variables.
//! The engine gets its configuration as a value and never prints.

#![expect(clippy::disallowed_methods, reason = "only this crate reads arguments and variables")]

mod client_config;
mod command_line;
mod commands;
mod completion;
mod config;
mod error;
mod exit;
mod json;
mod logging;
mod printer;
mod progress;
mod render;
mod reply;
mod report;
mod session;
mod signals;
mod stdin;
mod terminal;
mod text;
mod words;

use std::process::ExitCode;

use exit::Exit;

fn main() -> ExitCode {
    if let Some(exit) = completion::answer() {
        return exit.into();
    }
    let printer = printer::Printer::new();
    let exit = match command_line::parse(std::env::args_os()) {
        Ok(command) => commands::execute(command, &printer),
        // Help and the version too: clap treats every early end as an error.
        Err(early_end) => {
            printer.clap_message(&early_end);
            if early_end.use_stderr() { Exit::Usage } else { Exit::Success }
        }
    };
    exit.into()
}
