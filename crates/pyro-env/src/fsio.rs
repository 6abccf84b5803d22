//! File operations whose errors include the path.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::error::IoError;

/// Creates a directory and its missing parents, private to the user.
pub(crate) fn create_private_dirs(path: &Path) -> Result<(), IoError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(IoError::at("create", path))
}

pub(crate) fn create_private_dir(path: &Path) -> Result<(), IoError> {
    DirBuilder::new().mode(0o700).create(path).map_err(IoError::at("create", path))
}

/// Writes a new file; fails if it already exists.
pub(crate) fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<(), IoError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(IoError::at("create", path))?;
    file.write_all(content).map_err(IoError::at("write", path))
}

/// Returns the space that the files in `dir` use, in bytes. What cannot be examined is left out.
pub(crate) fn used_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|file| file.blocks() * 512).sum()
}

/// Reads a file of at most `limit` bytes; `None` if it does not exist. Fails if the file is longer.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, IoError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(IoError::at("open", path)(error)),
    };
    read_open(file, path, limit).map(Some)
}

/// Reads an open file of at most `limit` bytes. Fails if it is longer.
pub(crate) fn read_open(file: File, path: &Path, limit: u64) -> Result<Vec<u8>, IoError> {
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(IoError::at("read", path))?;
    if content.len() as u64 > limit {
        let error = std::io::Error::new(ErrorKind::FileTooLarge, format!("more than {limit} bytes"));
        return Err(IoError::at("read", path)(error));
    }
    Ok(content)
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), IoError> {
    fs::rename(from, to).map_err(IoError::at("move into place", from))
}

/// Flushes a file or the entries of a directory to disk.
pub(crate) fn sync(path: &Path) -> Result<(), IoError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(IoError::at("flush", path))
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), IoError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(IoError::at("set permissions of", path))
}

/// Opens a regular file for reading; `None` if it does not exist, or is a link or something else.
pub(crate) fn open_own(path: &Path) -> Result<Option<File>, IoError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) => {
            let is_file = file.metadata().map_err(IoError::at("inspect", path))?.is_file();
            Ok(is_file.then_some(file))
        }
        Err(error) if [Some(Errno::NOENT), Some(Errno::LOOP)].contains(&Errno::from_io_error(&error)) => {
            Ok(None)
        }
        Err(error) => Err(IoError::at("open", path)(error)),
    }
}

/// Returns the SHA-256 of an open file, as lower-case hex. Does not move the position of the descriptor.
pub(crate) fn sha256(file: &File, path: &Path) -> Result<String, IoError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut position = 0;
    loop {
        match file.read_at(&mut buffer, position).map_err(IoError::at("read", path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                position += n as u64;
            }
        }
    }
}

/// Returns the SHA-256 of lines, each with a trailing newline, as lower-case hex.
pub(crate) fn sha256_lines(lines: impl Iterator<Item = String>) -> String {
    let mut hasher = Sha256::new();
    for line in lines {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    }
    hex(&hasher.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
