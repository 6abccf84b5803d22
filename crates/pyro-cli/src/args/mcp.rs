//! `pyro mcp`: pyro as a server for AI clients.

mod install;
mod serve;

use clap::Subcommand;

pub(crate) use install::McpInstallArgs;
pub(crate) use serve::{McpHttpArgs, McpLimitArgs, McpProfile, McpServeArgs, McpTransport};

const MCP_EXAMPLES: &str = "\
Examples:
  pyro mcp serve
  pyro mcp serve --transport http
  pyro mcp install --client claude-code";

/// Serve AI clients over the Model Context Protocol
#[derive(Debug, Subcommand)]
#[command(after_help = MCP_EXAMPLES, arg_required_else_help = true)]
pub(crate) enum McpCommand {
    Serve(McpServeArgs),
    Install(McpInstallArgs),
}

impl McpCommand {
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Serve(_) => false,
            Self::Install(args) => args.json,
        }
    }
}
