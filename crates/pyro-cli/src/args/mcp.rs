//! `pyro mcp`: pyro as a server for AI clients.

use clap::{Args, Subcommand};

const MCP_EXAMPLES: &str = "\
Examples:
  pyro mcp serve";

/// Serve AI clients over the Model Context Protocol
#[derive(Debug, Subcommand)]
#[command(after_help = MCP_EXAMPLES, arg_required_else_help = true)]
pub(crate) enum McpCommand {
    Serve(McpServeArgs),
}

const SERVE_EXAMPLES: &str = "\
Clients start it themselves; this is what most of them want to be told:
  {\"mcpServers\": {\"pyro\": {\"command\": \"pyro\", \"args\": [\"mcp\", \"serve\"]}}}

Examples:
  pyro mcp serve
  npx @modelcontextprotocol/inspector --cli pyro mcp serve --method tools/list";

/// Serve one client on standard input and output
///
/// Ends when its input ends: calls that are under way are cancelled and their VMs removed, tasks stay. Logs
/// go to stderr.
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
pub(crate) struct McpServeArgs {}
