//! Reads the journal of a task.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use pyro_supervisor::{CommandOutcome, OutputStream, OwnerLock, STREAM_LIMIT, file_name, files};

use super::host;
use crate::Kind;
use crate::engine::{Engine, Shared, vm_dir};
use crate::exit_code::{duration_ms, exit_code};
use crate::registry::CommandRecord;
use crate::{Error, ExecutionMode, Outcome, TaskLogEntry, TaskLogs, VmId};

impl Engine {
    /// Returns the journal of a task, or one entry of it, with the kept output.
    ///
    /// # Errors
    /// `NotFound` if the task or the entry does not exist, `StateUnusable`.
    pub async fn logs_task(&self, task_id: &str, sequence: Option<u64>) -> Result<TaskLogs, Error> {
        let id = self.task_id(task_id).await?;
        self.get(Kind::Task, &id).await?;
        let task = id.clone();
        let records = self.registry(move |registry| match sequence {
            Some(sequence) => Ok((vec![registry.command(&task, sequence)?], Vec::new())),
            // The numbers first: what is accepted in between is not damaged.
            None => registry.sequences(&task).and_then(|all| Ok((registry.commands(&task)?, all))),
        });
        let (records, mut damaged) = records.await?;
        let dropped = dropped(&damaged);
        damaged.retain(|sequence| records.iter().all(|record| record.sequence != *sequence));
        let entries = self.entries(&id, records).await?;
        Ok(TaskLogs { task_id: id, count: entries.len() as u64, entries, dropped, damaged })
    }

    /// Returns the numbers of the commands in the journal of a task, in order.
    ///
    /// # Errors
    /// `NotFound`, `StateUnusable`.
    pub async fn logged_commands(&self, task_id: &str) -> Result<Vec<u64>, Error> {
        let id = self.task_id(task_id).await?;
        self.get(Kind::Task, &id).await?;
        self.registry(move |registry| registry.sequences(&id)).await
    }

    /// Returns one entry.
    pub(super) async fn entry(&self, id: &VmId, sequence: u64) -> Result<TaskLogEntry, Error> {
        let task = id.clone();
        let record = self.registry(move |registry| registry.command(&task, sequence)).await?;
        let mut entries = self.entries(id, vec![record]).await?;
        entries.pop().ok_or_else(|| Error::internal("a command without an entry"))
    }

    async fn entries(&self, id: &VmId, records: Vec<CommandRecord>) -> Result<Vec<TaskLogEntry>, Error> {
        if records.iter().any(host::is_open_on_host) {
            self.await_beginning(id).await?;
        }
        let id = id.clone();
        self.blocking(move |shared| {
            records.into_iter().map(|record| entry(shared, &id, record)).collect::<Result<_, _>>()
        })
        .await
    }
}

/// Returns how many commands the journal no longer has, of those up to its latest.
pub(crate) fn dropped(sequences: &[u64]) -> u64 {
    sequences.last().map_or(0, |latest| latest.saturating_sub(sequences.len() as u64))
}

fn entry(shared: &Shared, id: &VmId, record: CommandRecord) -> Result<TaskLogEntry, Error> {
    let vm_dir = vm_dir(&shared.config.base_dir, id);
    let dir = vm_dir.join(files::COMMANDS);
    let mut record = record;
    let mut lost = false;
    if record.outcome.is_none() && !is_held(&vm_dir, &dir, &record) {
        // The process that ran it may have recorded its end and exited in between.
        record = shared.registry.command(id, record.sequence)?;
        lost = record.outcome.is_none();
    }
    let end = record.end();
    let name = |stream| file_name(record.sequence, stream);
    Ok(TaskLogEntry {
        exit_code: end.map(exit_code),
        duration_ms: end.map(duration_ms),
        recorded_at: record.ended_at.unwrap_or(record.accepted_at),
        stdout_file: name(OutputStream::Stdout),
        stderr_file: name(OutputStream::Stderr),
        stdout: kept(&dir.join(name(OutputStream::Stdout))).into(),
        stderr: kept(&dir.join(name(OutputStream::Stderr))).into(),
        outcome: if lost { Outcome::Unknown } else { record.word() },
        started_at: record.accepted_at,
        timed_out: end.is_some_and(|end| end.timed_out),
        stdout_truncated: end.map_or(0, |end| end.stdout_dropped),
        stderr_truncated: end.map_or(0, |end| end.stderr_dropped),
        error: match &record.outcome {
            Some(CommandOutcome::NotRun { cause, .. }) => Some(cause.clone()),
            _ => None,
        },
        sequence: record.sequence,
        command: record.command,
        cwd: record.cwd,
        execution_mode: record.execution_mode,
    })
}

/// Returns whether the process that runs the command still exists.
fn is_held(vm_dir: &Path, commands_dir: &Path, record: &CommandRecord) -> bool {
    match record.execution_mode {
        ExecutionMode::HostCompat => host::is_running(commands_dir, record.sequence),
        ExecutionMode::GuestVsock | ExecutionMode::Pending => OwnerLock::is_held(vm_dir),
    }
}

/// Returns the kept output of a stream; empty if it has no file.
fn kept(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path)
        && let Err(error) = file.take(STREAM_LIMIT).read_to_end(&mut bytes)
    {
        tracing::warn!(%error, path = %path.display(), "output of a command cannot be read");
    }
    bytes
}
