//! The identity of files that no digest covers, and directories that only their owner may enter.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use serde_json::{Value, json};

use crate::artifact::Artifact;

/// Differs for files that differ, as far as that can be determined without reading them: no program can set the time of
/// the inode's last change.
pub(crate) fn identity(path: &Path) -> io::Result<Value> {
    Ok(describe(path, &fs::metadata(path)?))
}

/// The same for a file that may be open already.
pub(crate) fn identity_of(artifact: &Artifact) -> io::Result<Value> {
    match artifact.file() {
        Some(file) => Ok(describe(artifact.path(), &file.metadata()?)),
        None => identity(artifact.path()),
    }
}

fn describe(path: &Path, file: &Metadata) -> Value {
    json!([
        path,
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec()
    ])
}

/// Creates the directory and its parents, unless they exist.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_inode_and_times() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("file"), dir.path().join("other"));
        fs::write(&file, "same").unwrap();
        fs::write(&other, "same").unwrap();
        assert_eq!(identity(&file).unwrap(), identity(&file).unwrap());
        let first = identity(&file).unwrap();
        fs::rename(&other, &file).unwrap();
        assert_ne!(identity(&file).unwrap(), first);
        identity(&other).unwrap_err();
    }
}
