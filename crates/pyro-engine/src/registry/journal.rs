//! The journal of tasks: one row for every accepted command, whatever its outcome.
//!
//! Sequences are assigned at acceptance, in the transaction that writes the row, so they have no gaps and follow the
//! order of acceptance across all writers. A row is never withdrawn; it is deleted with its task.

#[cfg(test)]
mod tests;

use rusqlite::{OptionalExtension, Row, Transaction, named_params};

use super::{Registry, load, row};
use crate::Kind;
use crate::registry::transaction_error::TransactionError;
use crate::{EngineError, ErrorKind, ExecutionMode, Hint, Outcome, VmId};

/// An accepted command.
#[derive(Debug, Clone)]
pub(crate) struct NewCommand {
    pub(crate) command: String,
    pub(crate) cwd: String,
    pub(crate) execution_mode: ExecutionMode,
    /// Seconds since the epoch.
    pub(crate) accepted_at: f64,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CommandExit {
    pub(crate) exit_code: i64,
    pub(crate) duration_ms: u64,
    pub(crate) timed_out: bool,
    /// A caller ended it.
    pub(crate) killed: bool,
    /// Bytes that the output file lacks.
    pub(crate) stdout_truncated: u64,
    /// Bytes that the output file lacks.
    pub(crate) stderr_truncated: u64,
}

/// The outcome of a command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum CommandFate {
    /// It ended.
    Exited(CommandExit),
    /// It surely did not run, for this reason.
    NotRun(String),
    /// It is not known how it ended.
    Unknown,
}

/// One journal entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CommandRecord {
    pub(crate) sequence: u64,
    pub(crate) command: String,
    pub(crate) cwd: String,
    pub(crate) execution_mode: ExecutionMode,
    pub(crate) accepted_at: f64,
    pub(crate) outcome: Outcome,
    /// When the outcome was recorded.
    pub(crate) ended_at: Option<f64>,
    /// Present if the command exited or was killed.
    pub(crate) exit: Option<CommandExit>,
    /// Why the command did not run.
    pub(crate) cause: Option<String>,
}

impl CommandFate {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Exited(exit) if exit.killed => Outcome::Killed,
            Self::Exited(_) => Outcome::Exited,
            Self::NotRun(_) => Outcome::NotRun,
            Self::Unknown => Outcome::Unknown,
        }
    }
}

impl Registry {
    /// Accepts a command for a task and assigns its sequence. The row is on disk when this returns: a reported sequence
    /// must not be assigned again. The outcome is `running` until [`Registry::end_command`].
    ///
    /// # Errors
    /// `NotFound` if the task does not exist.
    pub(crate) fn accept_command(&self, task: &VmId, new: &NewCommand) -> Result<u64, EngineError> {
        self.write_through(|tx| {
            load(tx, Kind::Task, task)?;
            let sequence: u64 = tx.query_row(
                "SELECT coalesce(max(sequence), 0) + 1 FROM commands WHERE task_id = :task",
                named_params! { ":task": task.as_str() },
                |row| row.get(0),
            )?;
            let sql = "INSERT INTO commands
                    (task_id, sequence, command, cwd, execution_mode, accepted_at, outcome)
                VALUES (:task, :sequence, :command, :cwd, :execution_mode, :accepted_at, :outcome)";
            tx.execute(
                sql,
                named_params! {
                    ":task": task.as_str(),
                    ":sequence": sequence,
                    ":command": new.command,
                    ":cwd": new.cwd,
                    ":execution_mode": new.execution_mode.as_str(),
                    ":accepted_at": new.accepted_at,
                    ":outcome": Outcome::Running.as_str(),
                },
            )?;
            Ok(sequence)
        })
    }

    /// Records the outcome of a command; it is on disk when this returns. An outcome that is already recorded is
    /// unchanged.
    ///
    /// # Errors
    /// `NotFound` if the command does not exist, for example because the task is gone.
    pub(crate) fn end_command(
        &self,
        task: &VmId,
        sequence: u64,
        ended_at: f64,
        fate: &CommandFate,
    ) -> Result<(), EngineError> {
        self.write_through(|tx| {
            let (exit, cause) = match fate {
                CommandFate::Exited(exit) => (Some(exit), None),
                CommandFate::NotRun(cause) => (None, Some(cause)),
                CommandFate::Unknown => (None, None),
            };
            let sql = "UPDATE commands SET outcome = :outcome, ended_at = :ended_at, exit_code = :exit_code,
                    duration_ms = :duration_ms, timed_out = :timed_out, stdout_truncated = :stdout_truncated,
                    stderr_truncated = :stderr_truncated, cause = :cause
                WHERE task_id = :task AND sequence = :sequence AND outcome = :running";
            tx.execute(
                sql,
                named_params! {
                    ":outcome": fate.outcome().as_str(),
                    ":running": Outcome::Running.as_str(),
                    ":ended_at": ended_at,
                    ":exit_code": exit.map(|exit| exit.exit_code),
                    ":duration_ms": exit.map(|exit| exit.duration_ms),
                    ":timed_out": exit.is_some_and(|exit| exit.timed_out),
                    ":stdout_truncated": exit.map_or(0, |exit| exit.stdout_truncated),
                    ":stderr_truncated": exit.map_or(0, |exit| exit.stderr_truncated),
                    ":cause": cause,
                    ":task": task.as_str(),
                    ":sequence": sequence,
                },
            )?;
            find(tx, task, sequence).map(drop)
        })
    }

    /// Returns the journal of a task in order. Damaged entries are left out, so that one cannot hide the others.
    pub(crate) fn commands(&self, task: &VmId) -> Result<Vec<CommandRecord>, EngineError> {
        self.read(|tx| {
            let mut statement =
                tx.prepare_cached("SELECT * FROM commands WHERE task_id = :task ORDER BY sequence")?;
            let rows =
                statement.query_map(named_params! { ":task": task.as_str() }, CommandRecord::from_row)?;
            row::readable(rows)
        })
    }

    /// Returns one entry.
    ///
    /// # Errors
    /// `NotFound` if the task has no such command.
    pub(crate) fn command(&self, task: &VmId, sequence: u64) -> Result<CommandRecord, EngineError> {
        self.read(|tx| find(tx, task, sequence))
    }

    /// Returns the number of commands that a task has accepted, and the last undamaged entry of a command that has
    /// exited.
    pub(crate) fn command_summary(&self, task: &VmId) -> Result<(u64, Option<CommandRecord>), EngineError> {
        self.read(|tx| {
            let count = tx.query_row(
                "SELECT count(*) FROM commands WHERE task_id = :task",
                named_params! { ":task": task.as_str() },
                |row| row.get(0),
            )?;
            let sql = "SELECT * FROM commands WHERE task_id = :task AND exit_code IS NOT NULL
                ORDER BY sequence DESC LIMIT 1";
            let mut statement = tx.prepare_cached(sql)?;
            let rows =
                statement.query_map(named_params! { ":task": task.as_str() }, CommandRecord::from_row)?;
            Ok((count, row::readable(rows)?.pop()))
        })
    }
}

/// Concludes the commands that were running in a VM that was lost: how they ended can no longer be known.
pub(super) fn conclude(tx: &Transaction<'_>, task: &VmId, now: f64) -> Result<(), TransactionError> {
    let sql = "UPDATE commands SET outcome = :unknown, ended_at = :now
        WHERE task_id = :task AND outcome = :running";
    let values = named_params! {
        ":unknown": Outcome::Unknown.as_str(), ":running": Outcome::Running.as_str(), ":task": task.as_str(), ":now": now,
    };
    tx.execute(sql, values)?;
    Ok(())
}

fn find(tx: &Transaction<'_>, task: &VmId, sequence: u64) -> Result<CommandRecord, TransactionError> {
    let sql = "SELECT * FROM commands WHERE task_id = :task AND sequence = :sequence";
    let values = named_params! { ":task": task.as_str(), ":sequence": sequence };
    let found = tx.query_row(sql, values, CommandRecord::from_row).optional()?;
    found.ok_or_else(|| no_such_command(task, sequence).into())
}

fn no_such_command(task: &VmId, sequence: u64) -> EngineError {
    EngineError::new(ErrorKind::NotFound, format!("task '{task}' has no command {sequence}"))
        .hint(Hint::TaskLogs)
}

impl CommandRecord {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let outcome = row::stored(row, "outcome")?;
        let exit = match outcome {
            Outcome::Exited | Outcome::Killed => Some(CommandExit {
                exit_code: row.get("exit_code")?,
                duration_ms: row.get("duration_ms")?,
                timed_out: row.get("timed_out")?,
                killed: outcome == Outcome::Killed,
                stdout_truncated: row.get("stdout_truncated")?,
                stderr_truncated: row.get("stderr_truncated")?,
            }),
            Outcome::Running | Outcome::NotRun | Outcome::Unknown => None,
        };
        Ok(Self {
            sequence: row.get("sequence")?,
            command: row.get("command")?,
            cwd: row.get("cwd")?,
            execution_mode: row::stored(row, "execution_mode")?,
            accepted_at: row.get("accepted_at")?,
            outcome,
            ended_at: row.get("ended_at")?,
            exit,
            cause: row.get("cause")?,
        })
    }
}
