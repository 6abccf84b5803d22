//! Clearing away snapshots that no start will use.

use std::fs;
use std::path::Path;

use super::layout::{self, RECORD, remove};
use super::record::Record;
use crate::platform::CACHED_FINGERPRINT_PREFIX;

/// Removes what is certainly unusable in `dir`: snapshots of another boot of the host, of another agent, of environments
/// whose digests are not among `environments`, damaged and unfinished ones, and records of failures, so that those
/// are tried again. Returns how many snapshots were removed. One that is being made is left alone; machines that
/// run from one keep what they have open.
pub fn prune(dir: &Path, environments: &[String]) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let boot_id = layout::host_boot_id().unwrap_or_default();
    let mut count = 0;
    for entry in entries.filter_map(Result::ok) {
        let (path, name) = (entry.path(), entry.file_name());
        let Some(name) = name.to_str() else { continue };
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir {
            let key = layout::key_of(name);
            if is_of_use(&path, &boot_id, environments) || layout::is_being_made(dir, key) {
                continue;
            }
            remove(&path);
            count += 1;
        } else if layout::is_failure(name) || name.starts_with(CACHED_FINGERPRINT_PREFIX) {
            // The platform can be asked again.
            let _ = fs::remove_file(&path);
        }
    }
    count
}

fn is_of_use(dir: &Path, boot_id: &str, environments: &[String]) -> bool {
    match Record::read(&dir.join(RECORD)) {
        Ok(Some(record)) => {
            record.boot_id == boot_id
                && record.agent == pyro_guest_image::SHA256
                && environments.contains(&record.environment)
                && record.check(dir).map_or_else(|damage| !damage.is_certain(), |_| true)
        }
        Ok(None) => false,
        // It may be of use as soon as it can be read.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn template(dir: &Path, key: &str, environment: &str) {
        let path = dir.join(key);
        fs::create_dir(&path).unwrap();
        for name in layout::PARTS {
            fs::write(path.join(name), name).unwrap();
        }
        Record::of(&path, "6.1".into(), environment).unwrap().write(&path.join(RECORD)).unwrap();
    }

    #[test]
    fn what_is_of_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for (key, environment) in [("good", "known"), ("orphan", "unknown"), ("damaged", "known")] {
            template(dir, key, environment);
        }
        fs::remove_file(dir.join("damaged").join(layout::STATE)).unwrap();
        fs::create_dir(dir.join(".partial-dead")).unwrap();
        fs::create_dir(dir.join(".partial-alive")).unwrap();
        let lock = File::create(dir.join("alive.lock")).unwrap();
        lock.lock().unwrap();
        fs::write(dir.join("good.failed"), "why").unwrap();

        assert_eq!(prune(dir, &["known".to_owned()]), 3);
        let mut left: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".partial-alive", "alive.lock", "good"]);
    }

    #[test]
    fn templates_of_another_boot_or_agent_go() {
        for field in ["boot_id", "agent"] {
            let dir = tempfile::tempdir().unwrap();
            template(dir.path(), "old", "known");
            let path = dir.path().join("old").join(RECORD);
            let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            record[field] = "other".into();
            fs::write(&path, record.to_string()).unwrap();
            assert_eq!(prune(dir.path(), &["known".to_owned()]), 1);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_has_none() {
        assert_eq!(prune(Path::new("/nonexistent"), &[]), 0);
    }
}
