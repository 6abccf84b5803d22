//! The helper processes that the engine starts from this same executable.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::Path;

use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::session;

/// Owns one VM until it ends. The only word is the state directory; standard input is the lifeline to
/// whoever started it.
pub(crate) fn supervise(words: &[OsString]) -> Result<Exit, CliError> {
    let base_dir = words.first().map(Path::new).unwrap_or(Path::new(""));
    session::block_on(async {
        let not_supervising = |error| CliError::System("cannot supervise a VM".to_owned(), error);
        let lifeline = std::io::stdin().as_fd().try_clone_to_owned().map_err(not_supervising)?;
        pyro_engine::supervise(base_dir, lifeline).await.map_err(not_supervising)
    })?;
    Ok(Exit::Success)
}

/// Measures `/dev/kvm` in a process of its own, where a hang or crash does no harm.
pub(crate) fn probe_kvm(printer: &Printer) -> Result<Exit, CliError> {
    printer.text(&pyro_engine::probe_kvm())?;
    Ok(Exit::Success)
}
