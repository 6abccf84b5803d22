//! The services of tasks: what each is, and what became of it.

#[cfg(test)]
mod tests;

use pyro_supervisor::{ServiceDefinition, ServiceStatus};
use rusqlite::{OptionalExtension as _, Row, Transaction, named_params};

use super::transaction_error::TransactionError;
use super::{Registry, load, row};
use crate::exit_code::code_of;
use crate::limits::MAX_SERVICES;
use crate::{Error, ErrorKind, Hint, Kind, ServiceState, TaskService, VmId, convert};

/// A service on record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServiceRecord {
    pub(crate) name: String,
    /// `None` if it is damaged.
    pub(crate) definition: Option<ServiceDefinition>,
    pub(crate) state: ServiceState,
    /// When it got into this state, in seconds since the epoch.
    pub(crate) since: f64,
    pub(crate) restarts: u64,
    pub(crate) exit_code: Option<i64>,
    pub(crate) reason: Option<String>,
}

impl Registry {
    /// Returns the services of a task in the order in which they were first recorded.
    pub(crate) fn services(&self, task: &VmId) -> Result<Vec<ServiceRecord>, Error> {
        self.read(|tx| {
            let mut statement =
                tx.prepare_cached("SELECT * FROM services WHERE task_id = :task ORDER BY position")?;
            let rows =
                statement.query_map(named_params! { ":task": task.as_str() }, ServiceRecord::from_row)?;
            row::readable(rows)
        })
    }

    /// Returns the names and recorded states of a task's services, in the same order.
    pub(crate) fn service_states(&self, task: &VmId) -> Result<Vec<TaskService>, Error> {
        self.read(|tx| {
            let sql = "SELECT name, state FROM services WHERE task_id = :task ORDER BY position";
            let mut statement = tx.prepare_cached(sql)?;
            let rows = statement.query_map(named_params! { ":task": task.as_str() }, |row| {
                Ok(TaskService { name: row.get("name")?, state: row::stored(row, "state")? })
            })?;
            row::readable(rows)
        })
    }

    /// Returns one service.
    ///
    /// # Errors
    /// `NotFound` if the task has no such service.
    pub(crate) fn service(&self, task: &VmId, name: &str) -> Result<ServiceRecord, Error> {
        self.read(|tx| {
            let sql = "SELECT * FROM services WHERE task_id = :task AND name = :name";
            let values = named_params! { ":task": task.as_str(), ":name": name };
            let found = tx.query_row(sql, values, ServiceRecord::from_row).optional()?;
            found.ok_or_else(|| no_such_service(task, name).into())
        })
    }

    /// Records a service that is about to start, in place of one with its name. It is on disk when this returns.
    ///
    /// # Errors
    /// `NotFound` if the task does not exist, `WrongState` if it has too many services.
    pub(crate) fn set_service(
        &self,
        task: &VmId,
        definition: &ServiceDefinition,
        status: &ServiceStatus,
        now: f64,
    ) -> Result<(), Error> {
        let json = serde_json::to_string(definition)
            .map_err(|error| Error::internal("cannot store a service").caused_by(error))?;
        self.write_through(|tx| {
            load(tx, Kind::Task, task)?;
            let sql = "INSERT INTO services (task_id, name, position, definition, state, since, restarts)
                VALUES (:task, :name,
                    (SELECT coalesce(max(position), 0) + 1 FROM services WHERE task_id = :task),
                    :definition, :state, :since, 0)
                ON CONFLICT (task_id, name) DO UPDATE SET definition = excluded.definition";
            tx.execute(
                sql,
                named_params! {
                    ":task": task.as_str(), ":name": definition.name, ":definition": json,
                    ":state": ServiceState::Starting.as_str(), ":since": now,
                },
            )?;
            let sql = "SELECT count(*) FROM services WHERE task_id = :task";
            let count: usize =
                tx.query_row(sql, named_params! { ":task": task.as_str() }, |row| row.get(0))?;
            if count > MAX_SERVICES {
                let message = format!("too many services: the maximum is {MAX_SERVICES}; remove one first");
                return Err(Error::new(ErrorKind::WrongState, message).into());
            }
            update(tx, task, &definition.name, status, now)
        })
    }

    /// Records what became of a service. A service that was removed meanwhile stays removed.
    pub(crate) fn set_service_status(
        &self,
        task: &VmId,
        name: &str,
        status: &ServiceStatus,
        now: f64,
    ) -> Result<(), Error> {
        self.write(|tx| update(tx, task, name, status, now))
    }

    /// Removes a service. Returns whether there was one.
    pub(crate) fn delete_service(&self, task: &VmId, name: &str) -> Result<bool, Error> {
        self.write(|tx| {
            let sql = "DELETE FROM services WHERE task_id = :task AND name = :name";
            Ok(tx.execute(sql, named_params! { ":task": task.as_str(), ":name": name })? > 0)
        })
    }
}

fn update(
    tx: &Transaction<'_>,
    task: &VmId,
    name: &str,
    status: &ServiceStatus,
    now: f64,
) -> Result<(), TransactionError> {
    let sql =
        "UPDATE services SET state = :state, since = :since, restarts = :restarts, exit_code = :exit_code,
            reason = :reason
        WHERE task_id = :task AND name = :name";
    tx.execute(
        sql,
        named_params! {
            ":task": task.as_str(), ":name": name, ":since": now, ":restarts": status.restarts,
            ":state": convert::service_state(status.state).as_str(), ":exit_code": status.end.map(code_of),
            ":reason": status.reason,
        },
    )?;
    Ok(())
}

/// Records that nothing of a task's services runs any more.
pub(super) fn conclude(tx: &Transaction<'_>, task: &VmId, now: f64) -> Result<(), TransactionError> {
    for state in ServiceState::ALL.iter().filter(|state| state.is_active()) {
        let sql =
            "UPDATE services SET state = :stopped, since = :now WHERE task_id = :task AND state = :state";
        let mut statement = tx.prepare_cached(sql)?;
        statement.execute(named_params! {
            ":stopped": ServiceState::Stopped.as_str(), ":state": state.as_str(), ":task": task.as_str(), ":now": now,
        })?;
    }
    Ok(())
}

/// Returns the error for a service that a task does not have.
pub(crate) fn no_such_service(task: &VmId, name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("task '{task}' has no service '{name}'")).hint(Hint::ListServices)
}

impl ServiceRecord {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: row.get("name")?,
            definition: parsed(row)?,
            state: row::stored(row, "state")?,
            since: row.get("since")?,
            restarts: row.get("restarts")?,
            exit_code: row.get("exit_code")?,
            reason: row.get("reason")?,
        })
    }
}

/// Returns the definition, which is stored as JSON.
fn parsed(row: &Row<'_>) -> rusqlite::Result<Option<ServiceDefinition>> {
    let name: String = row.get("name")?;
    let json: String = row.get("definition")?;
    match serde_json::from_str::<ServiceDefinition>(&json) {
        // The supervisor makes a path of its own name.
        Ok(definition) if definition.name == name => Ok(Some(definition)),
        Ok(_) => Ok(None),
        Err(error) => {
            tracing::warn!(name, %error, "the definition of a service is damaged");
            Ok(None)
        }
    }
}
