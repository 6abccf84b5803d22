//! The tables, as a list of migration steps from one version to the next.

use rusqlite::{Connection, TransactionBehavior};

use super::transaction_error::TransactionError;
use crate::{Error, ErrorKind, Hint};

/// Step `n` migrates version `n` to `n + 1`. Published steps never change; append new ones.
const STEPS: &[&str] = &[
    "
    CREATE TABLE vms (
        vm_id               TEXT    NOT NULL PRIMARY KEY,
        environment         TEXT    NOT NULL,
        environment_version TEXT,
        vcpu_count          INTEGER NOT NULL,
        mem_mib             INTEGER NOT NULL,
        ttl_seconds         INTEGER NOT NULL,
        created_at          REAL    NOT NULL,
        expires_at          REAL    NOT NULL,
        state               TEXT    NOT NULL,
        -- A one-shot run: it belongs to its caller and ends with it.
        ephemeral           INTEGER NOT NULL,
        network_enabled     INTEGER NOT NULL,
        allow_host_compat   INTEGER NOT NULL,
        guest_ip            TEXT,
        execution_mode      TEXT    NOT NULL,
        accelerator         TEXT,
        last_error          TEXT,
        -- A JSON object of strings.
        metadata            TEXT    NOT NULL,
        -- Set: the VM is gone because its lifetime ended; the row only remembers that.
        expired_at          REAL
    ) STRICT, WITHOUT ROWID;
",
    "
    -- A task keeps its disk and its journal until it is deleted; the end of its lifetime only stops it.
    ALTER TABLE vms ADD COLUMN is_task INTEGER NOT NULL DEFAULT 0;
    -- The size that was asked for.
    ALTER TABLE vms ADD COLUMN disk_mib INTEGER;
    ALTER TABLE vms ADD COLUMN stop_reason TEXT;
    CREATE TABLE commands (
        task_id          TEXT    NOT NULL REFERENCES vms (vm_id) ON DELETE CASCADE,
        -- From 1, without gaps, in the order in which commands were accepted.
        sequence         INTEGER NOT NULL,
        command          TEXT    NOT NULL,
        cwd              TEXT    NOT NULL,
        execution_mode   TEXT    NOT NULL,
        accepted_at      REAL    NOT NULL,
        -- `running`, `exited`, `killed`, `not_run` or `unknown`.
        outcome          TEXT    NOT NULL,
        -- When it stopped running.
        ended_at         REAL,
        exit_code        INTEGER,
        duration_ms      INTEGER,
        timed_out        INTEGER NOT NULL DEFAULT 0,
        stdout_truncated INTEGER NOT NULL DEFAULT 0,
        stderr_truncated INTEGER NOT NULL DEFAULT 0,
        -- Why it was not run.
        cause            TEXT,
        PRIMARY KEY (task_id, sequence)
    ) STRICT, WITHOUT ROWID;
",
    "
    -- Name of the client that created it; null: this host's user.
    ALTER TABLE vms ADD COLUMN owner TEXT;
    -- Size of its disk in MiB, which the host's disk must be able to hold; null: it has none yet.
    ALTER TABLE vms ADD COLUMN layer_mib INTEGER;
",
    "
    -- A JSON object: what a VM with a network may reach. Absent: the public internet.
    ALTER TABLE vms ADD COLUMN network_policy TEXT;
",
    "
    -- A JSON array: the published ports of a task, and where the host listens or listened for them. Absent: none.
    ALTER TABLE vms ADD COLUMN published_ports TEXT;
",
    "
    -- The certification authorities of the host that it trusts: `host`, or the path of a file; null: none.
    ALTER TABLE vms ADD COLUMN host_ca TEXT;
    -- Whether it gets the host's proxy settings, which are not stored.
    ALTER TABLE vms ADD COLUMN host_proxy INTEGER NOT NULL DEFAULT 0;
",
    "
    -- By which a task can be addressed; null: it has no name.
    ALTER TABLE vms ADD COLUMN name TEXT;
    -- A JSON object of strings; null: it has no labels.
    ALTER TABLE vms ADD COLUMN labels TEXT;
    -- `create`, or `use`: each use of a task begins a new lifetime.
    ALTER TABLE vms ADD COLUMN ttl_from TEXT NOT NULL DEFAULT 'create';
    CREATE UNIQUE INDEX vms_names ON vms (coalesce(owner, ''), name) WHERE name IS NOT NULL;
",
    "
    CREATE TABLE services (
        task_id    TEXT    NOT NULL REFERENCES vms (vm_id) ON DELETE CASCADE,
        name       TEXT    NOT NULL,
        -- From 1, in the order in which services were first started.
        position   INTEGER NOT NULL,
        -- A JSON object: what the supervisor runs.
        definition TEXT    NOT NULL,
        state      TEXT    NOT NULL,
        -- When it got into this state.
        since      REAL    NOT NULL,
        restarts   INTEGER NOT NULL,
        -- Of its latest run.
        exit_code  INTEGER,
        -- Why it failed, if its exit code does not show it.
        reason     TEXT,
        PRIMARY KEY (task_id, name)
    ) STRICT, WITHOUT ROWID;
    -- A JSON array: the directories of the host that it has mounted. Absent: none.
    ALTER TABLE vms ADD COLUMN mounts TEXT;
",
];

/// Returns the version that this program writes.
pub(super) fn latest() -> i64 {
    STEPS.len() as i64
}

/// Returns the version of the open file; 0 for a new one.
pub(super) fn version(connection: &Connection) -> Result<i64, TransactionError> {
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > latest() {
        return Err(newer(version).into());
    }
    Ok(version)
}

/// Migrates the tables to this program's version. Many processes may do so at once: the first one does the work while
/// the others wait for the lock and then find it done.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), TransactionError> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let from = version(&tx)?;
    for step in STEPS.iter().skip(usize::try_from(from).unwrap_or(0)) {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "user_version", latest())?;
    tx.commit()?;
    Ok(())
}

fn newer(version: i64) -> Error {
    let message = format!(
        "the state directory was written by a newer pyro (format {version}; this one knows up to {})",
        latest()
    );
    Error::new(ErrorKind::StateUnusable, message).hint(Hint::NewerPyro)
}
