//! The helper processes that the engine starts from this same executable.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::Path;

use clap::Args;

use crate::error::CliError;
use crate::reply::Reply;
use crate::session;

/// Internal helper process of pyro
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct InternalArgs {
    /// Passed on unchanged by the library that starts the helper
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) words: Vec<OsString>,
}

/// Owns one VM until it ends. The only argument is the state directory; standard input is the lifeline to the caller.
pub(crate) fn supervise(args: &InternalArgs) -> Result<Reply, CliError> {
    let base_dir = args.words.first().map(Path::new).unwrap_or(Path::new(""));
    session::block_on(async {
        let not_supervising = |error| CliError::System("cannot supervise a VM".to_owned(), error);
        let lifeline = std::io::stdin().as_fd().try_clone_to_owned().map_err(not_supervising)?;
        pyro_engine::supervise(base_dir, lifeline).await.map_err(not_supervising)
    })?;
    Ok(Reply::nothing())
}

/// Carries the packets of one VM until it ends. Its supervisor passes the descriptors.
pub(crate) fn carry_network() -> Result<Reply, CliError> {
    pyro_engine::carry_network().map_err(|error| {
        CliError::System("cannot carry the network of a VM".to_owned(), std::io::Error::other(error))
    })?;
    Ok(Reply::nothing())
}

/// Serves one directory of this host until its guest is gone. The process that starts it passes the descriptors.
pub(crate) fn serve_mount(args: &InternalArgs) -> Result<Reply, CliError> {
    pyro_engine::serve_mount(&args.words).map_err(|error| {
        CliError::System("cannot serve a directory".to_owned(), std::io::Error::other(error))
    })?;
    Ok(Reply::nothing())
}

/// Measures `/dev/kvm` in a separate process, where a hang or crash does no harm.
pub(crate) fn probe_kvm() -> Result<Reply, CliError> {
    Ok(Reply::text(pyro_engine::probe_kvm()))
}
