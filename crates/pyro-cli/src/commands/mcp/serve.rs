//! `pyro mcp serve`.

mod lifeline;
mod tokens;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pyro_engine::{Caller, Engine, Error, ErrorKind, Hint, MountRoot, MountRoots, OwnerName, Visibility};
use pyro_mcp::{HTTP_PATH, HttpAccess, Policy, Profile, Server};

use self::tokens::Access;
use crate::commands::host_settings::HostSettingsArgs;
use crate::commands::machine::ConfinementArgs;
use crate::commands::network::NetworkLimitArgs;
use crate::config::{self, Variables};
use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session;
use crate::signals::{self, Signal};

const SERVE_EXAMPLES: &str = "\
Clients start it themselves. Most of them take this setting:
  {\"mcpServers\": {\"pyro\": {\"command\": \"pyro\", \"args\": [\"mcp\", \"serve\"]}}}

Examples:
  pyro mcp serve
  pyro mcp serve --profile task --no-network --max-mem-mib 2048
  pyro mcp serve --transport http --listen 127.0.0.1:8722
  pyro mcp serve --transport http --token-file tokens
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
    #[command(flatten)]
    pub(crate) host_settings: HostSettingsArgs,
    /// Inherited pipe; the server ends when the pipe's other end closes
    #[arg(long, value_name = "FD", hide = true, value_parser = clap::value_parser!(i32).range(3..))]
    pub(crate) lifeline_fd: Option<i32>,
    /// VMs and tasks that a client finds; for it, all others do not exist [default: own over HTTP or with limits, else all]
    #[arg(long, value_enum)]
    pub(crate) tasks: Option<McpTasks>,
    /// Owner of what clients create that have no token and no session; the same label finds it again after a restart
    /// [default: a new one]
    #[arg(long, value_name = "NAME", value_parser = label)]
    pub(crate) label: Option<OwnerName>,
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
    /// File with the token that clients send as `Authorization: Bearer …`, or with lines of NAME TOKEN; no other user may
    /// access it [default: generated in the state directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Let every program on this host connect without a token; only on a loopback address [default: off]
    #[arg(long, conflicts_with = "token_file")]
    pub(crate) no_token: bool,
    /// Name by which clients reach this host, in addition to localhost and the address; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,
}

impl McpHttpArgs {
    fn is_unused(&self) -> bool {
        let Self { listen, token_file, no_token, allow_host } = self;
        listen.is_none() && token_file.is_none() && !no_token && allow_host.is_empty()
    }
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
    #[command(flatten)]
    pub(crate) network: NetworkLimitArgs,
    /// Let clients run commands on this host, without isolation, if VMs cannot run here; PYRO_MCP_ALLOW_HOST_COMPAT=1
    /// does the same [default: off]
    #[arg(long)]
    pub(crate) allow_host_compat: bool,
    /// The default; overrides PYRO_MCP_ALLOW_HOST_COMPAT
    #[arg(long, hide = true, conflicts_with = "allow_host_compat")]
    no_host_compat: bool,
    /// Let clients have this directory of this host, and what is below it, mounted in guests, which change it only with
    /// :rw; may be repeated [default: none]
    #[arg(long, value_name = "DIR[:rw]")]
    pub(crate) allow_mount: Vec<MountRoot>,
    /// Maximum virtual CPUs of a VM
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i64).range(1..=8))]
    pub(crate) max_vcpu_count: Option<i64>,
    /// Maximum memory of a VM, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i64).range(256..=32768))]
    pub(crate) max_mem_mib: Option<i64>,
    /// Maximum disk size of a task, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i64).range(256..=1_048_576))]
    pub(crate) max_disk_mib: Option<i64>,
    /// Maximum lifetime of a VM or task, and maximum time limit of a command, in seconds. The VM of a single command may
    /// live for 60 s more than its time limit
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(60..=3600))]
    pub(crate) max_ttl_seconds: Option<u32>,
    /// Maximum number of VMs and tasks at once; overrides PYRO_MAX_ACTIVE_VMS
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_active_vms: Option<u32>,
}

impl McpLimitArgs {
    /// A flag limits the VMs and tasks of clients, not only the tools.
    fn limits_machines(&self) -> bool {
        let sizes = [self.max_vcpu_count, self.max_mem_mib, self.max_disk_mib];
        self.network.limits_machines()
            || !self.environment.is_empty()
            || !self.allow_mount.is_empty()
            || self.max_active_vms.is_some()
            || self.max_ttl_seconds.is_some()
            || sizes.iter().any(Option::is_some)
    }
}

/// The VMs and tasks that clients find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum McpTasks {
    /// Those that the client created
    Own,
    /// Those of all clients and users of the state directory
    All,
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

pub(crate) fn run(mut args: McpServeArgs, printer: &Printer) -> Result<Reply, CliError> {
    let mut config = config::of_process()?;
    config.max_active_vms = args.limits.max_active_vms.unwrap_or(config.max_active_vms);
    config.warm_spares = args.warm.unwrap_or(config.warm_spares);
    args.confinement.apply(&mut config);
    args.host_settings.apply(&mut config)?;
    let host_proxy = config.host_proxy;
    for root in &mut args.limits.allow_mount {
        find_mount_root(root, &config.mount_roots)?;
    }
    config.client_mounts = Some(args.limits.allow_mount.clone());
    config.max_raised_ttl_seconds = args.limits.max_ttl_seconds.unwrap_or(config.max_raised_ttl_seconds);
    let engine = Engine::new(config);
    let caller = caller(&args)?;
    let in_environment = config::mcp_allows_host(&Variables::of_process())?;
    let allows_host = args.limits.allow_host_compat || (in_environment && !args.limits.no_host_compat);
    let access = match (args.transport, args.http) {
        (McpTransport::Http, http) => Some(access(http, &engine)?),
        (McpTransport::Stdio, http) if http.is_unused() => None,
        (McpTransport::Stdio, _) => {
            let message = "--listen, --token-file, --no-token and --allow-host are only for HTTP";
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
        let policy = policy(args.limits, Rights { allows_host, host_proxy }, &engine).await?;
        let mut requests = signals::listen()?;
        let mut stopped = None;
        let stop = async {
            stopped = tokio::select! {
                signal = requests.recv() => signal,
                () = lifeline::end(lifeline) => Some(Signal::Terminate),
            }
        };
        let server = Server::new(engine, policy, caller);
        let served = match access {
            None => server.serve_stdio(stop).await.map_err(io::Error::other),
            Some((access, message)) => {
                let ready = |address| {
                    printer.note(&format!("pyro: serving MCP on http://{address}{HTTP_PATH}"));
                    if let Some(message) = message {
                        printer.note(&message);
                    }
                };
                server.serve_http(access, ready, stop).await
            }
        };
        served.map_err(|error| CliError::System("cannot serve".to_owned(), error))?;
        Ok::<_, CliError>(Reply::nothing().exit(stopped.map_or(Exit::Success, Exit::Stopped)))
    })
}

/// Sets the true path of a directory that clients may have mounted. It is an error if `PYRO_MOUNTS` excludes it.
fn find_mount_root(root: &mut MountRoot, limit: &MountRoots) -> Result<(), CliError> {
    let shown = &root.host;
    let path = fs::canonicalize(shown).map_err(|error| {
        refusal(&format!("--allow-mount: cannot find {shown}: {error}"), "name a directory that exists")
    })?;
    if !path.is_dir() {
        return Err(refusal(&format!("--allow-mount: {shown} is not a directory"), "name a directory"));
    }
    if !limit.overlap(&path) {
        let message = format!("--allow-mount: PYRO_MOUNTS does not allow {}", path.display());
        return Err(refusal(&message, "name a directory that PYRO_MOUNTS allows, or change PYRO_MOUNTS"));
    }
    let Ok(path) = path.into_os_string().into_string() else {
        return Err(refusal(&format!("--allow-mount: the path of {shown} is not valid UTF-8"), "rename it"));
    };
    root.host = path;
    Ok(())
}

/// What clients may use of this host.
struct Rights {
    allows_host: bool,
    host_proxy: bool,
}

/// Returns the policy. Fails for an environment that does not exist.
async fn policy(args: McpLimitArgs, rights: Rights, engine: &Engine) -> Result<Policy, CliError> {
    for name in &args.environment {
        engine.inspect_environment(name).await?;
    }
    let network_policy = args.network.policy();
    network_policy.check().map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))?;
    Ok(Policy {
        profile: match args.profile {
            McpProfile::VmRun => Profile::VmRun,
            McpProfile::Task => Profile::Task,
            McpProfile::Full => Profile::Full,
        },
        read_only: args.read_only,
        environments: args.environment,
        no_network: args.network.no_network,
        network_policy,
        host_proxy: rights.host_proxy,
        allow_host_compat: rights.allows_host,
        allow_mounts: args.allow_mount,
        max_vcpu_count: args.max_vcpu_count,
        max_mem_mib: args.max_mem_mib,
        max_disk_mib: args.max_disk_mib,
        max_ttl_seconds: args.max_ttl_seconds.map(i64::from),
    })
}

/// Returns where the server listens and who may connect, and what to say about it once it serves.
fn access(args: McpHttpArgs, engine: &Engine) -> Result<(HttpAccess, Option<String>), CliError> {
    let Access { tokens, message } = tokens::access(&args, engine)?;
    let listen = args.listen.unwrap_or(DEFAULT_LISTEN);
    let access = HttpAccess::new(listen, tokens, args.allow_host).map_err(|error| {
        refusal(&error.to_string(), "see --no-token and --allow-host in `pyro mcp serve --help`")
    })?;
    Ok((access, message))
}

/// Returns the caller on whose behalf the server acts.
fn caller(args: &McpServeArgs) -> Result<Caller, CliError> {
    let visibility = match args.tasks {
        Some(McpTasks::Own) => Visibility::Own,
        Some(McpTasks::All) => Visibility::All,
        None if args.transport == McpTransport::Http || args.limits.limits_machines() => Visibility::Own,
        None => Visibility::All,
    };
    let name = match &args.label {
        Some(label) => label.clone(),
        None => OwnerName::random("mcp")?,
    };
    Ok(Caller::Client { name, visibility })
}

/// Parses a label. A colon is not allowed, because generated names have one.
fn label(text: &str) -> Result<OwnerName, &'static str> {
    const EXPECTED: &str = "expected 1 to 64 letters, digits, `.`, `_` or `-`";
    match text.len() > 64 || text.contains(':') {
        true => Err(EXPECTED),
        false => text.parse().map_err(|_| EXPECTED),
    }
}

fn refusal(message: &str, hint: &str) -> CliError {
    Error::new(ErrorKind::InvalidInput, message).hint(Hint::CommandLine { text: hint.to_owned() }).into()
}

#[cfg(test)]
mod tests;
