//! Services of a task. Its supervisor runs and records them; this module is its client.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pyro_supervisor::{
    LogPiece, ReadyCheck, RunError, ServiceDefinition, ServiceError, ServiceStatus, files, read_service_log,
    service_log_end, service_log_tail,
};
use tokio_util::sync::CancellationToken;

use super::{EXIT_TIME, as_it_is, not_asked, ports, supervisor_lost, unanswered};
use crate::engine::exec::exec_request;
use crate::engine::{Engine, unless_cancelled};
use crate::exit_code::code_of;
use crate::limits::{CheckedService, MAX_FILE_BYTES, Readiness};
use crate::operations::{LogsTaskService, StartTaskService};
use crate::registry::{ServiceRecord, VmRecord, no_such_service};
use crate::supervise::command_text;
use crate::{
    Error, ErrorKind, Event, Events, ExecutionMode, Hint, Kind, LogPart, Output, OutputStream, PortMapping,
    Service, ServiceList, ServiceLog, ServiceRemoved, ServiceState, VmId, VmState, convert, limits,
};

// What is accepted can be recorded.
const _: () = assert!(limits::MAX_SERVICES == pyro_supervisor::MAX_SERVICES);

/// Maximum number of bytes of a log that are returned at once by default.
const DEFAULT_LOG_BYTES: u64 = 1 << 20;
/// Number of last lines that the status of a failed service shows, and their maximum size in bytes.
const LAST_LINES: usize = 20;
const LAST_BYTES: usize = 4096;
/// Bytes of a log that are sent at a time.
const CHUNK_BYTES: usize = 64 << 10;

impl Engine {
    /// Starts a service of a running task, and publishes its ports first. Waits until it is ready, unless the request says
    /// otherwise; a service that fails is not an error.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`; `WrongState` if the task is not running, runs on this host, or has too many services, if the
    /// service runs already, or if this host cannot listen on a port; `NotDelivered`, `OutcomeUnknown`, `StateUnusable`,
    /// `Cancelled`: the service goes on if it was started.
    pub async fn start_task_service(
        &self,
        request: StartTaskService,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Service, Error> {
        let StartTaskService { task, service, command, options, ports } = request;
        limits::check_service_name(&service.name)?;
        let wait = options.wait;
        let checked = limits::check_service(command, options)?;
        ports::check(&ports.publish)?;
        let id = self.task_id(&task.task_id).await?;
        let longest = checked.as_ref().filter(|_| wait).map(|checked| checked.ready_timeout);
        let record = self.record_for_use(&id, longest).await?;
        if record.execution_mode == ExecutionMode::HostCompat {
            let message = "services are not available in host compatibility mode";
            return Err(Error::new(ErrorKind::WrongState, message));
        }
        let definition = checked.map(|checked| definition(&service.name, &checked, &record.environment));
        let published = self.publish_missing(&record, &ports.publish, events).await?;
        let is_new = definition.is_some();
        let mut is_asked = false;
        let started = async {
            is_asked = true;
            let started = self.client(&id).start_service(&service.name, definition, wait).await;
            started.map_err(|error| match service_error(&id, &service.name, error) {
                error if error.kind == ErrorKind::NotFound && !is_new => error.hint(Hint::GiveCommand),
                error => error,
            })
        };
        match unless_cancelled(cancel, started).await {
            Ok(status) => self.answered(&id, &service.name, status).await,
            Err(error) => {
                let may_run = matches!(error.kind, ErrorKind::Cancelled | ErrorKind::OutcomeUnknown);
                if !(may_run && is_asked) {
                    self.withdraw(&id, &published).await;
                }
                Err(error)
            }
        }
    }

    /// Returns a service with the status that its supervisor answered, which the record may not have.
    async fn answered(&self, id: &VmId, name: &str, status: ServiceStatus) -> Result<Service, Error> {
        let (_, task, mut record) = self.service(id.as_str(), name).await?;
        record.state = convert::service_state(status.state);
        record.restarts = status.restarts;
        record.exit_code = status.end.map(code_of);
        record.reason = status.reason;
        let (id, dir) = (id.clone(), self.vm_dir(id));
        self.blocking(move |_| Ok(shown(&id, task.state, &dir, record))).await
    }

    /// Publishes the ports that the task does not publish already. Returns where they are on this host.
    async fn publish_missing(
        &self,
        record: &VmRecord,
        mappings: &[PortMapping],
        events: &Events,
    ) -> Result<Vec<SocketAddr>, Error> {
        let mut published = Vec::new();
        for mapping in mappings {
            if record.ports.iter().any(|known| known.mapping == *mapping) {
                continue;
            }
            match self.publish_task(record.vm_id.as_str(), *mapping, events).await {
                Ok(port) => published.push(SocketAddr::new(mapping.host.ip(), port.host_port)),
                Err(error) => {
                    self.withdraw(&record.vm_id, &published).await;
                    return Err(error);
                }
            }
        }
        Ok(published)
    }

    /// Closes ports that were published for a service that is not started.
    async fn withdraw(&self, id: &VmId, published: &[SocketAddr]) {
        for port in published {
            if let Err(error) = self.client(id).unpublish_address(*port).await {
                tracing::warn!(task_id = %id, %port, %error, "a port stays published");
            }
        }
    }

    /// Returns the services of a task, in the order in which they were first started.
    ///
    /// # Errors
    /// `NotFound`, `StateUnusable`.
    pub async fn list_task_services(&self, task_id: &str) -> Result<ServiceList, Error> {
        let id = self.task_id(task_id).await?;
        let record = as_it_is(&self.shared, self.get(Kind::Task, &id).await?);
        let dir = self.vm_dir(&id);
        self.blocking(move |shared| {
            let records = shared.registry.services(&id)?;
            let services: Vec<_> =
                records.into_iter().map(|service| shown(&id, record.state, &dir, service)).collect();
            Ok(ServiceList { task_id: id, count: services.len() as u64, services })
        })
        .await
    }

    /// Returns the state of a service.
    ///
    /// # Errors
    /// `NotFound`, `StateUnusable`.
    pub async fn status_task_service(&self, task_id: &str, name: &str) -> Result<Service, Error> {
        let (id, record, service) = self.service(task_id, name).await?;
        let dir = self.vm_dir(&id);
        self.blocking(move |_| Ok(shown(&id, record.state, &dir, service))).await
    }

    /// Returns a part of what a service has written.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `StateUnusable`.
    pub async fn logs_task_service(&self, request: LogsTaskService) -> Result<ServiceLog, Error> {
        let LogsTaskService { task, service, part } = request;
        let max_bytes = part.max_bytes.unwrap_or(DEFAULT_LOG_BYTES);
        if !(1..=MAX_FILE_BYTES).contains(&max_bytes) {
            return Err(Error::out_of_range("max_bytes", 1, MAX_FILE_BYTES as i64));
        }
        if part.tail.is_some() && part.offset.is_some() {
            return Err(Error::new(ErrorKind::InvalidInput, "tail and offset exclude each other"));
        }
        let (id, _, _) = self.service(&task.task_id, &service.name).await?;
        let (dir, name) = (self.log_dir(&id, &service.name), service.name);
        self.blocking(move |_| {
            let read = read_part(&dir, part, max_bytes as usize).map_err(|error| unreadable(&dir, error))?;
            let (LogPiece { offset, bytes }, end_offset) = read;
            let next_offset = offset + bytes.len() as u64;
            let output = Output::from(Vec::from(bytes));
            Ok(ServiceLog { task_id: id, name, offset, output, next_offset, end_offset })
        })
        .await
    }

    /// Sends what a service has written, from its last `tail` lines on, and what it writes, as [`Event::Output`], until it has
    /// ended for good or the task is stopped.
    ///
    /// # Errors
    /// `NotFound`, `NotDelivered`, `StateUnusable`, `Cancelled`.
    pub async fn follow_task_service(
        &self,
        task_id: &str,
        name: &str,
        tail: Option<u64>,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Service, Error> {
        let (id, record, _) = self.service(task_id, name).await?;
        let dir = self.log_dir(&id, name);
        let begin = self.blocking({
            let dir = dir.clone();
            move |_| first_offset(&dir, tail).map_err(|error| unreadable(&dir, error))
        });
        let begin = begin.await?;
        let mut next = begin;
        let send = async |bytes| {
            events.send(Event::Output { stream: OutputStream::Stdout, bytes }).await;
        };
        let followed = async {
            if record.state == VmState::Started {
                let on_output = async |offset: u64, bytes: bytes::Bytes| {
                    next = offset + bytes.len() as u64;
                    send(bytes).await;
                };
                match self.client(&id).follow_service(name, begin, on_output).await {
                    // Everything was sent.
                    Ok(_) => return Ok(()),
                    // The task has ended meanwhile, or the service was not started since the task was.
                    Err(ServiceError::NotStarted) => {}
                    Err(error) => match service_error(&id, name, error) {
                        error if error.kind == ErrorKind::NotFound => return Err(error),
                        error => self.await_end_of_task(&id, error).await?,
                    },
                }
            }
            loop {
                let dir = dir.clone();
                let piece = self.blocking(move |_| {
                    read_service_log(&dir, next, CHUNK_BYTES).map_err(|error| unreadable(&dir, error))
                });
                let LogPiece { offset, bytes } = piece.await?;
                if bytes.is_empty() {
                    return Ok(());
                }
                next = offset + bytes.len() as u64;
                send(bytes).await;
            }
        };
        unless_cancelled(cancel, followed).await?;
        self.status_task_service(id.as_str(), name).await
    }

    /// Returns the error unless it is explained by the end of the task.
    async fn await_end_of_task(&self, id: &VmId, error: Error) -> Result<(), Error> {
        let _ = self.await_release_within(id, EXIT_TIME).await;
        let record = as_it_is(&self.shared, self.get(Kind::Task, id).await?);
        if record.state == VmState::Started { Err(error) } else { Ok(()) }
    }

    /// Stops a service. One that does not run stays as it is.
    ///
    /// # Errors
    /// `NotFound`, `NotDelivered`, `OutcomeUnknown`, `StateUnusable`.
    pub async fn stop_task_service(&self, task_id: &str, name: &str) -> Result<Service, Error> {
        let (id, record, _) = self.service(task_id, name).await?;
        if record.state == VmState::Started {
            match self.client(&id).stop_service(name).await {
                Ok(status) => return self.answered(&id, name, status).await,
                // The supervisor does not know one whose record is damaged.
                Err(ServiceError::NotStarted | ServiceError::NotFound) => {}
                Err(error) => return Err(service_error(&id, name, error)),
            }
        }
        self.status_task_service(id.as_str(), name).await
    }

    /// Stops a service and removes it with its log.
    ///
    /// # Errors
    /// `NotFound`, `WrongState` if the task is being started or stopped, `NotDelivered`, `OutcomeUnknown`, `StateUnusable`.
    pub async fn remove_task_service(&self, task_id: &str, name: &str) -> Result<ServiceRemoved, Error> {
        let (id, record, service) = self.service(task_id, name).await?;
        let is_damaged = service.definition.is_none();
        let removed = match record.state {
            VmState::Started => match self.client(&id).remove_service(name).await {
                // The supervisor does not know it.
                Err(ServiceError::NotFound) if is_damaged => false,
                removed => removed.map(|()| true).map_err(|error| service_error(&id, name, error))?,
            },
            VmState::Created | VmState::Stopped => false,
        };
        if !removed {
            // No other process starts the task meanwhile.
            let _lock = match record.state {
                VmState::Started => None,
                VmState::Created | VmState::Stopped => Some(self.await_release_within(&id, EXIT_TIME).await?),
            };
            let (task, removed, dir) = (id.clone(), name.to_owned(), self.log_dir(&id, name));
            self.blocking(move |shared| {
                if !shared.registry.delete_service(&task, &removed)? {
                    return Err(no_such_service(&task, &removed));
                }
                match std::fs::remove_dir_all(&dir) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::warn!(task_id = %task, %error, "the log of a removed service remains");
                    }
                    _ => {}
                }
                Ok(())
            })
            .await?;
        }
        Ok(ServiceRemoved { task_id: id, name: name.to_owned(), removed: true })
    }

    /// Returns a service on record, with its task.
    async fn service(&self, task_id: &str, name: &str) -> Result<(VmId, VmRecord, ServiceRecord), Error> {
        // The name becomes part of a path.
        limits::check_service_name(name)?;
        let id = self.task_id(task_id).await?;
        let record = as_it_is(&self.shared, self.get(Kind::Task, &id).await?);
        let (task, name) = (id.clone(), name.to_owned());
        let service = self.registry(move |registry| registry.service(&task, &name)).await?;
        Ok((id, record, service))
    }

    fn log_dir(&self, id: &VmId, name: &str) -> PathBuf {
        log_dir(&self.vm_dir(id), name)
    }
}

fn log_dir(vm_dir: &Path, name: &str) -> PathBuf {
    vm_dir.join(files::SERVICES).join(name)
}

/// Converts a service for the supervisor.
fn definition(name: &str, checked: &CheckedService, environment: &str) -> ServiceDefinition {
    let milliseconds = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    ServiceDefinition {
        name: name.to_owned(),
        exec: exec_request(&checked.command, environment),
        ready: checked.ready.as_ref().map(|ready| match ready {
            Readiness::Tcp(port) => ReadyCheck::Tcp(*port),
            Readiness::Http { host, port, path } => {
                ReadyCheck::Http { host: host.clone(), port: *port, path: path.clone() }
            }
            Readiness::File(path) => ReadyCheck::File(path.clone()),
            Readiness::Command(command) => ReadyCheck::Command(Box::new(exec_request(command, environment))),
        }),
        ready_timeout_ms: milliseconds(checked.ready_timeout),
        restart: convert::guest_restart(checked.restart),
        start_with_vm: checked.start_with_task,
    }
}

/// Returns a service as callers see it. Nothing runs in a task that does not.
fn shown(id: &VmId, task: VmState, dir: &Path, service: ServiceRecord) -> Service {
    let ServiceRecord { name, definition, state, since, restarts, exit_code, reason } = service;
    let state = as_in_task(task, state);
    let has_failed = matches!(state, ServiceState::Failed | ServiceState::Restarting);
    let definition = definition.as_ref();
    let damaged = || "its definition on record is damaged: start it with a command, or remove it".to_owned();
    Service {
        task_id: id.clone(),
        command: definition.map(|known| command_text(&known.exec.program)).unwrap_or_default(),
        state,
        ready: definition.filter(|known| known.ready.is_some()).map(|_| state == ServiceState::Ready),
        restarts,
        exit_code,
        reason: if definition.is_none() { Some(damaged()) } else { reason },
        since,
        restart: definition.map(|known| convert::restart(known.restart)).unwrap_or_default(),
        start_with_task: definition.is_some_and(|known| known.start_with_vm),
        last_output: has_failed.then(|| last_output(&log_dir(dir, &name))).flatten(),
        name,
    }
}

/// Returns the state of a service, which the record of a task that was lost does not have.
pub(super) fn as_in_task(task: VmState, state: ServiceState) -> ServiceState {
    match task {
        VmState::Started => state,
        VmState::Created | VmState::Stopped if state.is_active() => ServiceState::Stopped,
        VmState::Created | VmState::Stopped => state,
    }
}

/// Returns the last lines of a log; `None` if the log is empty.
fn last_output(dir: &Path) -> Option<Output> {
    let begin = service_log_end(dir).ok()?.saturating_sub(LAST_BYTES as u64);
    let LogPiece { bytes, .. } = read_up_to(dir, begin, LAST_BYTES).ok()?;
    let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let line = ends.map(|(at, _)| at + 1).nth(LAST_LINES - 1).unwrap_or(0);
    (!bytes.is_empty()).then(|| bytes[line..].to_vec().into())
}

fn first_offset(dir: &Path, tail: Option<u64>) -> std::io::Result<u64> {
    tail.map_or(Ok(0), |lines| service_log_tail(dir, lines))
}

/// Reads a part of a log. Returns where the log ends, too.
fn read_part(dir: &Path, part: LogPart, max_bytes: usize) -> std::io::Result<(LogPiece, u64)> {
    let begin = match part.offset {
        Some(offset) => offset,
        None => first_offset(dir, part.tail)?,
    };
    let piece = read_up_to(dir, begin, max_bytes)?;
    let end = service_log_end(dir)?.max(piece.offset + piece.bytes.len() as u64);
    Ok((piece, end))
}

/// Reads from an offset on until there is nothing more or the maximum is reached.
fn read_up_to(dir: &Path, begin: u64, max_bytes: usize) -> std::io::Result<LogPiece> {
    let LogPiece { offset, bytes } = read_service_log(dir, begin, max_bytes)?;
    let mut bytes = Vec::from(bytes);
    while bytes.len() < max_bytes {
        let next = offset + bytes.len() as u64;
        let piece = read_service_log(dir, next, max_bytes - bytes.len())?;
        // What is between them was dropped meanwhile.
        if piece.bytes.is_empty() || piece.offset != next {
            break;
        }
        bytes.extend_from_slice(&piece.bytes);
    }
    Ok(LogPiece { offset, bytes: bytes.into() })
}

fn unreadable(dir: &Path, error: std::io::Error) -> Error {
    let message = format!("the log in {} cannot be read", dir.display());
    Error::new(ErrorKind::StateUnusable, message).caused_by(error)
}

fn service_error(id: &VmId, name: &str, error: ServiceError) -> Error {
    match error {
        ServiceError::NotFound => no_such_service(id, name),
        ServiceError::Running => {
            let message = format!("service '{name}' of task {id} runs already");
            Error::new(ErrorKind::WrongState, message).hint(Hint::StopService)
        }
        ServiceError::NotStarted => {
            Error::new(ErrorKind::WrongState, format!("service '{name}' of task {id} does not run"))
        }
        ServiceError::NotRecorded { cause, is_permanent: true } => Error::new(ErrorKind::WrongState, cause),
        ServiceError::NotRecorded { cause, is_permanent: false } => {
            Error::new(ErrorKind::StateUnusable, cause)
        }
        ServiceError::Request(RunError::Refused { cause }) => Error::new(ErrorKind::WrongState, cause),
        ServiceError::Request(RunError::NotDelivered(error)) => not_asked(error),
        ServiceError::Request(RunError::Unanswered) => unanswered(id),
        ServiceError::Request(RunError::Cancelled | RunError::InputFailed { .. } | RunError::Lost { .. }) => {
            supervisor_lost(id)
        }
    }
}

#[cfg(test)]
mod tests;
