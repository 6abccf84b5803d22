//! `pyro mcp serve`.

mod lifeline;

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use pyro_engine::{Engine, Error, ErrorKind, Hint};
use pyro_mcp::{HTTP_PATH, HttpAccess, Policy, Profile, Server};

use crate::commands::machine::ConfinementArgs;
use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::signals::{self, Signal};
use crate::{config, session};

const SERVE_EXAMPLES: &str = "\
Clients start it themselves. Most of them take this setting:
  {\"mcpServers\": {\"pyro\": {\"command\": \"pyro\", \"args\": [\"mcp\", \"serve\"]}}}

Examples:
  pyro mcp serve
  pyro mcp serve --profile task --no-network --max-mem-mib 2048
  pyro mcp serve --transport http --listen 127.0.0.1:8722
  npx @modelcontextprotocol/inspector --cli pyro mcp serve --method tools/list";

/// Serve one client on standard input and output, or many over HTTP
///
/// On standard input and output, it ends when its input ends; over HTTP, on Ctrl-C or SIGTERM. It then cancels the
/// calls in flight and removes their VMs; tasks stay. Logs go to stderr.
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
pub(crate) struct McpServeArgs {
    /// How clients connect
    #[arg(long, value_enum, default_value_t = McpTransport::Stdio)]
    pub(crate) transport: McpTransport,
    /// Number of spare VMs that wait while the server runs, so that calls start at once; overrides PYRO_WARM
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(..=64))]
    pub(crate) warm: Option<u32>,
    #[command(flatten)]
    pub(crate) confinement: ConfinementArgs,
    /// Inherited pipe; the server ends when the pipe's other end closes
    #[arg(long, value_name = "FD", hide = true, value_parser = clap::value_parser!(i32).range(3..))]
    pub(crate) lifeline_fd: Option<i32>,
    #[command(flatten, next_help_heading = "HTTP")]
    pub(crate) http: McpHttpArgs,
    #[command(flatten, next_help_heading = "Limits for all clients")]
    pub(crate) limits: McpLimitArgs,
}

/// How clients connect to a server.
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
    /// Address to listen on; port 0 chooses a free one [default: 127.0.0.1:8722]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// File with the token that clients send as `Authorization: Bearer …`; required unless the address is a loopback address
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Name by which clients reach this host, in addition to localhost and the address; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct McpLimitArgs {
    /// Set of tools to offer
    #[arg(long, value_enum, default_value_t = McpProfile::Full)]
    pub(crate) profile: McpProfile,
    /// Offer only tools that change nothing [default: off]
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Environment that clients may use; may be repeated [default: all]
    #[arg(long, value_name = "ENVIRONMENT")]
    pub(crate) environment: Vec<String>,
    /// Give no guest a network [default: off]
    #[arg(long)]
    pub(crate) no_network: bool,
    /// Let clients run commands on this host, without isolation, if VMs cannot run here [default: off]
    #[arg(long)]
    pub(crate) allow_host_compat: bool,
    /// The default; accepted for existing client settings
    #[arg(long, hide = true, conflicts_with = "allow_host_compat")]
    no_host_compat: bool,
    /// Maximum virtual CPUs of a VM
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i64).range(1..=8))]
    pub(crate) max_vcpu_count: Option<i64>,
    /// Maximum memory of a VM, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i64).range(256..=32768))]
    pub(crate) max_mem_mib: Option<i64>,
    /// Maximum disk size of a task, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i64).range(256..=1_048_576))]
    pub(crate) max_disk_mib: Option<i64>,
    /// Maximum lifetime of a VM or task, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(60..=3600))]
    pub(crate) max_ttl_seconds: Option<i64>,
    /// Maximum number of VMs and tasks at once; overrides PYRO_MAX_ACTIVE_VMS
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_active_vms: Option<u32>,
}

/// Sets of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum McpProfile {
    /// vm_run and the list of environments
    VmRun,
    /// Those of vm-run, and the tools for tasks
    Task,
    /// All tools
    Full,
}

/// The default address.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8722);
/// Maximum size of a token file, in bytes.
const TOKEN_FILE_BYTES: u64 = 4096;

pub(crate) fn run(args: McpServeArgs, printer: &Printer) -> Result<Reply, CliError> {
    let mut config = config::of_process()?;
    config.max_active_vms = args.limits.max_active_vms.unwrap_or(config.max_active_vms);
    config.warm_spares = args.warm.unwrap_or(config.warm_spares);
    args.confinement.apply(&mut config);
    let engine = Engine::new(config);
    let access = match (args.transport, args.http) {
        (McpTransport::Http, http) => Some(access(http)?),
        (McpTransport::Stdio, McpHttpArgs { listen: None, token_file: None, allow_host })
            if allow_host.is_empty() =>
        {
            None
        }
        (McpTransport::Stdio, _) => {
            let message = "--listen, --token-file and --allow-host are only for HTTP";
            return Err(refusal(message, "add --transport http"));
        }
    };
    let lifeline = args.lifeline_fd.map(|number| {
        lifeline::take(number).ok_or_else(|| {
            let message = format!("--lifeline-fd: {number} is not the number of an inherited pipe");
            refusal(&message, "only programs that start the server and pass it a pipe use this option")
        })
    });
    let lifeline = lifeline.transpose()?;
    session::block_on(async {
        let policy = policy(args.limits, &engine).await?;
        let mut requests = signals::listen()?;
        let mut stopped = None;
        let stop = async {
            stopped = tokio::select! {
                signal = requests.recv() => signal,
                () = lifeline::end(lifeline) => Some(Signal::Terminate),
            }
        };
        let server = Server::new(engine, policy);
        let served = match access {
            None => server.serve_stdio(stop).await.map_err(io::Error::other),
            Some(access) => {
                let ready =
                    |address| printer.note(&format!("pyro: serving MCP on http://{address}{HTTP_PATH}"));
                server.serve_http(access, ready, stop).await
            }
        };
        served.map_err(|error| CliError::System("cannot serve".to_owned(), error))?;
        Ok::<_, CliError>(Reply::nothing().exit(stopped.map_or(Exit::Success, Exit::Stopped)))
    })
}

/// Returns the policy. Fails for an environment that does not exist.
async fn policy(args: McpLimitArgs, engine: &Engine) -> Result<Policy, CliError> {
    for name in &args.environment {
        engine.inspect_environment(name).await?;
    }
    Ok(Policy {
        profile: match args.profile {
            McpProfile::VmRun => Profile::VmRun,
            McpProfile::Task => Profile::Task,
            McpProfile::Full => Profile::Full,
        },
        read_only: args.read_only,
        environments: args.environment,
        no_network: args.no_network,
        allow_host_compat: args.allow_host_compat,
        max_vcpu_count: args.max_vcpu_count,
        max_mem_mib: args.max_mem_mib,
        max_disk_mib: args.max_disk_mib,
        max_ttl_seconds: args.max_ttl_seconds,
    })
}

fn access(args: McpHttpArgs) -> Result<HttpAccess, CliError> {
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let listen = args.listen.unwrap_or(DEFAULT_LISTEN);
    HttpAccess::new(listen, token, args.allow_host).map_err(|error| {
        refusal(&error.to_string(), "see --token-file and --allow-host in `pyro mcp serve --help`")
    })
}

fn refusal(message: &str, hint: &str) -> CliError {
    Error::new(ErrorKind::InvalidInput, message).hint(Hint::CommandLine { text: hint.to_owned() }).into()
}

/// Returns the token in a file, without the line end.
fn read_token(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = File::open(path)
        .and_then(|file| file.take(TOKEN_FILE_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| CliError::System(format!("cannot read {}", path.display()), error))?;
    if read as u64 > TOKEN_FILE_BYTES {
        let message = format!("{} is too large: the maximum is {TOKEN_FILE_BYTES} bytes", path.display());
        return Err(refusal(&message, "use a file that holds only the token"));
    }
    Ok(text.trim_end().to_owned())
}
