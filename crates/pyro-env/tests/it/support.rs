//! A cache in a temporary directory whose tools are scripts, and an observer that tests can wait on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use pyro_env::{CacheConfig, CancelFlag, EnvironmentCache, PullError, PullObserver, PullStep, Tools};
use pyro_env::{PulledEnvironment, SilentObserver};
use tempfile::TempDir;

/// Longer than anything in these tests takes; reaching it is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const MMDEBSTRAP: &str = r#"#!/bin/sh
set -eu
echo run >>"FAKE/runs"
ls -l /proc/self/fd >"FAKE/descriptors"
for name in net ipc uts; do readlink /proc/self/ns/$name; done >"FAKE/namespaces-mmdebstrap"
grep NoNewPrivs /proc/self/status >>"FAKE/namespaces-mmdebstrap"
echo "I: running apt-get update..." >&2
if [ -e "FAKE/fail" ]; then
	echo "E: Temporary failure resolving 'archive'" >&2
	exit 25
fi
mkdir "$PYRO_WORK/tree"
echo content >"$PYRO_WORK/tree/file"
for package in bash coreutils git gcc make cmake python3 ca-certificates g++ libc6-dev; do
	echo "$package 1.0"
done >"$PYRO_WORK/packages"
: >"$PYRO_WORK/kernel/linux-image.deb"
if [ -p "FAKE/gate" ]; then
	echo "I: downloading packages with apt..." >&2
	read -r _ <"FAKE/gate"
fi
"#;

/// Unpacks a kernel with every module built in.
const DPKG_DEB: &str = r#"#!/bin/sh
set -eu
mkdir -p "$3/boot" "$3/lib/modules/1.2.3/kernel"
head -c 514 /dev/zero >"$3/boot/vmlinuz-1.2.3"
printf HdrS >>"$3/boot/vmlinuz-1.2.3"
for module in virtio_mmio virtio_blk virtio_console virtio-rng virtio_net vmw_vsock_virtio_transport tun overlay libcrc32c erofs fuse; do
	echo "kernel/x/$module.ko"
done >"$3/lib/modules/1.2.3/modules.builtin"
"#;

const MKFS: &str = r#"#!/bin/sh
set -eu
for name in net ipc uts; do readlink /proc/self/ns/$name; done >"FAKE/namespaces-mkfs"
grep NoNewPrivs /proc/self/status >>"FAKE/namespaces-mkfs"
cat "$4/file" >"$3"
"#;

pub(crate) struct Fake {
    dir: TempDir,
    pub(crate) tools: Tools,
}

impl Fake {
    pub(crate) fn new() -> Fake {
        let dir = tempfile::tempdir().expect("temporary directory");
        let script = |name: &str, text: &str| -> PathBuf {
            let path = dir.path().join(name);
            let text = text.replace("FAKE", dir.path().to_str().expect("UTF-8"));
            fs::write(&path, text).expect("script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
            path
        };
        let tools = Tools {
            mmdebstrap: script("mmdebstrap", MMDEBSTRAP),
            dpkg_deb: script("dpkg-deb", DPKG_DEB),
            mkfs_erofs: script("mkfs", MKFS),
            keyring: script("keyring", ""),
            ..Tools::default()
        };
        Fake { dir, tools }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn cache(&self) -> EnvironmentCache {
        let mirror = Some("http://archive.invalid/debian".to_owned());
        EnvironmentCache::with_tools(
            CacheConfig {
                cache_dir: self.cache_dir(),
                mirror,
                search_path: std::env::var_os("PATH").unwrap_or_default(),
            },
            self.tools.clone(),
        )
    }

    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.path().join("cache")
    }

    pub(crate) fn platform_dir(&self) -> PathBuf {
        self.cache_dir().join("linux-x86_64")
    }

    pub(crate) fn base_dir(&self) -> PathBuf {
        self.platform_dir().join("debian_12-base-1.2.0")
    }

    pub(crate) fn pull(&self) -> PulledEnvironment {
        self.cache().pull("debian:12-base", &SilentObserver, &CancelFlag::new()).expect("pulled")
    }

    /// Returns how many builds were started.
    pub(crate) fn runs(&self) -> usize {
        fs::read_to_string(self.path().join("runs")).unwrap_or_default().lines().count()
    }

    /// Returns the descriptors of the last build's main tool, one a line with what each refers to.
    pub(crate) fn descriptors(&self) -> String {
        fs::read_to_string(self.path().join("descriptors")).expect("a build ran")
    }

    /// Returns the network, IPC, and UTS namespaces of a tool of the last build, and whether it can gain privileges, one a line.
    pub(crate) fn namespaces(&self, tool: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path().join(format!("namespaces-{tool}"))).expect("a build ran");
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) fn fail(&self, yes: bool) {
        let path = self.path().join("fail");
        if yes { fs::write(path, "").expect("flag") } else { fs::remove_file(path).expect("flag") }
    }

    /// Makes builds started from now on stop half-way until the gate is opened.
    pub(crate) fn close_gate(&self) {
        let gate = self.path().join("gate");
        rustix::fs::mkfifoat(rustix::fs::CWD, &gate, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .expect("fifo");
    }

    /// Lets one waiting build continue. Call it only when a build is known to get there.
    pub(crate) fn open_gate(&self) {
        fs::write(self.path().join("gate"), "go\n").expect("gate");
    }

    pub(crate) fn partials(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.platform_dir()) else { return Vec::new() };
        entries
            .map(|entry| entry.expect("entry").path())
            .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".partial-")))
            .collect()
    }
}

/// Sends every step to a channel.
pub(crate) struct Watcher(Sender<PullStep>);

impl Watcher {
    pub(crate) fn new() -> (Watcher, Receiver<PullStep>) {
        let (sender, receiver) = mpsc::channel();
        (Watcher(sender), receiver)
    }
}

impl PullObserver for Watcher {
    fn step(&self, step: PullStep) {
        let _ = self.0.send(step);
    }
}

/// Waits until a pull reaches `step`.
pub(crate) fn wait_for(steps: &Receiver<PullStep>, step: PullStep) {
    while steps.recv_timeout(PATIENCE).expect("the step comes") != step {}
}

pub(crate) fn pull_watched(
    cache: &EnvironmentCache,
    watcher: &Watcher,
    cancel: &CancelFlag,
) -> Result<(), PullError> {
    cache.pull("debian:12-base", watcher, cancel).map(drop)
}
