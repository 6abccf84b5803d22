//! Input for a command of a task that is running.

use pyro_supervisor::{CommandKey, InputOutcome, RunError};

use crate::engine::Engine;
use crate::engine::exec::{caller_input, not_delivered};
use crate::{CallContext, Error, ErrorKind, Hint, Kind, TaskInput};

use super::commands::refuse_on_host;

impl Engine {
    /// Sends the call's input to the standard input of a running command. Cancelling the call leaves the input open.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `Expired`; `WrongState` also if the command takes no input, or another caller sends it;
    /// `NotDelivered`, `OutcomeUnknown`, `Cancelled`.
    pub async fn input_task(
        &self,
        task_id: &str,
        sequence: u64,
        call: &CallContext,
    ) -> Result<TaskInput, Error> {
        let id = self.task_id(task_id).await?;
        let record = self.record_for_use(&id, None).await?;
        refuse_on_host(&record, "sent input")?;
        let Some(input) = caller_input(call) else {
            return Err(Error::new(ErrorKind::InvalidInput, "the call has no input to send"));
        };
        let done = |complete| Ok(TaskInput { task_id: id.clone(), sequence, complete });
        let recorded = id.clone();
        let entry = self.registry(move |registry| registry.command(&recorded, sequence)).await?;
        if entry.outcome.is_some() {
            return done(false);
        }
        let client = self.client(&id);
        let sent = tokio::select! {
            biased;
            () = call.cancel.cancelled() => return Err(Error::cancelled()),
            sent = client.input(CommandKey::Sequence(sequence), input) => sent,
        };
        match sent {
            Ok(None | Some(InputOutcome::Taken)) => done(true),
            Ok(Some(InputOutcome::Closed | InputOutcome::NotRunning)) => done(false),
            Ok(Some(InputOutcome::NoInput)) => {
                let message = format!("command {sequence} of task {id} takes no input");
                Err(Error::new(ErrorKind::WrongState, message).hint(Hint::AttachInput))
            }
            Ok(Some(InputOutcome::Busy)) => {
                let message = format!("another caller sends the input of command {sequence} of task {id}");
                Err(Error::new(ErrorKind::WrongState, message).hint(Hint::RetryInAMoment))
            }
            Err(RunError::Lost { .. } | RunError::Unanswered) => {
                Err(Error::outcome_unknown(Kind::Task, id.as_str()))
            }
            Err(error) => Err(not_delivered(error)),
        }
    }
}
