//! Removes directories, including those whose files belong to subordinate ids.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::Stdio;

use crate::error::IoError;
use crate::process::{Tools, is_root};

/// Removes `dir` and everything in it; a missing directory is not an error.
pub(crate) fn tree(dir: &Path, tools: &Tools) -> Result<(), IoError> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // An unprivileged build leaves directories that belong to subordinate ids. Only root of their namespace may
        // empty them.
        Err(error) if error.kind() == ErrorKind::PermissionDenied && !is_root() => {
            as_namespace_root(dir, tools).map_err(IoError::at("remove", dir))
        }
        Err(error) => Err(IoError::at("remove", dir)(error)),
    }
}

fn as_namespace_root(dir: &Path, tools: &Tools) -> io::Result<()> {
    // Whether it was possible shows below.
    let _ = tools.check_namespaces();
    let mut command = tools.offline(&tools.rm);
    command.args(["-rf", "--one-file-system", "--"]).arg(dir).stdout(Stdio::null());
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let reason = stderr.lines().last().unwrap_or("removal in a user namespace failed");
    Err(io::Error::new(ErrorKind::PermissionDenied, reason.to_owned()))
}
