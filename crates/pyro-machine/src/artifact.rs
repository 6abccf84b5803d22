//! A file that is opened once, when it is checked, and used through that descriptor from then on.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A file that machines only read. Another file that takes its path after the check is not used: a VMM gets the checked one,
/// or does not start.
///
/// Serialised, it is a path. Two are equal if their paths are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub struct Artifact {
    path: PathBuf,
    file: Option<Arc<File>>,
}

impl Artifact {
    /// Creates one from the descriptor on which the file was checked.
    pub fn opened(path: impl Into<PathBuf>, file: Arc<File>) -> Self {
        Self { path: path.into(), file: Some(file) }
    }

    /// Opens a file that is used as it is now.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let file = File::open(&path)?;
        Ok(Self::opened(path, Arc::new(file)))
    }

    /// Returns its path, under which a VMM sees it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its descriptor. `None` for a path that was not checked.
    pub fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// Returns the descriptor; opens the path if it has no descriptor.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn to_file(&self) -> io::Result<Arc<File>> {
        match &self.file {
            Some(file) => Ok(Arc::clone(file)),
            None => File::open(&self.path).map(Arc::new),
        }
    }

    /// Returns a reader of the whole file. It does not move the position of the descriptor, which other processes share.
    pub(crate) fn reader(&self) -> io::Result<impl Read> {
        Ok(Reader { file: self.to_file()?, position: 0 })
    }
}

impl From<PathBuf> for Artifact {
    fn from(path: PathBuf) -> Self {
        Self { path, file: None }
    }
}

impl From<&str> for Artifact {
    fn from(path: &str) -> Self {
        PathBuf::from(path).into()
    }
}

impl From<Artifact> for PathBuf {
    fn from(artifact: Artifact) -> Self {
        artifact.path
    }
}

impl PartialEq for Artifact {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Artifact {}

struct Reader {
    file: Arc<File>,
    position: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_takes_its_path_later_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        fs::write(&path, "checked").unwrap();
        fs::write(&other, "other").unwrap();
        let artifact = Artifact::open(&path).unwrap();
        fs::rename(&other, &path).unwrap();
        for _ in 0..2 {
            let mut text = String::new();
            artifact.reader().unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "checked");
        }
        assert_eq!(serde_json::to_value(&artifact).unwrap(), path.to_str().unwrap());
    }
}
