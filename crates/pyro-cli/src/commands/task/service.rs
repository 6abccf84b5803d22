//! `pyro task service`: commands of a task that are kept running.

mod render;

use std::ffi::OsString;

use clap::{Args, Subcommand};
use pyro_engine::operations::{LogsTaskService, StartTaskService};
use pyro_engine::{
    Engine, LogPart, OutputStream, PortMapping, RestartPolicy, Service, ServiceCommand, ServiceOptions,
    ServiceState,
};

use self::render::{listed, shown};
use super::subject::TaskIdArgs;
use crate::commands::command::ContextArgs;
use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session;
use crate::words::integer;

/// Maximum number of bytes of a log that are read at once: more than is kept.
const ALL_BYTES: u64 = 16 << 20;

const SERVICE_EXAMPLES: &str = "\
Examples:
  pyro task service start 9775b3af1eeb web --ready-http http://localhost:8000/ -- python3 -m http.server
  pyro task service start 9775b3af1eeb db --ready-tcp 5432 --restart on-failure --start-with-task -- ./run-db
  pyro task service list 9775b3af1eeb
  pyro task service logs 9775b3af1eeb web --tail 20 --follow
  pyro task service stop 9775b3af1eeb web";

/// Keep commands of a task running: servers, workers, and the like
///
/// A service goes on without pyro until it is stopped or its task is. A task has at most 32.
#[derive(Debug, Subcommand)]
#[command(after_help = SERVICE_EXAMPLES, arg_required_else_help = true)]
pub(crate) enum ServiceSubcommand {
    Start(Box<ServiceStartArgs>),
    List(ServiceListArgs),
    Status(ServiceStatusArgs),
    Logs(ServiceLogsArgs),
    Stop(ServiceStopArgs),
    #[command(visible_alias = "rm")]
    Remove(ServiceRemoveArgs),
}

const START_EXAMPLES: &str = "\
With a --ready option, pyro waits until the service is ready. It tries again and again, at first after 50 ms and later \
once a second. A service that is not ready in time is ended. If its command ends before it is ready, the last lines of \
its output are shown at once. The service goes on if pyro is interrupted.

A command that failed is run again, with --restart, after a second, and then after pauses that double up to a minute. \
After it has run for a minute, they begin at a second again. A service that was stopped is not run again.

Without a command, a service that exists and does not run is started again unchanged.

What defines a service, also the values of its variables, is stored in the state directory until it is removed. Its \
published ports stay published.

Exit status: 0 if the service runs or has ended successfully, 1 if it failed or is not ready.

Examples:
  pyro task service start 9775b3af1eeb web --ready-http http://localhost:8000/ -- python3 -m http.server
  pyro task service start 9775b3af1eeb web --ready-tcp 80 --publish 8080:80 -w app --restart always -- ./server
  pyro task service start 9775b3af1eeb worker --ready-file run/worker.pid -u www-data -- ./worker
  pyro task service start 9775b3af1eeb db --ready-command pg_isready --start-with-task -- ./run-db
  pyro task service start 9775b3af1eeb web";

/// Start a service of a running task
#[derive(Debug, Args)]
#[command(
    after_help = START_EXAMPLES,
    override_usage = "pyro task service start [OPTIONS] <TASK_ID> <NAME> [-- <COMMAND>...]"
)]
pub(crate) struct ServiceStartArgs {
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
    /// The service is ready when it accepts connections to this TCP port in the guest
    #[arg(long, value_name = "PORT", group = "check")]
    pub(crate) ready_tcp: Option<u16>,
    /// The service is ready when it answers a GET request with a status from 200 to 399: http://localhost:PORT/PATH
    #[arg(long, value_name = "URL", group = "check")]
    pub(crate) ready_http: Option<String>,
    /// The service is ready when this file exists in the guest, below /workspace unless it is absolute
    #[arg(long, value_name = "PATH", group = "check")]
    pub(crate) ready_file: Option<String>,
    /// The service is ready when this shell command ends with exit code 0
    #[arg(long, value_name = "COMMAND", group = "check")]
    pub(crate) ready_command: Option<String>,
    /// Time limit for becoming ready, in seconds, 1 to 3600 [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = integer, allow_hyphen_values = true, requires = "check")]
    pub(crate) ready_timeout_seconds: Option<i64>,
    /// When to run the command again after it has ended: no, on-failure, or always [default: no]
    #[arg(long, value_name = "WHEN", value_parser = policy)]
    pub(crate) restart: Option<RestartPolicy>,
    /// Start the service again with the task [default: off]
    #[arg(long)]
    pub(crate) start_with_task: bool,
    /// Publish a TCP port of the guest on this host, as by `pyro task publish`; may be repeated
    #[arg(long, value_name = "[HOST_IP:]HOST_PORT:GUEST_PORT")]
    pub(crate) publish: Vec<PortMapping>,
    /// Do not wait until the service is ready [default: off]
    #[arg(long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
    /// Command to keep running, best written after `--` [default: what the service ran before]
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) words: Vec<OsString>,
}

fn policy(text: &str) -> Result<RestartPolicy, &'static str> {
    text.parse().map_err(|_| "expected no, on-failure, or always")
}

/// A service of a task.
#[derive(Debug, Args)]
pub(crate) struct ServiceArgs {
    /// Id or name of the task, or the first digits of its id; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    pub(crate) task_id: String,
    /// Name of the service: 1 to 63 letters, digits, `-`, `_` and `.`
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

const LIST_EXAMPLES: &str = "\
Examples:
  pyro task service list 9775b3af1eeb
  pyro task service list 9775b3af1eeb --json | jq -r '.services[] | select(.state == \"failed\") | .name'";

/// List the services of a task
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct ServiceListArgs {
    #[command(flatten)]
    pub(crate) task: TaskIdArgs,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  pyro task service status 9775b3af1eeb web
  pyro task service status 9775b3af1eeb web --json | jq .state";

/// Show a service
#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub(crate) struct ServiceStatusArgs {
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
}

const LOGS_EXAMPLES: &str = "\
Examples:
  pyro task service logs 9775b3af1eeb web
  pyro task service logs 9775b3af1eeb web --tail 20 --follow";

/// Show what a service has written, in all of its runs
///
/// Its standard output and its standard error are one log, of which about the last 8 MiB are kept.
#[derive(Debug, Args)]
#[command(after_help = LOGS_EXAMPLES)]
pub(crate) struct ServiceLogsArgs {
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
    /// Begin with this many last lines [default: all that are kept]
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
    /// Show what the service writes until it is stopped or has ended for good [default: off]
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) follow: bool,
}

const STOP_EXAMPLES: &str = "\
Examples:
  pyro task service stop 9775b3af1eeb web";

/// Stop a service
///
/// Sends SIGTERM to everything that its command started and, ten seconds later, SIGKILL. Succeeds if the service does not run.
#[derive(Debug, Args)]
#[command(after_help = STOP_EXAMPLES)]
pub(crate) struct ServiceStopArgs {
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
}

const REMOVE_EXAMPLES: &str = "\
Examples:
  pyro task service remove 9775b3af1eeb web";

/// Stop a service and remove it with its log
#[derive(Debug, Args)]
#[command(after_help = REMOVE_EXAMPLES)]
pub(crate) struct ServiceRemoveArgs {
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
}

impl ServiceSubcommand {
    pub(super) fn run(self, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
        match self {
            Self::Start(args) => start(*args, engine, printer),
            Self::List(ServiceListArgs { task }) => {
                let list = session::block_on(engine.list_task_services(&task.task_id))?;
                Ok(Reply::of(task.json, &list, listed)?)
            }
            Self::Status(ServiceStatusArgs { service }) => {
                let ServiceArgs { task_id, name, json } = service;
                let found = session::block_on(engine.status_task_service(&task_id, &name))?;
                Ok(Reply::of(json, &found, shown)?)
            }
            Self::Logs(args) => logs(&args, engine, printer),
            Self::Stop(ServiceStopArgs { service }) => {
                let ServiceArgs { task_id, name, json } = service;
                let stopped = session::block_on(engine.stop_task_service(&task_id, &name))?;
                Ok(Reply::of(json, &stopped, shown)?)
            }
            Self::Remove(ServiceRemoveArgs { service }) => {
                let ServiceArgs { task_id, name, json } = service;
                let removed = session::block_on(engine.remove_task_service(&task_id, &name))?;
                Ok(Reply::of(json, &removed, |removed| format!("Removed service: {}\n", removed.name))?)
            }
        }
    }

    pub(super) fn wants_json(&self) -> bool {
        match self {
            Self::Start(args) => args.service.json,
            Self::List(args) => args.task.json,
            Self::Status(args) => args.service.json,
            Self::Logs(args) => args.service.json,
            Self::Stop(args) => args.service.json,
            Self::Remove(args) => args.service.json,
        }
    }
}

fn start(args: ServiceStartArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let command = match args.words.as_slice() {
        [] => {
            args.context.refuse_without_command()?;
            ServiceCommand::default()
        }
        words => args.context.command(words)?.into(),
    };
    let ServiceArgs { task_id, name, json } = args.service;
    let request = StartTaskService {
        task: task_id.as_str().into(),
        service: name.as_str().into(),
        command,
        options: ServiceOptions {
            ready_tcp: args.ready_tcp,
            ready_http: args.ready_http,
            ready_file: args.ready_file,
            ready_command: args.ready_command,
            ready_timeout_seconds: args.ready_timeout_seconds,
            restart: args.restart.unwrap_or_default(),
            start_with_task: args.start_with_task,
            wait: !args.detach,
        },
        ports: args.publish.into(),
    };
    let (started, _) = session::watch(printer, json, async |events, cancel| {
        engine.start_task_service(request, &events, &cancel).await
    })?;
    let exit = exit_of(&started);
    Ok(Reply::of(json, &started, shown)?.exit(exit))
}

/// Returns whether the start succeeded: one that is still becoming ready was not waited for.
fn exit_of(started: &Service) -> Exit {
    match started.state {
        ServiceState::Starting | ServiceState::Running | ServiceState::Ready => Exit::Success,
        // It was never ready.
        ServiceState::Exited if started.ready.is_some() => Exit::Failure,
        ServiceState::Exited => Exit::Success,
        ServiceState::Restarting | ServiceState::Failed | ServiceState::Stopped => Exit::Failure,
    }
}

fn logs(args: &ServiceLogsArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let ServiceArgs { task_id, name, json } = &args.service;
    if args.follow {
        let (ended, shown) = session::watch(printer, false, async |events, cancel| {
            engine.follow_task_service(task_id, name, args.tail, &events, &cancel).await
        })?;
        shown.end_line(printer);
        return Ok(Reply::nothing().note(format!("[service] {name} is {}", ended.state)));
    }
    let part = LogPart { tail: args.tail, offset: None, max_bytes: Some(ALL_BYTES) };
    let request = LogsTaskService { task: task_id.as_str().into(), service: name.as_str().into(), part };
    let log = session::block_on(engine.logs_task_service(request))?;
    if *json {
        return Ok(Reply::document(&log)?);
    }
    printer.kept(OutputStream::Stdout, log.output.as_bytes())?;
    Ok(Reply::nothing())
}
