//! What prune removes and what it keeps.

use std::fs;
use std::path::PathBuf;

use pyro_env::{EnvironmentVersion, OpenError};

use crate::support::Fake;

/// Copies the good install's manifest, modified, to its own directory.
fn variant(fake: &Fake, dir: &str, change: impl FnOnce(String) -> String) -> PathBuf {
    let path = fake.platform_dir().join(dir);
    fs::create_dir(&path).expect("directory");
    let manifest = fs::read_to_string(fake.base_dir().join("environment.json")).expect("manifest");
    fs::write(path.join("environment.json"), change(manifest)).expect("manifest");
    path
}

#[test]
fn only_what_cannot_be_used_goes() {
    let fake = Fake::new();
    fake.pull();
    let mut doomed = vec![
        variant(&fake, "debian_12-1.0.0", |manifest| manifest.replace("debian:12-base", "debian:12")),
        variant(&fake, "debian_12-base-0.9.0", |manifest| manifest.replace("\"1.2.0\"", "\"0.9.0\"")),
        variant(&fake, "debian_12-build-1.0.0", |_| "{ broken".to_owned()),
        variant(&fake, "other_1-1.0.0", |manifest| manifest.replace("debian:12-base", "other:1")),
        variant(&fake, "strange", |_| "{\"name\": 1, \"version\": []}".to_owned()),
    ];
    for dir in ["no-manifest", ".partial-abandoned"] {
        doomed.push(fake.platform_dir().join(dir));
        fs::create_dir_all(fake.platform_dir().join(dir).join("a/b")).expect("directory");
    }
    fs::write(fake.platform_dir().join(".partial-abandoned/lock"), "").expect("free lock");
    fs::write(fake.platform_dir().join("plain-file"), "").expect("file");
    std::os::unix::fs::symlink(fake.path(), fake.platform_dir().join("link")).expect("link");

    let report = fake.cache().prune(&[]).expect("pruned");
    doomed.sort();
    assert_eq!(report.deleted_environment_dirs, names(&doomed));
    assert_eq!(report.count, doomed.len());
    assert!(doomed.iter().all(|dir| !dir.exists()));
    assert!(fake.platform_dir().join("plain-file").exists());
    assert!(fake.platform_dir().join("link").exists());
    fake.cache().open("debian:12-base").expect("the good one stays");
    assert_eq!(fake.cache().prune(&[]).expect("pruned").count, 0);
}

#[test]
fn a_version_that_is_still_needed_stays_and_can_be_opened() {
    let fake = Fake::new();
    fake.pull();
    let old = fake.platform_dir().join("debian_12-base-0.9.0");
    fs::rename(fake.base_dir(), &old).expect("renamed");
    let manifest = old.join("environment.json");
    let text = fs::read_to_string(&manifest).expect("manifest").replace("\"1.2.0\"", "\"0.9.0\"");
    fs::remove_file(&manifest).expect("read-only");
    fs::write(&manifest, text).expect("manifest");
    let needed = EnvironmentVersion::new("debian:12-base", "0.9.0");
    let other = EnvironmentVersion::new("debian:12-base", "../../etc");

    assert_eq!(fake.cache().prune(&[other.clone(), needed.clone()]).expect("pruned").count, 0);
    assert_eq!(fake.cache().open_version(&needed).expect("still there").version, "0.9.0");
    for missing in [other, EnvironmentVersion::new("debian:12-base", "1.2.0")] {
        let error = fake.cache().open_version(&missing).expect_err("not installed");
        assert!(matches!(error, OpenError::NotInstalled { .. }), "{error}");
    }
    assert_eq!(fake.cache().prune(&[]).expect("pruned").deleted_environment_dirs, names(&[old]));
}

#[test]
fn what_is_in_use_stays_until_it_is_not() {
    let fake = Fake::new();
    fake.pull();
    let opened = fake.cache().open("debian:12-base").expect("installed");
    fs::remove_file(&opened.kernel).expect("damaged");
    assert_eq!(fake.cache().prune(&[]).expect("pruned").count, 0);
    assert!(fake.base_dir().exists());
    drop(opened);
    assert_eq!(fake.cache().prune(&[]).expect("pruned").deleted_environment_dirs, names(&[fake.base_dir()]));
}

/// Lock files of environments that are gone would pile up.
#[test]
fn locks_without_an_environment_go_unless_they_are_held() {
    let fake = Fake::new();
    fake.pull();
    let lock = |name: &str| fake.platform_dir().join(name);
    let stale = [lock(".debian_12-0.1.0.use.lock"), lock(".debian_12-0.1.0.build.lock")];
    let others = [lock(".debian_12-0.2.0.build.lock"), lock(".notes.lock")];
    for path in stale.iter().chain(&others) {
        fs::write(path, "").expect("file");
    }
    let build = fs::File::open(&others[0]).expect("lock");
    build.lock().expect("free");
    assert_eq!(fake.cache().prune(&[]).expect("pruned").count, 0);
    assert!(stale.iter().all(|path| !path.exists()));
    assert!(others.iter().all(|path| path.exists()));
    fake.cache().open("debian:12-base").expect("it stays");
}

#[test]
fn one_bad_lock_file_does_not_keep_the_rest() {
    let fake = Fake::new();
    fake.pull();
    let doomed = ["bad", "good"].map(|name| fake.platform_dir().join(name));
    for dir in &doomed {
        fs::create_dir(dir).expect("directory");
    }
    let stale = fake.platform_dir().join(".gone.use.lock");
    fs::write(&stale, "").expect("file");
    let bad = [".bad.use.lock", ".lock"].map(|name| fake.platform_dir().join(name));
    for path in &bad {
        let _ = fs::remove_file(path);
        std::os::unix::fs::symlink(path, path).expect("link");
    }
    let error = fake.cache().prune(&[]).expect_err("not everything can be locked");
    assert!(error.to_string().contains(".lock"), "{error}");
    assert!(doomed[0].exists() && !doomed[1].exists() && !stale.exists());
    for path in &bad {
        fs::remove_file(path).expect("link");
    }
    assert_eq!(fake.cache().prune(&[]).expect("pruned").deleted_environment_dirs, ["bad"]);
}

fn names(dirs: &[PathBuf]) -> Vec<&str> {
    dirs.iter().filter_map(|dir| dir.file_name()?.to_str()).collect()
}
