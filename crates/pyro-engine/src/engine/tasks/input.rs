//! Input for a command of a task that is running.

use crate::engine::Engine;
use crate::{CallContext, Error, ErrorKind, TaskInput};

impl Engine {
    /// Sends the call's input to a running command.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub async fn input_task(
        &self,
        _task_id: &str,
        _sequence: u64,
        _call: &CallContext,
    ) -> Result<TaskInput, Error> {
        Err(Error::new(ErrorKind::InvalidInput, "input cannot be sent to this version's guests"))
    }
}
