//! The journal of tasks: one row for every accepted command, whatever its outcome.
//!
//! Sequences are assigned at acceptance, in the transaction that writes the row, so they have no gaps and follow the
//! order of acceptance across all writers. A row is never withdrawn; it is deleted with its task, or with the output of its
//! command when the journal has too many newer ones.

#[cfg(test)]
mod tests;

use std::fs;
use std::time::Duration;

use pyro_supervisor::{CommandEnd, CommandOutcome, OutputStream, file_name, files};
use rusqlite::{OptionalExtension, Row, Transaction, named_params};

use super::{Registry, load, row};
use crate::Kind;
use crate::exit_code::{self, duration_ms, exit_code};
use crate::registry::transaction_error::TransactionError;
use crate::{Error, ErrorKind, ExecutionMode, Hint, Outcome, VmId, state_dir};

const STREAMS: [OutputStream; 2] = [OutputStream::Stdout, OutputStream::Stderr];

/// Maximum number of entries of ended commands in the journal of a task.
pub(crate) const KEPT_ENTRIES: u64 = 1000;
/// Maximum total size of the texts of commands in the journal of a task, in bytes.
const KEPT_BYTES: u64 = 16 << 20;

/// An accepted command.
#[derive(Debug, Clone)]
pub(crate) struct NewCommand {
    pub(crate) command: String,
    pub(crate) cwd: String,
    pub(crate) execution_mode: ExecutionMode,
    /// Seconds since the epoch.
    pub(crate) accepted_at: f64,
}

/// One journal entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CommandRecord {
    pub(crate) sequence: u64,
    pub(crate) command: String,
    pub(crate) cwd: String,
    pub(crate) execution_mode: ExecutionMode,
    pub(crate) accepted_at: f64,
    /// Absent while the command runs. Why an outcome is unknown, and what kind of failure prevented a start, is not
    /// recorded.
    pub(crate) outcome: Option<CommandOutcome>,
    /// When the outcome was recorded.
    pub(crate) ended_at: Option<f64>,
}

/// Returns the word for an outcome.
fn word(outcome: &CommandOutcome) -> Outcome {
    match outcome {
        CommandOutcome::Ended(end) if end.killed => Outcome::Killed,
        CommandOutcome::Ended(_) => Outcome::Exited,
        CommandOutcome::NotRun { .. } => Outcome::NotRun,
        CommandOutcome::Unknown { .. } => Outcome::Unknown,
    }
}

impl Registry {
    /// Accepts a command for a task and assigns its sequence. The row is on disk when this returns: a reported sequence
    /// must not be assigned again. The outcome is `running` until [`Registry::end_command`].
    ///
    /// # Errors
    /// `NotFound` if the task does not exist.
    pub(crate) fn accept_command(&self, task: &VmId, new: &NewCommand) -> Result<u64, Error> {
        let (sequence, dropped) = self.write_through(|tx| {
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
            Ok((sequence, drop_oldest(tx, task, sequence)?))
        })?;
        // The rows are gone, so no reader looks for the files any more.
        let dir = state_dir::vm(&self.base_dir, task).join(files::COMMANDS);
        for (sequence, stream) in
            dropped.into_iter().flat_map(|sequence| STREAMS.map(|stream| (sequence, stream)))
        {
            // A command that wrote nothing has no file.
            let _ = fs::remove_file(dir.join(file_name(sequence, stream)));
        }
        Ok(sequence)
    }

    /// Returns the numbers of the commands in the journal of a task, in order.
    pub(crate) fn sequences(&self, task: &VmId) -> Result<Vec<u64>, Error> {
        self.read(|tx| {
            let sql = "SELECT sequence FROM commands WHERE task_id = :task ORDER BY sequence";
            let mut statement = tx.prepare_cached(sql)?;
            let rows = statement.query_map(named_params! { ":task": task.as_str() }, |row| row.get(0))?;
            row::readable(rows)
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
        outcome: &CommandOutcome,
    ) -> Result<(), Error> {
        self.write_through(|tx| {
            let (end, cause) = match outcome {
                CommandOutcome::Ended(end) => (Some(end), None),
                CommandOutcome::NotRun { cause, .. } => (None, Some(cause)),
                CommandOutcome::Unknown { .. } => (None, None),
            };
            let sql = "UPDATE commands SET outcome = :outcome, ended_at = :ended_at, exit_code = :exit_code,
                    duration_ms = :duration_ms, timed_out = :timed_out, stdout_truncated = :stdout_truncated,
                    stderr_truncated = :stderr_truncated, cause = :cause
                WHERE task_id = :task AND sequence = :sequence AND outcome = :running";
            tx.execute(
                sql,
                named_params! {
                    ":outcome": word(outcome).as_str(),
                    ":running": Outcome::Running.as_str(),
                    ":ended_at": ended_at,
                    ":exit_code": end.map(exit_code),
                    ":duration_ms": end.map(duration_ms),
                    ":timed_out": end.is_some_and(|end| end.timed_out),
                    ":stdout_truncated": end.map_or(0, |end| end.stdout_dropped),
                    ":stderr_truncated": end.map_or(0, |end| end.stderr_dropped),
                    ":cause": cause,
                    ":task": task.as_str(),
                    ":sequence": sequence,
                },
            )?;
            find(tx, task, sequence).map(drop)
        })
    }

    /// Returns the journal of a task in order. Damaged entries are left out, so that one cannot hide the others.
    pub(crate) fn commands(&self, task: &VmId) -> Result<Vec<CommandRecord>, Error> {
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
    pub(crate) fn command(&self, task: &VmId, sequence: u64) -> Result<CommandRecord, Error> {
        self.read(|tx| find(tx, task, sequence))
    }

    /// Returns the number of commands that a task has accepted, including those that its journal no longer has, and the last undamaged entry of a command that has
    /// exited.
    pub(crate) fn command_summary(&self, task: &VmId) -> Result<(u64, Option<CommandRecord>), Error> {
        self.read(|tx| {
            let count = tx.query_row(
                "SELECT coalesce(max(sequence), 0) FROM commands WHERE task_id = :task",
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
    match found {
        Some(found) => Ok(found),
        None => Err(no_such_command(tx, task, sequence)?.into()),
    }
}

fn no_such_command(tx: &Transaction<'_>, task: &VmId, sequence: u64) -> Result<Error, TransactionError> {
    let latest: u64 = tx.query_row(
        "SELECT coalesce(max(sequence), 0) FROM commands WHERE task_id = :task",
        named_params! { ":task": task.as_str() },
        |row| row.get(0),
    )?;
    let message = match (1..=latest).contains(&sequence) {
        true => {
            format!("the journal of task '{task}' no longer has command {sequence}: it keeps the latest ones")
        }
        false => format!("task '{task}' has no command {sequence}"),
    };
    Ok(Error::new(ErrorKind::NotFound, message).hint(Hint::TaskLogs))
}

/// Deletes the oldest entries of ended commands if there are too many, or if their texts are too large. Returns their
/// numbers.
fn drop_oldest(tx: &Transaction<'_>, task: &VmId, latest: u64) -> Result<Vec<u64>, TransactionError> {
    let sql = "DELETE FROM commands
        WHERE task_id = :task AND outcome <> :running AND sequence < :latest AND (
            sequence <= :oldest OR sequence IN (
                SELECT sequence FROM (
                    SELECT sequence,
                        sum(octet_length(command) + octet_length(cwd)) OVER (ORDER BY sequence DESC) AS total
                    FROM commands WHERE task_id = :task
                ) WHERE total > :bytes
            )
        )
        RETURNING sequence";
    let mut statement = tx.prepare_cached(sql)?;
    let values = named_params! {
        ":task": task.as_str(), ":running": Outcome::Running.as_str(), ":latest": latest,
        ":oldest": latest.saturating_sub(KEPT_ENTRIES), ":bytes": KEPT_BYTES,
    };
    let dropped = statement.query_map(values, |row| row.get(0))?;
    Ok(dropped.collect::<Result<_, _>>()?)
}

impl CommandRecord {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let word = row::stored(row, "outcome")?;
        let outcome = match word {
            Outcome::Running => None,
            Outcome::Exited | Outcome::Killed => Some(CommandOutcome::Ended(end(row, word)?)),
            Outcome::NotRun => {
                let cause = row.get::<_, Option<String>>("cause")?.unwrap_or_default();
                Some(CommandOutcome::NotRun { cause, kind: None })
            }
            Outcome::Unknown => Some(CommandOutcome::Unknown { cause: None }),
        };
        Ok(Self {
            sequence: row.get("sequence")?,
            command: row.get("command")?,
            cwd: row.get("cwd")?,
            execution_mode: row::stored(row, "execution_mode")?,
            accepted_at: row.get("accepted_at")?,
            outcome,
            ended_at: row.get("ended_at")?,
        })
    }

    /// Returns the word for what became of the command.
    pub(crate) fn word(&self) -> Outcome {
        self.outcome.as_ref().map_or(Outcome::Running, word)
    }

    /// Returns how the command ended, if it exited or was killed.
    pub(crate) fn end(&self) -> Option<&CommandEnd> {
        match &self.outcome {
            Some(CommandOutcome::Ended(end)) => Some(end),
            _ => None,
        }
    }
}

fn end(row: &Row<'_>, word: Outcome) -> rusqlite::Result<CommandEnd> {
    let code = row.get("exit_code")?;
    let status = exit_code::status(code).ok_or(rusqlite::Error::IntegralValueOutOfRange(0, code))?;
    Ok(CommandEnd {
        status: Some(status),
        timed_out: row.get("timed_out")?,
        killed: word == Outcome::Killed,
        duration: Duration::from_millis(row.get("duration_ms")?),
        stdout_dropped: row.get("stdout_truncated")?,
        stderr_dropped: row.get("stderr_truncated")?,
    })
}
