//! `pyro completions`.

use clap::Args;

use crate::error::CliError;
use crate::reply::Reply;

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  pyro completions bash > ~/.local/share/bash-completion/completions/pyro
  pyro completions zsh > ~/.zfunc/_pyro
  pyro completions fish > ~/.config/fish/completions/pyro.fish";

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

pub(crate) fn run(args: &CompletionsArgs, mut grammar: clap::Command) -> Result<Reply, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut grammar, "pyro", &mut script);
    Ok(Reply::bytes(script))
}
