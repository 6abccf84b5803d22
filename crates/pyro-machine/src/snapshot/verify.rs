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

/// Reads all snapshots in `dir`, sorted by name. Those that are being made, and those that are removed or replaced
/// meanwhile, are left out. Blocks, for about a second for each gibibyte.
pub fn verify(dir: &Path) -> Vec<Verified> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let names = entries.filter_map(Result::ok).filter(is_dir);
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names.into_iter().filter_map(|name| verify_unless_changed(dir, name, verify_one)).collect()
}

/// Reads one snapshot with `verify`. `None` if another process makes, removes, or replaces it.
fn verify_unless_changed(
    dir: &Path,
    name: String,
    verify: impl FnOnce(&Path, &str) -> Result<(), Problem>,
) -> Option<Verified> {
    let path = dir.join(&name);
    let is_being_made = || layout::is_being_made(dir, layout::key_of(&name));
    let inode = || fs::symlink_metadata(&path).map(|metadata| metadata.ino()).ok();
    let before = inode()?;
    if is_being_made() {
        return None;
    }
    let problem = verify(dir, &name).err();
    if problem.is_some() && (inode() != Some(before) || is_being_made()) {
        return None;
    }
    Some(Verified { name, problem })
}

fn verify_one(dir: &Path, name: &str) -> Result<(), Problem> {
    let snapshot = dir.join(name);
    if layout::key_of(name) != name {
        return Err(Problem::Unfinished);
    }
    let record = Record::read(&snapshot.join(RECORD)).ok().flatten().ok_or(Problem::NoRecord)?;
    let own = rustix::process::geteuid().as_raw();
    let mode = |metadata: &fs::Metadata| metadata.mode();
    // No other user can get to the files then, whatever their modes are.
    let is_private = fs::symlink_metadata(&snapshot).is_ok_and(|dir| mode(&dir) & 0o077 == 0);
    for file in [".", RECORD].into_iter().chain(PARTS) {
        let metadata = fs::symlink_metadata(snapshot.join(file));
        // A missing file is reported as damage.
        if metadata.is_ok_and(|file| file.uid() != own || !is_private && mode(&file) & 0o022 != 0) {
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
        set_mode(&path, 0o755);
        for name in PARTS {
            fs::write(path.join(name), name).unwrap();
        }
        Record::of(&path, "6.1".into(), "environment").unwrap().write(&path.join(RECORD)).unwrap();
    }

    /// Whatever the umask of the tests is.
    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_modes_of_files_that_no_other_user_reaches_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        template(dir.path(), "key");
        let path = dir.path().join("key");
        let problem = |mode, of_record| {
            set_mode(&path, mode);
            // As with a umask of 0002.
            set_mode(&path.join(RECORD), of_record);
            verify(dir.path()).remove(0).problem.map(|problem| problem.to_string())
        };
        assert_eq!(problem(0o700, 0o664), None);
        assert_eq!(problem(0o755, 0o600), None);
        let changeable = "template.json can be changed by other users";
        assert_eq!(problem(0o755, 0o664).as_deref(), Some(changeable));
    }

    #[test]
    fn a_snapshot_that_is_removed_or_replaced_meanwhile_is_not_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("key"), dir.path().join("other"));
        let verify_while = |change: &dyn Fn()| {
            let _ = fs::remove_dir_all(&path);
            template(dir.path(), "key");
            verify_unless_changed(dir.path(), "key".to_owned(), |_, _| {
                change();
                Err(Problem::NoRecord)
            })
        };
        assert!(verify_while(&|| {}).is_some());
        assert!(verify_while(&|| fs::remove_dir_all(&path).unwrap()).is_none());
        template(dir.path(), "other");
        let replace = || {
            fs::rename(&path, dir.path().join("old")).unwrap();
            fs::rename(&other, &path).unwrap();
        };
        assert!(verify_while(&replace).is_none());
        let lock = File::create(layout::lock(dir.path(), "key")).unwrap();
        assert!(verify_while(&|| lock.lock().unwrap()).is_none());
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
