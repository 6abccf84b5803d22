//! Builds from Debian's archive, over the network and with the real tools.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use pyro_env::{CacheConfig, CancelFlag, EnvironmentCache, PullStep, SilentObserver};

use crate::helper::Pull;

fn cache(dir: &Path, mirror: Option<&str>) -> EnvironmentCache {
    EnvironmentCache::new(CacheConfig {
        cache_dir: dir.to_owned(),
        mirror: mirror.map(str::to_owned),
        search_path: std::env::var_os("PATH").unwrap_or_default(),
    })
}

/// Returns the files of a newc archive.
fn cpio_entries(path: &Path) -> Vec<(String, Vec<u8>)> {
    let archive = fs::read(path).expect("archive");
    let mut rest: &[u8] = &archive;
    let mut entries = Vec::new();
    loop {
        let mut reader = cpio::newc::Reader::new(rest).expect("an entry");
        if reader.entry().is_trailer() {
            return entries;
        }
        let name = reader.entry().name().to_owned();
        let mut content = Vec::new();
        reader.read_to_end(&mut content).expect("content");
        rest = reader.finish().expect("whole");
        entries.push((name, content));
    }
}

#[test]
#[ignore = "builds from Debian's archive"]
fn the_base_environment_is_built_verified_and_usable_offline() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let pulled =
        cache(dir.path(), None).pull("debian:12-base", &SilentObserver, &CancelFlag::new()).expect("built");

    let offline = cache(dir.path(), Some("file:/nowhere"));
    assert_eq!(offline.pull("debian:12-base", &SilentObserver, &CancelFlag::new()).expect("there"), pulled);
    let opened = offline.open("debian:12-base").expect("installed");
    opened.verify_contents().expect("readable").expect("as installed");

    let mut magic = [0; 4];
    let mut image = File::open(&opened.rootfs).expect("image");
    std::os::unix::fs::FileExt::read_exact_at(&image, &mut magic, 1024).expect("superblock");
    assert_eq!(u32::from_le_bytes(magic), 0xE0F5_E1E2);
    let size = std::io::Seek::seek(&mut image, std::io::SeekFrom::End(0)).expect("size");
    assert!((50 << 20..250 << 20).contains(&size), "{size}");

    let packages: Vec<&str> = opened.packages().map(|(name, _)| name).collect();
    for wanted in ["apt", "bash", "ca-certificates", "coreutils"] {
        assert!(packages.contains(&wanted), "{wanted}");
    }
    assert!(packages.contains(&format!("linux-image-{}", opened.kernel_release).as_str()));

    let entries = cpio_entries(&opened.modules);
    let (_, order) = entries.last().expect("entries");
    let order = String::from_utf8(order.clone()).expect("text");
    let position = |module: &str| {
        order
            .lines()
            .position(|line| line.ends_with(&format!("-{module}.ko")))
            .unwrap_or_else(|| panic!("{module}"))
    };
    for (first, then) in [
        ("virtio_ring", "virtio_mmio"),
        ("virtio", "virtio_mmio"),
        ("virtio_mmio", "virtio_blk"),
        ("virtio", "virtio_rng"),
        ("failover", "net_failover"),
        ("net_failover", "virtio_net"),
        ("libcrc32c", "erofs"),
    ] {
        assert!(position(first) < position(then), "{first} must come before {then}");
    }
    position("overlay");
    position("virtio_console");
    position("fuse");
    for line in order.lines() {
        let name = format!("lib/modules/pyro/{line}");
        let (_, content) = entries.iter().find(|(entry, _)| *entry == name).expect("listed file exists");
        assert_eq!(content.get(..4), Some(b"\x7fELF".as_slice()));
    }
    drop(opened);
    assert_eq!(offline.prune(&[]).expect("pruned").count, 0);
}

#[test]
#[ignore = "builds from Debian's archive"]
fn a_killed_build_leaves_no_trace_and_two_processes_build_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let platform = dir.path().join("linux-x86_64");
    let mut victim = Pull::start(dir.path(), None, "debian:12-base");
    victim.wait_for(PullStep::InstallingPackages);
    victim.kill();

    let mut first = Pull::start(dir.path(), None, "debian:12-base");
    first.wait_for(PullStep::FetchingIndex);
    let second = Pull::start(dir.path(), None, "debian:12-base");
    first.finish();
    assert_eq!(second.finish(), [PullStep::WaitingForOtherPull.to_string()]);

    let mut left: Vec<_> = fs::read_dir(&platform)
        .expect("listed")
        .map(|entry| entry.expect("entry"))
        .filter(|entry| entry.file_type().expect("type").is_dir())
        .map(|entry| entry.file_name().into_string().expect("UTF-8"))
        .collect();
    left.sort();
    // The killed pull's namespace may have briefly outlived the first pull's sweep; prune removes the rest.
    cache(dir.path(), None).prune(&[]).expect("pruned");
    left.retain(|name| platform.join(name).exists());
    assert_eq!(left, ["debian_12-base-1.2.0"]);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(dir.path().to_str().expect("UTF-8")), "a mount was left behind");
}
