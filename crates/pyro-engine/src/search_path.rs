//! Finds programs.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// Returns the file that `name` refers to in `search_path` (in the form of `PATH`). Skips relative entries, whose
/// meaning depends on the caller's working directory.
pub(crate) fn find(name: &str, search_path: &OsStr) -> Option<PathBuf> {
    env::split_paths(search_path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|file| file.is_file() && access(file, Access::EXEC_OK).is_ok())
}

/// Returns whether `program` is a name without a directory.
pub(crate) fn is_bare(program: &Path) -> bool {
    program.parent().is_some_and(|directory| directory.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_executable_files_of_absolute_directories_count() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for directory in ["a", "b", "c"] {
            fs::create_dir(path(directory)).unwrap();
        }
        fs::create_dir(path("a/tool")).unwrap();
        fs::write(path("b/tool"), "").unwrap();
        fs::set_permissions(path("b/tool"), Permissions::from_mode(0o600)).unwrap();
        fs::write(path("c/tool"), "").unwrap();
        fs::set_permissions(path("c/tool"), Permissions::from_mode(0o700)).unwrap();

        let search_path = env::join_paths([PathBuf::from("."), path("a"), path("b"), path("c")]).unwrap();
        assert_eq!(find("tool", &search_path), Some(path("c/tool")));
        assert_eq!(find("other", &search_path), None);
        assert_eq!(find("tool", OsStr::new("")), None);
    }
}
