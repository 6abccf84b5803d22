//! `pyro rpc`.

use clap::Args;

const RPC_EXAMPLES: &str = "\
The Python package starts it by itself. The first request is `initialize`; `rpc.discover` gives the same document as --schema.

Examples:
  pyro rpc --schema | jq -r '.methods[].name'
  echo '{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"rpc.discover\"}' | pyro rpc";

/// Serve one program on standard input and output with JSON-RPC 2.0
///
/// One message a line, parameters by name, any number of calls at once. It ends when its input ends: calls that are under
/// way are cancelled and their VMs removed, tasks stay.
#[derive(Debug, Args)]
#[command(after_help = RPC_EXAMPLES)]
pub(crate) struct RpcArgs {
    /// Print the OpenRPC document that describes the protocol, and end [default: off]
    #[arg(long)]
    pub(crate) schema: bool,
}
