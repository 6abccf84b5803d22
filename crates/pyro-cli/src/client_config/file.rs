//! Reads and replaces a file that belongs to another program.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::error::InstallError;

/// Settings files have a few kilobytes; Claude Code's, which also holds its history, has a few megabytes.
const MAX_BYTES: u64 = 16 << 20;

/// Returns the file's text; `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<String>, InstallError> {
    let failed = |error| InstallError::new(format!("cannot read {}", path.display())).caused_by(error);
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // Checked before it is opened: opening a named pipe would wait for its other end.
    if !metadata.is_file() {
        return Err(InstallError::new(format!("{} is not a file", path.display())));
    }
    let mut text = String::new();
    let length = File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(failed)?;
    if length as u64 > MAX_BYTES {
        return Err(InstallError::new(format!("{} is larger than {} MiB", path.display(), MAX_BYTES >> 20)));
    }
    Ok(Some(text))
}

/// Replaces `before` by `after` atomically; a symbolic link stays and leads to the new text. Returns the path of the copy
/// of `before`. After an error, the file is unchanged, and no other file is left. If the process is killed meanwhile, the
/// new text or the copy may be left next to the file, but the file is never half written.
pub(super) fn replace(
    path: &Path,
    before: Option<&str>,
    after: &str,
) -> Result<Option<PathBuf>, InstallError> {
    replaced(path, before, after)
        .map_err(|error| InstallError::new(format!("cannot write {}", path.display())).caused_by(error))
}

fn replaced(path: &Path, before: Option<&str>, after: &str) -> io::Result<Option<PathBuf>> {
    let Some(before) = before else {
        // The umask applies, as for any new file.
        let mut new = new_file(path, 0o666)?;
        new.write_all(after.as_bytes())?;
        new.as_file().sync_all()?;
        // Fails if another program has created the file meanwhile.
        new.persist_noclobber(path)?;
        return Ok(None);
    };
    let path = &path.canonicalize()?;
    let present = path.metadata()?;
    if present.nlink() > 1 {
        return Err(io::Error::other("it has another hard link, which would keep the old text"));
    }
    // The text may hold secrets, so no other user may read it before the file has the mode of the old one.
    let mut new = new_file(path, 0o600)?;
    new.write_all(after.as_bytes())?;
    make_alike(new.as_file(), &present)?;
    new.as_file().sync_all()?;
    let (backup, kept) = new_backup(path)?;
    let swapped = write_backup(&kept, before, &present).and_then(|()| {
        if fs::read(path)? != before.as_bytes() {
            return Err(io::Error::other("another program changed the file at the same time"));
        }
        new.persist(path)?;
        Ok(())
    });
    if let Err(error) = swapped {
        // The first error matters more than a failure to remove the copy.
        let _ = fs::remove_file(&backup);
        return Err(error);
    }
    Ok(Some(backup))
}

/// Makes a temporary file in the directory of `path`, which is created if it is missing. Dropping it removes the file.
fn new_file(path: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
    fs::create_dir_all(directory)?;
    tempfile::Builder::new().prefix(".pyro-").permissions(Permissions::from_mode(mode)).tempfile_in(directory)
}

/// Gives a file the owner and the mode of another.
fn make_alike(file: &File, other: &Metadata) -> io::Result<()> {
    let made = file.metadata()?;
    if (made.uid(), made.gid()) != (other.uid(), other.gid()) {
        fchown(file, Some(other.uid()), Some(other.gid())).map_err(|error| {
            io::Error::new(error.kind(), format!("it belongs to another user or group: {error}"))
        })?;
    }
    file.set_permissions(other.permissions())
}

/// Makes an empty file in the directory of `path`, under an unused name.
fn new_backup(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut number = 1;
    loop {
        let mut name = OsString::from(path);
        name.push(format!(".before-pyro-{number}"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name) {
            Ok(file) => return Ok((name.into(), file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

fn write_backup(mut file: &File, text: &str, original: &Metadata) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    make_alike(file, original)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in a directory, and what a file in it says.
    fn left(directory: &Path, file: &Path) -> (Vec<String>, String) {
        let names = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        (names, fs::read_to_string(file).unwrap())
    }

    fn refusal(path: &Path, before: Option<&str>) -> String {
        let error = replace(path, before, "ours").unwrap_err();
        std::error::Error::source(&error).unwrap().to_string()
    }

    #[test]
    fn what_another_program_wrote_meanwhile_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("settings");
        fs::write(&path, "theirs").unwrap();
        let untouched = (vec!["settings".to_owned()], "theirs".to_owned());
        assert_eq!(refusal(&path, Some("stale")), "another program changed the file at the same time");
        assert_eq!(left(directory.path(), &path), untouched);
        assert!(refusal(&path, None).starts_with("File exists"));
        assert_eq!(left(directory.path(), &path), untouched);
    }

    #[test]
    fn a_second_name_of_the_file_is_not_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("settings"), directory.path().join("other"));
        fs::write(&path, "theirs").unwrap();
        fs::hard_link(&path, &other).unwrap();
        assert!(refusal(&path, Some("theirs")).contains("hard link"));
        assert_eq!(left(directory.path(), &other).0, ["other", "settings"]);
    }

    #[test]
    fn the_text_of_others_is_never_open_to_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("settings");
        fs::write(&path, "theirs").unwrap();
        let new = new_file(&path, 0o600).unwrap();
        assert_eq!(new.as_file().metadata().unwrap().mode() & 0o777, 0o600);
    }
}
