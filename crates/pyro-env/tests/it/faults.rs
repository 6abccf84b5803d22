//! Builds that fail, are cancelled or killed, or run in parallel.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::thread;

use pyro_env::{CancelFlag, EnvironmentCache, ErrorKind, PullError, PullStep, Remedy, SilentObserver};

use crate::helper;
use crate::support::{Fake, Watcher, pull_watched, wait_for};

#[test]
fn a_failing_tool_leaves_its_last_words_and_nothing_else() {
    let fake = Fake::new();
    fake.fail(true);
    let error =
        fake.cache().pull("debian:12-base", &SilentObserver, &CancelFlag::new()).expect_err("the tool fails");
    assert_eq!(error.kind(), ErrorKind::BuildFailed);
    assert_eq!(
        error.to_string(),
        "mmdebstrap failed with exit status 25\n  I: running apt-get update...\n  \
         E: Temporary failure resolving 'archive'"
    );
    assert_eq!(error.remedy(), Some(Remedy::CheckNetworkOrMirror));
    assert!(fake.partials().is_empty());
    fake.fail(false);
    fake.pull();
}

#[test]
fn a_tool_inherits_no_descriptor_of_this_process() {
    let fake = Fake::new();
    let secret = fake.path().join("secret");
    // `dup` does not set close-on-exec.
    let _leaky = rustix::io::dup(File::create(&secret).expect("created")).expect("duplicated");
    fake.pull();
    let descriptors = fake.descriptors();
    assert!(!descriptors.contains("secret"), "{descriptors}");
    assert!(descriptors.contains("lock"), "the standard input is the lease: {descriptors}");
}

#[test]
fn a_tool_gains_no_privileges_and_only_the_download_has_the_hosts_network() {
    let fake = Fake::new();
    fake.pull();
    let own = ["net", "ipc", "uts"].map(|name| {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).expect("a namespace");
        link.to_str().expect("UTF-8").to_owned()
    });
    for (tool, has_network) in [("mmdebstrap", true), ("mkfs", false)] {
        let found = fake.namespaces(tool);
        assert_eq!(found[0] == own[0], has_network, "{tool}: {found:?}");
        assert!(found[1] != own[1] && found[2] != own[2], "{tool}: {found:?}");
        assert_eq!(found[3], "NoNewPrivs:\t1", "{tool}");
    }
}

#[test]
fn a_missing_tool_is_named_with_its_package() {
    let mut fake = Fake::new();
    fake.tools.mkfs_erofs = "no-such-program".into();
    let error = fake.cache().pull("debian:12", &SilentObserver, &CancelFlag::new()).expect_err("missing");
    assert!(matches!(&error, PullError::ToolMissing { tool, .. } if tool == "no-such-program"));
    assert_eq!(error.remedy(), Some(Remedy::InstallPackage { package: "erofs-utils" }));
    assert!(!fake.cache_dir().exists());
}

#[test]
fn nothing_is_built_where_other_users_could_change_it() {
    let fake = Fake::new();
    let cache_dir = fake.cache_dir();
    fs::create_dir_all(&cache_dir).expect("created");
    fs::set_permissions(&cache_dir, Permissions::from_mode(0o777)).expect("permitted");
    let error =
        fake.cache().pull("debian:12-base", &SilentObserver, &CancelFlag::new()).expect_err("not private");
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    let path = cache_dir.canonicalize().expect("exists");
    assert_eq!(error.remedy(), Some(Remedy::ProtectFromOthers { path }));
    assert!(!fake.path().join("runs").exists(), "no tool was started");
    fs::set_permissions(&cache_dir, Permissions::from_mode(0o755)).expect("permitted");
    fake.pull();
}

#[test]
fn a_cancelled_build_stops_at_once_and_leaves_nothing() {
    let fake = Fake::new();
    fake.close_gate();
    let (cache, cancel) = (fake.cache(), CancelFlag::new());
    let (watcher, steps) = Watcher::new();
    thread::scope(|scope| {
        let pull = scope.spawn(|| pull_watched(&cache, &watcher, &cancel));
        wait_for(&steps, PullStep::DownloadingPackages);
        cancel.cancel();
        let error = pull.join().expect("no panic").expect_err("cancelled");
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    });
    assert!(fake.partials().is_empty());
    assert!(!fake.base_dir().exists());
}

#[test]
fn parallel_pulls_build_once() {
    let fake = Fake::new();
    fake.close_gate();
    let (cache, cancel) = (fake.cache(), CancelFlag::new());
    let (first, first_steps) = Watcher::new();
    let (second, second_steps) = Watcher::new();
    thread::scope(|scope| {
        let winner = scope.spawn(|| pull_watched(&cache, &first, &cancel));
        wait_for(&first_steps, PullStep::DownloadingPackages);
        let loser = scope.spawn(|| pull_watched(&cache, &second, &cancel));
        wait_for(&second_steps, PullStep::WaitingForOtherPull);
        assert_eq!(cache.prune(&[]).expect("pruned").count, 0, "prune must not take a live build");
        fake.open_gate();
        winner.join().expect("no panic").expect("built");
        loser.join().expect("no panic").expect("has the winner's result");
    });
    assert_eq!(fake.runs(), 1);
}

#[test]
fn a_waiting_pull_can_be_cancelled_and_the_other_goes_on() {
    let fake = Fake::new();
    fake.close_gate();
    let (cache, go_on, give_up) = (fake.cache(), CancelFlag::new(), CancelFlag::new());
    let (first, first_steps) = Watcher::new();
    let (second, second_steps) = Watcher::new();
    thread::scope(|scope| {
        let winner = scope.spawn(|| pull_watched(&cache, &first, &go_on));
        wait_for(&first_steps, PullStep::DownloadingPackages);
        let loser = scope.spawn(|| pull_watched(&cache, &second, &give_up));
        wait_for(&second_steps, PullStep::WaitingForOtherPull);
        give_up.cancel();
        assert!(matches!(loser.join().expect("no panic"), Err(PullError::Cancelled)));
        fake.open_gate();
        winner.join().expect("no panic").expect("built");
    });
}

#[test]
fn a_failed_winner_hands_over_to_the_next() {
    let fake = Fake::new();
    fake.close_gate();
    let (cache, give_up, go_on) = (fake.cache(), CancelFlag::new(), CancelFlag::new());
    let (first, first_steps) = Watcher::new();
    let (second, second_steps) = Watcher::new();
    thread::scope(|scope| {
        let winner = scope.spawn(|| pull_watched(&cache, &first, &give_up));
        wait_for(&first_steps, PullStep::DownloadingPackages);
        let heir = scope.spawn(|| pull_watched(&cache, &second, &go_on));
        wait_for(&second_steps, PullStep::WaitingForOtherPull);
        give_up.cancel();
        winner.join().expect("no panic").expect_err("cancelled");
        wait_for(&second_steps, PullStep::DownloadingPackages);
        fake.open_gate();
        heir.join().expect("no panic").expect("built");
    });
    assert_eq!(fake.runs(), 2);
}

/// Kills a pulling process in the middle of a build and waits until the kernel has ended the build's processes.
fn kill_in_the_middle(fake: &Fake) {
    let mut child = helper::Pull::start(&fake.cache_dir(), Some(&fake.tools), "debian:12-base");
    child.wait_for(PullStep::DownloadingPackages);
    child.kill();
    let partials = fake.partials();
    assert_eq!(partials.len(), 1);
    // The build's processes hold this lock.
    File::open(partials[0].join("lock")).expect("lock file").lock().expect("free in the end");
}

#[test]
fn a_killed_build_is_removed_by_prune() {
    let fake = Fake::new();
    fake.close_gate();
    kill_in_the_middle(&fake);
    let partials = fake.partials();
    let deleted = fake.cache().prune(&[]).expect("pruned").deleted_environment_dirs;
    assert_eq!(deleted, [partials[0].file_name().and_then(|name| name.to_str()).expect("name")]);
    assert!(fake.partials().is_empty());
}

#[test]
fn a_killed_build_is_removed_by_the_next_pull() {
    let fake = Fake::new();
    fake.close_gate();
    kill_in_the_middle(&fake);
    std::fs::remove_file(fake.path().join("gate")).expect("gate");
    fake.pull();
    assert!(fake.partials().is_empty());
}

#[test]
fn an_unusable_cache_directory_is_refused_before_anything_is_built() {
    let fake = Fake::new();
    let config = pyro_env::CacheConfig {
        cache_dir: fake.path().join("a b"),
        mirror: None,
        search_path: std::env::var_os("PATH").unwrap_or_default(),
    };
    let cache = EnvironmentCache::with_tools(config, fake.tools.clone());
    let error = cache.pull("debian:12", &SilentObserver, &CancelFlag::new()).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert_eq!(fake.runs(), 0);
}
