//! Asks a language model with tools for a proof that it can run a command in a VM.
//!
//! ```text
//! Endpoint ◄──messages── Demo ──calls──► Tools ──► pyro-mcp
//!     └──────reply───────► │ ◄──results────┘
//!                          └──lines──► Transcript ──► the caller
//! ```
//!
//! `error` and `failure` are at the bottom, above them `arguments`, then `chat`, then `tools`, then the rest.

mod arguments;
mod chat;
mod endpoint;
mod error;
mod failure;
mod proof;
mod tools;
mod transcript;

use pyro_api::{CallContext, Contract, RunResult};
use tokio_util::sync::CancellationToken;

use self::chat::{Message, Reply, ToolCall};
use self::endpoint::{Endpoint, Question};
use self::proof::Proof;
use self::tools::Tools;
use self::transcript::Transcript;

pub use self::error::{CallError, DemoError};

/// Maximum number of requests to the model.
const MAX_ROUNDS: usize = 12;

/// The model and its endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// OpenAI-compatible endpoint, without `/chat/completions`.
    pub base_url: &'a str,
    /// Name of the model, which the endpoint must have.
    pub model: &'a str,
    /// Show messages, arguments, and results in full.
    pub verbose: bool,
}

/// Lets the model prove that it can run a command in a VM, and removes all VMs that it created. Returns the result of the
/// command.
///
/// Passes each line of the demonstration to `lines` without its newline. A line can contain text of the model or the guest,
/// with newlines and control characters.
///
/// # Errors
/// The model gave no proof, or the call was cancelled.
pub async fn prove(
    request: Request<'_>,
    contract: impl Contract + 'static,
    context: &CallContext,
    lines: impl AsyncFn(String),
) -> Result<RunResult, DemoError> {
    let mut demo = Demo {
        model: request.model,
        endpoint: Endpoint::new(request.base_url)?,
        proof: Proof::new()?,
        tools: Tools::new(contract, context),
        transcript: Transcript::new(lines, request.verbose),
        cancel: &context.cancel,
    };
    let proved = demo.run().await;
    for left in demo.tools.remove_created().await {
        demo.transcript.warning(&left).await;
    }
    proved
}

struct Demo<'a, L> {
    model: &'a str,
    endpoint: Endpoint,
    proof: Proof,
    tools: Tools<'a>,
    transcript: Transcript<L>,
    cancel: &'a CancellationToken,
}

impl<L: AsyncFn(String)> Demo<'_, L> {
    async fn run(&mut self) -> Result<RunResult, DemoError> {
        self.transcript.starts(self.model).await;
        self.converse().await?;
        let ran = self.proof.judge(self.tools.last_run.take())?;
        self.transcript.done().await;
        Ok(ran)
    }

    /// Asks the model and calls its tools until a reply has no tool calls.
    async fn converse(&mut self) -> Result<(), DemoError> {
        let mut messages = vec![Message::User { content: self.proof.prompt() }];
        let mut shown = 0;
        for _ in 0..MAX_ROUNDS {
            for (role, content) in messages[shown..].iter().filter_map(Message::input) {
                self.transcript.input(role, content).await;
            }
            shown = messages.len();
            let question = Question::new(self.model, &messages, self.tools.descriptions());
            let reply = Reply::read(&self.endpoint.ask(&question, self.cancel).await?)?;
            self.transcript.output(&reply).await;
            if reply.calls.is_empty() {
                self.transcript.no_tool_calls().await;
                return Ok(());
            }
            messages.push(reply.as_message());
            for call in reply.calls {
                messages.push(self.call(call).await?);
            }
        }
        Err(DemoError::Rounds)
    }

    /// Performs one tool call and returns the message with its result.
    async fn call(&mut self, call: ToolCall) -> Result<Message, DemoError> {
        let ToolCall { id, name, mut arguments } = call;
        if let Some(vm_id) = self.tools.repair(&name, &mut arguments) {
            self.transcript.resolved(vm_id).await;
        }
        self.transcript.calling(&name, &arguments).await;
        let called = self.tools.call(&name, &arguments).await;
        // A failure of a cancelled call is not the model's.
        if self.cancel.is_cancelled() {
            return Err(DemoError::Cancelled);
        }
        match &called.failure {
            None => self.transcript.succeeded(&name).await,
            Some(error) => self.transcript.failed(&name, error, &arguments).await,
        }
        self.transcript.result(&name, &called.answer).await;
        Ok(Message::Tool { tool_call_id: id, content: called.answer.to_string() })
    }
}
