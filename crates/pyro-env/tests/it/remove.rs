//! What removing an environment takes away.

use std::fs;

use pyro_env::{ErrorKind, OpenError};

use crate::support::Fake;

#[test]
fn all_versions_go_and_other_environments_stay() {
    let fake = Fake::new();
    fake.pull();
    let digest = fake.cache().open("debian:12-base").expect("installed").digest.clone();
    let dirs = ["debian_12-base-0.9.0", "debian_12-1.0.0", "debian_12-base-more-1.0.0"];
    let [old, short, long] = dirs.map(|dir| fake.platform_dir().join(dir));
    for dir in [&old, &short, &long] {
        fs::create_dir(dir).expect("directory");
        fs::write(dir.join("file"), [1; 5000]).expect("file");
    }

    let removed = fake.cache().remove("debian:12-base").expect("removed");
    assert_eq!(removed.digests, [digest], "a damaged version has none");
    assert!(removed.freed_bytes > 5000, "{removed:?}");
    assert!(!old.exists() && !fake.base_dir().exists());
    assert!(short.exists() && long.exists());
    assert!(matches!(fake.cache().open("debian:12-base"), Err(OpenError::NotInstalled { .. })));
    fake.pull();
    fake.cache().open("debian:12-base").expect("installed again");
}

#[test]
fn nothing_goes_while_a_version_is_in_use() {
    let fake = Fake::new();
    fake.pull();
    let old = fake.platform_dir().join("debian_12-base-0.9.0");
    fs::create_dir(&old).expect("directory");
    let in_use = fake.cache().open("debian:12-base").expect("installed");
    let error = fake.cache().remove("debian:12-base").expect_err("in use");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::InUse, "environment 'debian:12-base' is in use")
    );
    assert!(old.exists() && fake.base_dir().exists());
    drop(in_use);
    fake.cache().remove("debian:12-base").expect("unused");
}

#[test]
fn what_is_not_there_is_not_removed() {
    let fake = Fake::new();
    let error = fake.cache().remove("debian:12").expect_err("not installed");
    assert_eq!(error.to_string(), "environment 'debian:12' is not installed");
    assert_eq!(fake.cache().remove("windows:11").expect_err("unknown").kind(), ErrorKind::UnknownEnvironment);
}
