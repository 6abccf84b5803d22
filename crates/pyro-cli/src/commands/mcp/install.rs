//! `pyro mcp install`.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use pyro_engine::Engine;
use serde::Serialize;
use serde_json::{Map, Value};

use super::serve::McpHttpArgs;
use crate::client_config::{Change, Client, InstallError, Plan, Scope};
use crate::config::{self, Variables};
use crate::error::CliError;
use crate::reply::Reply;
use crate::session;

const INSTALL_EXAMPLES: &str = "\
The entry holds the absolute path of this executable and the settings in your environment (PYRO_* other than PYRO_LOG, \
XDG_STATE_HOME, XDG_CACHE_HOME, XDG_DATA_HOME), because the client may have another PATH and environment. `generic` has \
no file: its output is for any client that reads `mcpServers`.

Examples:
  pyro mcp install --client claude-code
  pyro mcp install --client claude-code --write
  pyro mcp install --client vscode --project --write
  pyro mcp install --client generic > mcp.json";

/// Add pyro to the settings of an AI client
///
/// Shows what would be written, and where. With --write, writes it: everything else in the file stays unchanged,
/// comments included, and a copy of the old file is kept next to it. An entry of the same name is replaced as a
/// whole.
#[derive(Debug, Args)]
#[command(after_help = INSTALL_EXAMPLES, override_usage = "pyro mcp install [OPTIONS] --client <CLIENT> [-- <FLAGS OF pyro mcp serve>...]")]
pub(crate) struct McpInstallArgs {
    /// Client to configure
    #[arg(long, value_name = "CLIENT", value_parser = client())]
    pub(crate) client: &'static Client,
    /// Write the file [default: only show what would be written]
    #[arg(long)]
    pub(crate) write: bool,
    /// Use the client's file for the project in the current directory [default: the user's own file]
    #[arg(long)]
    pub(crate) project: bool,
    /// Name of the entry, which is the server's name in the client
    #[arg(long, value_name = "NAME", default_value = "pyro", value_parser = entry_name)]
    pub(crate) name: String,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
    /// Flags for `pyro mcp serve`, which the client will pass
    #[arg(value_name = "FLAGS", last = true)]
    pub(crate) serve_flags: Vec<String>,
    /// The environments that these flags name.
    #[arg(skip)]
    pub(crate) environments: Vec<String>,
}

impl McpInstallArgs {
    /// Returns the command line with which the client starts the server.
    pub(crate) fn server_words<'a>(&'a self, program: &'a str) -> impl Iterator<Item = &'a str> {
        [program, "mcp", "serve"].into_iter().chain(self.serve_flags.iter().map(String::as_str))
    }

    /// Returns a flag among them that applies only to a server over HTTP.
    pub(crate) fn flag_for_http(&self) -> Option<String> {
        let given = |flag: &String| {
            self.serve_flags
                .iter()
                .any(|word| word.split_once('=').map_or(word.as_str(), |(name, _)| name) == flag)
        };
        let flags = McpHttpArgs::augment_args(clap::Command::default());
        flags.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))).find(given)
    }
}

fn client() -> impl TypedValueParser<Value = &'static Client> {
    PossibleValuesParser::new(Client::ALL.iter().map(|client| client.name))
        .try_map(|name| Client::named(&name).ok_or("no such client"))
}

/// Checks that every client accepts the name: letters, digits, `-` and `_`.
fn entry_name(name: &str) -> Result<String, &'static str> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=64).contains(&name.len()) && name.chars().all(is_fine) {
        Ok(name.to_owned())
    } else {
        Err("expected 1 to 64 letters, digits, `-` or `_`")
    }
}

/// The document of `--json`.
#[derive(Debug, Serialize)]
struct Installed<'a> {
    client: &'a str,
    name: &'a str,
    entry: Map<String, Value>,
    /// The entry as a file of its own.
    snippet: &'a str,
    /// `None` for `generic`.
    file: Option<&'a Path>,
    change: &'static str,
    /// The previous entry in the file's format, with possible secrets masked.
    replaced: Option<&'a str>,
    written: bool,
    backup: Option<PathBuf>,
    /// What the user has to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

/// They may contain credentials, which do not belong into the file of a client.
const PROXIES_ARE_NOT_HANDED_ON: &str = "PYRO_HOST_PROXY is in the entry, but the proxy settings are not: set HTTPS_PROXY and the like for the client";

pub(crate) fn run(args: &McpInstallArgs) -> Result<Reply, CliError> {
    let variables = Variables::of_process();
    // Checks the settings too, so that no client gets an invalid one.
    let config = config::engine_config(&variables)?;
    let note = config.host_proxy.then_some(PROXIES_ARE_NOT_HANDED_ON);
    let program = config.program.clone();
    let program = program.to_str().ok_or_else(|| {
        InstallError::new(format!("the path of pyro is not valid UTF-8: {}", program.display()))
    })?;
    check_environments(&args.environments, Engine::new(config))?;
    let words: Vec<&str> = args.server_words(program).collect();
    let entry = args.client.entry(program, &words[1..], &variables.handed_on()?);
    let snippet = args.client.snippet(&args.name, &entry)?;
    let scope = if args.project { Scope::Project } else { Scope::User };
    let plan = match args.client.file(scope, &variables)? {
        Some(file) => Some(Plan::new(file, args.client, &args.name, &entry)?),
        None if args.write => {
            let message = format!("{} has no file to write", args.client.name);
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
        note,
    };
    Ok(Reply::of(args.json, &document, text)?)
}

/// The server would exit at once if an environment does not exist, and the user would not see why.
fn check_environments(names: &[String], engine: Engine) -> Result<(), CliError> {
    session::block_on(async {
        for name in names {
            engine.inspect_environment(name).await?;
        }
        Ok::<_, CliError>(())
    })
}

fn text(document: &Installed<'_>) -> String {
    let Some(file) = document.file else { return document.snippet.to_owned() };
    let Installed { name, snippet, .. } = document;
    let change = match document.change {
        "create" => "the file is new".to_owned(),
        "add" => format!("`{name}` is added"),
        "replace" => format!("`{name}` is replaced"),
        _ => format!("none, `{name}` is up to date"),
    };
    let mut text = format!("File: {}\nChange: {change}\n\n{snippet}", file.display());
    if let Some(replaced) = document.replaced {
        text.push_str(&format!("\nIt replaces:\n\n{replaced}"));
    }
    match (&document.backup, document.written, document.change) {
        (_, _, "none") => {}
        (Some(backup), ..) => {
            text.push_str(&format!("\nWritten. Copy of the old file: {}\n", backup.display()))
        }
        (None, true, _) => text.push_str("\nWritten.\n"),
        (None, false, _) => text.push_str("\nNothing was written; use `--write` to write it.\n"),
    }
    if let Some(note) = document.note {
        text.push_str(&format!("\nNote: {note}\n"));
    }
    text
}
