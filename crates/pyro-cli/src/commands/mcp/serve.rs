//! `pyro mcp serve`.

mod lifeline;

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use pyro_engine::{Engine, EngineError, ErrorKind, Hint};
use pyro_mcp::{HTTP_PATH, HttpAccess, Policy, Profile, Server};

use crate::args::{McpHttpArgs, McpLimitArgs, McpProfile, McpServeArgs, McpTransport};
use crate::commands;
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::session;
use crate::signals::{self, Signal};

/// Where clients are expected if nothing else is said.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8722);
/// Longest file with a token, in bytes.
const TOKEN_FILE_BYTES: u64 = 4096;

pub(crate) fn run(args: McpServeArgs, printer: &Printer) -> Result<Exit, CliError> {
    let mut config = commands::config()?;
    config.max_active_vms = args.limits.max_active_vms.unwrap_or(config.max_active_vms);
    config.warm_spares = args.warm.unwrap_or(config.warm_spares);
    let engine = Engine::new(config);
    let access = match (args.transport, args.http) {
        (McpTransport::Http, http) => Some(access(http)?),
        (McpTransport::Stdio, McpHttpArgs { listen: None, token_file: None, allow_host })
            if allow_host.is_empty() =>
        {
            None
        }
        (McpTransport::Stdio, _) => {
            let message = "--listen, --token-file and --allow-host are for HTTP";
            return Err(refusal(message, "add --transport http"));
        }
    };
    let lifeline = args.lifeline_fd.map(lifeline::take).transpose()?;
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
        Ok(stopped.map_or(Exit::Success, Exit::Stopped))
    })
}

/// The limits, as far as they make sense.
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
    EngineError::new(ErrorKind::InvalidInput, message)
        .hint(Hint::CommandLine { text: hint.to_owned() })
        .into()
}

/// The token in a file, without the end of its line.
fn read_token(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = File::open(path)
        .and_then(|file| file.take(TOKEN_FILE_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| CliError::System(format!("cannot read {}", path.display()), error))?;
    if read as u64 > TOKEN_FILE_BYTES {
        let message = format!("{} has more than {TOKEN_FILE_BYTES} bytes", path.display());
        return Err(refusal(&message, "name a file that holds the token and nothing else"));
    }
    Ok(text.trim_end().to_owned())
}
