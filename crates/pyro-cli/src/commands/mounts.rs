//! Directories of this host, as arguments of several commands.

use std::path::Path;

use clap::Args;
use pyro_engine::DirectoryMount;

use crate::error::CliError;

/// The directories that a guest has mounted.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// Mount a directory of this host in the guest, read-only unless `:rw` follows; `,uid=N` shows its files as those of
    /// user N of the guest; may be repeated
    #[arg(long, value_name = "HOST:GUEST[:ro|:rw]")]
    mount: Vec<DirectoryMount>,
}

impl MountArgs {
    /// Returns the mounts, with absolute paths on this host.
    pub(crate) fn mounts(&self) -> Result<Vec<DirectoryMount>, CliError> {
        self.mount.iter().cloned().map(absolute).collect()
    }
}

/// Resolves the path on this host against the current directory.
pub(crate) fn absolute(mount: DirectoryMount) -> Result<DirectoryMount, CliError> {
    let unusable = |error| CliError::System(format!("cannot find {}", mount.host), error);
    let path = std::path::absolute(Path::new(&mount.host)).map_err(unusable)?;
    let host = path.into_os_string().into_string().unwrap_or_else(|_| mount.host.clone());
    Ok(DirectoryMount { host, ..mount })
}
