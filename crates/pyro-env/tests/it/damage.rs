//! Installed files that have changed since they were installed.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pyro_env::{CancelFlag, ErrorKind, Remedy, SilentObserver};

use crate::support::Fake;

fn writable(path: &Path) -> File {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("mode");
    File::options().write(true).open(path).expect("opened")
}

#[test]
fn a_truncated_file_is_named_with_what_mends_it() {
    let fake = Fake::new();
    fake.pull();
    let rootfs = fake.base_dir().join("rootfs.erofs");
    writable(&rootfs).set_len(2).expect("truncated");

    let error = fake.cache().open("debian:12-base").expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert_eq!(error.to_string(), "environment 'debian:12-base' is damaged");
    let source = std::error::Error::source(&error).expect("a cause").to_string();
    assert_eq!(source, format!("{} has 2 bytes, but 8 were installed", rootfs.display()));
    assert_eq!(error.remedy(), Some(Remedy::PruneAndPull { name: "debian:12-base".to_owned() }));
    assert!(!fake.cache().inspect("debian:12-base").expect("inspected").installed);
}

#[test]
fn a_rewritten_file_is_noticed() {
    let fake = Fake::new();
    fake.pull();
    let kernel = fake.base_dir().join("vmlinuz");
    let content = fs::read(&kernel).expect("kernel");
    drop(writable(&kernel));
    fs::write(&kernel, content).expect("rewritten");
    assert_eq!(fake.cache().open("debian:12-base").expect_err("changed").kind(), ErrorKind::Damaged);
}

#[test]
fn contents_are_compared_when_asked() {
    let fake = Fake::new();
    fake.pull();
    let opened = fake.cache().open("debian:12-base").expect("whole");
    change_secretly(&fake);
    opened.verify_contents().expect("readable").expect_err("is not");
}

#[test]
fn what_is_open_is_what_was_checked() {
    let fake = Fake::new();
    fake.pull();
    let opened = fake.cache().open("debian:12-base").expect("whole");
    let content = fs::read(&opened.rootfs).expect("read");
    let other = opened.rootfs.with_extension("other");
    fs::write(&other, "another image").expect("written");
    fs::rename(&other, &opened.rootfs).expect("replaced");
    let mut found = Vec::new();
    std::io::Read::read_to_end(&mut &*opened.files.rootfs, &mut found).expect("read");
    assert_eq!(found, content);
    opened.verify_contents().expect("readable").expect("the open files are unchanged");
    assert_eq!(fake.cache().open("debian:12-base").expect_err("changed").kind(), ErrorKind::Damaged);
}

#[test]
fn a_link_in_place_of_an_artifact_is_damage() {
    let fake = Fake::new();
    fake.pull();
    let rootfs = fake.base_dir().join("rootfs.erofs");
    let elsewhere = fake.base_dir().with_extension("elsewhere");
    fs::rename(&rootfs, &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, &rootfs).expect("linked");
    assert_eq!(fake.cache().open("debian:12-base").expect_err("a link").kind(), ErrorKind::Damaged);
}

/// Changes the image in place, and puts its time back.
fn change_secretly(fake: &Fake) {
    let rootfs = fake.base_dir().join("rootfs.erofs");
    let modified = fs::metadata(&rootfs).expect("exists").modified().expect("time");
    drop(writable(&rootfs));
    fs::write(&rootfs, "CONTENT\n").expect("same length");
    writable(&rootfs).set_times(FileTimes::new().set_modified(modified)).expect("same time");
}

#[test]
fn a_change_is_noticed_even_if_the_time_was_put_back() {
    let fake = Fake::new();
    fake.pull();
    change_secretly(&fake);
    assert_eq!(fake.cache().open("debian:12-base").expect_err("changed").kind(), ErrorKind::Damaged);
}

#[test]
fn a_copy_of_the_cache_is_as_good() {
    let fake = Fake::new();
    fake.pull();
    copy(&fake);
    fake.cache().open("debian:12-base").expect("whole");
}

/// Puts a copy with other inodes in the place of the environment.
fn copy(fake: &Fake) {
    let (dir, copy) = (fake.base_dir(), fake.base_dir().with_extension("copy"));
    let copied = std::process::Command::new("cp").arg("-a").args([&dir, &copy]).status().expect("cp");
    assert!(copied.success());
    fs::remove_dir_all(&dir).expect("removed");
    fs::rename(&copy, &dir).expect("renamed");
}

/// Opens a copied environment until its files are old enough for their comparison to be remembered.
fn remember(fake: &Fake) -> serde_json::Value {
    let path = fake.base_dir().join("verified.json");
    let began = std::time::Instant::now();
    loop {
        fake.cache().open("debian:12-base").expect("whole");
        if let Ok(text) = fs::read(&path)
            && let Ok(known) = serde_json::from_slice::<serde_json::Value>(&text)
            && known.as_object().expect("an object").len() == 3
        {
            return known;
        }
        assert!(began.elapsed().as_secs() < 30, "nothing is remembered");
    }
}

#[test]
fn a_copy_is_read_once_and_a_later_change_is_noticed() {
    let fake = Fake::new();
    fake.pull();
    assert!(!fake.base_dir().join("verified.json").exists(), "the installed files need no comparison");
    copy(&fake);
    let known = remember(&fake);
    fake.cache().open("debian:12-base").expect("whole");
    change_secretly(&fake);
    assert_eq!(fake.cache().open("debian:12-base").expect_err("changed").kind(), ErrorKind::Damaged);
    // What it says is believed, so the file is not read again; but not if others could have written it.
    let file = fs::metadata(fake.base_dir().join("rootfs.erofs")).expect("exists");
    let mut forged = known;
    let changed = std::os::unix::fs::MetadataExt::ctime(&file) * 1_000_000_000
        + std::os::unix::fs::MetadataExt::ctime_nsec(&file);
    forged["rootfs.erofs"]["ctime_ns"] = changed.into();
    let path = fake.base_dir().join("verified.json");
    fs::write(&path, forged.to_string()).expect("forged");
    fake.cache().open("debian:12-base").expect("believed");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("opened to others");
    assert!(!fake.cache().inspect("debian:12-base").expect("inspected").installed);
}

#[test]
fn what_other_users_could_change_is_not_run() {
    let fake = Fake::new();
    fake.pull();
    let dir = fake.base_dir();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("changed");
    let error = fake.cache().open("debian:12-base").expect_err("cannot be trusted");
    assert_eq!(error.to_string(), "environment 'debian:12-base' cannot be trusted");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("changed");
    fake.cache().open("debian:12-base").expect("as before");
}

#[test]
fn a_broken_manifest_stops_neither_list_nor_pull() {
    let fake = Fake::new();
    fake.pull();
    let manifest = fake.base_dir().join("environment.json");
    fs::remove_file(&manifest).expect("removed");
    for content in ["", "{", "[]", "{\"name\": 3}", "\u{1F525}"] {
        fs::write(&manifest, content).expect("written");
        let list = fake.cache().list().expect("listed");
        assert!(list.environments.iter().all(|e| !e.installed));
        assert_eq!(fake.cache().open("debian:12-base").expect_err("broken").kind(), ErrorKind::Damaged);
    }
    fake.pull();
    fake.cache().open("debian:12-base").expect("mended");
    assert_eq!(fake.runs(), 2);
    assert!(fake.partials().is_empty());
}

#[test]
fn what_is_in_use_is_not_replaced() {
    let fake = Fake::new();
    fake.pull();
    let opened = fake.cache().open("debian:12-base").expect("installed");
    writable(&opened.rootfs).set_len(0).expect("truncated");
    let pull = || fake.cache().pull("debian:12-base", &SilentObserver, &CancelFlag::new());
    assert_eq!(pull().expect_err("in use").kind(), ErrorKind::InUse);
    drop(opened);
    pull().expect("replaced");
}
