//! The journal of a task, page by page: all of what its commands wrote can be gigabytes.

use pyro_engine::{Engine, EngineError, TaskLogEntry, TaskLogs};
use schemars::JsonSchema;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::limits::PAGE_BYTES;
use crate::params::Entries;

/// Part of the journal of a task.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct LogsPage {
    /// The entries.
    logs: TaskLogs,
    /// `after` for the next page; null if there is none.
    next_after: Option<u64>,
}

/// What is asked for.
pub(crate) async fn page(
    engine: &Engine,
    task: &str,
    asked: Entries,
    cancel: &CancellationToken,
) -> Result<LogsPage, EngineError> {
    if asked.sequence.is_some() {
        return Ok(LogsPage { logs: engine.logs_task(task, asked.sequence).await?, next_after: None });
    }
    let task = engine.status_task(task).await?;
    let mut entries = Vec::new();
    let (mut last, mut bytes) = (asked.after, 0);
    while last < task.command_count && bytes <= PAGE_BYTES {
        if cancel.is_cancelled() {
            return Err(EngineError::cancelled());
        }
        last += 1;
        let found = engine.logs_task(task.task_id.as_str(), Some(last)).await?.entries;
        bytes += found.iter().map(size).sum::<usize>();
        entries.extend(found);
    }
    let next_after = (last < task.command_count).then_some(last);
    Ok(LogsPage {
        logs: TaskLogs { task_id: task.task_id, count: entries.len() as u64, entries },
        next_after,
    })
}

fn size(entry: &TaskLogEntry) -> usize {
    entry.command.len() + entry.stdout.as_bytes().len() + entry.stderr.as_bytes().len()
}
