//! `pyro mcp serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

const SERVE_EXAMPLES: &str = "\
Clients start it themselves; this is what most of them want to be told:
  {\"mcpServers\": {\"pyro\": {\"command\": \"pyro\", \"args\": [\"mcp\", \"serve\"]}}}

Examples:
  pyro mcp serve
  pyro mcp serve --profile task --no-network --max-mem-mib 2048
  pyro mcp serve --transport http --listen 127.0.0.1:8722
  npx @modelcontextprotocol/inspector --cli pyro mcp serve --method tools/list";

/// Serve one client on standard input and output, or many over HTTP
///
/// On standard input and output it ends when its input ends; over HTTP when it is told to, by Ctrl-C or
/// SIGTERM. Calls that are under way are cancelled and their VMs removed, tasks stay. Logs go to stderr.
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
pub(crate) struct McpServeArgs {
    /// How clients talk to it
    #[arg(long, value_enum, default_value_t = McpTransport::Stdio)]
    pub(crate) transport: McpTransport,
    /// Keep that many spare VMs waiting while the server runs, so that calls start at once, instead of PYRO_WARM
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(..=64))]
    pub(crate) warm: Option<u32>,
    /// Inherited pipe with whose end the server ends, for programs that start it
    #[arg(long, value_name = "FD", hide = true, value_parser = clap::value_parser!(i32).range(3..))]
    pub(crate) lifeline_fd: Option<i32>,
    #[command(flatten, next_help_heading = "HTTP")]
    pub(crate) http: McpHttpArgs,
    #[command(flatten, next_help_heading = "Limits, which no client can widen")]
    pub(crate) limits: McpLimitArgs,
}

/// Ways to talk to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum McpTransport {
    /// Standard input and output
    Stdio,
    /// Streamable HTTP, at /mcp
    #[value(alias = "streamable-http")]
    Http,
}

#[derive(Debug, Args)]
pub(crate) struct McpHttpArgs {
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:8722]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// File with the token that clients send as `Authorization: Bearer …`; required unless the address is a loopback's
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Name by which clients reach this host, beside localhost and the address; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct McpLimitArgs {
    /// Which tools there are
    #[arg(long, value_enum, default_value_t = McpProfile::Full)]
    pub(crate) profile: McpProfile,
    /// Only tools that change nothing [default: off]
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Environment that may be used; may be repeated [default: all]
    #[arg(long, value_name = "ENVIRONMENT")]
    pub(crate) environment: Vec<String>,
    /// Give no guest a network [default: off]
    #[arg(long)]
    pub(crate) no_network: bool,
    /// Let clients run commands on this host, without isolation, where no VM can run [default: off]
    #[arg(long)]
    pub(crate) allow_host_compat: bool,
    /// The default; kept for settings that name it
    #[arg(long, hide = true, conflicts_with = "allow_host_compat")]
    no_host_compat: bool,
    /// Most virtual CPUs of a VM
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i64).range(1..=8))]
    pub(crate) max_vcpu_count: Option<i64>,
    /// Most memory of a VM in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i64).range(256..=32768))]
    pub(crate) max_mem_mib: Option<i64>,
    /// Largest disk of a task in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i64).range(256..=1_048_576))]
    pub(crate) max_disk_mib: Option<i64>,
    /// Longest lifetime of a VM or task in seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(60..=3600))]
    pub(crate) max_ttl_seconds: Option<i64>,
    /// Most VMs and tasks at once, instead of PYRO_MAX_ACTIVE_VMS
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_active_vms: Option<u32>,
}

/// Sets of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum McpProfile {
    /// vm_run and the list of environments
    VmRun,
    /// These and the tools for tasks
    Task,
    /// All
    Full,
}
