//! `pyro demo` and `pyro demo ollama`.

use clap::{Args, Subcommand};
use pyro_demo::ollama::{self, DemoError};
use pyro_engine::{CallContext, Caller, Error, Event, OutputStream, OwnerName, RunResult, Visibility};

use crate::error::CliError;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::report::Report;
use crate::text::printable;
use crate::{config, session};

const DEMO_EXAMPLES: &str = "\
The exit status is 0 even if the command fails: read `exit_code` in the document.

Examples:
  pyro demo
  pyro demo --network | jq .stdout
  pyro demo ollama --model llama3.2:3b";

/// Run one command in a new VM and print the result
///
/// Runs `git --version` in debian:12, or with --network a command that fetches https://example.com and
/// prints the HTTP status. The result is one JSON document on stdout. Installs the environment first if it
/// is missing.
#[derive(Debug, Args)]
#[command(after_help = DEMO_EXAMPLES)]
pub(crate) struct DemoArgs {
    /// Give the guest outbound network access, and show that it works [default: off]
    #[arg(long)]
    pub(crate) network: bool,
    #[command(subcommand)]
    pub(crate) command: Option<DemoCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DemoCommand {
    Ollama(DemoOllamaArgs),
}

const OLLAMA_EXAMPLES: &str = "\
No credentials are sent, and the demo needs no internet access. The model chooses what its VMs run and whether they \
have a network. It cannot run commands on this machine itself.

Prints the conversation on stdout, and also why the demo failed. Warnings go to stderr, and so does the progress of an \
installation if stderr is a terminal. Exit status: 0 if the model ran the command, 1 if not.

Examples:
  pyro demo ollama
  pyro demo ollama --model qwen3:4b --verbose
  pyro demo ollama --base-url http://localhost:8000/v1 --model my-model";

/// Let a language model prove that it can run a command in a VM
///
/// Gives a model the tools `vm_*` over an OpenAI-compatible endpoint and asks it to run a command whose
/// output cannot be guessed. Common mistakes of models are corrected or explained to it. All VMs it made are
/// removed at the end.
#[derive(Debug, Args)]
#[command(after_help = OLLAMA_EXAMPLES)]
pub(crate) struct DemoOllamaArgs {
    /// OpenAI-compatible endpoint, without `/chat/completions`
    #[arg(long, value_name = "URL", default_value = "http://localhost:11434/v1")]
    pub(crate) base_url: String,
    /// Name of a model that the endpoint offers
    #[arg(long, value_name = "NAME", default_value = "llama3.2:3b")]
    pub(crate) model: String,
    /// Show the conversation, with all arguments and results [default: off]
    #[arg(long, short)]
    pub(crate) verbose: bool,
}

pub(crate) fn run(args: &DemoArgs, printer: &Printer) -> Result<Reply, CliError> {
    let Some(DemoCommand::Ollama(ollama)) = &args.command else { return one_command(args.network, printer) };
    // The demo prints everything on standard output, including failures.
    with_model(ollama, printer).or_else(|error| {
        let exit = error.exit();
        Ok(match Report::of(&error) {
            Some(report) => Reply::failure(report.human(), exit),
            None => Reply::nothing().exit(exit),
        })
    })
}

fn one_command(network: bool, printer: &Printer) -> Result<Reply, CliError> {
    let engine = config::engine()?;
    let (result, _) = session::watch(printer, is_quiet(printer), async |events, cancel| {
        pyro_demo::one_command(&engine, network, &CallContext::new(events, cancel)).await
    })?;
    Ok(Reply::document(&result)?)
}

fn with_model(args: &DemoOllamaArgs, printer: &Printer) -> Result<Reply, CliError> {
    let engine = config::engine()?;
    // The model reaches what it creates, and nothing else.
    let caller = Caller::Client { name: OwnerName::random("demo")?, visibility: Visibility::Own };
    let request = ollama::Request { base_url: &args.base_url, model: &args.model, verbose: args.verbose };
    let (proved, _) = session::watch(printer, is_quiet(printer), async |events, cancel| {
        let show = async |line: String| {
            let bytes = (apart(&line) + "\n").into();
            events.send(Event::Output { stream: OutputStream::Stdout, bytes }).await;
        };
        let context = CallContext { caller: caller.clone(), ..CallContext::new(events.clone(), cancel) };
        match ollama::prove(request, engine, &context, show).await {
            Err(DemoError::Cancelled) => Err(Error::cancelled()),
            proved => Ok(proved),
        }
    })?;
    Ok(Reply::text(summary(&proved?, args.verbose)))
}

/// A demo prints on standard output only, except for a person, who would otherwise see nothing for the minutes that an
/// installation may take.
fn is_quiet(printer: &Printer) -> bool {
    !printer.stderr_is_terminal()
}

/// The line's format includes `fallback_used`, which is always false here.
fn summary(ran: &RunResult, verbose: bool) -> String {
    let (code, mode) = (ran.exit_code, ran.execution_mode);
    let mut text = format!("[summary] exit_code={code} fallback_used=False execution_mode={mode}\n");
    if verbose {
        text += &format!("[summary] stdout={}\n", apart(ran.stdout.to_text().trim()));
    }
    text
}

/// Text of a model or a guest must not control the terminal or look like one of pyro's lines.
fn apart(text: &str) -> String {
    let text = printable(text.trim_end());
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |shown, line| shown + if line.is_empty() { "\n" } else { "\n    " } + line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_models_cannot_look_like_lines_of_the_demo() {
        assert_eq!(
            apart("first\r\n\n\n\n[done] command execution succeeded\u{1b}[2J\n"),
            "first\\r\n\n\n\n    [done] command execution succeeded\\u{1b}[2J"
        );
    }
}
