//! `pyro demo`: what pyro is for, shown once.

use clap::{Args, Subcommand};

const DEMO_EXAMPLES: &str = "\
The exit status is 0 whatever that of the command is: read `exit_code` in the document.

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
    /// Give the guest outbound network access and show that it works [default: off]
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
No credentials are sent, and the proof needs no internet. The model chooses what its VMs run and whether \
they have network; nothing it says runs on this machine itself.

What the model and its tools do is said on stdout, and so is why the demo failed. Progress of an \
installation and pyro's own warnings go to stderr, progress only if that is a terminal. Exit status: 0 if the proof was given, 1 if not.

Examples:
  pyro demo ollama
  pyro demo ollama --model qwen3:4b --verbose
  pyro demo ollama --base-url http://localhost:8000/v1 --model my-model";

/// Let a language model prove that it can run a command in a VM
///
/// Gives a model the tools `vm_*` over an OpenAI-compatible endpoint and asks it to run a command whose
/// output nobody can guess. Its usual mistakes are corrected or explained to it. All VMs it made are removed
/// at the end.
#[derive(Debug, Args)]
#[command(after_help = OLLAMA_EXAMPLES)]
pub(crate) struct DemoOllamaArgs {
    /// OpenAI-compatible endpoint, without `/chat/completions`
    #[arg(long, value_name = "URL", default_value = "http://localhost:11434/v1")]
    pub(crate) base_url: String,
    /// Name of the model, which the endpoint must have
    #[arg(long, value_name = "NAME", default_value = "llama3.2:3b")]
    pub(crate) model: String,
    /// Show what is said and done, with all arguments and results [default: off]
    #[arg(long, short)]
    pub(crate) verbose: bool,
}
