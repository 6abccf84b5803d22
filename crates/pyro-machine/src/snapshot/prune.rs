//! Clearing away snapshots that no start will use.

use std::fs;
use std::path::Path;

use super::layout::{self, RECORD, remove};
use super::record::Record;
use crate::file_lock;
use crate::platform::CACHED_FINGERPRINT_PREFIX;

/// Removes what is certainly unusable in `dir`: snapshots of another boot of the host, of another agent, of environments that
/// are gone, damaged and unfinished ones, lock files, and records of failures, so that those are tried again. Environments whose digests
/// are not among `environments` are gone, unless their base image is outside of `cache` and still exists. Returns how many
/// snapshots were removed. One that is being made is left alone; machines that run from one keep what they have open.
pub fn prune(dir: &Path, environments: &[String], cache: &Path) -> usize {
    let boot_id = layout::host_boot_id().unwrap_or_default();
    let is_of_use = |record: &Record, dir: &Path| {
        record.boot_id == boot_id
            && record.agent == pyro_guest_image::SHA256
            && (environments.contains(&record.environment) || is_of_other_cache(record, cache))
            && record.check(dir).map_or_else(|damage| !damage.is_certain(), |_| true)
    };
    let count = remove_unless(dir, |path| match Record::read(&path.join(RECORD)) {
        Ok(Some(record)) => is_of_use(&record, path),
        Ok(None) => false,
        // It may be of use as soon as it can be read.
        Err(_) => true,
    });
    for name in names(dir) {
        if layout::is_failure(&name) || name.starts_with(CACHED_FINGERPRINT_PREFIX) {
            // The platform can be asked again.
            let _ = fs::remove_file(dir.join(name));
        } else if layout::is_lock(&name) {
            // Left by a process that was killed.
            file_lock::remove_unlocked(&dir.join(name));
        }
    }
    count
}

/// Removes the snapshots of one environment, of which this is the digest, and returns how many these were.
pub fn remove_all_of(dir: &Path, environment: &str) -> usize {
    remove_unless(dir, |path| {
        let record = Record::read(&path.join(RECORD));
        !matches!(record, Ok(Some(record)) if record.environment == environment)
    })
}

/// Removes the snapshots that are not to be kept and not being made. Returns how many these were.
fn remove_unless(dir: &Path, keep: impl Fn(&Path) -> bool) -> usize {
    let mut count = 0;
    for name in names(dir) {
        let path = dir.join(&name);
        let is_dir = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        if is_dir && !keep(&path) && !layout::is_being_made(dir, layout::key_of(&name)) {
            remove(&path);
            count += 1;
        }
    }
    count
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn is_of_other_cache(record: &Record, cache: &Path) -> bool {
    record.base_image.as_deref().is_some_and(|image| !image.starts_with(cache) && image.exists())
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
        record_of(&path, environment).write(&path.join(RECORD)).unwrap();
    }

    fn record_of(path: &Path, environment: &str) -> Record {
        Record::of(path, "6.1".into(), environment).unwrap()
    }

    #[test]
    fn templates_of_another_cache_stay_while_their_environment_does() {
        let dir = tempfile::tempdir().unwrap();
        let (templates, cache) = (dir.path().join("templates"), dir.path().join("cache"));
        fs::create_dir(&templates).unwrap();
        let image = dir.path().join("other-cache.squashfs");
        fs::write(&image, "").unwrap();
        for (key, base_image) in [("mine", cache.join("gone")), ("other", image.clone())] {
            template(&templates, key, "elsewhere");
            let record = record_of(&templates.join(key), "elsewhere").with_base_image(&base_image);
            record.write(&templates.join(key).join(RECORD)).unwrap();
        }
        assert_eq!(prune(&templates, &[], &cache), 1);
        assert!(templates.join("other").exists());
        fs::remove_file(&image).unwrap();
        assert_eq!(prune(&templates, &[], &cache), 1);
    }

    #[test]
    fn all_templates_of_one_environment_go() {
        let dir = tempfile::tempdir().unwrap();
        for (key, environment) in [("a", "removed"), ("b", "removed"), ("c", "kept")] {
            template(dir.path(), key, environment);
        }
        assert_eq!(remove_all_of(dir.path(), "removed"), 2);
        assert!(dir.path().join("c").exists());
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
        fs::write(dir.join("killed.lock"), "").unwrap();

        assert_eq!(prune(dir, &["known".to_owned()], Path::new("/cache")), 3);
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
            assert_eq!(prune(dir.path(), &["known".to_owned()], Path::new("/cache")), 1);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_has_none() {
        assert_eq!(prune(Path::new("/nonexistent"), &[], Path::new("/cache")), 0);
    }
}
