//! `pyro mcp install`.

use std::path::{Path, PathBuf};

use pyro_engine::Engine;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::McpInstallArgs;
use crate::client_config::{Change, InstallError, Plan, Scope};
use crate::config::{self, Variables};
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::session;

/// The document of `--json`.
#[derive(Debug, Serialize)]
struct Installed<'a> {
    client: &'a str,
    name: &'a str,
    entry: Map<String, Value>,
    /// The entry as a file of its own.
    snippet: &'a str,
    /// `None` for clients in general.
    file: Option<&'a Path>,
    change: &'static str,
    /// The entry that was there before, as the format would write it, without what may be secret.
    replaced: Option<&'a str>,
    written: bool,
    backup: Option<PathBuf>,
}

pub(crate) fn run(args: &McpInstallArgs, printer: &Printer) -> Result<Exit, CliError> {
    let variables = Variables::of_process();
    // Checks the settings too, so that no client is given a wrong one.
    let config = config::engine_config(&variables)?;
    let program = config.program.clone();
    let program = program.to_str().ok_or_else(|| {
        InstallError::new(format!("the path of pyro is no UTF-8 text: {}", program.display()))
    })?;
    check_environments(&args.environments, Engine::new(config))?;
    let words: Vec<&str> = args.server_words(program).collect();
    let entry = args.client.entry(program, &words[1..], &variables.handed_on()?);
    let snippet = args.client.snippet(&args.name, &entry)?;
    let scope = if args.project { Scope::Project } else { Scope::User };
    let plan = match args.client.file(scope, &variables)? {
        Some(file) => Some(Plan::new(file, args.client, &args.name, &entry)?),
        None if args.write => {
            let message = format!("{} is no client with a file that could be written", args.client.name);
            return Err(InstallError::new(message).into());
        }
        None => None,
    };
    let backup = match &plan {
        Some(plan) if args.write => plan.write()?,
        _ => None,
    };
    let change = plan.as_ref().map_or(&Change::Nothing, |plan| &plan.change);
    let document = Installed {
        client: args.client.name,
        name: &args.name,
        entry: entry.into_iter().collect(),
        snippet: &snippet,
        file: plan.as_ref().map(|plan| plan.file.as_path()),
        change: match change {
            Change::Create => "create",
            Change::Add => "add",
            Change::Replace(_) => "replace",
            Change::Nothing => "none",
        },
        replaced: match change {
            Change::Replace(present) => Some(present),
            _ => None,
        },
        written: args.write && *change != Change::Nothing,
        backup,
    };
    if args.json {
        printer.json(&document)?
    } else {
        printer.text(&text(&document))?
    }
    Ok(Exit::Success)
}

/// The server would end at once for an environment that does not exist, and nobody would see why.
fn check_environments(names: &[String], engine: Engine) -> Result<(), CliError> {
    session::block_on(async {
        for name in names {
            engine.inspect_environment(name).await?;
        }
        Ok(())
    })
}

fn text(document: &Installed<'_>) -> String {
    let Some(file) = document.file else { return document.snippet.to_owned() };
    let Installed { name, snippet, .. } = document;
    let change = match document.change {
        "create" => "the file is new".to_owned(),
        "add" => format!("`{name}` is added"),
        "replace" => format!("`{name}` is replaced"),
        _ => format!("none, `{name}` is there as it should be"),
    };
    let mut text = format!("File: {}\nChange: {change}\n\n{snippet}", file.display());
    if let Some(replaced) = document.replaced {
        text.push_str(&format!("\nIn place of:\n\n{replaced}"));
    }
    match (&document.backup, document.written, document.change) {
        (_, _, "none") => {}
        (Some(backup), ..) => {
            text.push_str(&format!("\nWritten. The file as it was: {}\n", backup.display()))
        }
        (None, true, _) => text.push_str("\nWritten.\n"),
        (None, false, _) => text.push_str("\nNothing was written; `--write` does it.\n"),
    }
    text
}
