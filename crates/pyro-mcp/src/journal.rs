//! The journal of a task, one entry at a time: all of what its commands wrote can be a gigabyte.

use pyro_engine::{Engine, EngineError, ErrorKind};
use serde_json::{Value, json};

use crate::result;

/// Entries that are shown if nothing else is said.
pub(crate) const USUAL: u64 = 100;

/// The latest entries, as the engine's payload would have them, with texts cut to what fits.
pub(crate) async fn latest(engine: &Engine, task: &str, last: u64) -> Result<Value, EngineError> {
    let task = engine.status_task(task).await?;
    let id = task.task_id.as_str();
    let count = last.min(task.command_count);
    let most = result::share(2 * count);
    let mut entries = Vec::new();
    for sequence in task.command_count - count + 1..=task.command_count {
        let found = match engine.logs_task(id, Some(sequence)).await {
            Ok(logs) => logs.entries,
            // The task is deleted meanwhile.
            Err(error) if error.kind == ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        for entry in found {
            let mut entry = serde_json::to_value(entry).map_err(|error| {
                EngineError::internal("a journal cannot be written as JSON").caused_by(error)
            })?;
            result::cut(&mut entry, most, &mut |_, _| {});
            entries.push(entry);
        }
    }
    Ok(json!({ "task_id": id, "count": entries.len(), "entries": entries }))
}
