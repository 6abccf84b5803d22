//! Why the demonstration failed.

use std::error::Error;

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The endpoint did not respond, or returned an error.
    #[error("failed to call Ollama. Ensure `ollama serve` is running and the model is available.")]
    Call(#[from] CallError),
    /// The response is not a chat completion, and why.
    #[error("the endpoint's response is not a chat completion: {0}")]
    Answer(String),
    /// A tool call is malformed, and why.
    #[error("malformed tool call: {0}")]
    ToolCall(String),
    /// A reply has too many tool calls.
    #[error("too many tool calls in one reply: {count}; the maximum is {most}")]
    Calls {
        /// Number of calls.
        count: usize,
        /// The maximum.
        most: usize,
    },
    /// The model did not finish within the maximum number of rounds.
    #[error("tool-calling loop exceeded maximum rounds")]
    Rounds,
    /// The model ran no command.
    #[error("demo did not execute a successful vm_run or vm_exec")]
    NothingRan,
    /// The last command failed.
    #[error("vm_exec failed; expected exit_code=0")]
    CommandFailed(#[source] Box<dyn Error + Send + Sync>),
    /// The last command printed something else.
    #[error("vm_exec output did not confirm the command")]
    WrongOutput(#[source] Box<dyn Error + Send + Sync>),
    /// The system provides no random numbers.
    #[error("cannot get random numbers")]
    NoRandomNumbers(#[from] getrandom::Error),
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Why the endpoint gave no response.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {cause}")]
pub struct CallError {
    pub(super) address: String,
    pub(super) cause: String,
}
