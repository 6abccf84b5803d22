//! `pyro mcp`: pyro as a server for AI clients.

pub(crate) mod install;
pub(crate) mod serve;

use clap::Subcommand;

use self::install::McpInstallArgs;
use self::serve::McpServeArgs;
use crate::error::CliError;
use crate::printer::Printer;
use crate::reply::Reply;

const MCP_EXAMPLES: &str = "\
Examples:
  pyro mcp serve
  pyro mcp serve --transport http
  pyro mcp install --client claude-code";

/// Serve AI clients over the Model Context Protocol
#[derive(Debug, Subcommand)]
#[command(after_help = MCP_EXAMPLES, arg_required_else_help = true)]
pub(crate) enum McpCommand {
    Serve(Box<McpServeArgs>),
    Install(McpInstallArgs),
}

impl McpCommand {
    pub(crate) fn run(self, printer: &Printer) -> Result<Reply, CliError> {
        match self {
            Self::Serve(args) => serve::run(*args, printer),
            Self::Install(args) => install::run(&args),
        }
    }

    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Serve(_) => false,
            Self::Install(args) => args.json,
        }
    }
}
