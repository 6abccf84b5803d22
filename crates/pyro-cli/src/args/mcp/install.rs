//! `pyro mcp install`.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::McpHttpArgs;
use crate::client_config::Client;

const INSTALL_EXAMPLES: &str = "\
The client is told the absolute path of this executable, because it may not have your PATH, and the settings that \
are set here (PYRO_* other than PYRO_LOG, XDG_STATE_HOME, XDG_CACHE_HOME, XDG_DATA_HOME), because it may not have your \
environment. `generic` has no file: what it prints is for any client that reads `mcpServers`.

Examples:
  pyro mcp install --client claude-code
  pyro mcp install --client claude-code --write
  pyro mcp install --client vscode --project --write
  pyro mcp install --client generic > mcp.json";

/// Add pyro to the settings of an AI client
///
/// Shows what would be written, and where. With --write it is written: everything else in the file stays as it
/// is, comments included, and a copy of the file as it was is kept beside it. An entry of the same name is
/// replaced as a whole.
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
