//! The contents of the cache, and what the payloads report about them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pyro_env::{CacheConfig, CancelFlag, EnvironmentCache, ErrorKind, PullStep, SilentObserver};

use crate::support::{Fake, Watcher};

#[test]
fn an_empty_cache_lists_the_catalog_and_is_not_touched() {
    let fake = Fake::new();
    let list = fake.cache().list().expect("listed");
    let names: Vec<_> = list.environments.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["debian:12", "debian:12-agent", "debian:12-base", "debian:12-build"]);
    assert!(list.environments.iter().all(|e| !e.installed));
    assert!(!fake.cache_dir().exists());
    assert_eq!(fake.cache().prune(&[]).expect("pruned").count, 0);
    assert!(!fake.cache_dir().exists());
}

#[test]
fn the_payloads_have_their_documented_keys() {
    let fake = Fake::new();
    let keys = |value: serde_json::Value| -> Vec<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    let mut expected = vec![
        "cache_dir",
        "catalog_version",
        "compatibility",
        "default_packages",
        "description",
        "distribution",
        "distribution_version",
        "install_dir",
        "installed",
        "name",
        "oci_reference",
        "oci_registry",
        "oci_repository",
        "platform",
        "shell",
        "source_digest",
        "version",
    ];
    let before = fake.cache().inspect("debian:12-base").expect("inspected");
    let mut got = keys(serde_json::to_value(&before).expect("JSON"));
    got.sort();
    assert_eq!(got, expected);
    assert_eq!(before.source_digest, None);

    let pulled = fake.pull();
    expected.extend(["install_manifest", "kernel_image", "rootfs_image", "size_bytes", "source"]);
    expected.sort_unstable();
    let mut got = keys(serde_json::to_value(&pulled).expect("JSON"));
    got.sort();
    assert_eq!(got, expected);
    let after = fake.cache().inspect("debian:12-base").expect("inspected");
    assert_eq!(after, pulled.environment);
    assert!(after.installed);
    assert_eq!(after.compatibility, ">=2.0.0,<3.0.0");
    assert_eq!(after.install_manifest, Some(after.install_dir.join("environment.json")));
    assert_eq!(pulled.source, "debian:bookworm");
}

#[test]
fn an_install_is_private_read_only_and_complete() {
    let fake = Fake::new();
    fake.pull();
    let mode = |path: &std::path::Path| fs::metadata(path).expect("exists").permissions().mode() & 0o7777;
    assert_eq!(mode(&fake.base_dir()), 0o700);
    assert_eq!(mode(&fake.cache_dir()), 0o700);
    let mut files: Vec<_> = fs::read_dir(fake.base_dir())
        .expect("listed")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
        .collect();
    files.sort();
    assert_eq!(files, ["environment.json", "modules.cpio", "rootfs.erofs", "vmlinuz"]);
    assert!(files.iter().all(|file| mode(&fake.base_dir().join(file)) == 0o444));
    assert_eq!(fake.partials(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn an_opened_environment_names_its_parts() {
    let fake = Fake::new();
    assert_eq!(
        fake.cache().open("debian:12-base").expect_err("nothing there").kind(),
        ErrorKind::NotInstalled
    );
    assert_eq!(fake.cache().open("x").expect_err("no such").kind(), ErrorKind::UnknownEnvironment);
    fake.pull();
    let opened = fake.cache().open("debian:12-base").expect("installed");
    assert_eq!(opened.rootfs_format.to_string(), "erofs");
    assert_eq!(fs::read_to_string(&opened.rootfs).expect("image"), "content\n");
    assert_eq!(opened.kernel_release, "1.2.3");
    assert!(opened.kernel.is_file() && opened.modules.is_file());
    assert_eq!(opened.digest.len(), 64);
    assert!(opened.packages().any(|package| package == ("bash", "1.0")));
    opened.verify_contents().expect("readable").expect("whole");
}

#[test]
fn what_is_installed_needs_neither_tools_nor_a_mirror() {
    let fake = Fake::new();
    fake.pull();
    let mut tools = fake.tools.clone();
    tools.mmdebstrap = "/nonexistent".into();
    let config = CacheConfig {
        cache_dir: fake.cache_dir(),
        mirror: Some("file:/nowhere".into()),
        search_path: std::env::var_os("PATH").unwrap_or_default(),
    };
    let offline = EnvironmentCache::with_tools(config, tools);
    let (watcher, steps) = Watcher::new();
    offline.pull("debian:12-base", &watcher, &CancelFlag::new()).expect("already there");
    assert_eq!(steps.try_iter().collect::<Vec<_>>(), [PullStep::AlreadyInstalled]);
    offline.open("debian:12-base").expect("installed");
    let error = offline.pull("debian:12", &SilentObserver, &CancelFlag::new()).expect_err("no tool");
    assert_eq!(error.kind(), ErrorKind::ToolMissing);
}

#[test]
fn a_build_reports_its_steps_in_order() {
    let fake = Fake::new();
    let (watcher, steps) = Watcher::new();
    fake.cache().pull("debian:12-base", &watcher, &CancelFlag::new()).expect("pulled");
    let steps: Vec<_> = steps.try_iter().collect();
    assert!(steps.is_sorted() && steps.len() >= 5, "{steps:?}");
    assert_eq!(steps.last(), Some(&PullStep::Installing));
}
