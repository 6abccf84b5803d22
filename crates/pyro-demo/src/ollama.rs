//! A language model with tools, asked for a proof that it can run a command in a VM.
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

/// How often the model is asked at most.
const MAX_ROUNDS: usize = 12;

/// Which model is asked, and where.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// OpenAI-compatible endpoint, without `/chat/completions`.
    pub base_url: &'a str,
    /// Name of the model, which the endpoint must have.
    pub model: &'a str,
    /// Tell also what is said, with all arguments and results.
    pub verbose: bool,
}

/// Lets the model prove that it can run a command in a VM, and removes all VMs that it made. The result is that of the
/// command.
///
/// Each line of the demonstration goes to `lines` as it comes, without its newline. It repeats what a model or a guest
/// wrote: it may have several lines of its own and control characters.
///
/// # Errors
/// There is no proof, and why, or the call was cancelled first.
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

    /// Asks the model and calls its tools until it calls no more.
    async fn converse(&mut self) -> Result<(), DemoError> {
        let mut messages = vec![Message::User { content: self.proof.prompt() }];
        let mut told = 0;
        for _ in 0..MAX_ROUNDS {
            for (role, content) in messages[told..].iter().filter_map(Message::input) {
                self.transcript.input(role, content).await;
            }
            told = messages.len();
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

    /// The answer to one tool call.
    async fn call(&mut self, call: ToolCall) -> Result<Message, DemoError> {
        let ToolCall { id, name, mut arguments } = call;
        if let Some(vm_id) = self.tools.repair(&name, &mut arguments) {
            self.transcript.resolved(vm_id).await;
        }
        self.transcript.calling(&name, &arguments).await;
        let called = self.tools.call(&name, &arguments).await;
        // Whatever came of it then was not the model's doing.
        if self.cancel.is_cancelled() {
            return Err(DemoError::Cancelled);
        }
        match &called.failure {
            None => self.transcript.succeeded(&name).await,
            Some(error) => self.transcript.failed(&name, error, &arguments).await,
        }
        self.transcript.result(&name, &called.told).await;
        Ok(Message::Tool { tool_call_id: id, content: called.told.to_string() })
    }
}
