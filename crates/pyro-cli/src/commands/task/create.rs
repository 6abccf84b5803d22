//! `pyro task create`.

use clap::Args;
use pyro_engine::{Engine, PortMapping, TaskSpec, VmSpec};

use super::naming::{NamingArgs, TtlFromArg};
use super::state;
use crate::commands::host_settings::HostSettingsArgs;
use crate::commands::machine::{ConfinementArgs, MachineArgs};
use crate::commands::mounts::MountArgs;
use crate::commands::network::NetworkArgs;
use crate::error::CliError;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session;
use crate::words::integer;

const CREATE_EXAMPLES: &str = "\
Examples:
  pyro task create debian:12
  pyro task create debian:12-build --vcpu-count 2 --mem-mib 2048 --ttl-seconds 3600
  pyro task create debian:12 --publish 8080:80
  pyro task create debian:12 --name build --label team=infra --ttl-from use
  ID=$(pyro task create debian:12 --json | jq -r .task_id)";

/// Create a task and start it
///
/// Installs the environment first if it is missing. The task outlives this command: any process of this user can
/// use it until it is deleted.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(crate) struct TaskCreateArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Lifetime of the task in seconds, 60 to 3600; then the task is stopped
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) ttl_seconds: i64,
    /// Size of the disk in MiB, 256 to 1048576; space is allocated when it is used [default: 8192, or less if this host's disk is too small]
    #[arg(long, value_name = "MIB", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) disk_mib: Option<i64>,
    /// Publish a TCP port of the guest on this host, on 127.0.0.1 by default; HOST_PORT 0 is one that is free; may be repeated
    #[arg(long, value_name = "[HOST_IP:]HOST_PORT:GUEST_PORT")]
    pub(crate) publish: Vec<PortMapping>,
    #[command(flatten)]
    pub(crate) naming: NamingArgs,
    /// When a lifetime begins
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = TtlFromArg::Create)]
    pub(crate) ttl_from: TtlFromArg,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) mounts: MountArgs,
    #[command(flatten)]
    pub(crate) host_settings: HostSettingsArgs,
    /// Run commands on this machine, without isolation, if VMs cannot run here [default: off]
    #[arg(long)]
    pub(crate) allow_host_compat: bool,
    #[command(flatten)]
    pub(crate) confinement: ConfinementArgs,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) fn run(args: TaskCreateArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let spec = TaskSpec {
        vm: VmSpec {
            environment: args.machine.environment,
            vcpu_count: args.machine.vcpu_count,
            mem_mib: args.machine.mem_mib,
            ttl_seconds: args.ttl_seconds,
            network: args.network.network,
            network_policy: args.network.policy(),
            host_ca: args.host_settings.host_ca()?,
            host_proxy: args.host_settings.host_proxy(),
            mounts: args.mounts.mounts()?,
            allow_host_compat: args.allow_host_compat,
        },
        disk_mib: args.disk_mib,
        publish: args.publish,
        naming: args.naming.naming(),
        ttl_from: args.ttl_from.into(),
    };
    let (task, _) = session::watch(printer, args.json, async |events, cancel| {
        engine.create_task(spec, &events, &cancel).await
    })?;
    Ok(Reply::of(args.json, &task, state::task)?)
}
