//! `pyro completions`.

use clap::Args;

use crate::completion;
use crate::error::CliError;
use crate::reply::Reply;

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  pyro completions bash > ~/.local/share/bash-completion/completions/pyro
  pyro completions zsh > ~/.zfunc/_pyro
  pyro completions fish > ~/.config/fish/completions/pyro.fish";

/// Print a completion script for a shell
///
/// The script asks pyro itself, which also knows the names and ids of tasks, services and environments.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> Result<Reply, CliError> {
    let script = completion::script(args.shell);
    Ok(Reply::bytes(script.map_err(|error| CliError::System("cannot make the script".to_owned(), error))?))
}
