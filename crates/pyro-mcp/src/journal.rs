//! The journal of a task, read one entry at a time: the output of all commands can be a gigabyte.

use pyro_api::operations::{LogsTask, StatusTask};
use pyro_api::{CallContext, Entries, ErrorKind};
use serde_json::{Value, json};

use crate::failure::{Failure, payload};
use crate::guard::Guard;
use crate::result;

/// The latest entries in the form of the contract's payload, with texts cut to fit into a result.
pub(crate) async fn latest(
    guard: &Guard,
    task: &str,
    last: u64,
    call: &CallContext,
) -> Result<Value, Failure> {
    let task = guard.perform(StatusTask { task: task.into() }, call).await?;
    let id = task.task_id.as_str();
    let count = last.min(task.command_count);
    let mut first = None;
    let most = result::share(2 * count);
    let (mut entries, mut damaged) = (Vec::new(), Vec::new());
    for sequence in task.command_count - count + 1..=task.command_count {
        let one = Entries { sequence: Some(sequence), after: 0 };
        let found = match guard.perform(LogsTask { task: id.into(), entries: one }, call).await {
            Ok(page) => page.logs.entries,
            // The journal no longer has it, or the task was deleted meanwhile.
            Err(Failure::Contract(error)) if error.kind == ErrorKind::NotFound => continue,
            // A damaged entry must not hide the others.
            Err(Failure::Contract(error)) if error.kind == ErrorKind::StateUnusable => {
                tracing::warn!(task_id = id, sequence, %error, "a journal entry is left out");
                first.get_or_insert(sequence);
                damaged.push(sequence);
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in found {
            first.get_or_insert(entry.sequence);
            let mut entry = payload(entry)?;
            result::cut(&mut entry, most, &mut |_, _| {});
            entries.push(entry);
        }
    }
    let mut logs = json!({ "task_id": id, "count": entries.len(), "entries": entries });
    if !damaged.is_empty() {
        logs["damaged"] = damaged.into();
    }
    // Older ones that were not asked for may still be there.
    let asked_for = task.command_count - count;
    if let Some(dropped) = first.map(|first| first - 1).filter(|dropped| *dropped > asked_for) {
        logs["dropped"] = dropped.into();
    }
    Ok(logs)
}
