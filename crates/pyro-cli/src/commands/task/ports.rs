//! `pyro task publish` and `unpublish`: ports of a task on this host.

use std::net::IpAddr;

use clap::Args;
use pyro_engine::{Engine, PortMapping, PublishedPort, Task};

use crate::error::CliError;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session;

const PUBLISH_EXAMPLES: &str = "\
Examples:
  pyro task publish 9775b3af1eeb 8080:80
  pyro task publish 9775b3af1eeb 0:5432 --json | jq .host_port
  pyro task publish 9775b3af1eeb";

/// Publish a TCP port of a running task on this host, or list those that are published
///
/// What listens on that port in the guest is reached at 127.0.0.1, or at HOST_IP, until the port is unpublished or the
/// task is deleted. A stopped task gets its ports back when it starts. Needs no network in the guest.
#[derive(Debug, Args)]
#[command(after_help = PUBLISH_EXAMPLES)]
pub(crate) struct TaskPublishArgs {
    /// Id or name of the task, or the first digits of its id; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    pub(crate) task_id: String,
    /// Where to listen, and the port in the guest; HOST_PORT 0 is one that is free [default: list the published ports]
    #[arg(value_name = "[HOST_IP:]HOST_PORT:GUEST_PORT")]
    pub(crate) mapping: Option<PortMapping>,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

const UNPUBLISH_EXAMPLES: &str = "\
Examples:
  pyro task unpublish 9775b3af1eeb 8080";

/// Close a published port of a task, with its connections
#[derive(Debug, Args)]
#[command(after_help = UNPUBLISH_EXAMPLES)]
pub(crate) struct TaskUnpublishArgs {
    /// Id or name of the task, or the first digits of its id; `pyro task list` shows them all
    #[arg(value_name = "TASK_ID")]
    pub(crate) task_id: String,
    /// Number of the port on this host
    #[arg(value_name = "HOST_PORT")]
    pub(crate) host_port: u16,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) fn publish(args: TaskPublishArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let TaskPublishArgs { task_id, mapping, json } = args;
    let Some(mapping) = mapping else {
        let task = session::block_on(engine.status_task(&task_id))?;
        return Ok(Reply::of(json, &task.published_ports, |_| listed(&task))?);
    };
    let (published, _) = session::watch(printer, json, async |events, _| {
        engine.publish_task(&task_id, mapping, &events).await
    })?;
    Ok(Reply::of(json, &published, |published| {
        let host = host(&published.host_ip, published.host_port);
        format!("Published: {host} -> {}\n", published.guest_port)
    })?)
}

pub(super) fn unpublish(args: &TaskUnpublishArgs, engine: &Engine) -> Result<Reply, CliError> {
    let task = session::block_on(engine.unpublish_task(&args.task_id, args.host_port))?;
    Ok(Reply::of(args.json, &task, |_| format!("Unpublished: {}\n", args.host_port))?)
}

/// `127.0.0.1:8080 -> 80`, the guest's port last. A stopped task does not have a port that the system chooses.
pub(super) fn port(port: &PublishedPort) -> String {
    let host = match port.host_port {
        0 => format!("{} (a free port, from the next start on)", port.host_ip),
        number => host(&port.host_ip, number),
    };
    format!("{host} -> {}", port.guest_port)
}

fn listed(task: &Task) -> String {
    match task.published_ports.as_slice() {
        [] => "No ports published.\n".to_owned(),
        ports => ports.iter().map(|published| port(published) + "\n").collect(),
    }
}

fn host(address: &str, port: u16) -> String {
    match address.parse() {
        Ok(IpAddr::V6(_)) => format!("[{address}]:{port}"),
        _ => format!("{address}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(host_ip: &str, host_port: u16) -> PublishedPort {
        PublishedPort { host_ip: host_ip.to_owned(), host_port, guest_port: 80 }
    }

    #[test]
    fn a_port_that_is_not_chosen_yet_has_no_number() {
        assert_eq!(port(&published("127.0.0.1", 8080)), "127.0.0.1:8080 -> 80");
        assert_eq!(port(&published("::1", 8080)), "[::1]:8080 -> 80");
        let chosen_later = port(&published("127.0.0.1", 0));
        assert_eq!(chosen_later, "127.0.0.1 (a free port, from the next start on) -> 80");
    }
}
