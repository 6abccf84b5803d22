//! `pyro man`.

use std::path::PathBuf;

use clap::Args;

use crate::error::CliError;
use crate::reply::Reply;

const MAN_EXAMPLES: &str = "\
Examples:
  pyro man ~/.local/share/man/man1";

/// Write the manual pages into a directory
///
/// Writes one page per command: `pyro.1`, `pyro-run.1` and so on. Creates the directory if it is missing, and
/// replaces pages of the same name.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct ManArgs {
    /// Directory for the pages
    #[arg(value_name = "DIRECTORY")]
    pub(crate) directory: PathBuf,
}

pub(crate) fn run(args: &ManArgs, grammar: clap::Command) -> Result<Reply, CliError> {
    std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(grammar, &args.directory))
        .map_err(|error| {
            CliError::System(format!("cannot write manual pages to {}", args.directory.display()), error)
        })?;
    Ok(Reply::nothing())
}
