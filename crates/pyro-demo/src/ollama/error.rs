//! Why there is no proof.

use std::error::Error;

/// Why the demonstration did not show what it should.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The endpoint does not answer, or refuses.
    #[error("failed to call Ollama. Ensure `ollama serve` is running and the model is available.")]
    Call(#[from] CallError),
    /// Its answer is no chat completion; what is wrong with it.
    #[error("the answer of the endpoint is no chat completion: {0}")]
    Answer(String),
    /// A tool call that cannot be answered; what is wrong with it.
    #[error("malformed tool call: {0}")]
    ToolCall(String),
    /// More tool calls at once than are carried out.
    #[error("too many tool calls in one reply: {count}, and {most} are the most")]
    Calls {
        /// How many there were.
        count: usize,
        /// How many are carried out at most.
        most: usize,
    },
    /// The model does not come to an end.
    #[error("tool-calling loop exceeded maximum rounds")]
    Rounds,
    /// The model has run no command.
    #[error("demo did not execute a successful vm_run or vm_exec")]
    NothingRan,
    /// The last command failed; how.
    #[error("vm_exec failed; expected exit_code=0")]
    CommandFailed(#[source] Box<dyn Error + Send + Sync>),
    /// The last command was another one; what it printed.
    #[error("vm_exec output did not confirm the command")]
    WrongOutput(#[source] Box<dyn Error + Send + Sync>),
    /// The system has no random numbers, so there is nothing to prove.
    #[error("no random numbers")]
    NoRandomNumbers(#[from] getrandom::Error),
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {cause}")]
pub struct CallError {
    pub(super) address: String,
    pub(super) cause: String,
}
