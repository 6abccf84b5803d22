//! Reading all snapshots and comparing them with what was recorded when they were made. Changes nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::layout::{self, PARTS, RECORD};
use super::record::{Damage, Record};

/// What is known of one snapshot after all of it was read.
#[derive(Debug)]
pub struct Verified {
    /// Name of its directory.
    pub name: String,
    /// Why no machine may start from it; `None` if nothing is wrong.
    pub problem: Option<Problem>,
}

/// Why no machine may start from a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The process that was making it is gone.
    #[error("it was left unfinished")]
    Unfinished,
    /// It has no record, or one that cannot be read.
    #[error("it has no valid record")]
    NoRecord,
    /// A file belongs to another user, or others may write to it.
    #[error("{0} can be changed by other users")]
    Untrusted(String),
    /// A file is not what was recorded.
    #[error(transparent)]
    Damaged(#[from] Damage),
}

/// Reads all snapshots in `dir`, sorted by name. One that is being made is left out. Blocks, for about a second for each
/// gibibyte.
pub fn verify(dir: &Path) -> Vec<Verified> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let names = entries.filter_map(Result::ok).filter(is_dir);
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
        .into_iter()
        .filter(|name| !layout::is_being_made(dir, layout::key_of(name)))
        .map(|name| Verified { problem: verify_one(dir, &name).err(), name })
        .collect()
}

fn verify_one(dir: &Path, name: &str) -> Result<(), Problem> {
    let snapshot = dir.join(name);
    if layout::key_of(name) != name {
        return Err(Problem::Unfinished);
    }
    let record = Record::read(&snapshot.join(RECORD)).ok_or(Problem::NoRecord)?;
    let own = rustix::process::geteuid().as_raw();
    for file in [".", RECORD].into_iter().chain(PARTS) {
        let metadata = fs::symlink_metadata(snapshot.join(file));
        // A missing file is reported as damage.
        if metadata.is_ok_and(|metadata| metadata.uid() != own || metadata.mode() & 0o022 != 0) {
            return Err(Problem::Untrusted(if file == "." { name.to_owned() } else { file.to_owned() }));
        }
    }
    Ok(record.verify(&snapshot)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn template(dir: &Path, key: &str) {
        let path = dir.join(key);
        fs::create_dir(&path).unwrap();
        for name in PARTS {
            fs::write(path.join(name), name).unwrap();
        }
        Record::of(&path, "6.1".into(), "environment").unwrap().write(&path.join(RECORD)).unwrap();
    }

    #[test]
    fn each_snapshot_is_judged_by_its_content_and_by_who_can_change_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for key in ["a-good", "b-open", "c-changed", "d-lost", "e-hidden"] {
            template(dir.path(), key);
        }
        fs::set_permissions(path("b-open"), fs::Permissions::from_mode(0o777)).unwrap();
        fs::remove_file(path("c-changed/memory")).unwrap();
        fs::write(path("c-changed/memory"), "memory").unwrap();
        fs::remove_file(path("d-lost").join(RECORD)).unwrap();
        // As if nothing but the content had changed.
        let record = fs::read_to_string(path("e-hidden").join(RECORD)).unwrap();
        let digest = record.split("sha256\": \"").nth(1).unwrap()[..64].to_owned();
        fs::write(path("e-hidden").join(RECORD), record.replace(&digest, &"0".repeat(64))).unwrap();
        fs::create_dir(path(".partial-f")).unwrap();
        fs::create_dir(path(".partial-g")).unwrap();
        let lock = File::create(layout::lock(dir.path(), "g")).unwrap();
        lock.lock().unwrap();
        let found = verify(dir.path());
        let lines = found.iter().map(|one| match &one.problem {
            Some(problem) => format!("{}: {problem}", one.name),
            None => format!("{}: whole", one.name),
        });
        insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @r"
        .partial-f: it was left unfinished
        a-good: whole
        b-open: b-open can be changed by other users
        c-changed: memory has changed since it was made
        d-lost: it has no valid record
        e-hidden: layer.img does not match its digest
        ");
    }
}
