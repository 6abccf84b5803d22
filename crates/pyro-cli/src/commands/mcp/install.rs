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
The client receives the absolute path of this executable, because it may not have your PATH, and the settings that \
are set here (PYRO_* other than PYRO_LOG, XDG_STATE_HOME, XDG_CACHE_HOME, XDG_DATA_HOME), because it may not have your \
environment. `generic` has no file: what it prints is for any client that reads `mcpServers`.

Examples:
  pyro mcp install --client claude-code
  pyro mcp install --client claude-code --write
  pyro mcp install --client vscode --project --write
  pyro mcp install --client generic > mcp.json";

/// Add pyro to the settings of an AI client
///
/// Shows what would be written, and where. With --write, writes it. The rest of the file stays unchanged,
/// including comments, and a backup of the original file is kept next to it. An entry of the same name is
/// replaced.
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
    /// Flags for `pyro mcp serve`, as the client is to give them
    #[arg(value_name = "FLAGS", last = true)]
    pub(crate) serve_flags: Vec<String>,
    /// The environments that these flags name.
    #[arg(skip)]
    pub(crate) environments: Vec<String>,
}

impl McpInstallArgs {
    /// The command line with which the client is to start the server.
    pub(crate) fn server_words<'a>(&'a self, program: &'a str) -> impl Iterator<Item = &'a str> {
        [program, "mcp", "serve"].into_iter().chain(self.serve_flags.iter().map(String::as_str))
    }

    /// A flag among them that means something only for a server over HTTP.
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

/// What every client takes: letters, digits, `-` and `_`.
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
    /// `None` for clients in general.
    file: Option<&'a Path>,
    change: &'static str,
    /// The entry that was there before, as the format would write it, without what may be secret.
    replaced: Option<&'a str>,
    written: bool,
    backup: Option<PathBuf>,
}

pub(crate) fn run(args: &McpInstallArgs) -> Result<Reply, CliError> {
    let variables = Variables::of_process();
    // Checks the settings too, so that no client is given a wrong one.
    let config = config::engine_config(&variables)?;
    let program = config.program.clone();
    let program = program
        .to_str()
        .ok_or_else(|| InstallError::new(format!("the path of pyro is not UTF-8: {}", program.display())))?;
    check_environments(&args.environments, Engine::new(config))?;
    let words: Vec<&str> = args.server_words(program).collect();
    let entry = args.client.entry(program, &words[1..], &variables.handed_on()?);
    let snippet = args.client.snippet(&args.name, &entry)?;
    let scope = if args.project { Scope::Project } else { Scope::User };
    let plan = match args.client.file(scope, &variables)? {
        Some(file) => Some(Plan::new(file, args.client, &args.name, &entry)?),
        None if args.write => {
            let message = format!("{} has no configuration file that pyro can write", args.client.name);
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
    Ok(Reply::of(args.json, &document, text)?)
}

/// The server would end at once for an environment that does not exist, without a visible reason.
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
        _ => format!("none, `{name}` is there as it should be"),
    };
    let mut text = format!("File: {}\nChange: {change}\n\n{snippet}", file.display());
    if let Some(replaced) = document.replaced {
        text.push_str(&format!("\nIn place of:\n\n{replaced}"));
    }
    match (&document.backup, document.written, document.change) {
        (_, _, "none") => {}
        (Some(backup), ..) => {
            text.push_str(&format!("\nWritten. Backup of the original file: {}\n", backup.display()))
        }
        (None, true, _) => text.push_str("\nWritten.\n"),
        (None, false, _) => text.push_str("\nNothing was written; `--write` does it.\n"),
    }
    text
}
