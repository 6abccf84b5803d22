//! Whether the files of an environment can only be changed by this user and root.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{IoError, Untrusted};

/// Write permission for the group and for others.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// In a directory with this bit, users can only rename and remove what is theirs.
const STICKY: u32 = 0o1000;

/// Checks an installed environment: its directory, what is in it, and all parents.
pub(crate) fn check(install_dir: &Path) -> Result<Result<(), Untrusted>, IoError> {
    let inspect = |path: &Path| std::fs::metadata(path).map_err(IoError::at("inspect", path));
    let entries = std::fs::read_dir(install_dir).map_err(IoError::at("read", install_dir))?;
    for entry in entries {
        let path = entry.map_err(IoError::at("read", install_dir))?.path();
        if let Some(problem) = problem(&inspect(&path)?, false) {
            return Ok(Err(Untrusted { path, problem }));
        }
    }
    // Links among the parents do not matter: what counts is where they lead.
    let real = std::fs::canonicalize(install_dir).map_err(IoError::at("inspect", install_dir))?;
    for (depth, path) in real.ancestors().enumerate() {
        // A user who can rename a directory can put another one in its place, unless the sticky bit protects it.
        if let Some(problem) = problem(&inspect(path)?, depth > 0) {
            return Ok(Err(Untrusted { path: path.to_owned(), problem }));
        }
    }
    Ok(Ok(()))
}

fn problem(metadata: &Metadata, may_be_sticky: bool) -> Option<&'static str> {
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Some("belongs to another user");
    }
    let is_protected = may_be_sticky && metadata.mode() & STICKY != 0;
    (metadata.mode() & WRITABLE_BY_OTHERS != 0 && !is_protected).then_some("may be written by other users")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn files_directory_and_parents_must_be_private_to_change() {
        let root = tempfile::tempdir().unwrap();
        let install_dir = root.path().join("cache/debian_12");
        let file = install_dir.join("rootfs");
        fs::create_dir_all(&install_dir).unwrap();
        fs::write(&file, "").unwrap();
        check(&install_dir).unwrap().unwrap();
        for (path, safe, unsafe_mode) in [
            (&file, 0o444, 0o464),
            (&install_dir, 0o755, 0o777),
            (&install_dir, 0o755, 0o1777),
            (&root.path().join("cache"), 0o755, 0o775),
        ] {
            set(path, unsafe_mode);
            let untrusted = check(&install_dir).unwrap().unwrap_err();
            assert_eq!(untrusted.problem, "may be written by other users");
            assert!(untrusted.path.ends_with(path.file_name().unwrap()), "{}", untrusted.path.display());
            set(path, safe);
        }
        // As /tmp is.
        set(&root.path().join("cache"), 0o1777);
        check(&install_dir).unwrap().unwrap();
    }
}
