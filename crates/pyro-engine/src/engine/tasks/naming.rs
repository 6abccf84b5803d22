//! What callers call a task: its id, the first digits of it, or its name.

use super::super::Engine;
use crate::{Error, Kind, Task, TaskChanges, VmId};

impl Engine {
    /// Returns the id of the task that `text` stands for. Every operation on an existing task begins with it, so that a name
    /// can be used wherever an id can. That there is a task with this id is not checked if `text` has the form of an id.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if `text` stands for several tasks; `StateUnusable`.
    pub(super) async fn task_id(&self, text: &str) -> Result<VmId, Error> {
        if let Ok(id) = VmId::parse_as(Kind::Task, text) {
            return Ok(id);
        }
        let (text, caller) = (text.to_owned(), self.caller.clone());
        // A state directory that does not exist has no tasks, and a read must not create it.
        self.blocking(move |shared| match shared.config.base_dir.exists() {
            true => shared.registry.resolve(&caller, &text),
            false => Err(Error::not_found(Kind::Task, &text)),
        })
        .await
    }

    /// Changes the name, the labels, and the renewal of a task, whatever its state.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `StateUnusable`; `WrongState` if another task has the name.
    pub async fn update_task(&self, task_id: &str, changes: TaskChanges) -> Result<Task, Error> {
        changes.check()?;
        let id = self.task_id(task_id).await?;
        self.get(Kind::Task, &id).await?;
        let task = id.clone();
        self.registry(move |registry| registry.update(&task, &changes)).await?;
        self.status_task(id.as_str()).await
    }
}
