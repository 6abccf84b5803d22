//! `pyro demo ollama`: a model with tools, asked for a proof.
//!
//! ```text
//! Endpoint ◄──messages── Demo ──calls──► Tools ──► pyro-engine
//!     └──────reply───────► │ ◄──results────┘
//!                          └──lines──► Transcript ──► stdout
//! ```

mod arguments;
mod chat;
mod endpoint;
mod proof;
mod tools;
mod transcript;

use std::error::Error;
use std::io;

use pyro_engine::{EngineError, RunResult};
use tokio_util::sync::CancellationToken;

use self::chat::{Message, Reply, ToolCall};
use self::endpoint::{CallError, Endpoint};
use self::proof::Proof;
use self::tools::Tools;
use self::transcript::Transcript;
use crate::args::DemoOllamaArgs;
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::session;

/// How often the model is asked at most.
const MAX_ROUNDS: usize = 12;

/// Why the demo did not show what it should, through no fault of pyro's own.
#[derive(Debug)]
pub(crate) enum DemoError {
    /// The endpoint does not answer, or refuses.
    Call(CallError),
    /// Its answer is no chat completion; what is wrong with it.
    Answer(String),
    /// A tool call that cannot be answered; what is wrong with it.
    ToolCall(String),
    /// More tool calls at once than are carried out.
    Calls { count: usize, most: usize },
    /// The model does not come to an end.
    Rounds,
    /// The model has run no command.
    NothingRan,
    /// The last command failed; how.
    CommandFailed(Box<dyn Error + Send + Sync>),
    /// The last command was another one; what it printed.
    WrongOutput(Box<dyn Error + Send + Sync>),
}

impl std::fmt::Display for DemoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Call(_) => f.write_str(
                "failed to call Ollama. Ensure `ollama serve` is running and the model is available.",
            ),
            Self::Answer(fault) => write!(f, "the answer of the endpoint is no chat completion: {fault}"),
            Self::ToolCall(fault) => write!(f, "malformed tool call: {fault}"),
            Self::Calls { count, most } => {
                write!(f, "too many tool calls in one reply: {count}, and {most} are the most")
            }
            Self::Rounds => f.write_str("tool-calling loop exceeded maximum rounds"),
            Self::NothingRan => f.write_str("demo did not execute a successful vm_run or vm_exec"),
            Self::CommandFailed(_) => f.write_str("vm_exec failed; expected exit_code=0"),
            Self::WrongOutput(_) => f.write_str("vm_exec output did not confirm the command"),
        }
    }
}

impl Error for DemoError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Call(error) => Some(error),
            Self::CommandFailed(cause) | Self::WrongOutput(cause) => Some(&**cause),
            _ => None,
        }
    }
}

impl From<CallError> for DemoError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

pub(super) fn run(args: &DemoOllamaArgs, printer: &Printer) -> Result<Exit, CliError> {
    match demonstrate(args, printer) {
        Ok(()) => Ok(Exit::Success),
        // Everything that the demo has to say is on standard output.
        Err(error) => {
            printer.failure_as_result(&error);
            Ok(error.exit())
        }
    }
}

fn demonstrate(args: &DemoOllamaArgs, printer: &Printer) -> Result<(), CliError> {
    let engine = super::super::engine()?;
    let endpoint = Endpoint::new(&args.base_url)?;
    let proof = Proof::new().map_err(|error| {
        CliError::System("no random numbers".to_owned(), io::Error::other(error.to_string()))
    })?;
    let quiet = super::is_quiet(printer);
    let (shown, _) = session::block_on(session::watch(printer, quiet, async |events, cancel| {
        let mut demo = Demo {
            model: &args.model,
            endpoint,
            proof,
            tools: Tools::new(engine, &events, &cancel),
            transcript: Transcript::new(&events, args.verbose),
            cancel: &cancel,
        };
        let shown = demo.run().await;
        for left in demo.tools.remove_created().await {
            demo.transcript.warning(&left).await;
        }
        match shown {
            Ok(ran) => Ok(Ok(ran)),
            Err(End::Failed(error)) => Ok(Err(error)),
            Err(End::Cancelled) => Err(EngineError::cancelled()),
        }
    }))?;
    printer.text(&summary(&shown?, args.verbose))?;
    Ok(())
}

/// `fallback_used` is part of the line's form; there is no such thing here.
fn summary(ran: &RunResult, verbose: bool) -> String {
    let (code, mode) = (ran.exit_code, ran.execution_mode);
    let mut text = format!("[summary] exit_code={code} fallback_used=False execution_mode={mode}\n");
    if verbose {
        text += &format!("[summary] stdout={}\n", transcript::shown(ran.stdout.to_text().trim()));
    }
    text
}

/// Why the conversation ended without a proof.
enum End {
    Failed(DemoError),
    Cancelled,
}

impl From<DemoError> for End {
    fn from(error: DemoError) -> Self {
        Self::Failed(error)
    }
}

struct Demo<'a> {
    model: &'a str,
    endpoint: Endpoint,
    proof: Proof,
    tools: Tools<'a>,
    transcript: Transcript<'a>,
    cancel: &'a CancellationToken,
}

impl Demo<'_> {
    async fn run(&mut self) -> Result<RunResult, End> {
        self.transcript.starts(self.model).await;
        self.converse().await?;
        let ran = self.proof.judge(self.tools.last_run.take())?;
        self.transcript.done().await;
        Ok(ran)
    }

    /// Asks the model and calls its tools until it calls no more.
    async fn converse(&mut self) -> Result<(), End> {
        let mut messages = vec![Message::User { content: self.proof.prompt() }];
        let mut told = 0;
        for _ in 0..MAX_ROUNDS {
            for (role, content) in messages[told..].iter().filter_map(Message::input) {
                self.transcript.input(role, content).await;
            }
            told = messages.len();
            let asked = self.endpoint.ask(self.model, &messages, self.cancel).await;
            let reply = Reply::read(&asked.ok_or(End::Cancelled)??)?;
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
        Err(DemoError::Rounds.into())
    }

    /// The answer to one tool call.
    async fn call(&mut self, call: ToolCall) -> Result<Message, End> {
        let ToolCall { id, name, mut arguments } = call;
        if let Some(vm_id) = self.tools.repair(&name, &mut arguments) {
            self.transcript.resolved(vm_id).await;
        }
        self.transcript.calling(&name, &arguments).await;
        let called = self.tools.call(&name, &arguments).await;
        // Whatever came of it then was not the model's doing.
        if self.cancel.is_cancelled() {
            return Err(End::Cancelled);
        }
        match &called.failure {
            None => self.transcript.succeeded(&name).await,
            Some(error) => self.transcript.failed(&name, error, &arguments).await,
        }
        self.transcript.result(&name, &called.told).await;
        Ok(Message::Tool { tool_call_id: id, content: called.told.to_string() })
    }
}
