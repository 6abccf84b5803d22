//! `pyro man`.

use crate::args::{self, ManArgs};
use crate::error_report::CliError;
use crate::exit::Exit;

pub(crate) fn run(args: &ManArgs) -> Result<Exit, CliError> {
    std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(args::grammar(), &args.directory))
        .map_err(|error| {
            CliError::System(format!("cannot write manual pages to {}", args.directory.display()), error)
        })?;
    Ok(Exit::Success)
}
