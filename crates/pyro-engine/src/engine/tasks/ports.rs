//! Ports of tasks that are published on this host. The supervisor of a running task listens for their clients.

use pyro_supervisor::{PublishError, RunError};

use super::{EXIT_TIME, not_asked, supervisor_lost, unanswered};
use crate::engine::Engine;
use crate::engine::launch::Backend;
use crate::limits::MAX_PORTS;
use crate::registry::{RecordedPort, VmRecord};
use crate::{
    Error, ErrorKind, Event, Events, ExecutionMode, Hint, Kind, PortMapping, PublishedPort, Task,
    TaskPublished, VmId, VmState, convert,
};

// What is accepted for a new task can be published when it starts.
const _: () = assert!(MAX_PORTS == pyro_supervisor::MAX_PORTS);

impl Engine {
    /// Publishes a port of a running task on this host, until it is unpublished or the task is deleted. A stopped task gets
    /// it back when it starts.
    ///
    /// # Errors
    /// `NotFound`, `WrongState` if the task is not running, runs on this host, or cannot have the port, or this host cannot
    /// listen there;
    /// `NotDelivered`, `OutcomeUnknown`, `StateUnusable`.
    pub async fn publish_task(
        &self,
        task_id: &str,
        mapping: PortMapping,
        events: &Events,
    ) -> Result<TaskPublished, Error> {
        let id = self.task_id(task_id).await?;
        let record = self.record_for_use(&id, None).await?;
        if record.execution_mode == ExecutionMode::HostCompat {
            return Err(on_host());
        }
        let published = self.client(&id).publish(convert::guest_port_mapping(mapping)).await;
        let published = published.map_err(|error| port_error(&id, error))?;
        warn_of_others(mapping, events).await;
        let PublishedPort { host_ip, host_port, guest_port } = port(mapping, Some(published.bound));
        Ok(TaskPublished { task_id: id, host_ip, host_port, guest_port })
    }

    /// Closes the published ports of a task with this number on this host, with their connections.
    ///
    /// # Errors
    /// `NotFound` if there is no such task or port; `WrongState` if the task is being started or stopped; `NotDelivered`,
    /// `OutcomeUnknown`, `StateUnusable`.
    pub async fn unpublish_task(&self, task_id: &str, host_port: u16) -> Result<Task, Error> {
        let id = self.task_id(task_id).await?;
        let record = super::as_it_is(&self.shared, self.get(Kind::Task, &id).await?);
        let was_published = match record.state {
            VmState::Started => {
                self.client(&id).unpublish(host_port).await.map_err(|error| port_error(&id, error))?
            }
            _ => self.unpublish_stopped(record, host_port).await?,
        };
        match was_published {
            true => self.status_task(id.as_str()).await,
            false => Err(Error::new(
                ErrorKind::NotFound,
                format!("task {id} has no published port with the number {host_port} on this host"),
            )),
        }
    }

    /// Forgets a port that the task would publish when it starts.
    async fn unpublish_stopped(&self, record: VmRecord, host_port: u16) -> Result<bool, Error> {
        let id = record.vm_id;
        // No other process starts it meanwhile.
        let _lock = self.await_release_within(&id, EXIT_TIME).await?;
        let id_of_task = id.clone();
        self.registry(move |registry| {
            let mut ports = registry.get(Kind::Task, &id_of_task)?.ports;
            let before = ports.len();
            ports.retain(|port| port.mapping.host.port() != host_port);
            registry.set_ports(&id_of_task, &ports)?;
            Ok(ports.len() < before)
        })
        .await
    }
}

/// Returns the ports of a new task.
pub(super) fn check(publish: &[PortMapping]) -> Result<Vec<RecordedPort>, Error> {
    if publish.len() > MAX_PORTS {
        let message = format!("too many published ports: the maximum is {MAX_PORTS}");
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    Ok(publish.iter().map(|mapping| RecordedPort { mapping: *mapping, bound: None }).collect())
}

/// Refuses to publish ports of a task whose commands run on this host: what they listen on is open there already.
pub(super) fn refuse_on_host(backend: &Backend, publish: &[PortMapping]) -> Result<(), Error> {
    if backend.is_err() && !publish.is_empty() { Err(on_host()) } else { Ok(()) }
}

fn on_host() -> Error {
    let message = "ports cannot be published in host compatibility mode: commands listen on this host";
    Error::new(ErrorKind::WrongState, message)
}

/// Warns if other hosts may be able to connect.
pub(super) async fn warn_of_others(mapping: PortMapping, events: &Events) {
    if !mapping.is_loopback() {
        let text =
            format!("port {} of the guest is open to other hosts, on {}", mapping.guest_port, mapping.host);
        events.send(Event::Warning(text)).await;
    }
}

/// Returns the ports of a task as callers see them.
pub(super) fn shown(ports: &[RecordedPort], state: VmState) -> Vec<PublishedPort> {
    let is_open = state == VmState::Started;
    ports.iter().map(|recorded| port(recorded.mapping, recorded.bound.filter(|_| is_open))).collect()
}

fn port(mapping: PortMapping, bound: Option<std::net::SocketAddr>) -> PublishedPort {
    let host = bound.unwrap_or(mapping.host);
    PublishedPort { host_ip: host.ip().to_string(), host_port: host.port(), guest_port: mapping.guest_port }
}

fn port_error(id: &VmId, error: PublishError) -> Error {
    match error {
        PublishError::CannotListen { cause } => {
            Error::new(ErrorKind::WrongState, cause).hint(Hint::AnotherPort)
        }
        error @ PublishError::NotRecorded { .. } => Error::new(ErrorKind::StateUnusable, error.to_string()),
        PublishError::Request(RunError::Refused { cause }) => Error::new(ErrorKind::WrongState, cause),
        PublishError::Request(RunError::NotDelivered(error)) => not_asked(error),
        PublishError::Request(RunError::Unanswered) => unanswered(id),
        PublishError::Request(RunError::Cancelled | RunError::InputFailed { .. } | RunError::Lost { .. }) => {
            supervisor_lost(id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_port_helps_only_where_the_host_cannot_listen() {
        let (id, cause) = (VmId::random().unwrap(), "why".to_owned());
        let error = port_error(&id, PublishError::CannotListen { cause: cause.clone() });
        assert_eq!((error.kind, error.hints), (ErrorKind::WrongState, vec![Hint::AnotherPort]));
        let error = port_error(&id, RunError::Refused { cause: cause.clone() }.into());
        assert_eq!((error.kind, error.hints), (ErrorKind::WrongState, vec![]));
        let error = port_error(&id, PublishError::NotRecorded { cause });
        assert_eq!((error.kind, error.hints), (ErrorKind::StateUnusable, vec![]));
    }
}
