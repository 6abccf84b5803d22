//! Files of this host that its owner names or that belong to other programs.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnusableFile {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
}

/// Reads a regular file of at most `maximum` bytes, or the null device, which is empty. Blocks, but not on a pipe without a
/// writer.
pub(crate) fn read(path: &Path, maximum: u64) -> Result<Vec<u8>, UnusableFile> {
    // Opening a pipe must not wait for a writer.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    // Programs are often told to use no settings by naming the null device.
    if !metadata.is_file() && !is_null_device(&metadata) {
        return Err(UnusableFile::NotAFile);
    }
    let mut content = Vec::new();
    file.take(maximum + 1).read_to_end(&mut content)?;
    match content.len() as u64 > maximum {
        true => Err(UnusableFile::TooLarge(maximum)),
        false => Ok(content),
    }
}

/// Whether this is `/dev/null`, whatever its name: major number 1, minor number 3.
fn is_null_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == rustix::fs::makedev(1, 3)
}
