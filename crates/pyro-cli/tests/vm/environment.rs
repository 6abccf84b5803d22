//! Damaged environments, and environments without a network.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::harness::{ENVIRONMENT, PYRO, Running, Sandbox};

/// A cache of the test's own: links to the files of the shared one, which may be replaced but not written to.
struct OwnCache {
    _directory: TempDir,
    cache: PathBuf,
    environment: PathBuf,
}

impl OwnCache {
    fn new() -> Self {
        let shared = Sandbox::new();
        let inspected = shared.pyro(["env", "inspect", ENVIRONMENT, "--json"]).json();
        let installed = PathBuf::from(inspected["install_dir"].as_str().unwrap());
        let platform = installed.parent().unwrap();
        // Next to the shared cache, because a hard link cannot lead to another filesystem.
        let directory =
            TempDir::with_prefix_in(".test-", platform.parent().unwrap().parent().unwrap()).unwrap();
        let cache = directory.path().join("cache");
        let environment = cache.join(platform.file_name().unwrap()).join(installed.file_name().unwrap());
        fs::create_dir_all(&environment).unwrap();
        fs::set_permissions(&environment, fs::Permissions::from_mode(0o700)).unwrap();
        for entry in fs::read_dir(&installed).unwrap() {
            let entry = entry.unwrap();
            fs::hard_link(entry.path(), environment.join(entry.file_name())).unwrap();
        }
        Self { _directory: directory, cache, environment }
    }

    fn replace(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::remove_file(self.environment.join(name)).unwrap();
        fs::write(self.environment.join(name), content).unwrap();
    }

    fn sandbox(&self) -> Sandbox {
        // No mirror answers, so nothing is repaired by installing it again.
        Sandbox::with_cache(&self.cache).set("PYRO_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    }

    fn error(&self) -> String {
        let ended = self.sandbox().run([], "echo never");
        let error = ended.error();
        assert!(error.contains("environment 'debian:12' is damaged"), "{error}");
        assert!(error.contains("pyro env pull debian:12"), "the command that mends it: {error}");
        assert_eq!(ended.text(), "");
        error.to_owned()
    }
}

fn beginning(path: &Path) -> Vec<u8> {
    let mut content = fs::read(path).unwrap();
    content.truncate(content.len() / 2);
    content
}

#[test]
fn an_intact_copy_of_an_environment_works() {
    assert_eq!(OwnCache::new().sandbox().run([], "echo intact").success(), "intact\n");
}

#[test]
fn a_truncated_image_is_reported() {
    let cache = OwnCache::new();
    let half = beginning(&cache.environment.join("rootfs.erofs"));
    cache.replace("rootfs.erofs", half);
    let error = cache.error();
    assert!(error.contains("rootfs.erofs has "), "{error}");
}

#[test]
fn a_changed_or_missing_kernel_is_reported() {
    let cache = OwnCache::new();
    let kernel = fs::read(cache.environment.join("vmlinuz")).unwrap();
    cache.replace("vmlinuz", kernel);
    let error = cache.error();
    assert!(error.contains("vmlinuz was changed after it was installed"), "{error}");
    fs::remove_file(cache.environment.join("vmlinuz")).unwrap();
    let error = cache.error();
    assert!(error.contains("vmlinuz is missing"), "{error}");
}

#[test]
fn a_damaged_manifest_is_reported() {
    let cache = OwnCache::new();
    for content in ["", "{", "[]", "{\"name\": 1}", "\u{0}\u{1}\u{2}"] {
        cache.replace("environment.json", content);
        let error = cache.error();
        assert!(error.contains("environment.json is not a manifest"), "{error}");
    }
}

#[test]
fn an_installed_environment_needs_no_network() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.program("unshare");
    let rootless = !rustix::process::geteuid().is_root();
    command.args(rootless.then_some("--map-root-user")).args(["--net", PYRO]);
    command.args(["run", ENVIRONMENT, "--", "echo offline; git --version"]);
    let ended = Running::start(&mut command).finish();
    assert!(ended.success().starts_with("offline\ngit version "), "{ended:?}");
}

/// The other environments are tried with `docs/commands.md`.
#[test]
fn the_small_tools_of_the_environment_work() {
    let sandbox = Sandbox::new();
    let commands = "curl --version; file --version; less --version; patch --version; ps -o comm= $$; xz --version; \
                    unzip -v; perl -e 'print 1'; git --version; bash --version";
    let tools = commands.split("; ").map(|line| format!("{line} > /dev/null || echo {line}\n"));
    let certificates = "awk 1 /etc/ssl/certs/ca-certificates.crt | grep -c 'BEGIN CERTIFICATE'\n";
    let script: String = tools.chain([certificates.to_owned()]).collect();
    let ended = sandbox.run(["--timeout-seconds", "60"], &script);
    let authorities: u32 = ended.success().trim().parse().unwrap();
    assert!(authorities > 100, "{ended:?}");
}

/// Its supervisor marks the environment as in use: the process that created the task is gone.
#[test]
fn a_damaged_environment_is_not_removed_while_a_task_runs_from_it() {
    let own = OwnCache::new();
    let sandbox = own.sandbox();
    let task = sandbox.task([]);
    own.replace("environment.json", "{ broken");
    let count = || sandbox.pyro(["env", "prune", "--json"]).json()["count"].clone();
    assert_eq!(count(), 0);
    assert!(own.environment.join("environment.json").exists());
    assert_eq!(task.exec([], "cat /etc/debian_version | wc -l").success(), "1\n");
    task.call("stop", []).success();
    assert_eq!(count(), 1);
    assert!(!own.environment.exists());
    task.delete();
}
